"""A run on preference rows, from the file to the verdict: trained on pairs, compared with the chosen answers alone."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from build import FLAGS, WORDS, cli, read, read_lines

Folder = Callable[[str], Path]


def write_pairs(path: Path, count: int) -> Path:
    """The chosen answer is the question's word in capitals, the rejected one another word as it is."""
    rows = []
    for i in range(count):
        word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
        question = f"item {i}: {word} by the {other}, lot {i * 37 % 101}"
        rows.append({"prompt": question, "chosen": f"{word} {i}".upper(), "rejected": f"{other} {i}"})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rows = write_pairs(folder / "pairs.jsonl", 60)
    done = cli("run", str(rows), "--model", str(model_folder("llama")), *FLAGS, "train.method=dpo", "train.lr=0.01",
               "prove.evidence=standard", "--name", "r", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pairs: the chosen answer is more probable in" in done.stderr
    assert "fine-tuning on the chosen answers" in done.stderr
    return folder / "runs" / "r"


def test_a_run_learns_the_preference(trained: Path) -> None:
    first, *_, last = (line for line in read_lines(trained, "metrics") if "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert last["metrics"]["reward_chosen"] > last["metrics"]["reward_rejected"]
    pairs = read(trained, "pairs")
    assert pairs["measured"] is True
    assert pairs["accuracy"]["run"] >= pairs["accuracy"]["other"]
    assert pairs["implicit_accuracy"] > 0.5
    assert pairs["sft_on_chosen"]["style_accuracy"] > 0.9, "capitals are easily recognised"
    checks = [finding["check"] for finding in read(trained, "selftest")["findings"]]
    assert "start" in checks


def test_the_report_and_the_verdict_have_it(trained: Path) -> None:
    assert read(trained, "verdict")["pairs"] == read(trained, "pairs")
    html = (trained / "report.html").read_text(encoding="utf-8")
    assert "pairs ranked correctly" in html
    assert "Fine-tuning on the chosen answers alone" in html


def test_every_read_of_test_is_counted(trained: Path) -> None:
    reads = [event for event in read_lines(trained, "events") if event["event"] == "test_read"]
    assert read(trained, "verdict")["test_reads"] == len(reads)
    assert {"pairs"} <= {event.get("experiment") for event in reads}, "their likelihood is read, before and after"


def test_the_branch_is_fine_tuning_on_the_chosen_answers(trained: Path) -> None:
    plan, own = read(trained / "branches" / "sft_on_chosen", "branch")["plan"], read(trained, "plan")
    assert (plan["method"], own["method"]) == ("sft", "dpo")
    assert (plan["steps"], plan["batch_size"], plan["rows"]) == (own["steps"], own["batch_size"], own["rows"])


def test_a_killed_run_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "runs" / "r"
    shutil.copytree(trained, again)
    kept = read(trained, "training")["weights_sha256"]
    for name in ("training.json", "forgetting.json", "verdict.json", "pairs.json", "export.json", "report.html"):
        (again / name).unlink()
    shutil.rmtree(again / "scores")
    (again / "checkpoints" / "final.safetensors").unlink()
    newest = max((again / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    done = cli("run", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read(again, "training")["weights_sha256"] == kept


@pytest.mark.parametrize(
    ("words", "code", "place"),
    [
        (("train.method=ipo", "train.label_smoothing=0.1"), "CONFIG_CONFLICT", "train.label_smoothing"),
        (("train.beta=0.2",), "CONFIG_CONFLICT", "train.beta"),
        (("train.method=dpo", "adapter.dropout=0.1"), "CONFIG_CONFLICT", "adapter.dropout"),
        (("train.method=sft", "data.format=auto"), "DATA_FORM_UNSUPPORTED", "pairs.jsonl:1"),
        (
            ("train.method=dpo", "data.format=completion", "data.columns={completion: chosen}"),
            "DATA_FIELD_MISSING",
            "pairs.jsonl:1",
        ),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused_before_anything_is_trained(
    tmp_path: Path, model_folder: Folder, words: tuple[str, ...], code: str, place: str
) -> None:
    rows = write_pairs(tmp_path / "pairs.jsonl", 60)
    given = ("data.format=preference",) if not any(w.startswith(("data.", "train.method")) for w in words) else ()
    done = cli("run", str(rows), "--model", str(model_folder("llama")), *FLAGS, *given, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert place in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_the_chosen_answers_alone_can_be_trained_on(tmp_path: Path, model_folder: Folder) -> None:
    rows = write_pairs(tmp_path / "pairs.jsonl", 60)
    done = cli("run", str(rows), "--model", str(model_folder("llama")), *FLAGS, "data.format=preference", "--name", "r",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "runs" / "r", "pairs") == {
        "measured": False,
        "reason": "the rows were not trained on as pairs",
        "version": 1,
    }
