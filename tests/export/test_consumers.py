"""A server that gives the trained model's answers is accepted; each known mistake is refused, and named."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from build import byte_tokenizer, cli, tiny_model
from export.tiny_server import TinyServer, serving

from tunewright import api
from tunewright.core import records
from tunewright.core.console import Console
from tunewright.core.errors import RunError
from tunewright.core.records import CONSUMER_CHECKS, ConsumerCheck
from tunewright.core.run_folder import Run
from tunewright.export import export
from tunewright.export.consumers import answers, diagnosis, openai_server, suspects
from tunewright.export.consumers.answers import Answered, Expected
from tunewright.export.kind import Dtype
from tunewright.judge.arms.openai_endpoint import Endpoint
from tunewright.model import adapters, loading
from tunewright.model.generate import stop_ids
from tunewright.runtime import verification
from tunewright.stages import runner as runners
from tunewright.stages.export import check_prompts
from tunewright.stages.runner import Runner


@pytest.fixture(scope="module")
def runner(labelled: api.Result, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A finished run that may be written to."""
    folder = tmp_path_factory.mktemp("verify") / "labels"
    shutil.copytree(labelled.path, folder)
    return Runner(runners.resume(Run(folder), Console(quiet=True), "test"))


def trained(runner: Runner) -> Any:
    work = runner.work()
    return export.trained_model(work.run, work.plan, work.inputs.facts, torch.float32).module


@pytest.fixture
def server(runner: Runner) -> TinyServer:
    module, template = trained(runner), runner.work().inputs.template
    stop = stop_ids(loading.language_model.of(module), template.eos)
    return TinyServer({"tuned": module}, copy.deepcopy(template.tokenizer), stop)


def ask(runner: Runner, server: TinyServer, model: str = "", dtype: Dtype = "float32", key: str = "") -> ConsumerCheck:
    work = runner.work()
    tokenizer = work.inputs.template.tokenizer
    with serving(server) as url, openai_server.connect(Endpoint(url, model, key), lambda: tokenizer) as connected:
        return verification.check(work, check_prompts(work)[:3], connected, None, dtype)


@pytest.mark.parametrize("manner", ["vllm", "llamacpp", "other"])
def test_a_server_with_the_trained_model_agrees(runner: Runner, server: TinyServer, manner: str) -> None:
    server.manner, server.shows_ids = manner, manner != "other"
    server.renders = server.counts = manner != "other"
    asked = ask(runner, server)
    assert (asked.cause, asked.finding) == (None, None)
    assert asked.largest_difference < 1e-4
    assert asked.base_difference > 0.1, "the base model would not have passed"
    assert asked.same_texts == asked.prompts == 4
    assert asked.tokens >= 12
    assert asked.encoded == (3 if server.renders else None)
    version = {"vllm": "vLLM 0.32.0", "llamacpp": "llama-server b7000-abc", "other": "other"}
    assert asked.program == version[manner]


# -- planted mistakes: of exports, which change the weights, and of servers

Plant = Callable[[TinyServer], object]


def tuned(server: TinyServer) -> Any:
    return server.models["tuned"]


def not_applied(server: TinyServer) -> None:
    adapters.scale_in_place(tuned(server), 0.0)


def base_of_that_name(server: TinyServer) -> None:
    server.models = {"base": copy.deepcopy(tuned(server)), "tuned": tuned(server)}
    adapters.scale_in_place(server.models["base"], 0.0)


def scaled(factor: float) -> Plant:
    return lambda server: adapters.scale_in_place(tuned(server), factor)


