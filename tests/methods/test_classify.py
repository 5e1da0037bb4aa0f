"""Classification heads: against transformers' own classes, in any layout of a pass; trained, resumed, exported."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from build import (
    LORA,
    QUICK,
    byte_tokenizer,
    cli,
    exact_norms,
    plan_of,
    printed_by,
    tiny_lm,
    training_of,
    write_chat_rows,
)
from torch import Tensor

from tunewright import api
from tunewright.core.config import AdapterConfig, Plan
from tunewright.core.errors import TunewrightError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data.messages import Chat, Message, question
from tunewright.export import classifier
from tunewright.judge.chat_model import ChatModel
from tunewright.methods import METHODS
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding
from tunewright.model.heads.linear import head_of
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import chat
from tunewright.tokens.render_cache import RowRenderer, cached_rows
from tunewright.tokens.rendering import for_generation
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.train import loop

LABELS = ("cold", "neither", "warm")
TEMPLATE = Template(byte_tokenizer())
# Prompts with the same beginning, the same prompt with two labels, and one that spells the token for padding.
TEXTS = [
    ("a house by the river", "cold"),
    ("a house by the sea", "warm"),
    ("fire", "warm"),
    ("a house by the river", "neither"),
    ("x", "neither"),
    ("the end <|im_end|> of a text and what follows it", "cold"),
]


def chats(texts: list[tuple[str, str]] = TEXTS) -> list[Chat]:
    system = Message("system", "Warm or cold?")
    return [
        Chat((system, Message("user", text), Message("assistant", label)), f"x:{i}")
        for i, (text, label) in enumerate(texts)
    ]


def prepared(folder: Path, texts: list[tuple[str, str]] = TEXTS) -> list[TrainRow]:
    """Rows as a run makes them: through the cache."""
    how, asked = RowRenderer(TEMPLATE, METHODS["classify"].prepare, 512, "error"), chats(texts)
    cached_rows(how, asked, range(len(asked)), folder)
    return cached_rows(how, asked, range(len(asked)), folder).rows


def plan(**more: Any) -> Plan:
    return plan_of(**{"method": "classify", "labels": LABELS, "layout": "shared", "batch_size": 3, "lr": 5e-3, **more})


def headed(kind: str = "llama", adapter: AdapterConfig = LORA, drawn: bool = True, seed: int = 0) -> LanguageModel:
    model = tiny_lm(kind, torch.float64, seed, vocabulary=300)
    exact_norms(model.module)
    adapters.attach(model.module, adapter, 1, len(LABELS))
    draw = torch.Generator().manual_seed(3)
    for name, p in adapters.trainable(model.module).items():
        if drawn and ("lora_B" in name or name == "score.weight"):
            torch.nn.init.normal_(p, std=0.3, generator=draw)
    return model


def loss_and_gradient(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[float, dict[str, Tensor]]:
    method = METHODS["classify"]
    model.module.zero_grad(set_to_none=True)
    parts = method.microbatches(model, rows, range(len(rows)), asked, 0)
    weight, total = sum(map(method.weight, parts)), 0.0
    assert weight == len(rows)
    for part in parts:
        loss = method.loss(model, part, asked).sum / weight
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in adapters.trainable(model.module).items() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize(("layout", "capacity"), [("shared", 4096), ("shared", 60), ("packed", 60), ("padded", 150)])
def test_loss_and_gradient_are_those_of_transformers_own_class(
    kind: str, layout: str, capacity: int, tmp_path: Path
) -> None:
    """All weights are trained; the rows of the other side are padded to one batch."""
    from transformers import AutoModelForSequenceClassification

    model, rows = headed(kind, AdapterConfig(kind="none")), prepared(tmp_path)
    loss, gradient = loss_and_gradient(model, rows, plan(layout=layout, tokens_per_pass=capacity))
    config = type(model.module.config)(**{**model.module.config.to_dict(), "id2label": dict(enumerate(LABELS))})
    theirs = AutoModelForSequenceClassification.from_config(config).to(torch.float64).eval()
    own = {n: p for n, p in model.module.state_dict().items() if not n.startswith("lm_head")}
    theirs.load_state_dict(own, strict=True)
    exact_norms(theirs)
    prompts = [s.ids[:-1] for r in rows for s in r.sequences]
    labels = torch.tensor([LABELS.index(label) for _, label in TEXTS])
    longest = max(map(len, prompts))
    ids = torch.tensor([[*p, *[256] * (longest - len(p))] for p in prompts])
    seen = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
    expected = theirs(ids, attention_mask=seen, labels=labels).loss
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-10)
    named = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert set(named) == set(gradient)
    for name, g in named.items():
        assert torch.allclose(gradient[name], g, rtol=0, atol=1e-10), name


@pytest.mark.parametrize("kernels", ["transformers", "fused"])
def test_an_adapter_and_its_head_have_the_same_gradient_in_every_layout(kernels: Any, tmp_path: Path) -> None:
    model, rows = headed(), prepared(tmp_path)
    expected = loss_and_gradient(model, rows, plan(layout="padded", tokens_per_pass=16))
    assert len(expected[1]) == 2 * 14 + 1
    for layout, capacity in (("shared", 4096), ("shared", 60), ("packed", 90)):
        asked = plan(layout=layout, tokens_per_pass=capacity)
        loss, gradient = loss_and_gradient(replace(model, kernels=kernels), rows, asked)
        assert loss == pytest.approx(expected[0], abs=1e-10)
        assert all(torch.allclose(gradient[n], g, rtol=0, atol=1e-10) for n, g in expected[1].items())


def test_the_instruction_is_computed_once_and_the_label_not_at_all(tmp_path: Path) -> None:
    rows = prepared(tmp_path)
    (shared,) = METHODS["classify"].microbatches(headed(), rows, range(len(rows)), plan(), 0)
    prompts = [for_generation(TEMPLATE, c.prompt) for c in chats()]
    assert [list(s.ids[:-1]) for r in rows for s in r.sequences] == prompts
    tries = {tuple(p[: n + 1]) for p in prompts for n in range(len(p))}
    assert shared.ids_BT.size == len(tries)
    assert len(shared.at_N) == 5, "the same prompt is read once, also where its labels differ"


def test_the_first_loss_is_that_of_equally_probable_labels(tmp_path: Path) -> None:
    rows = prepared(tmp_path)
    loss, gradient = loss_and_gradient(headed(drawn=False), rows, plan())
    assert loss == pytest.approx(METHODS["classify"].initial_loss(plan(), []), abs=1e-12) == pytest.approx(math.log(3))
    assert gradient["score.weight"].any()


class Killed(Exception):
    pass


def trained(folder: Path, rows: list[TrainRow], stop: int | None = None) -> tuple[list[Tensor], list[dict[str, Any]]]:
    run, model = Run(folder), headed(drawn=False)
    folder.mkdir(exist_ok=True)

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    asked = plan(steps=6, checkpoint_every=1, tokens_per_pass=90)
    loop.train(loop.with_precomputed(training_of(model.module, asked, rows[:4], rows[4:], run)), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    rows = prepared(tmp_path / "data")
    weights, lines = trained(tmp_path / "straight", rows)
    assert lines[0]["dev_loss"] == pytest.approx(math.log(3), abs=1e-12)
    assert lines[-1]["loss"] < 0.9 * math.log(3)
    for at in (1, 4):
        with pytest.raises(Killed):
            trained(tmp_path / f"killed-{at}", rows, at)
        again, lines_again = trained(tmp_path / f"killed-{at}", rows)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines


def test_rows_are_answered_together_as_each_alone() -> None:
    model, prompts = headed(), [c.prompt for c in chats()]
    for layout in ("shared", "packed", "padded"):
        answering = ChatModel(model, TEMPLATE, Decoding(4, (256,)), plan(layout=layout, tokens_per_pass=120))
        together = answering.by_head(prompts)
        alone = [answering.by_head([prompt])[0] for prompt in prompts]
        assert together == alone
        probs = [list(a.output.probs.values()) for a in together]  # type: ignore[union-attr]
        assert np.allclose(np.sum(probs, 1), 1, atol=1e-5)
        assert [a.text for a in together] == [LABELS[int(np.argmax(p))] for p in probs]


def test_training_again_begins_with_a_head_of_zeros() -> None:
    model = headed()
    adapters.initialise(model.module, LORA, 1)
    head = head_of(model.module)
    assert head is not None
    assert not head.weight.any()


def test_transformers_class_reads_the_last_token_of_the_prompt() -> None:
    """Whatever tokens a prompt contains, and whatever the lengths of the rows beside it."""
    model = headed()
    adapters.merge(model.module)
    exact_norms(model.module)
    made = classifier.classifier(model.module, plan(), TEMPLATE)
    prompts = [for_generation(TEMPLATE, c.prompt) for c in chats()]
    prompts.append([*prompts[0][:-3], 256, *prompts[0][-3:]])  # the token for padding itself, inside
    with torch.no_grad():
        together = classifier.batch_logits(made, prompts)
        alone = torch.cat([made(torch.tensor([p])).logits for p in prompts])
    assert torch.allclose(together, alone, rtol=0, atol=1e-10)


# -- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> api.Result:
    root = tmp_path_factory.mktemp("heads")
    rows = write_chat_rows(root / "rows.jsonl", 60, label=True)
    asked = [question(json.loads(line)["messages"][0]["content"]) for line in rows.read_text().splitlines()]
    # The longest prompt fits, and not with its answer.
    limit = {"train__max_length": 1 + max(len(for_generation(TEMPLATE, prompt)) for prompt in asked)}
    settings = {**QUICK, **limit, "train__method": "classify", "train__steps": 12, "train__lr": 3e-3}
    return api.run(rows, model=str(model_folder("llama")), name="h", root=root, **settings)


def test_a_run_answers_with_its_head_and_is_compared_with_fine_tuning(run: api.Result) -> None:
    verdict, plan_ = (json.loads((run.path / f"{name}.json").read_text()) for name in ("verdict", "plan"))
    assert plan_["labels"] == ["cold", "warm"]
    arms = verdict["arms"]
    assert {"zero_shot", "few_shot", "constant", "classical", "sft", "tuned"} <= set(arms)
    assert arms["sft"]["trained"]
    assert verdict["comparator"]["name"] not in ("sft", "tuned", "classical")
    assert "head" in arms["tuned"]["description"]
    assert verdict["calibration"]
    metrics = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["dev_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert json.loads((run.path / "forgetting.json").read_text())["reason"].startswith(
        "the model answers with its head"
    )
    own = json.loads((run.path / "branches" / "sft" / "branch.json").read_text())["plan"]
    assert (own["rows"], own["max_length"]) == (plan_["rows"], plan_["max_length"]), "the same, if longer with answers"
    branch = json.loads((run.path / "branches" / "sft" / "training.json").read_text())
    assert branch["steps"] == json.loads((run.path / "training.json").read_text())["steps"]
    assert "fine-tuning to write the answer" in (run.path / "report.html").read_text()


def chat_label(run: api.Result) -> str:
    return cli("chat", str(run.path), "item 0: red by the red, lot 0", cwd=run.path).stdout.strip()


def test_chat_answers_with_a_label(run: api.Result) -> None:
    assert chat_label(run) in ("cold", "warm")


def test_peft_and_transformers_load_the_exports_with_equal_numbers(run: api.Result, tmp_path: Path) -> None:
    """In a fresh process, without our code, several rows of different lengths in a batch."""
    checks = {c["kind"]: c for c in json.loads((run.path / "export.json").read_text())}
    assert set(checks) == {"adapter", "merged"}
    for check in checks.values():
        assert check["largest_difference"] < 1e-5
        assert check["reproduced"]["same"] == check["reproduced"]["rows"] > 0
    receipt = json.loads((run.path / "receipt.json").read_text())
    script = f"""
