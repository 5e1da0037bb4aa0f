"""A server that gives the trained model's answers is accepted; each known mistake is refused, and named."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from build import byte_tokenizer, cli, tiny_model
from export.tiny_server import TinyServer, serving
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tunewright import api
from tunewright.cli.verify import sentence
from tunewright.core import records
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.records import CONSUMER_CHECKS, EXPORTS, ConsumerCheck
from tunewright.core.run_folder import Run, read_json, write_json
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.export import export
from tunewright.export.consumers import answers, diagnosis, llama_cpp, openai_server, suspects
from tunewright.export.consumers.answers import Answered, Expected
from tunewright.export.consumers.openai_server import Server
from tunewright.export.kind import Dtype
from tunewright.model import adapters, loading
from tunewright.model.decoding.generate import stop_ids
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


@pytest.fixture
def own(labelled: api.Result, tmp_path: Path) -> Run:
    """Another, with two GGUF files according to its export.json."""
    run = Run(tmp_path / "labels")
    shutil.copytree(labelled.path, run.path)
    (run.path / "gguf").mkdir()
    checks = read_json(run.export)
    files = [{**checks[0], "kind": "gguf", "path": f"old/gguf/labels-{t.upper()}.gguf", "dtype": t} for t in TYPES]
    write_json(run.export, [*checks, *({**file, "file": {"bytes": 9, "tensors": {}}} for file in files)])
    return run


TYPES = ("f16", "q8_0")


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
    """As loaders do: the frequencies of the rotary embedding remain in float32."""

    def plant(server: TinyServer) -> None:
        adapters.merge(tuned(server))
        for p in tuned(server).parameters():
            p.data = p.data.to(dtype)

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
    "another token before chat prompts": (change(before_chat=[66]), "bos"),
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


# -- how much a server may round


def wrong_rope(server: TinyServer) -> None:
    other_rope_base(server)
    rounded_to(torch.float16)(server)


def base_in_float16(server: TinyServer) -> None:
    not_applied(server)
    rounded_to(torch.float16)(server)


@pytest.mark.parametrize(
    ("plant", "cause"), [(rounded_to(torch.float16), None), (base_in_float16, "adapter"), (wrong_rope, "rope")]
)
def test_what_a_file_is_stored_in_may_be_rounded_to(
    own: Run, server: TinyServer, plant: Plant, cause: str | None
) -> None:
    """As README's commands: an F16 file, named relative to the run folder, in which its script starts the server."""
    server.manner, server.file = "llamacpp", "gguf/labels-F16.gguf"
    plant(server)
    with serving(server) as url:
        done = cli("verify", str(own.path), "--at", url, "--json", cwd=own.path.parent)
    check = json.loads(done.stdout)
    assert (check["path"], check["cause"]) == (server.file, cause), check
    assert done.returncode == (cause is not None)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16"), ("q8_0", "float32"), ("bfloat16", "bfloat16")],
)
def test_only_floating_point_types_may_be_rounded_to(own: Run, stored: str, dtype: str) -> None:
    check = records.read(own.export, EXPORTS)[-1]
    assert verification.stored_dtype(check.model_copy(update={"dtype": stored})) == dtype
    assert verification.stored_dtype(None) == "float32"


def test_what_is_allowed_is_never_less_than_in_float32(
    runner: Runner, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification.Comparison, "rounding", lambda *_: 1e-9)
    check = ask(runner, server, dtype="float16")
    assert (check.allowed, check.cause) == (diagnosis.FLOAT32, None)


