"""Samples that another program draws: a small server with vLLM's endpoints, which runs the model itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, adapter_note, cli, plan_of, read_lines, training_of
from small_vllm import SmallVllm, serving

from tunewright.core import records
from tunewright.core.config import AdapterConfig, MethodOptions, Plan, load
from tunewright.core.errors import ConfigError, TrainError
from tunewright.core.records import ROLLOUT
from tunewright.core.run_folder import Run
from tunewright.data.endpoints import token_sampler
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.data.graders import graders
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.task import REWARDS, Task
from tunewright.methods import METHODS
from tunewright.model import adapters, loading, peft_format
from tunewright.model.decoding.generate import Decoding
from tunewright.model.decoding.outside import Outside
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.grading import rollouts as of_run
from tunewright.tokens.template import Template, load_template
from tunewright.train import loop
from tunewright.train.sampling.rollouts import CAP, Rollouts

Folder = Callable[[str], Path]
CHATS = [
    Chat((Message("user", f"letter {n}, please"), Message("assistant", "")), f"x:{n}", item={"n": n}) for n in range(8)
]
GRADER = {
    "type": "python",
    "source": "import zlib\ndef grade(sample, item):\n    return zlib.crc32(repr((sample, item)).encode()) % 97 / 97\n",
}


@pytest.fixture(scope="module")
def small(model_folder: Folder) -> SmallVllm:
    return SmallVllm(model_folder("llama"))


@pytest.fixture(scope="module")
def url(small: SmallVllm) -> Iterator[str]:
    with serving(small) as served:
        yield f"{served}/v1"


@pytest.fixture(autouse=True)
def _as_new(small: SmallVllm) -> Iterator[None]:
    yield
    small.mistaken, small.ids = 1.0, True
    small.adapters.clear()
    small.seen.clear()


@pytest.fixture(scope="module")
def template(model_folder: Folder) -> Template:
    return load_template(model_folder("llama"), None, "auto")


def model(folder: Path, moved: float = 0.0) -> LanguageModel:
    lm = loading.load(folder, torch.float32)
    adapters.attach(lm.module, LORA, 3)
    with torch.no_grad():
        for n, p in enumerate(adapters.trainable(lm.module).values()):
            p.add_(moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))
    return lm


def plan(**more: Any) -> Plan:
    options = MethodOptions(num_generations=4, **more.pop("options", {}))
    given = {"method": "grpo", "layout": "shared", "steps": 4, "batch_size": 2, "max_new_tokens": 5, "lr": 3e-2}
    return plan_of(**{**given, "options": options, "rows": 8, "decode_batch_size": 8, "threads": 1, **more})


def rollouts(url: str, template: Template, folder: Path, notes: Callable[[str], None] = lambda _: None) -> Rollouts:
    task = Task(REWARDS, METRICS["reward"], "", grader=graders.of(GRADER, "reward.grader"))
    endpoint = Endpoint(url, token_sampler.base_of(Endpoint(url, "")))
    by = Outside(endpoint, LORA, adapter_note("b"), folder)
    return Rollouts(template, CHATS, task, Decoding(5, (256,), batch_size=8), folder, notes, outside=by)


def rows(template: Template) -> list[Any]:
    return [METHODS["grpo"].prepare(template, chat, n, None)[0] for n, chat in enumerate(CHATS)]


def test_samples_come_from_the_adapter_as_it_is(
    small: SmallVllm, url: str, template: Template, model_folder: Folder, tmp_path: Path
) -> None:
    lm, asked, given = model(model_folder("llama"), 0.1), plan(), rows(template)
    drawn = rollouts(url, template, tmp_path)
    done = [r for r in drawn.sampled(lm, given, asked, 0) if "old_M" in r.signal]
    start, *lines = records.read_lines(tmp_path / "step-000001.jsonl", ROLLOUT)
    assert start.mismatch < 1e-3  # type: ignore[union-attr]
    assert {body["model"].startswith("tunewright-") for body in small.seen} == {True}
    assert len({json.dumps(body["prompt"]) for body in small.seen}) == 2
    assert len({body["seed"] for body in small.seen}) == 8
    assert {body["temperature"] for body in small.seen} == {1.0}
    assert not small.adapters, "what was drawn with is unloaded"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001.jsonl"], "and deleted"
    weight_M = np.concatenate([r.signal["weight_M"] for r in done])
    assert np.allclose(weight_M, 1, atol=1e-3), "the same model in the same precision"
    for line in lines:
        assert line.ids[-1] == 256 or len(line.ids) == 5  # type: ignore[union-attr]
    first = {body["model"] for body in small.seen}
    lm = model(model_folder("llama"), 0.2)
    drawn.sampled(lm, given, asked, 0)
    assert {body["model"] for body in small.seen} - first, "other weights, another name"


def test_a_run_reads_its_samples_back(
    small: SmallVllm, url: str, template: Template, model_folder: Folder, tmp_path: Path
) -> None:
    def trained(folder: Path) -> tuple[list[torch.Tensor], list[Any]]:
        lm, folder_of = model(model_folder("llama")), folder / "rollouts"
        given = rows(template)
        training = training_of(lm.module, plan(eval_every=9), given[:6], [], Run(folder))
        training = dataclasses.replace(training, model=lm, rollouts=rollouts(url, template, folder_of))
        loop.train(loop.with_precomputed(training))
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder, "metrics")]
        return [p.detach().clone() for p in adapters.trainable(lm.module).values()], lines

    (tmp_path / "one").mkdir()
    first, lines = trained(tmp_path / "one")
    assert len(small.seen) == 4 * 2 * 4
    assert len({body["model"] for body in small.seen}) == 4, "a name for each step"
    assert all(line["metrics"]["mismatch"] < 1e-3 for line in lines)
    for kept in (tmp_path / "one" / "rollouts").iterdir():
        (tmp_path / "two" / "rollouts").mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / "rollouts" / kept.name).write_bytes(kept.read_bytes())
    small.seen.clear()
    second, again = trained(tmp_path / "two")
    assert not small.seen
    assert again == lines
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_model_behind_the_address_is_a_mismatch(
    small: SmallVllm, url: str, template: Template, model_folder: Folder, tmp_path: Path
) -> None:
    small.mistaken = 1e-3  # as if it ignored adapters
    with pytest.raises(TrainError, match=r"ROLLOUT_MISMATCH.*serve the base of the run"):
        rollouts(url, template, tmp_path).sampled(model(model_folder("llama"), 0.3), rows(template), plan(), 0)
    assert not list(tmp_path.iterdir())


def test_weights_are_those_of_truncated_importance_sampling(
    small: SmallVllm, url: str, template: Template, model_folder: Folder, tmp_path: Path
) -> None:
    """A sampler that is a little off: each token weighs as much more as it is more probable here, at most `CAP`."""
    small.mistaken = 0.97
    drawn = rollouts(url, template, tmp_path)
    done = drawn.sampled(model(model_folder("llama"), 0.1), rows(template), plan(), 0)
    _, *lines = records.read_lines(tmp_path / "step-000001.jsonl", ROLLOUT)
    for row in (r for r in done if "weight_M" in r.signal):
        own = [x for x in lines if x.row == row.row]  # type: ignore[union-attr]
        there = np.concatenate([x.logp for x in own])  # type: ignore[union-attr]
        here = np.concatenate([x.old_logp or x.logp for x in own])  # type: ignore[union-attr]
        assert np.allclose(row.signal["weight_M"], np.minimum(np.exp(here - there), CAP))
        assert (row.signal["weight_M"] != 1).any()


def test_an_endpoint_without_token_ids_is_refused(
    small: SmallVllm, url: str, template: Template, model_folder: Folder, tmp_path: Path
) -> None:
    small.ids = False
    with pytest.raises(TrainError, match=r"ROLLOUT_FAILED.*no token ids.*vLLM 0.11 or newer"):
        rollouts(url, template, tmp_path).sampled(model(model_folder("llama")), rows(template), plan(), 0)


def test_a_server_that_is_away_or_cannot_load_adapters(
    small: SmallVllm, url: str, template: Template, model_folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=r"ROLLOUT_FAILED.*cannot be asked"):
        token_sampler.base_of(Endpoint("http://127.0.0.1:9/v1", ""))
    drawn, lm = rollouts(url, template, tmp_path), model(model_folder("llama"))
    small.rank = 2
    with pytest.raises(TrainError, match=r"ROLLOUT_FAILED.*max_lora_rank 2.*--enable-lora"):
        drawn.sampled(lm, rows(template), plan(), 0)
    small.rank = 64
    assert not list(tmp_path.iterdir()), "nothing is left"
    drawn.sampled(lm, rows(template), plan(), 0)


@pytest.mark.parametrize(
    "settings",
    [
        ["adapter.kind=dora"],
        ["adapter.kind=none"],
        ["adapter.rank_pattern={q_proj: 2}"],
        ["train.temperature=0.7"],
        ["train.loss_type=rloo"],
        ["train.method=sft"],
    ],
)
def test_what_it_cannot_draw_is_refused(settings: list[str]) -> None:
    given = ["train.method=grpo", "reward.grader={type: a}", "reward.sampler.url=http://host/v1"]
    if "train.method=sft" in settings:
        given.remove("reward.grader={type: a}")
    load(None, ["train.method=grpo", "reward.grader={type: a}", "reward.sampler.url=http://host/v1"])
    with pytest.raises(ConfigError, match="CONFIG_CONFLICT"):
        load(None, [*given, *settings])


def test_a_key_without_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"CONFIG_CONFLICT.*reward\.sampler\.url"):
        load(None, ["train.method=grpo", "reward.grader={type: a}", "reward.sampler.api_key_env=K"])


@pytest.mark.parametrize(
    ("given", "why"), [({"kind": "dora"}, "is dora"), ({"rank_pattern": {"q_proj": 2}}, "several ranks")]
)
def test_an_adapter_to_continue_from_that_it_cannot_load_is_refused_before_it_is_asked(
    given: dict[str, Any], why: str, model_folder: Folder, tmp_path: Path
) -> None:
    lm, config = loading.load(model_folder("llama"), torch.float32), AdapterConfig(rank=4, alpha=8.0, **given)
    adapters.attach(lm.module, config, 3)
    peft_format.save(lm.module, config, tmp_path / "start", "b", adapter_note("b"))
    words = ["train.method=grpo", "reward.grader={type: a}", "reward.sampler.url=http://127.0.0.1:9/v1"]
    with pytest.raises(ConfigError, match=rf"CONFIG_CONFLICT.*adapter\.start.*{why}"):
        of_run.require_sampler(load(None, [*words, f"adapter.start={tmp_path / 'start'}"]))
    with pytest.raises(TrainError, match=r"ROLLOUT_FAILED"):
        of_run.require_sampler(load(None, words))
    of_run.require_sampler(load(None, words[:2]))


def test_a_run_asks_it_first_and_its_name_is_not_taken_by_the_attempt(tmp_path: Path, model_folder: Folder) -> None:
    """The next attempt may have other settings: nothing depended on the old ones."""
    rows_file, folder = tmp_path / "rows.jsonl", tmp_path / "runs" / "r"
    rows_file.write_text("".join(json.dumps({"prompt": f"say {n * 37} twice"}) + "\n" for n in range(60)))
    grader = "reward.grader={type: string_check, input: '{{sample.output_text}}', reference: a, operation: eq}"
    words = ["plan", "rows.jsonl", "--name", "r", "--model", str(model_folder("llama")), "train.method=grpo", grader]
    for port in (9, 11):
        done = cli(*words, f"reward.sampler.url=http://127.0.0.1:{port}/v1", cwd=tmp_path)
        assert (done.returncode, "ROLLOUT_FAILED" in done.stderr) == (1, True), done.stderr
        assert f"127.0.0.1:{port}" in (folder / "config.yaml").read_text()
        assert not list(folder.glob("data/tokens/*")), "before the rows are rendered"
    (folder / "plan.json").touch()
    assert "RUN_EXISTS" in cli(*words, cwd=tmp_path).stderr
