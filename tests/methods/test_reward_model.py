"""Reward models: against TRL's own loss, in any layout of a pass; what a run is judged by, and its exports."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, QUICK, byte_tokenizer, cli, exact_norms, plan_of, printed_by, tiny_lm
from stages.test_pairs import write_pairs
from torch import Tensor

from tunewright import api
from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import DataError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data import formats
from tunewright.data.baselines import pair_scores
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.sources import Row
from tunewright.export import classifier, export
from tunewright.judge.chat_model import ChatModel
from tunewright.methods import METHODS
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding
from tunewright.model.facts import read_facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.train import loop

TEMPLATE = Template(byte_tokenizer())
METHOD = METHODS["reward_model"]
PAIRS = [
    ("what is it", "a cat", "a dog that barks", 0.0),
    ("what is it", "a cat and more", "a cat", 1.5),  # the sides begin alike
    ("who", "nobody", "everyone, or so they think", -0.5),
    ("what was it then", "rain", "r", 0.25),
    ("w", "x", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 0.0),
]
NEW = {k: v for k, v in QUICK.items() if k not in ("prove__few_shot", "prove__max_new_tokens")}


def prepared(margins: bool = True) -> list[TrainRow]:
    made = []
    for i, (question, good, bad, margin) in enumerate(PAIRS):
        messages = (Message("user", question), Message("assistant", good))
        chat = Chat(messages, "x:1", rejected=Message("assistant", bad), margin=margin if margins else None)
        made += METHOD.prepare(TEMPLATE, chat, i, None)
    return made


def plan(center: float = 0.0, **more: Any) -> Plan:
    options = MethodOptions(center_rewards_coefficient=center)
    given = {"method": "reward_model", "labels": ("reward",), "layout": "shared", "batch_size": 3, "options": options}
    return plan_of(**{**given, **more})


def headed(zero: bool = False, dtype: torch.dtype = torch.float64) -> LanguageModel:
    model = tiny_lm(dtype=dtype, vocabulary=300)
    if dtype == torch.float64:
        exact_norms(model.module)
    adapters.attach(model.module, LORA, 1, 1)
    for p in adapters.trainable(model.module).values() if not zero else ():
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel()))
    return model


def gradient(model: LanguageModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in adapters.trainable(model.module).values() if p.grad is not None])


def trls(model: LanguageModel, rows: list[TrainRow], center: float, margins: bool) -> Tensor:
    """TRL's loss, of transformers' own class on padded rows: the chosen ones, then the rejected ones."""
    trainer = pytest.importorskip("trl.trainer.reward_trainer").RewardTrainer
    made = classifier.classifier(model.module, plan(), TEMPLATE)
    sequences = [r.sequences[k].ids[:-1] for k in (0, 1) for r in rows]
    longest, pad = max(map(len, sequences)), made.config.pad_token_id
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in sequences]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]),
    }
    if margins:
        inputs["margin"] = torch.tensor([margin for *_, margin in PAIRS], dtype=torch.float64)

    def called(margin: Any = None, **given: Any) -> Any:
        return made(**given)

    itself = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=center or None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    loss: Tensor = trainer.compute_loss(itself, called, inputs)
    return loss


@pytest.mark.parametrize(("center", "margins"), [(0.0, False), (0.0, True), (0.3, True)])
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_loss_and_gradient_equal_trls(layout: str, center: float, margins: bool) -> None:
    model, rows = headed(), prepared(margins)
    expected = trls(model, rows, center, margins)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = gradient(model)
    for capacity in (4096, 90, 1):
        asked, total = plan(center, layout=layout, tokens_per_pass=capacity), 0.0
        model.module.zero_grad(set_to_none=True)
        passes = METHOD.microbatches(model, rows, range(len(rows)), asked, 0)
        assert len(passes) == 1 if capacity == 4096 else len(passes) > 2
        assert sum(map(METHOD.weight, passes)) == len(rows)
        for part in passes:
            loss = METHOD.loss(model, part, asked).sum / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        assert total == pytest.approx(float(expected.detach()), rel=0, abs=1e-10)
        assert torch.allclose(gradient(model), wanted, rtol=0, atol=1e-10)


def test_the_first_loss_is_its_formula() -> None:
    model = headed(zero=True)
    for margins in (False, True):
        rows = prepared(margins)
        passes = METHOD.microbatches(model, rows, range(len(rows)), plan(), 0)
        loss = sum(float(METHOD.loss(model, part, plan()).sum.detach()) for part in passes) / len(rows)
        assert loss == pytest.approx(METHOD.initial_loss(plan(), rows), abs=1e-12)
    assert METHOD.initial_loss(plan(), prepared(False)) == pytest.approx(math.log(2), abs=1e-12)


def test_answers_are_scored_together_as_each_alone() -> None:
    model = headed()
    chats = [Chat((Message("user", q), Message("assistant", a)), "x:1") for q, *both, _ in PAIRS for a in both]
    for layout in ("shared", "packed", "padded"):
        answering = ChatModel(model, TEMPLATE, Decoding(4, (256,)), plan(layout=layout, tokens_per_pass=120))
        together, alone = answering.rewards(chats), [answering.rewards([chat])[0] for chat in chats]
        assert together == pytest.approx(alone, rel=0, abs=1e-10)
        assert len(set(together)) > 5


class Killed(Exception):
    pass


def trained(folder: Path, stop: int | None = None) -> tuple[list[Tensor], list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    run, model, rows = Run(folder), headed(zero=True, dtype=torch.float32), prepared()

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    asked = plan(steps=5, checkpoint_every=1, tokens_per_pass=60)
    loop.train(loop.TrainingInputs(model, asked, rows[:4], rows[4:], run, {"data": "d"}), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "straight")
    assert lines[0]["dev_loss"] == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(Killed):
        trained(tmp_path / "stopped", 2)
    again, lines_again = trained(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert lines_again == lines


# -- rows and baselines


def margin_of(value: object, margins: bool = True) -> tuple[float | None, dict[str, int]]:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": value}
    parsed = formats.parse([Row(row, "x:1")], RowSettings(preference=True, margins=margins))
    (example,) = parsed.examples
    assert isinstance(example, Chat)
    return example.margin, parsed.unused


def test_the_margin_of_a_row_is_read_and_is_unused_by_other_methods() -> None:
    assert margin_of(0.5) == (0.5, {})
    assert margin_of("2") == (2.0, {})
    assert margin_of(None) == (None, {})
    assert margin_of(0.5, margins=False) == (None, {"margin": 1})
    for wrong in ("high", True, [1], float("inf")):
        with pytest.raises(DataError, match="DATA_FIELD_TYPE"):
            margin_of(wrong)


def test_the_classifier_of_pairs_finds_what_distinguishes_them() -> None:
    good, bad = ([f"{word} {i} {end}" for i in range(30) for word in ("cat", "dog")] for end in ("please", "now"))
    score = pair_scores(good, bad)
    high, low = score(["a bird please", "a bird now"])
    assert high > low


# -- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> api.Result:
    root = tmp_path_factory.mktemp("rewards")
    rows = write_pairs(root / "pairs.jsonl", 60)
    settings = {**NEW, "train__method": "reward_model", "train__steps": 24, "train__lr": 3e-3}
    return api.run(rows, model=str(model_folder("llama")), name="rm", root=root, **settings)


def test_a_run_ranks_pairs_and_is_compared_with_other_ways_to_rank_them(run: api.Result) -> None:
    verdict, plan_ = (json.loads((run.path / f"{name}.json").read_text()) for name in ("verdict", "plan"))
    assert (verdict["task"], verdict["metric"], plan_["labels"]) == ("ranking", "pair_accuracy", ["reward"])
    assert set(verdict["arms"]) == {"length", "base", "classical", "tuned"}
    assert verdict["comparator"]["name"] in ("length", "base")
    assert set(verdict["variants_on_dev"]) == {"length-longer", "length-shorter", "base", "base-per_byte"}
    scores = [json.loads(line) for line in (run.path / "scores" / "tuned.jsonl").read_text().splitlines()]
    accuracy = np.mean([(c > r) + 0.5 * (c == r) for c, r in (line["ranked"] for line in scores)])
    assert verdict["arms"]["tuned"]["score"] == pytest.approx(accuracy)
    checks = [f["check"] for f in json.loads((run.path / "selftest.json").read_text())["findings"]]
    assert "start" in checks
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["dev_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert json.loads((run.path / "training.json").read_text())["best_dev_loss"] < 0.9 * math.log(2)
    assert "pairs ranked correctly" in (run.path / "report.html").read_text()


def test_transformers_and_peft_load_the_exports_with_equal_scores(run: api.Result, tmp_path: Path) -> None:
    """In a fresh process, without our code: several conversations in a batch, padded on either side."""
    checks = {c["kind"]: c for c in json.loads((run.path / "export.json").read_text())}
    assert set(checks) == {"adapter", "merged"}
    assert all(check["largest_difference"] < 1e-5 for check in checks.values())
    receipt = json.loads((run.path / "receipt.json").read_text())
    asked = [[f"item {i}: red by the tree", " ".join(["TREE"] * (1 + i % 4))] for i in range(7)]
    script = f"""
