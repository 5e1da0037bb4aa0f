"""A run on rated rows, from the file to the verdict: undesirable answers are trained on, and never compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from build import FLAGS, WORDS, byte_tokenizer, cli, read, read_lines
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.messages import Chat, Message
from tunewright.methods import kto
from tunewright.stages.experiments import ratings
from tunewright.stages.experiments.ratings import ranked
from tunewright.tokens.template import Template

Folder = Callable[[str], Path]


def rated(count: int) -> list[dict[str, Any]]:
    """The question's word in capitals is desirable, another word as it is undesirable, of which there are fewer."""
    rows = []
    for i in range(count):
        word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
        question = f"item {i}: {word} by the {other}, lot {i * 37 % 101}"
        rows.append({"prompt": question, "completion": f"{word} {i}".upper(), "label": True})
        rows += [{"prompt": question, "completion": f"{other} {i}", "label": False}] if i % 3 else []
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Path:
    folder = tmp_path_factory.mktemp("ratings")
    rows = write(folder / "rated.jsonl", rated(60))
    done = cli("run", str(rows), "--model", str(model_folder("llama")), *FLAGS, "train.method=kto", "train.lr=0.01",
               "prove.evidence=standard", "--name", "r", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ratings: a desirable answer is more probable" in done.stderr
    assert "fine-tuning on the desirable answers" in done.stderr
    return folder / "runs" / "r"


def test_both_kinds_are_trained_on_and_balanced(trained: Path) -> None:
    plan = read(trained, "plan")
    options, rows = plan["options"], rated(60)
    split = {line["row"]: line["side"] for line in read_lines(trained, "data/split")}
    kinds = [rows[i]["label"] for i, side in split.items() if side == "train"]
    assert plan["rows"] == len(kinds)
    assert options["desirable_weight"] == 1.0
    assert options["undesirable_weight"] == pytest.approx(kinds.count(True) / kinds.count(False))
    assert "weigh the same" in plan["reasons"]["options"]
    first, *_, last = (line for line in read_lines(trained, "metrics") if "loss" in line)
    assert first["metrics"]["kl"] == pytest.approx(0, abs=1e-4)
    assert last["metrics"]["reward_desirable"] > last["metrics"]["reward_undesirable"]
    assert "start" in [finding["check"] for finding in read(trained, "selftest")["findings"]]


def test_no_undesirable_answer_is_compared_with_or_shown(trained: Path) -> None:
    files = list((trained / "scores").rglob("*.jsonl"))
    assert {"tuned.jsonl", "dev"} <= {part for file in files for part in file.parts}
    for file in files:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert all(line["target"].isupper() for line in lines if "target" in line), file.name
    examples = [e for e in read(trained, "data/audit")["findings"] if e["code"] == "RATINGS"]
    assert len(examples) == 1


def test_what_ratings_did_is_measured(trained: Path) -> None:
    record = read(trained, "pairs")
    sides = {line["row"]: line["side"] for line in read_lines(trained, "data/split")}
    test = [r["label"] for i, r in enumerate(rated(60)) if sides[i] == "test"]
    assert (record["desirable"], record["undesirable"]) == (test.count(True), test.count(False))
    assert record["accuracy"]["run"] > record["accuracy"]["other"]
    assert record["implicit_accuracy"] > 0.5
    assert record["one_sided_steps"] == 0
    assert record["sft_on_desirable"]["style_accuracy"] > 0.9, "capitals are easily recognised"
    assert read(trained, "verdict")["pairs"] == record
    html = (trained / "report.html").read_text(encoding="utf-8")
    assert "What did the ratings teach?" in html
    assert "Fine-tuning on the desirable answers alone" in html


def test_the_branch_is_fine_tuning_on_the_desirable_answers(trained: Path) -> None:
    plan, own = read(trained / "branches" / "sft_on_desirable", "branch")["plan"], read(trained, "plan")
    sides = {line["row"]: line["side"] for line in read_lines(trained, "data/split")}
    assert (plan["method"], plan["steps"], plan["batch_size"]) == ("sft", own["steps"], own["batch_size"])
    assert plan["rows"] == sum(r["label"] and sides[i] == "train" for i, r in enumerate(rated(60)))


def test_undesirable_answers_are_chosen_by_their_questions_and_not_by_the_order_of_the_file() -> None:
    def chosen(questions: list[str]) -> set[str]:
        asked = [Chat((Message("user", q), Message("assistant", "no")), "x:1", desirable=False) for q in questions]
        rows = [row for i, chat in enumerate(asked) for row in kto.prepare(Template(byte_tokenizer()), chat, i, None)]
        work: Any = SimpleNamespace(
            inputs=SimpleNamespace(test=(), rows={"test": rows}),
            config=SimpleNamespace(prove=SimpleNamespace(max_test_rows=3)),
            data=SimpleNamespace(examples=asked),
        )
        return {questions[row.row] for row in ratings._rows(work)}

    assert len(chosen(list("abcdefgh"))) == 3
    assert chosen(list("abcdefgh")) == chosen(list("hgfedcba"))


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=9),
    st.lists(st.integers(0, 5), min_size=1, max_size=9),
)
def test_the_mean_of_ranked_is_the_area_under_the_curve(good: list[int], bad: list[int]) -> None:
    scores = np.array([*good, *bad], float)
    kinds = np.array([True] * len(good) + [False] * len(bad))
    area = np.mean([(a > b) + 0.5 * (a == b) for a in good for b in bad])
    assert ranked(scores, kinds).mean() == pytest.approx(area, abs=1e-12)
    perfect = ranked(np.where(kinds, 9.0, 0.0), kinds)
    assert np.allclose(perfect, 1.0), "nothing varies"