def other_rope_base(server: TinyServer) -> None:
    """As a program that reads another key of config.json."""
    folder = tuned(server)
    config = copy.deepcopy(folder.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    folder.model.rotary_emb = type(folder.model.rotary_emb)(config)


def without_permutation(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """How llama.cpp reads rows that the converter has not put in its order: the inverse of the converter's permute."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def q_and_k_unordered(server: TinyServer) -> None:
    adapters.merge(tuned(server))
    for layer in tuned(server).model.layers:
        for name, heads in (("q_proj", 4), ("k_proj", 2)):
            weight = getattr(layer.self_attn, name).weight
            weight.data = without_permutation(weight.data, heads)


def adapter_unordered(server: TinyServer) -> None:
    for name, layer in adapters.adapted(tuned(server)).items():
        if name.endswith(("q_proj", "k_proj")):
            layer.lora_B.data = without_permutation(layer.lora_B.data, 4 if name.endswith("q_proj") else 2)


def rounded_to(dtype: torch.dtype) -> Plant:
    def plant(server: TinyServer) -> None:
        adapters.merge(tuned(server))
        tuned(server).to(dtype)

    return plant


def quantised(server: TinyServer) -> None:
    adapters.merge(tuned(server))
    for p in tuned(server).parameters():
        step = p.data.abs().max() / 127
        p.data = (p.data / step).round() * step


def swapped(server: TinyServer) -> None:
    """A and B, where the shapes allow it."""
    for layer in adapters.adapted(tuned(server)).values():
        if layer.lora_A.shape[1] == layer.lora_B.shape[0]:
            layer.lora_A.data, layer.lora_B.data = layer.lora_B.data.T.clone(), layer.lora_A.data.T.clone()


def another_model(server: TinyServer) -> None:
    server.models["tuned"] = tiny_model(seed=5, vocabulary=len(server.tokenizer))


def newline_in_template(server: TinyServer) -> None:
    server.chat_template = server.tokenizer.chat_template.replace("assistant\n", "assistant\n\n")


def special_tokens_as_text(server: TinyServer) -> None:
    """Another tokenization of the same text."""
    pieces = re.compile(r"(?<=<)")

    def encode(text: str) -> list[int]:
        return [
            i for piece in pieces.split(text) for i in server.tokenizer(piece, add_special_tokens=False)["input_ids"]
        ]

    server.encode = encode


def change(**fields: Any) -> Plant:
    return lambda server: [setattr(server, name, value) for name, value in fields.items()]


PLANTED: dict[str, tuple[Plant, str]] = {
    "adapter not applied": (not_applied, "adapter"),
    "the base asked by its name": (base_of_that_name, "name"),
    "rsLoRA's factor dropped": (scaled(0.25), "scale"),
    "adapter applied twice": (scaled(2.0), "scale"),
    "an odd factor": (scaled(0.7), "scale"),
    "another rope base": (other_rope_base, "rope"),
    "rows of q and k not reordered": (q_and_k_unordered, "order"),
    "rows of the adapter not reordered": (adapter_unordered, "order"),
    "bfloat16": (rounded_to(torch.bfloat16), "precision"),
    "8 bits a weight": (quantised, "precision"),
    "A and B swapped": (swapped, ""),
    "another model": (another_model, "model"),
    "BOS before token ids": (change(before=[65]), "bos"),
    "BOS before chat prompts": (change(before_chat=[65]), "bos"),
    "a newline more in the template": (newline_in_template, "template"),
    "special tokens read as text": (special_tokens_as_text, "tokenizer"),
    "the second likeliest token": (change(rank=1), "sampling"),
    "end of turn ignored": (change(stops=False), "stop"),
    "context too short": (change(context=300), "context"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_refused_and_named(
    runner: Runner, server: TinyServer, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, cause = PLANTED[mistake]
    plant(server)
    template = runner.work().inputs.template
    if "BOS" in mistake:
        monkeypatch.setattr(type(template), "bos", 65)
    asked = ask(runner, server, next(iter(server.models)))
    assert asked.cause is not None, "not refused"
    assert asked.cause == cause or not cause, asked
    error = diagnosis.error(asked)
    assert error is not None
    assert error.code == "CONSUMER_DIFFERS"
    assert error.exit_code == 1
    assert "\n" not in str(error)


def test_float16_weights_agree_if_their_rounding_is_allowed(runner: Runner, server: TinyServer) -> None:
    rounded_to(torch.float16)(server)
    assert ask(runner, server).cause == "precision"
    asked = ask(runner, server, dtype="float16")
    assert asked.cause is None
    assert asked.largest_difference <= asked.allowed < 0.1
    not_applied(server)
    server.models["tuned"] = loading.load(runner.work().inputs.facts.path, torch.float32).module
    assert ask(runner, server, dtype="bfloat16").cause == "adapter", "rounding does not hide a missing adapter"


def test_without_ids_or_tokenize_a_changed_template_is_seen_in_the_answers(runner: Runner, server: TinyServer) -> None:
    server.manner, server.renders = "other", False
    newline_in_template(server)
    assert ask(runner, server).cause == "template"
    server.counts, server.chat_template = False, server.tokenizer.chat_template.replace("m['content']", "'?'")
    assert ask(runner, server).cause == "template"


# -- servers that cannot be asked

UNUSABLE: dict[str, tuple[Plant, str]] = {
    "status 500": (change(status=500), "status 500: .*something broke"),
    "no ids": (change(takes_ids=False), "does not accept token ids"),
    "no log probabilities": (change(logprobs=False), "no log probabilities"),
    "a key": (change(key="secret"), "refuses access .*--api-key-env"),
    "a web page": (change(body="<html>"), "another form than OpenAI's API: <html>"),
    "no choices": (change(body="{}"), "does not list its models"),
    "an empty list": (change(models={}), "does not list its models"),
    "several models": (base_of_that_name, "several models: base, tuned.*--model NAME"),
    "a time-out": (change(seconds=0.5), "no answer within 0.2 s"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_server_that_cannot_be_asked_is_one_line(
    runner: Runner, server: TinyServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, message = UNUSABLE[kind]
    plant(server)
    if kind == "a time-out":
        monkeypatch.setattr(openai_server, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(RunError, match=message) as caught:
        ask(runner, server)
    assert caught.value.code == "REMOTE_FAILED"
    assert "\n" not in str(caught.value)


def test_another_model_name_is_refused_with_the_names_that_exist(runner: Runner, server: TinyServer) -> None:
    with pytest.raises(RunError, match=r"it has no model other.*tuned"):
        ask(runner, server, "other")
    server.key = "secret"
    assert ask(runner, server, key="secret").cause is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "http://", "nonsense"])
def test_a_server_that_is_down_is_one_line(url: str) -> None:
    with (
        pytest.raises(RunError, match="cannot be reached") as caught,
        openai_server.connect(Endpoint(url, ""), byte_tokenizer),
    ):
        pass
    assert caught.value.code == "REMOTE_FAILED"


# -- the command, the records, the card and the report


def test_the_command_stores_what_it_asked_and_says_it_in_one_line(runner: Runner, server: TinyServer) -> None:
    run = runner.context.run
    assert "written, not yet checked in another program" in (run.merged / "README.md").read_text()
    assert "written, not yet checked in another program" in run.report.read_text()
    with serving(server) as url:
        agreed = cli("verify", str(run.path), "--at", f"{url}/v1", "--export", "merged", cwd=run.path)
        adapters.scale_in_place(tuned(server), 0.0)
        differs = cli("verify", str(run.path), "--at", url, "--export", "adapter", "--json", cwd=run.path)
    assert agreed.returncode == 0, agreed.stderr
    assert agreed.stdout.startswith("vLLM 0.32.0 gives the trained model's answers: 9 of 9 texts, largest difference")
    assert agreed.stdout.count("\n") == 1
    assert differs.returncode == 1
    assert json.loads(differs.stdout)["cause"] == "adapter"
    assert differs.stderr.splitlines()[-1].startswith("error[CONSUMER_DIFFERS] tuned: vLLM 0.32.0 does not give")
    assert [(c.path, c.cause) for c in records.read(run.verify, CONSUMER_CHECKS)] == [
        ("merged", None),
        ("adapter", "adapter"),
    ]
    card = (run.merged / "README.md").read_text()
    assert "- vLLM 0.32.0 (2" in card
    assert "not yet checked" not in card
    assert "**not** the trained model's answers (cause: adapter)" in (run.adapter / "README.md").read_text()
    assert "not yet checked" not in run.report.read_text()
    assert "its answers are the base model&#39;s" in run.report.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "onnx"], "there is no export onnx"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], "the environment variable NO_SUCH_VARIABLE is not set"),
        ([], "has no GGUF file"),
    ],
)
def test_mistakes_in_the_command_are_one_line(runner: Runner, words: list[str], message: str) -> None:
    done = cli("verify", str(runner.context.run.path), *words, cwd=runner.context.run.path)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


# -- the pure functions


def test_a_difference_counts_other_tokens_only_beyond_what_rounding_explains() -> None:
    answer = Answered((1, 2, 3), (-0.1, -0.2, -0.3))
    exact = answers.compare([answer], [Expected((-0.1, -0.2, -0.3), (0.0, 0.0, 0.0))])
    assert (exact.largest, exact.same_texts, exact.likeliest, exact.tokens) == (0, 1, 1, 3)
    tie = answers.compare([answer], [Expected((-0.1, -0.2005, -0.3), (0.0, 0.001, 0.0))])
    assert tie.same_texts == 0
    assert tie.within(1e-3)
    assert not answers.compare([answer], [Expected((-0.1, -0.2, -0.3), (0.0, 0.1, 0.0))]).within(1e-3)
    assert not answers.compare([answer], [Expected((-0.1, -0.2, float("nan")), (0.0, 0.0, 0.0))]).within(1e-3)


def test_ending_early_is_a_difference() -> None:
    module = tiny_model()
    greedy = module(torch.tensor([[1, 2, 3]])).logits[0, -1]
    likeliest, other = int(greedy.argmax()), int(greedy.argmin())
    ended = Answered((), (), ended=True)
    assert answers.expect(module, [1, 2, 3], ended, [likeliest]).regrets == (0.0,)
    assert answers.expect(module, [1, 2, 3], ended, [other]).regrets[0] > 1
    assert answers.known(Answered((1, 999, 2), (0.0, 0.0, 0.0)), 260).ids == (1,)


def test_a_mistake_is_made_only_within_its_context() -> None:
    module = tiny_model()
    ids = torch.tensor([list(range(40))])
    before = module(ids).logits
    for suspect in suspects.suspects(module, bos=None):
        with suspect.simulated():
            changed = not torch.equal(module(ids).logits, before)
        assert changed is (
            "10,000" not in suspect.what and "adapter" not in suspect.what and "scaling" not in suspect.what
        )
        assert torch.equal(module(ids).logits, before)
