"""Rollouts: sampled once, read back by a run that was killed, and never those of another model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, byte_tokenizer, plan_of, read_lines, tiny_model, training_of
from endpoints import endpoint

from tunewright.core import records
from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import ConfigError, TrainError
from tunewright.core.records import ROLLOUT, StepLine
from tunewright.core.run_folder import Run
from tunewright.data.graders import graders
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.task import REWARDS, Task
from tunewright.methods import METHODS
from tunewright.model import adapters, forward
from tunewright.model.decoding.generate import Decoding
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.template import Template
from tunewright.train import loop
from tunewright.train.sampling.preflight import preflight
from tunewright.train.sampling.rollouts import Rollouts

TEMPLATE = Template(byte_tokenizer())
# One of the 95 printable characters: an answer that begins with a lower-case letter is worth 1, with another half.
FIRST = "t = sample['output_text'][:1]\n    return 1.0 if t.islower() else 0.5 if t.isalpha() else 0.0"


def python(body: str) -> dict[str, Any]:
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}\n"}


CHATS = [
    Chat((Message("user", f"letter {n}, please"), Message("assistant", "")), f"x:{n}", item={"n": n}) for n in range(12)
]
ROWS = [METHODS["grpo"].prepare(TEMPLATE, chat, n, None)[0] for n, chat in enumerate(CHATS)]


def plan(**more: Any) -> Plan:
    names = {"count": "num_generations", "temperature": "temperature", "kl": "kl_weight", "updates": "num_iterations"}
    given = {name: more.pop(short) for short, name in names.items() if short in more}
    options = MethodOptions(**{"num_generations": 4, **given})
    given = {"method": "grpo", "layout": "shared", "steps": 6, "batch_size": 3, "max_new_tokens": 5, "lr": 3e-2}
    return plan_of(
        **{**given, "checkpoint_every": 2, "options": options, "rows": 8, "decode_batch_size": 8, "threads": 1, **more}
    )


def rollouts(
    folder: Path, body: str | dict[str, Any] = FIRST, notes: Callable[[str], None] = lambda _: None
) -> Rollouts:
    grader = graders.of(python(body) if isinstance(body, str) else body, "reward.grader")
    task = Task(REWARDS, METRICS["reward"], "", grader=graders.stored_in(grader, folder / "grades.jsonl"))
    return Rollouts(TEMPLATE, CHATS, task, Decoding(5, (256,), batch_size=8), folder, notes)


def model(seed: int = 0) -> LanguageModel:
    module = tiny_model(vocabulary=300, seed=seed)
    adapters.attach(module, LORA, 3)
    return LanguageModel(module, plain_head=True)


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process, unlike a machine without power, loses nothing that was written."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def trained(
    folder: Path, stop: str = "", body: str | dict[str, Any] = FIRST, **more: Any
) -> tuple[list[torch.Tensor], list[Any]]:
    """Weights and metrics of a run; killed before the event ``stop`` if that is given."""
    run, lm = Run(folder), model()
    folder.mkdir(exist_ok=True)
    events: list[str] = []

    def at(event: str) -> None:
        events.append(event)
        if event == stop:
            raise Killed

    drawn = rollouts(folder / "rollouts", body)

    class Watched(Rollouts):
        def sampled(self, lm: Any, rows: Any, asked: Any, step: int) -> Any:
            at(f"before sampling {step}")
            done = super().sampled(lm, rows, asked, step)
            at(f"after sampling {step}")
            return done

    fields = {f.name: getattr(drawn, f.name) for f in dataclasses.fields(drawn)}
    given = training_of(lm.module, plan(**more), ROWS[:8], ROWS[8:], run)
    training = dataclasses.replace(given, rollouts=Watched(**fields))

    def progress(line: StepLine) -> None:
        at(f"after step {line.step - 1}")
        if stop == f"interrupt {line.step - 1}":
            signal.raise_signal(signal.SIGTERM)

    loop.train(loop.with_precomputed(training), progress)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder, "metrics")]
    return [p.detach().clone() for p in adapters.trainable(lm.module).values()], lines


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "rollouts").iterdir())}


def test_a_killed_run_ends_bit_for_bit_as_another(tmp_path: Path) -> None:
    """Even with rewards that are drawn by lot: a run that was killed does not ask for them again."""
    lot = "import random\n    return random.random()"
    weights, lines = trained(tmp_path / "straight", body=lot)
    assert lines[1]["metrics"]["mismatch"] < 1e-4
    assert lines[1]["metrics"]["flat_groups"] == 0
    straight = files(tmp_path / "straight")
    dev = [f"dev-{n:06d}.jsonl" for n in (0, 2, 4, 6)]
    assert list(straight) == [*dev, *(f"step-{n:06d}.jsonl" for n in range(1, 7))]
    for stop in ("after step 0", "after sampling 2", "after step 3", "before sampling 5"):
        folder = tmp_path / stop.replace(" ", "-")
        folder.mkdir()
        for name, content in straight.items():  # what was drawn before: the lot cannot be drawn again
            (folder / "rollouts").mkdir(exist_ok=True)
            (folder / "rollouts" / name).write_bytes(content)
        with pytest.raises(Killed):
            trained(folder, stop, body=lot)
        again, lines_again = trained(folder, body=lot)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines
        assert files(folder) == straight


def test_without_its_files_a_killed_run_draws_the_same_samples(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "straight")
    for stop in ("after sampling 0", "after step 2", "before sampling 4"):
        folder = tmp_path / stop.replace(" ", "-")
        with pytest.raises(Killed):
            trained(folder, stop)
        again, lines_again = trained(folder)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines
        assert files(folder) == files(tmp_path / "straight")


def test_a_known_answer_is_learned(tmp_path: Path) -> None:
    """A bandit: whatever the prompt, the first character decides."""
    _, lines = trained(tmp_path, steps=60, eval_every=20, checkpoint_every=60, count=8, lr=3e-2, patience=0)
    before, after = lines[0]["dev_loss"], lines[-1]["dev_loss"]
    assert after == -1.0, (before, after)
    assert lines[-1]["metrics"]["reward"] > lines[1]["metrics"]["reward"] + 0.2


def test_samples_of_other_weights_are_not_used(tmp_path: Path) -> None:
    notes: list[str] = []
    drawn, asked = rollouts(tmp_path / "rollouts", notes=notes.append), plan()
    first = drawn.sampled(model(), ROWS, asked, 0)
    assert drawn.sampled(model(), ROWS, asked, 0) is not first
    assert not notes
    moved = model()
    with torch.no_grad():
        next(iter(adapters.trainable(moved.module).values())).add_(1e-3)
    drawn.sampled(moved, ROWS, asked, 0)
    assert "another model" in notes[0]
    for other in (plan(temperature=0.7), plan(seed=4), plan(count=5)):
        notes.clear()
        drawn.sampled(moved, ROWS, other, 0)
        assert notes or other.options.num_generations == 5
    notes.clear()
    rollouts(tmp_path / "rollouts", "return 0.5", notes.append).sampled(moved, ROWS, plan(count=5), 0)
    assert notes, "another grader"


def test_a_file_that_ends_early_is_drawn_again(tmp_path: Path) -> None:
    drawn, asked = rollouts(tmp_path / "rollouts"), plan()
    drawn.sampled(model(), ROWS, asked, 0)
    (file,) = (tmp_path / "rollouts").iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"\n".join(whole.split(b"\n")[:5]) + b"\n")
    drawn.sampled(model(), ROWS, asked, 0)
    assert file.read_bytes() == whole


def test_the_samples_are_trained_on_as_they_were_drawn(tmp_path: Path) -> None:
    """Tokens in, tokens out: nothing is rendered again, the stop token counts, and graders read no special token."""
    drawn, asked = rollouts(tmp_path / "rollouts"), plan()
    rows = drawn.sampled(model(), ROWS, asked, 0)
    start, *lines = records.read_lines(tmp_path / "rollouts" / "step-000001.jsonl", ROLLOUT)
    chosen = list(start.rows)  # type: ignore[union-attr]
    assert [row.row for row in rows if "advantage_S" in row.signal] == sorted(chosen)
    for n, i in enumerate(chosen):
        own = lines[n * 4 : n * 4 + 4]
        prompt = ROWS[i].sequences[0].ids[:-1]
        for line, sequence in zip(own, rows[i].sequences, strict=True):
            assert sequence.ids == (*prompt, *line.ids)  # type: ignore[union-attr]
            assert sequence.weights == (*[0.0] * len(prompt), *[1.0] * len(line.ids))  # type: ignore[union-attr]
            assert "<|im_" not in line.text  # type: ignore[union-attr]
            assert line.text == TEMPLATE.tokenizer.decode(line.ids, skip_special_tokens=True)  # type: ignore[union-attr]


def test_graders_that_fail_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"REWARD_FAILED.*12 of 12 answers, first with: ZeroDivisionError"):
        rollouts(tmp_path / "rollouts", "return 1 / 0").sampled(model(), ROWS, plan(), 0)
    assert not (tmp_path / "rollouts").exists(), "nothing is kept that could be trained on"


def test_samples_of_another_computation_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logp = forward.logp
    monkeypatch.setattr(forward, "logp", lambda *given, **more: logp(*given, **{**more, "temperature": 1.1}))
    with pytest.raises(TrainError, match="ROLLOUT_MISMATCH"):
        rollouts(tmp_path / "rollouts").sampled(model(), ROWS, plan(), 0)


# -- several updates for a rollout, and the reference


def test_several_updates_have_the_same_samples(tmp_path: Path) -> None:
    _, lines = trained(tmp_path, updates=3, kl=0.1, steps=7, checkpoint_every=3)
    assert [name for name in files(tmp_path) if "step" in name] == [f"step-{n:06d}.jsonl" for n in (1, 4, 7)]
    steps = [line for line in lines if "loss" in line]
    rewards = [line["metrics"]["reward"] for line in steps]
    assert rewards[0] == rewards[1] == rewards[2] != rewards[3] == rewards[4] == rewards[5] != rewards[6]
    assert steps[0]["metrics"]["kl"] == 0, "the untrained model is the reference, in the very passes of training"
    assert all(line["metrics"]["kl"] > 0 for line in steps[1:])
    assert [line["metrics"]["clipped"] for line in steps[::3]] == [0, 0, 0], "the first update's ratios are 1"
    assert any(line["metrics"]["clipped"] > 0 for line in steps), "at this rate"


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_stored_logps_are_those_of_the_models(tmp_path: Path, layout: str) -> None:
    asked, lm = plan(updates=2, kl=0.1, layout=layout, tokens_per_pass=64), model()
    with torch.no_grad():
        for p in adapters.trainable(lm.module).values():
            p.add_(0.05)
    rows = rollouts(tmp_path).sampled(lm, ROWS, asked, 0)
    for row in rows:
        if "advantage_S" not in row.signal:
            continue
        for name in ("old_M", "reference_M"):
            with adapters.off(lm.module) if name == "reference_M" else contextlib.nullcontext():
                alone = [forward.logp(lm, to_microbatch([s], "packed")).detach().numpy() for s in row.sequences]
            assert np.allclose(row.signal[name], np.concatenate(alone), atol=1e-4)


def test_the_reference_is_the_adapter_that_training_started_from(tmp_path: Path) -> None:
    asked, lm = plan(kl=0.1), model()
    with torch.no_grad():
        for p in adapters.trainable(lm.module).values():
            p.add_(0.05)
    start = {name: t.detach().clone() for name, t in adapters.update_tensors(lm.module).items()}
    drawn = dataclasses.replace(rollouts(tmp_path), start=start)
    (first, *_) = [r for r in drawn.sampled(lm, ROWS, asked, 0) if "reference_M" in r.signal]
    own = np.concatenate([forward.logp(lm, to_microbatch([s], "packed")).detach().numpy() for s in first.sequences])
    assert np.allclose(first.signal["reference_M"], own, atol=1e-4)
    with torch.no_grad():
        for p in adapters.trainable(lm.module).values():
            p.add_(0.05)
    moved = [p.detach().clone() for p in adapters.trainable(lm.module).values()]
    (second, *_) = [r for r in drawn.sampled(lm, ROWS, asked, 1) if "reference_M" in r.signal]
    assert all(torch.equal(a, b) for a, b in zip(moved, adapters.trainable(lm.module).values(), strict=True))
    now = np.concatenate([forward.logp(lm, to_microbatch([s], "packed")).detach().numpy() for s in second.sequences])
    assert not np.allclose(second.signal["reference_M"], now, atol=1e-3)


def test_a_run_with_several_updates_ends_bit_for_bit_as_another(tmp_path: Path) -> None:
    """Killed at any update; and asked to stop within a rollout, which it finishes first."""
    more = {"updates": 2, "kl": 0.1}
    weights, lines = trained(tmp_path / "straight", **more)
    for stop in ("after step 2", "after sampling 3", "before sampling 4", "interrupt 2"):
        folder = tmp_path / stop.replace(" ", "-")
        with pytest.raises((Killed, TrainError)):
            trained(folder, stop, **more)
        if stop.startswith("interrupt"):
            assert [line["step"] for line in read_lines(folder, "metrics")][-1] == 4
        again, lines_again = trained(folder, **more)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines
        assert files(folder) == files(tmp_path / "straight")


def test_a_run_continues_when_the_model_that_grades_is_back(tmp_path: Path) -> None:
    """It has the rewards of a run that was not stopped, and no question is asked twice."""

    def judge(question: str) -> str:
        return str(zlib.crc32(question.encode()) % 11)

    asked = [{"role": "user", "content": "{{ item.n }}: {{ sample.output_text }}"}]
    with endpoint(judge) as (url, seen):
        spec = {"type": "score_model", "model": "m", "url": url, "input": asked, "range": [0, 10], "concurrency": 1}
        weights, lines = trained(tmp_path / "straight", body=spec)
        port, count = int(url.rpartition(":")[2].partition("/")[0]), len(seen)
    with (
        endpoint(judge, fail_after=count // 2, port=port),
        pytest.raises(TrainError, match=r"REWARD_FAILED.*status 401"),
    ):
        trained(tmp_path / "cut", body=spec)
    with endpoint(judge, port=port) as (_, later):
        again, lines_again = trained(tmp_path / "cut", body=spec)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert lines_again == lines
    assert files(tmp_path / "cut") == files(tmp_path / "straight")
    assert len(later) == count - count // 2


# -- before training


def checked(folder: Path, body: str) -> Any:
    return preflight(rollouts(folder / "rollouts", body), model(), ROWS, plan(count=8))


def test_a_reward_that_tells_answers_apart_is_accepted(tmp_path: Path) -> None:
    by_prompt = "import zlib\n    return zlib.crc32(repr((sample['output_text'], item['n'])).encode()) % 97 / 97"
    seen = checked(tmp_path, by_prompt)
    assert (seen.prompts, seen.samples, seen.unequal) == (12, 96, 12)
    assert "mean 0.5" in seen.sentence or "mean 0.4" in seen.sentence


@pytest.mark.parametrize(
    ("body", "code", "what"),
    [
        ("return 0.0", "REWARD_FLAT", "12 of 12 prompts"),
        ("return 0.3", "REWARD_FLAT", "12 of 12 prompts"),
        ("return max(0.0, 1 - len(sample['output_text']) / 9)", "REWARD_TRIVIAL", "an empty answer.*''"),
        (
            "import re\n    return 1.0 if str(item['n']) in re.findall('[0-9]+', sample['output_text'])"
            " else len(sample['output_text']) % 2 * 0.1",
            "REWARD_TRIVIAL",
            r"the prompt as its own answer.*'letter \d+, please'",
        ),
        (
            "return min(1.0, sum(c.isalpha() for c in sample['output_text']) / 2)",
            "REWARD_TRIVIAL",
            "the prompt|one answer",
        ),
    ],
)
def test_rewards_from_which_nothing_or_the_wrong_thing_is_learned(
    body: str, code: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{code}.*{what}") as caught:
        checked(tmp_path, body)
    assert caught.value.where == "reward.grader"


def test_the_file_has_what_the_docs_say(tmp_path: Path) -> None:
    rollouts(tmp_path / "rollouts").sampled(model(), ROWS, plan(), 0)
    first, second, *_ = (tmp_path / "rollouts" / "step-000001.jsonl").read_text().splitlines()
    assert set(json.loads(first)) == {"weights", "settings", "seed", "step", "rows", "mismatch"}
    assert set(json.loads(second)) == {"row", "sample", "ids", "logp", "finish", "text", "reward"}