import json, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
out = {{}}
for kind in ("adapter", "merged"):
    if kind == "merged":
        model = AutoModelForSequenceClassification.from_pretrained({str(run.path / "merged")!r})
        assert model.config.num_labels == 1
    else:
        base = {receipt["model"]["path"]!r}
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, {str(run.path / "adapter")!r})
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained({str(run.path)!r} + "/" + kind)
    model.config.pad_token_id = tokenizer.pad_token_id
    for side in ("right", "left"):
        tokenizer.padding_side = side
        texts = [tokenizer.apply_chat_template([dict(role="user", content=q), dict(role="assistant", content=a)],
                 tokenize=False) for q, a in {asked!r}]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            out[kind + " " + side] = model(**inputs).logits[:, 0].tolist()
print(json.dumps(out))
"""
    theirs = printed_by(script, tmp_path)
    expected = ours(run, asked)
    assert np.ptp(expected) > 0.01, "the head is not zero"
    for name, scores in theirs.items():
        assert np.allclose(scores, expected, rtol=0, atol=1e-5), name


def ours(run: api.Result, asked: list[list[str]]) -> list[float]:
    """The scores of the run's own weights."""
    folder, own = Run(run.path), Plan.model_validate_json((run.path / "plan.json").read_text(), strict=False)
    receipt = json.loads((run.path / "receipt.json").read_text())
    facts = read_facts(receipt["model"]["path"], "none", own.adapter)
    model = export.trained_model(folder, own, facts, torch.float32)
    chats = [Chat((Message("user", q), Message("assistant", a)), "x:1") for q, a in asked]
    template = Template(byte_tokenizer())
    return ChatModel(model, template, Decoding(4, (256,)), own).rewards(chats)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_of_the_card_prints_the_score(
    run: api.Result, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / kind
    shutil.copytree(run.path / kind, folder)
    base = Path(json.loads((run.path / "receipt.json").read_text())["model"]["path"])
    (folder / base.name).symlink_to(base)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    question, answer = "item 0: red by the tree", "TREE"
    code = code.replace('"..."', f'"{question}"').replace('"... (the answer to score)"', f'"{answer}"')
    exec(code, {})
    (printed,) = json.loads(capsys.readouterr().out.strip())
    assert printed == pytest.approx(ours(run, [[question, answer]])[0], abs=1e-5)


def test_a_reward_model_does_not_chat(run: api.Result) -> None:
    assert "tunewright chat" not in cli("run", str(run.path), cwd=run.path).stdout
    done = cli("chat", str(run.path), "hello", cwd=run.path)
    assert done.returncode == 2
    assert "CONFIG_CONFLICT" in done.stderr


def test_preview_shows_where_the_score_is_read(tmp_path: Path, model_folder: Any) -> None:
    rows = write_pairs(tmp_path / "pairs.jsonl", 12)
    done = cli("preview", str(rows), "--model", str(model_folder("llama")), "train.method=reward_model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("⟦score⟧") == 2
    assert "rejected: " in done.stdout


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("prove.few_shot=[1]", "prove.few_shot"),
        ("prove.max_new_tokens=5", "prove.max_new_tokens"),
        ("prove.remote.url=http://host/v1", "prove.remote.url"),
        ("prove.metric=exact_match", "prove.metric"),
        ("export.to=[gguf]", "gguf"),
        ("train.beta=0.3", "train.beta"),
        ("adapter.kind=peft:lokr", "adapter.kind"),
    ],
)
def test_what_a_reward_model_does_not_read_is_refused(
    setting: str, what: str, tmp_path: Path, model_folder: Any
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 40)
    model = ["--model", str(model_folder("llama"))]
    done = cli("run", "pairs.jsonl", *model, "train.method=reward_model", "train.steps=2", setting, cwd=tmp_path)
    assert done.returncode == 2
    assert what in done.stderr


def test_other_methods_do_not_read_its_setting(tmp_path: Path, model_folder: Any) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 40)
    words = ["--model", str(model_folder("llama")), "train.method=dpo", "train.center_rewards_coefficient=0.1"]
    assert "CONFIG_CONFLICT" in cli("run", "pairs.jsonl", *words, cwd=tmp_path).stderr