@pytest.mark.parametrize(
    ("rows", "words", "code", "place"),
    [
        ([r for r in rated(60) if r["label"]], (), "DATA_ONE_SIDED", "rated.jsonl"),
        ([*rated(60), {"prompt": "p", "completion": "c", "label": "good"}], (), "DATA_LABEL_NOT_BOOLEAN",
         "rated.jsonl:101"),
        (rated(60), ("adapter.kind=none",), "CONFIG_CONFLICT", "compares with the initial model in every step"),
        (rated(60), ("adapter.dropout=0.1",), "CONFIG_CONFLICT", "adapter.dropout"),
        (rated(60), ("train.nll_weight=0.1",), "CONFIG_CONFLICT", "train.nll_weight"),
        (rated(60), ("train.method=dpo", "train.desirable_weight=2"), "CONFIG_CONFLICT", "train.desirable_weight"),
        (rated(60), ("train.method=dpo",), "DATA_FORM_UNSUPPORTED", "rated.jsonl:1"),
        (rated(60), ("data.format=completion",), "DATA_FIELD_MISSING", "rated.jsonl:1"),
        (rated(60), ("train.method=sft",), "DATA_FORM_UNSUPPORTED", "rated.jsonl:1"),
    ],
    ids=lambda x: str(x)[:40] if isinstance(x, str | tuple) else None,
)  # fmt: skip
def test_what_contradicts_is_refused_before_anything_is_trained(
    tmp_path: Path, model_folder: Folder, rows: list[dict[str, Any]], words: tuple[str, ...], code: str, place: str
) -> None:
    file = write(tmp_path / "rated.jsonl", rows)
    settings = [f for f in FLAGS if "adapter.kind=none" not in words or not f.startswith("adapter.")]
    done = cli(
        "run", str(file), "--model", str(model_folder("llama")), *settings, "train.method=kto", *words, cwd=tmp_path
    )
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert place in done.stderr


def test_pairs_can_be_trained_on_as_ratings(tmp_path: Path, model_folder: Folder) -> None:
    rows = [
        {"prompt": f"item {i}: {WORDS[i % 10]}, lot {i * 37 % 101}", "chosen": f"{WORDS[i % 10]} {i}".upper(),
         "rejected": WORDS[i % 7]}
        for i in range(40)
    ]  # fmt: skip
    file = write(tmp_path / "pairs.jsonl", rows)
    done = cli("run", str(file), "--model", str(model_folder("llama")), *FLAGS, "train.method=kto",
               "prove.evidence=plain", "train.steps=2", "--name", "r", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "r"
    sides = [line["side"] for line in read_lines(run, "data/split")]
    assert read(run, "plan")["rows"] == 2 * sides.count("train")
    record = read(run, "pairs")
    assert record["desirable"] == record["undesirable"] == sides.count("test")
    assert record["sft_on_desirable"] is None


def test_preview_names_the_rating(tmp_path: Path, model_folder: Folder) -> None:
    file = write(tmp_path / "rated.jsonl", rated(60))
    for row, kind in ((1, "desirable"), (3, "undesirable")):
        done = cli("preview", str(file), "--row", str(row), "--model", str(model_folder("llama")), "train.method=kto",
                   cwd=tmp_path)  # fmt: skip
        assert f"rated.jsonl:{row}, {kind}: " in done.stdout, done.stderr