import json, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
texts = [f"item {{i}}: " + " ".join(["red by the tree"] * (1 + i % 4)) for i in range(9)]
out = {{}}
for kind in ("adapter", "merged"):
    if kind == "merged":
        model = AutoModelForSequenceClassification.from_pretrained({str(run.path / "merged")!r})
        assert model.config.id2label == {{0: "cold", 1: "warm"}}, model.config.id2label
    else:
        base = {receipt["model"]["path"]!r}
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, {str(run.path / "adapter")!r})
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained({str(run.path)!r} + "/" + kind)
    model.config.pad_token_id = tokenizer.pad_token_id
    for side in ("right", "left"):
        tokenizer.padding_side = side
        prompts = [tokenizer.apply_chat_template([dict(role="user", content=t)], tokenize=False,
                   add_generation_prompt=True) for t in texts]
        inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            out[kind + " " + side] = model(**inputs).logits.softmax(-1).tolist()
print(json.dumps([texts, out]))
"""
    texts, theirs = printed_by(script, tmp_path)
    model = chat.load_run(Run(run.path))
    ours = ChatModel(
        model.model, model.template, Decoding(4, (256,)), plan(labels=("cold", "warm"), tokens_per_pass=100)
    ).by_head([chat.prompt_of(model, [Message("user", text)]) for text in texts])
    expected = [list(a.output.probs.values()) for a in ours]  # type: ignore[union-attr]
    assert np.ptp(expected) > 0.01, "the head is not zero"
    for name, probs in theirs.items():
        assert np.allclose(probs, expected, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_of_the_card_prints_the_label(
    run: api.Result, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / kind
    shutil.copytree(run.path / kind, folder)
    base = Path(json.loads((run.path / "receipt.json").read_text())["model"]["path"])
    (folder / base.name).symlink_to(base)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code.replace('"..."', '"item 0: red by the red, lot 0"'), {})
    assert capsys.readouterr().out.strip() == f"['{chat_label(run)}']"


@pytest.mark.parametrize(
    ("settings", "code", "what"),
    [
        (["export.to=[gguf]"], "CONFIG_CONFLICT", "gguf"),
        (["export.to=[merged, serve]"], "CONFIG_CONFLICT", "serve"),
        (["prove.metric=exact_match"], "DATA_FORMAT_MISMATCH", "train.method=classify"),
        (["forget.apply_best_scale=true"], "CONFIG_CONFLICT", "forget"),
        (["forget.regression_rows=rows.jsonl"], "CONFIG_CONFLICT", "forget"),
        (["train.beta=0.3"], "CONFIG_CONFLICT", "train.beta"),
        (["sweep.grid={train.lr: [0.1]}"], "CONFIG_CONFLICT", "sweep"),
    ],
)
def test_what_a_head_cannot_do_is_refused_with_its_reason(
    settings: list[str], code: str, what: str, tmp_path: Path, model_folder: Any
) -> None:
    write_chat_rows(tmp_path / "rows.jsonl", 60, label=True)
    model = ["--model", str(model_folder("llama"))]
    done = cli("run", "rows.jsonl", *model, "train.method=classify", "train.steps=2", *settings, cwd=tmp_path)
    assert done.returncode == 2
    assert code in done.stderr
    assert what in done.stderr


@pytest.mark.parametrize("kind", ["none", pytest.param("dora", marks=pytest.mark.slow)])
def test_a_head_on_another_adapter_or_none_is_trained_and_exported(
    kind: str, tmp_path: Path, model_folder: Any
) -> None:
    rows = write_chat_rows(tmp_path / "rows.jsonl", 60, label=True)
    settings = {k: v for k, v in QUICK.items() if kind != "none" or not k.startswith("adapter")}
    more = {"adapter__kind": kind, "train__method": "classify", "train__lr": 3e-3, "prove__evidence": "plain"}
    done = api.run(rows, model=str(model_folder("llama")), name="k", root=tmp_path, **{**settings, **more})
    checks = json.loads((done.path / "export.json").read_text())
    assert [c["kind"] for c in checks] == (["merged"] if kind == "none" else ["adapter", "merged"])
    assert all(c["largest_difference"] < 1e-4 for c in checks)
    assert all(c["reproduced"]["same"] == c["reproduced"]["rows"] for c in checks)
    steps = [json.loads(x) for x in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < 0.9 * math.log(2)


def test_rows_without_labels_are_refused(tmp_path: Path, model_folder: Any) -> None:
    rows = write_chat_rows(tmp_path / "rows.jsonl", 60)
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(line.replace('"content": "', f'"content": "{n} ') for n, line in enumerate(lines)))
    with pytest.raises(TunewrightError, match="needs rows with labels"):
        api.run(tmp_path / "rows.jsonl", model=str(model_folder("llama")), root=tmp_path, train__method="classify")


def test_cross_entropy_is_by_hand(tmp_path: Path) -> None:
    rows, model = prepared(tmp_path), headed()
    ((row,), label) = rows[1].sequences, LABELS.index("warm")
    with torch.no_grad():
        hidden_D = model.decoder(torch.tensor([row.ids[:-1]])).last_hidden_state[0, -1]
        head = head_of(model.module)
        assert head is not None
        expected = F.cross_entropy((head.weight @ hidden_D)[None], torch.tensor([label]))
    assert loss_and_gradient(model, rows[1:2], plan())[0] == pytest.approx(float(expected), abs=1e-12)
