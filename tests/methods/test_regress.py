"""Heads that give a number or a set of labels: against transformers' own class, in any layout of a pass; what a run is
judged by, and its exports."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import QUICK, WORDS, byte_tokenizer, cli, exact_norms, plan_of, tiny_lm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunewright import api
from tunewright.core.config import AdapterConfig, load
from tunewright.core.errors import TunewrightError
from tunewright.data import dataset, numbers
from tunewright.data.messages import Chat, Message
from tunewright.data.numbers import Numbers
from tunewright.data.scores import Answer, Written
from tunewright.data.task import LABEL_SET, NUMBER
from tunewright.data.task.configured import configured
from tunewright.data.task.label_set import joined, parts
from tunewright.methods import METHODS
from tunewright.model import adapters
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template

TEMPLATE = Template(byte_tokenizer())
ROWS = [("a house", 3.5), ("a house by the sea", -1.25), ("x", 0.0), ("a house", 7.0), ("fire and water", 2e-3)]
MEAN, DEVIATION = 1.5, 2.5


def prepared() -> list[TrainRow]:
    chats = [Chat((Message("user", t), Message("assistant", repr(y))), f"x:{i}") for i, (t, y) in enumerate(ROWS)]
    return [METHODS["regress"].prepare(TEMPLATE, chat, i, None)[0] for i, chat in enumerate(chats)]


@pytest.mark.parametrize(("layout", "capacity"), [("shared", 4096), ("shared", 60), ("packed", 90), ("padded", 100)])
def test_loss_and_gradient_are_those_of_transformers_own_class(layout: str, capacity: int) -> None:
    from transformers import AutoModelForSequenceClassification

    model, rows, method = tiny_lm(dtype=torch.float64, vocabulary=300), prepared(), METHODS["regress"]
    exact_norms(model.module)
    adapters.attach(model.module, AdapterConfig(kind="none"), 0, 1)
    torch.nn.init.normal_(model.module.score.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    plan = plan_of(
        method="regress", labels=("value",), standardised=(MEAN, DEVIATION), layout=layout, tokens_per_pass=capacity
    )
    total = 0.0
    for part in method.microbatches(model, rows, range(len(rows)), plan, 0):
        loss = method.loss(model, part, plan).sum / len(rows)
        loss.backward()
        total += float(loss.detach())
    config = type(model.module.config)(**{**model.module.config.to_dict(), "num_labels": 1})
    config.problem_type = "regression"
    theirs = AutoModelForSequenceClassification.from_config(config).to(torch.float64).eval()
    theirs.load_state_dict({n: p for n, p in model.module.state_dict().items() if not n.startswith("lm_head")})
    exact_norms(theirs)
    prompts = [s.ids[:-1] for r in rows for s in r.sequences]
    longest = max(map(len, prompts))
    ids = torch.tensor([[*p, *[256] * (longest - len(p))] for p in prompts])
    seen = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
    target = torch.tensor([[(y - MEAN) / DEVIATION] for _, y in ROWS], dtype=torch.float64)
    expected = theirs(ids, attention_mask=seen, labels=target).loss
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), abs=1e-10)
    own = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    for name, p in theirs.named_parameters():
        assert p.grad is not None
        assert torch.allclose(own[name], p.grad, rtol=0, atol=1e-10), name


@given(st.floats(-1e6, 1e6), st.sampled_from(["{}", "about {}.", "**{}**", "Answer: {}\n"]))
def test_a_number_is_read_whatever_is_around_it(value: float, around: str) -> None:
    text = around.format(repr(value))
    assert numbers.read(text) == value
    assert numbers.exact(repr(value)) == value


def test_what_is_no_number_is_farthest_and_what_is_outside_is_the_nearest_end() -> None:
    known = Numbers.of([0.0, 1.0, 4.0])
    assert (known.low, known.high, known.mean) == (0.0, 4.0, pytest.approx(5 / 3))
    for text in ("", "none", "1 or 2", "nan", "inf", "1e999"):
        assert known.predicted(text, 1.0) == 4.0
        assert known.predicted(text, 3.0) == 0.0
    assert known.predicted("1000", 1.0) == 4.0
    assert known.predicted("-3", 1.0) == 0.0
    assert known.predicted("it is 2.5!", 1.0) == 2.5


# -- a run


def write_rows(file: Path, count: int = 60) -> Path:
    values = {word: float(i * i) / 4 for i, word in enumerate(WORDS)}
    words = [(WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]) for i in range(count)]
    rows = [
        {"text": f"{a} by {b}, lot {i * 37 % 101}", "label": values[a] + 0.01 * i} for i, (a, b) in enumerate(words)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> api.Result:
    root = tmp_path_factory.mktemp("numbers")
    settings = {**QUICK, "train__method": "regress", "train__steps": 12, "train__lr": 3e-3}
    return api.run(write_rows(root / "rows.jsonl"), model=str(model_folder("llama")), name="n", root=root, **settings)


def test_a_run_is_judged_by_the_error_in_standard_deviations(run: api.Result) -> None:
    verdict, plan = (json.loads((run.path / f"{name}.json").read_text()) for name in ("verdict", "plan"))
    assert (verdict["metric"], verdict["task"]) == ("absolute_error", "number")
    arms = verdict["arms"]
    assert {"zero_shot", "few_shot", "constant", "classical", "sft", "tuned"} <= set(arms)
    mean, deviation = plan["standardised"]
    split = [json.loads(x) for x in (run.path / "data" / "split.jsonl").read_text().splitlines()]
    rows = [json.loads(x) for x in (run.path.parent / "rows.jsonl").read_text().splitlines()]
    train = [rows[s["row"]]["label"] for s in split if s["side"] == "train"]
    assert (mean, deviation) == (pytest.approx(np.mean(train)), pytest.approx(np.std(train)))
    lines = [json.loads(x) for x in (run.path / "scores" / "tuned.jsonl").read_text().splitlines()]
    targets, answers = ([float(line[key]) for line in lines] for key in ("target", "answer"))
    clipped = np.clip(answers, min(train), max(train))
    errors = abs(clipped - np.array(targets)) / deviation
    assert arms["tuned"]["score"] == pytest.approx(errors.mean(), abs=1e-6)
    assert arms["tuned"]["summary"]["rmse"] == pytest.approx(math.sqrt((errors**2).mean()), abs=1e-6)
    assert arms["tuned"]["summary"]["spearman"] == pytest.approx(stats.spearmanr(clipped, targets).statistic, abs=1e-6)
    constant = {
        line["answer"] for line in map(json.loads, (run.path / "scores" / "constant.jsonl").read_text().splitlines())
    }
    assert [float(x) for x in constant] == [pytest.approx(np.median(train))]
    assert "spearman" not in arms["constant"]["summary"]
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[1])["metrics"]["absolute_error"] > 0


def test_chat_and_the_cards_code_give_the_same_number(
    run: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for check in json.loads((run.path / "export.json").read_text()):
        assert check["largest_difference"] < 1e-5
        assert check["reproduced"]["score"] == pytest.approx(check["reproduced"]["verdict"], abs=1e-4)
    answered = float(cli("chat", str(run.path), "red by cat, lot 0", cwd=run.path).stdout)
    base = Path(json.loads((run.path / "receipt.json").read_text())["model"]["path"])
    for kind in ("adapter", "merged"):
        folder = tmp_path / kind
        shutil.copytree(run.path / kind, folder)
        (folder / base.name).symlink_to(base)
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        monkeypatch.chdir(folder)
        exec(code.replace('"..."', '"red by cat, lot 0"'), {})
        (value,) = json.loads(capsys.readouterr().out)
        assert value == pytest.approx(answered, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "settings", "code"),
    [
        ({"text": "x", "label": "high"}, [], "DATA_FORMAT_MISMATCH"),
        ({"text": "x", "label": 1}, ["data.label_names=[a, b]"], "CONFIG_CONFLICT"),
        ({"text": "x", "label": 1}, ["prove.metric=accuracy"], "DATA_FORMAT_MISMATCH"),
    ],
)
def test_rows_without_numbers_are_refused(row: dict[str, Any], settings: list[str], code: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    rows.write_text(rows.read_text() + json.dumps(row) + "\n")
    done = cli("check", "rows.jsonl", "train.method=regress", *settings, cwd=tmp_path)
    assert done.returncode == 2
    assert code in done.stderr


def test_numbers_need_the_method(tmp_path: Path, model_folder: Any) -> None:
    with pytest.raises(TunewrightError, match=r"train\.method=regress learns numbers"):
        api.run(write_rows(tmp_path / "rows.jsonl"), model=str(model_folder("llama")), root=tmp_path)


def test_one_and_the_same_number_is_nothing_to_learn() -> None:
    """Also where the held-out rows have others."""
    rows = [Chat((Message("user", f"q{i}"), Message("assistant", "2.5" if i else "3")), f"x:{i}") for i in range(9)]
    task = NUMBER.detect(rows)
    assert task is not None
    asked = load(None, ["data.train=rows.jsonl", "train.method=regress"])
    assert configured(asked, task, rows).numbers == Numbers.of([3.0, *[2.5] * 8])
    with pytest.raises(TunewrightError, match="one and the same answer"):
        configured(asked, task, rows[1:])


# -- sets of labels


SET_LABELS = ("cold", "dry", "warm")
SET_ROWS = [("a house", "cold, dry"), ("a house by the sea", "none"), ("x", "cold, dry, warm"), ("a house", "warm")]


def chats(rows: list[tuple[str, str]] = SET_ROWS) -> list[Chat]:
    return [Chat((Message("user", t), Message("assistant", a)), f"x:{i}") for i, (t, a) in enumerate(rows)]


def prepared_sets() -> list[TrainRow]:
    return [METHODS["multilabel"].prepare(TEMPLATE, chat, i, None)[0] for i, chat in enumerate(chats())]


@pytest.mark.parametrize(("layout", "capacity"), [("shared", 4096), ("shared", 60), ("packed", 90), ("padded", 100)])
def test_loss_and_gradient_of_sets_are_those_of_transformers_own_class(layout: str, capacity: int) -> None:
    from transformers import AutoModelForSequenceClassification

    model, rows, method = tiny_lm(dtype=torch.float64, vocabulary=300), prepared_sets(), METHODS["multilabel"]
    exact_norms(model.module)
    adapters.attach(model.module, AdapterConfig(kind="none"), 0, len(SET_LABELS))
    plan = plan_of(method="multilabel", labels=SET_LABELS, layout=layout, tokens_per_pass=capacity)

    def total() -> torch.Tensor:
        parts_ = method.microbatches(model, rows, range(len(rows)), plan, 0)
        return torch.stack([method.loss(model, part, plan).sum for part in parts_]).sum() / len(rows)

    assert float(total().detach()) == pytest.approx(math.log(2)) == pytest.approx(method.initial_loss(plan, []))
    torch.nn.init.normal_(model.module.score.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    loss = total()
    loss.backward()
    config = type(model.module.config)(**{**model.module.config.to_dict(), "id2label": dict(enumerate(SET_LABELS))})
    config.problem_type = "multi_label_classification"
    theirs = AutoModelForSequenceClassification.from_config(config).to(torch.float64).eval()
    theirs.load_state_dict({n: p for n, p in model.module.state_dict().items() if not n.startswith("lm_head")})
    exact_norms(theirs)
    prompts = [s.ids[:-1] for r in rows for s in r.sequences]
    longest = max(map(len, prompts))
    ids = torch.tensor([[*p, *[256] * (longest - len(p))] for p in prompts])
    seen = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
    target = torch.tensor([[float(x in a.split(", ")) for x in SET_LABELS] for _, a in SET_ROWS], dtype=torch.float64)
    expected = theirs(ids, attention_mask=seen, labels=target).loss
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    own = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    for name, p in theirs.named_parameters():
        assert p.grad is not None
        assert torch.allclose(own[name], p.grad, rtol=0, atol=1e-10), name


@pytest.mark.parametrize(
    ("target", "answer", "score"),
    [
        ("cold, dry", "dry, cold", 1.0),
        ("cold, dry", "Cold; DRY.", 1.0),
        ("cold, dry", "cold", 2 / 3),
        ("cold, dry", "cold, dry, warm", 0.8),
        ("none", "none", 1.0),
        ("none", "", 1.0),
        ("none", "cold", 0.0),
        ("cold", "cold and much else", 0.0),
    ],
)
def test_answers_are_compared_as_sets(target: str, answer: str, score: float) -> None:
    task = LABEL_SET.detect(chats())
    assert task is not None
    assert task.label_set == SET_LABELS
    (chat,) = chats([("q", target)])
    assert task.score(chat, Answer(answer, Written(1, False))).score == pytest.approx(score)
    assert joined(parts(target)) == target


# -- a run on sets


def write_sets(file: Path, count: int = 80) -> Path:
    rows = []
    for i in range(count):
        a, b = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
        labels = [name for name, words in (("cold", WORDS[:4]), ("dry", WORDS[3:7]), ("old", WORDS[6:9])) if a in words]
        rows.append({"text": f"{a} by {b}, lot {i * 37 % 101}", "labels": labels})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def sets_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> api.Result:
    root = tmp_path_factory.mktemp("sets")
    settings = {**QUICK, "train__method": "multilabel", "train__steps": 20, "train__lr": 1e-2}
    return api.run(write_sets(root / "rows.jsonl"), model=str(model_folder("llama")), name="n", root=root, **settings)


def test_a_run_is_judged_by_sets_and_its_exports_give_the_same(
    sets_run: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict, plan = (json.loads((sets_run.path / f"{name}.json").read_text()) for name in ("verdict", "plan"))
    assert (verdict["metric"], verdict["task"]) == ("label_f1", "label_set")
    assert plan["labels"] == ["cold", "dry", "old"]
    assert {"zero_shot", "few_shot", "constant", "classical", "sft", "tuned"} <= set(verdict["arms"])
    assert verdict["arms"]["classical"]["score"] > verdict["arms"]["constant"]["score"]
    lines = [json.loads(x) for x in (sets_run.path / "scores" / "tuned.jsonl").read_text().splitlines()]
    for line in lines:
        target, given = (set(parts(line[key])) for key in ("target", "answer"))
        both = len(target & given)
        expected = 2 * both / (len(target) + len(given)) if target or given else 1.0
        assert line["score"] == pytest.approx(expected)
    for check in json.loads((sets_run.path / "export.json").read_text()):
        assert check["largest_difference"] < 1e-5
        assert check["reproduced"]["same"] == check["reproduced"]["rows"]
    answered = cli("chat", str(sets_run.path), "red by cat, lot 0", cwd=sets_run.path).stdout.strip()
    base = Path(json.loads((sets_run.path / "receipt.json").read_text())["model"]["path"])
    for kind in ("adapter", "merged"):
        folder = tmp_path / kind
        shutil.copytree(sets_run.path / kind, folder)
        (folder / base.name).symlink_to(base)
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        monkeypatch.chdir(folder)
        exec(code.replace('"..."', '"red by cat, lot 0"'), {})
        assert capsys.readouterr().out.strip() == str([list(parts(answered))])


def test_free_text_is_no_set_of_labels(tmp_path: Path) -> None:
    rows = write_sets(tmp_path / "rows.jsonl")
    odd = {"text": "and", "labels": ["a whole sentence which is much too long for a label"]}
    rows.write_text(rows.read_text() + json.dumps(odd) + "\n")
    done = cli("check", "rows.jsonl", "train.method=multilabel", cwd=tmp_path)
    assert done.returncode == 2
    assert "DATA_FORMAT_MISMATCH" in done.stderr
    assert dataset.load(load(None, [f"data.train={rows}"])).task.label_set == ()


@pytest.mark.parametrize(("method", "answer"), [("regress", "2"), ("multilabel", "cold")])
def test_a_head_answers_once(method: str, answer: str, tmp_path: Path) -> None:
    """A row with several trained answers is refused; only the last of them would be learned."""
    turns = [
        {"role": role, "content": text} for _ in range(2) for role, text in (("user", "q{}"), ("assistant", answer))
    ]
    rows = [{"messages": [{**m, "content": m["content"].format(i)} for m in turns]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("check", "rows.jsonl", f"train.method={method}", cwd=tmp_path)
    assert "needs rows of one answer each" in done.stderr