def test_a_model_that_overflows_in_float16_is_not_blamed_on_the_server(
    runner: Runner, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function as before, with activations that float16 does not have."""
    load = export.trained_model

    def large(*given: Any) -> Any:
        model = load(*given)
        for name, p in model.module.named_parameters():
            if "up_proj" in name and "lora_A" not in name:
                p.data *= 1e7
            if "down_proj" in name and "lora_B" not in name:
                p.data /= 1e7
        return model

    monkeypatch.setattr(export, "trained_model", large)
    with pytest.raises(ConfigError, match="the model overflows in float16"):
        ask(runner, server, dtype="float16")
    assert ask(runner, server, dtype="bfloat16").cause is None
    not_applied(server)
    assert ask(runner, server).cause == "adapter"


def test_rounding_is_measured_once_for_each_dtype_without_a_copy_of_the_model(
    runner: Runner, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepcopy, rounding, seen = copy.deepcopy, verification.Comparison.rounding, []

    def watched(comparison: verification.Comparison, dtype: Dtype) -> float:
        seen.append(dtype)
        return rounding(comparison, dtype)

    def copied(value: Any, *given: Any) -> Any:
        assert not isinstance(value, torch.nn.Module)
        return deepcopy(value, *given)

    not_applied(server)
    monkeypatch.setattr(copy, "deepcopy", copied)
    monkeypatch.setattr(verification.Comparison, "rounding", watched)
    assert ask(runner, server, dtype="float16").cause == "adapter"
    assert seen == ["float16", "bfloat16"]


def test_rounding_is_undone_and_leaves_what_files_do_not_contain() -> None:
    module = tiny_model(kind="llama")
    module.lm_head.weight = module.model.embed_tokens.weight  # tied
    ids = torch.tensor([list(range(40))])
    before, frequencies = module(ids).logits, module.model.rotary_emb.inv_freq
    with suspects.rounded(module, torch.float16):
        assert {p.dtype for p in module.parameters()} == {torch.float16}
        assert module.model.rotary_emb.inv_freq.dtype == torch.float32
        assert 0 < (module(ids).logits.float() - before).abs().max() < 0.1
    assert torch.equal(module(ids).logits, before)
    assert module.model.rotary_emb.inv_freq is frequencies


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
    with pytest.raises(RunError, match=r"it lists no model other.*tuned"):
        ask(runner, server, "other")
    server.key = "secret"
    assert ask(runner, server, key="secret").cause is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "http://", "nonsense"])
def test_a_server_that_is_down_is_one_line(url: str) -> None:
    with (
        pytest.raises(RunError, match="cannot be asked") as caught,
        openai_server.connect(Endpoint(url, ""), byte_tokenizer),
    ):
        pass
    assert caught.value.code == "REMOTE_FAILED"


def test_an_api_at_the_root_and_one_below_v1_are_used(runner: Runner, server: TinyServer) -> None:
    for prefix in ("/v1", ""):
        server.prefix = prefix
        with serving(server) as url, openai_server.connect(Endpoint(url, ""), byte_tokenizer) as connected:
            assert connected.endpoint.url == url + prefix
    assert ask(runner, server).cause is None


def test_no_proxy_is_used_for_a_server_of_this_machine(
    runner: Runner, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(server) as url:
        assert llama_cpp._ready(url)
        for host in ("127.0.0.1", "localhost"):
            there = Endpoint(url.replace("127.0.0.1", host), "")
            with openai_server.connect(there, byte_tokenizer) as connected:
                assert connected.models
    with pytest.raises(RunError), openai_server.connect(Endpoint("http://example.com", ""), byte_tokenizer):
        pass  # through the proxy, which is down


# -- servers that show no token ids

PIECES = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0, "b": 1, "c": 2, "ab": 3}, [("a", "b")])))


def answered(text: str, tokens: list[str], values: list[float], **more: Any) -> Answered:
    logprobs = {"tokens": tokens, "token_logprobs": values, **more}
    choice = {"text": text, "finish_reason": "stop", "logprobs": logprobs}
    reply = openai_server._Reply.model_validate({"choices": [choice]})
    return Server(Endpoint("http://x", ""), Any, lambda: PIECES)._answer(reply)  # type: ignore[arg-type]


def test_an_answer_in_other_tokens_than_its_text_is_compared_as_far_as_these_agree() -> None:
    """Otherwise every later log probability would be compared with that of another token."""
    values = [-0.1, -0.2, -0.3, -0.4]
    assert answered("cab", ["c", "ab", "<end>"], values[:3]) == Answered((2, 3), (-0.1, -0.2), ended=True)
    assert answered("cabc", ["c", "a", "b", "c"], values) == Answered((2,), (-0.1,), ended=False)
    assert answered("cab", [], values[:3]).ids == (2, 3)
    assert answered("", ["<end>"], values[:1]) == Answered((), (), ended=True)
    for text, tokens in (("abc", ["a", "b", "c", "<end>"]), ("cc", []), ("", ["<a>", "<b>", "<c>", "<end>"])):
        with pytest.raises(RunError, match="cannot be compared, because it shows no token ids"):
            answered(text, tokens, values)


def test_a_token_without_alternatives_does_not_shift_the_others() -> None:
    likeliest = [{}, {"c": -0.5}]
    assert answered("cc", ["c", "c"], [-1.0, -0.5], top_logprobs=likeliest).regret == 0
    assert answered("cc", ["c", "c"], [-1.0, -0.9], top_logprobs=likeliest).regret == pytest.approx(0.4)


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
    assert (run.merged / "README.md").stat().st_mode & 0o044 == 0o044, "every user can read a card"
    card = (run.merged / "README.md").read_text()
    assert "- vLLM 0.32.0 (2" in card
    assert "not yet checked" not in card
    assert "**not** the trained model's answers (cause: adapter)" in (run.adapter / "README.md").read_text()
    assert "not yet checked" not in run.report.read_text()
    assert "its answers are the base model&#39;s" in run.report.read_text()


def test_what_is_shown_of_one_file_is_not_shown_of_another(own: Run, server: TinyServer) -> None:
    server.manner = "llamacpp"
    rounded_to(torch.float16)(server)
    for kind in ("F16", "Q8_0"):
        server.file = str(own.path / "gguf" / f"labels-{kind}.gguf")
        if kind == "Q8_0":
            quantised(server)
        with serving(server) as url:
            done = cli("verify", str(own.path), "--at", url, cwd=own.path)
        card = (own.path / "gguf" / "README.md").read_text()
        assert "- `labels-F16.gguf` in llama-server b7000-abc (2" in card
        assert done.returncode == (kind == "Q8_0")
        if kind == "F16":
            assert "- `labels-Q8_0.gguf`: written, not yet checked in another program" in card
            assert ">gguf/labels-Q8_0.gguf</td><td colspan" in own.report.read_text()
    assert "`labels-Q8_0.gguf` in llama-server b7000-abc" in card
    assert card.count("**not** the trained model's answers") == 1
    stored = [(c.path, c.cause) for c in records.read(own.verify, CONSUMER_CHECKS)]
    assert stored == [("gguf/labels-F16.gguf", None), ("gguf/labels-Q8_0.gguf", "precision")]


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("merged", "merged"),
        ("{run}/merged", "merged"),
        ("../labels/adapter", "adapter"),
        ("gguf/labels-Q8_0.gguf", "gguf/labels-Q8_0.gguf"),
        ("gguf/other.gguf", None),
        ("{run}", None),
        ("Qwen/Qwen2.5-0.5B", None),
    ],
)
def test_the_export_is_the_one_whose_files_the_server_names(own: Run, file: str, path: str | None) -> None:
    named = Server(Endpoint("http://x", ""), Any, byte_tokenizer, files=(file.format(run=own.path),))  # type: ignore[arg-type]
    served = verification.served(own, records.read(own.export, EXPORTS), named)
    assert (served and served.relative_path) == path


def test_a_run_whose_inputs_have_changed_is_not_compared(own: Run, server: TinyServer) -> None:
    """The server would be blamed for another base model."""
    receipt = read_json(own.receipt)
    write_json(own.receipt, {**receipt, "hashes": {**receipt["hashes"], "model": "0" * 64}})
    with serving(server) as url:
        done = cli("verify", str(own.path), "--at", url, cwd=own.path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error[RESUME_MISMATCH]")
    assert not own.verify.exists()


def test_the_sentence_says_what_a_server_does_not_show(runner: Runner, server: TinyServer) -> None:
    check = ask(runner, server)
    assert sentence(check).endswith("; 3 chat prompts became the same token ids")
    assert sentence(check.model_copy(update={"encoded": None})).endswith("; chat prompts: not shown")
    documents = sentence(check.model_copy(update={"encoded": 0}))
    assert "chat prompts" not in documents


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "gguf"], "there are several exports gguf. Fix: choose one of gguf/labels-F16.gguf, gguf/"),
        (["--export", "gguf/labels-Q4.gguf"], "there is no export gguf/labels-Q4.gguf"),
    ],
)
def test_an_export_that_is_not_one_is_refused(own: Run, words: list[str], message: str) -> None:
    done = cli("verify", str(own.path), "--at", "http://127.0.0.1:9", *words, cwd=own.path)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


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

NOTHING = (0.0, 0.0, 0.0)


class OneToken:
    """A model that always gives these logits."""

    device = torch.device("cpu")

    def __init__(self, logits_V: torch.Tensor) -> None:
        self.logits_V = logits_V

    def __call__(self, ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits_V.expand(1, 2, -1))


def test_a_sum_over_the_vocabulary_in_float32_is_no_difference_of_weights() -> None:
    """llama-server adds up 151,936 probabilities one by one, the smallest last, and finds each token 0.001 more
    probable; so may any program, but no token is less probable by that."""
    logits_V = torch.cat([torch.tensor([0.0]), -17 - torch.rand(150_000, generator=torch.Generator().manual_seed(0))])
    added = np.add.accumulate(np.sort(logits_V.exp().numpy())[::-1], dtype=np.float32)[-1]
    theirs = -float(np.log(added))
    ours = answers.expect(cast(PreTrainedModel, OneToken(logits_V)), [0], Answered((0,), (theirs,)), [0])
    assert theirs - ours.logprobs[0] > 2e-3
    for shift, largest in ((0.0, 1e-5), (2e-3, 1.9e-3), (ours.logprobs[0] - theirs - 2e-3, 2e-3)):
        difference = answers.compare([Answered((0,), (theirs + shift,))], [ours]).largest
        assert difference == pytest.approx(largest, rel=0.2, abs=1e-4)


def test_a_difference_counts_other_tokens_only_beyond_what_rounding_explains() -> None:
    answer = Answered((1, 2, 3), (-0.1, -0.2, -0.3))
    exact = answers.compare([answer], [Expected((-0.1, -0.2, -0.3), (0.0, 0.0, 0.0), NOTHING)])
    assert (exact.largest, exact.same_texts, exact.likeliest, exact.tokens) == (0, 1, 1, 3)
    tie = answers.compare([answer], [Expected((-0.1, -0.2005, -0.3), (0.0, 0.001, 0.0), NOTHING)])
    assert tie.same_texts == 0
    assert tie.within(1e-3)
    assert not answers.compare([answer], [Expected((-0.1, -0.2, -0.3), (0.0, 0.1, 0.0), NOTHING)]).within(1e-3)
    assert not answers.compare([answer], [Expected((-0.1, -0.2, float("nan")), (0.0, 0.0, 0.0), NOTHING)]).within(1e-3)


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
