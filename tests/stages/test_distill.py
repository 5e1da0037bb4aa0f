"""A run that learns from a larger model, from the file to the verdict, and what it is compared with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import FLAGS, byte_tokenizer, cli, read, read_lines, tiny_model, write_chat_rows

Folder = Callable[[str], Path]
SAMPLED = ("train.method=distill", "distill.teacher=./teacher", "distill.on_policy=0.5")
GIVEN = [*FLAGS, "train.method=distill", "train.lr=0.01", "train.steps=12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows.jsonl and a teacher, which is wider than the student."""
    root, tokenizer = tmp_path_factory.mktemp("distill"), byte_tokenizer()
    write_chat_rows(root / "rows.jsonl", 60)
    tiny_model("qwen3", seed=9, vocabulary=len(tokenizer), hidden_size=48).save_pretrained(root / "teacher")
    tokenizer.save_pretrained(root / "teacher")
    return root


@pytest.fixture(scope="module")
def trained(folder: Path, model_folder: Folder) -> Path:
    done = cli("run", "rows.jsonl", "--model", str(model_folder("llama")), *GIVEN, "distill.teacher=./teacher",
               "prove.evidence=standard", "--name", "r", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "learns from" in done.stderr
    assert "rows read by the teacher before training" in done.stderr
    assert "compared with the teacher: " in done.stderr
    assert "compared with fine-tuning on the same rows: " in done.stderr
    return folder / "runs" / "r"


def test_it_comes_closer_to_its_teacher(trained: Path) -> None:
    first, *_, last = (line for line in read_lines(trained, "metrics") if line.get("dev_loss"))
    assert last["dev_loss"] < first["dev_loss"]
    record = read(trained, "distillation")
    assert record["nats"]["run"] < record["nats"]["other"]
    assert read(trained, "verdict")["distillation"] == record
    arms = read(trained, "verdict")["arms"]
    assert {"teacher", "sft", "tuned"} <= set(arms)
    assert record["teacher_score"]["other"] == pytest.approx(arms["teacher"]["score"])
    assert record["sft_score"]["other"] == pytest.approx(arms["sft"]["score"])
    assert "How close did it come to its teacher?" in (trained / "report.html").read_text(encoding="utf-8")


def test_fine_tuning_has_the_same_rows_and_steps(trained: Path) -> None:
    plan, own = read(trained / "branches" / "sft", "branch")["plan"], read(trained, "plan")
    assert (plan["method"], own["method"]) == ("sft", "distill")
    assert "teacher" not in plan
    assert (plan["steps"], plan["batch_size"], plan["rows"]) == (own["steps"], own["batch_size"], own["rows"])
    assert own["teacher"]["hidden"] == 48
    assert "distillation" in own["estimate"]["stages"]


def test_a_killed_run_ends_with_the_same_weights_and_a_changed_teacher_is_not_used(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "runs" / "r"
    shutil.copytree(trained, again)
    kept = read(trained, "training")["weights_sha256"]
    late = ("training", "forgetting", "verdict", "distillation", "export")
    for name in (*(f"{name}.json" for name in late), "report.html"):
        (again / name).unlink()
    shutil.rmtree(again / "scores")
    (again / "checkpoints" / "final.safetensors").unlink()
    shutil.rmtree(max((again / "checkpoints").glob("step-*")))
    done = cli("train", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read(again, "training")["weights_sha256"] == kept
    for name in ("training.json",):
        (again / name).unlink()
    weights = folder / "teacher" / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + b"\0\0\0\1")
        done = cli("train", "r", cwd=tmp_path)
    finally:
        weights.write_bytes(before)
    assert done.returncode == 2
    assert "[RESUME_MISMATCH]" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("adapter.kind=none", "train.lr=0.001"),
        ("adapter.kind=dora", "distill.divergence=reverse", "train.layout=padded"),
        ("distill.divergence=jsd", "distill.beta=0.1", "distill.temperature=2.0", "train.layout=packed"),
    ],
)
def test_kinds_of_adapters_layouts_and_divergences(
    folder: Path, tmp_path: Path, model_folder: Folder, words: Any
) -> None:
    given = [flag for flag in GIVEN if not ("adapter.kind=none" in words and flag.startswith("adapter."))]
    done = cli("train", str(folder / "rows.jsonl"), "--model", str(model_folder("llama")), *given, *words,
               f"distill.teacher={folder / 'teacher'}", "train.steps=4", "--name", "r", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = read(tmp_path / "runs" / "r", "plan")
    assert plan["teacher"]["settings"] == {
        "teacher": str(folder / "teacher"),
        "divergence": "forward",
        "beta": 0.5,
        "temperature": 1.0,
        "on_policy": 0.0,
        **{k.partition(".")[2]: (v if k == "distill.divergence" else float(v))
           for k, v in (w.split("=") for w in words) if k.startswith("distill.")},
    }  # fmt: skip


def by_a_teacher_of_200_tokens(folder: Path, tmp_path: Path, model_folder: Folder) -> list[str]:
    """The rows, and what a run learns them with, from a copy of the teacher with a short context."""
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 200}))
    rows = [str(folder / "rows.jsonl"), "--model", str(model_folder("llama"))]
    return [*rows, *GIVEN, "distill.teacher=./teacher"]


def test_a_teacher_that_has_no_room_for_an_answer_is_refused_unless_it_is_not_asked(
    folder: Path, tmp_path: Path, model_folder: Folder
) -> None:
    """Its rows fit: answers may be longer than they are."""
    words = [*by_a_teacher_of_200_tokens(folder, tmp_path, model_folder), "prove.max_new_tokens=190"]
    refused = cli("plan", *words, "prove.evidence=standard", "--name", "r", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    (less,) = re.findall(r"TEACHER_MISMATCH.*lower prove.max_new_tokens by (\d+)", refused.stderr)
    fits = f"prove.max_new_tokens={190 - int(less)}"
    for name, more in (("plain", ["prove.evidence=plain"]), ("short", ["prove.evidence=standard", fits])):
        done = cli("plan", *words, *more, "--name", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_teacher_that_has_no_room_for_what_the_student_writes_is_refused(
    folder: Path, tmp_path: Path, model_folder: Folder
) -> None:
    """It reads that, whether or not it is asked for answers of its own."""
    words = [
        *by_a_teacher_of_200_tokens(folder, tmp_path, model_folder),
        "distill.on_policy=0.5",
        "prove.evidence=plain",
    ]
    refused = cli("plan", *words, "prove.max_new_tokens=190", "--name", "r", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    (less,) = re.findall(r"TEACHER_MISMATCH.*lower prove.max_new_tokens by (\d+)\.", refused.stderr)
    done = cli("plan", *words, f"prove.max_new_tokens={190 - int(less)}", "--name", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_half_of_the_rows_have_answers_of_the_student(folder: Path, tmp_path: Path, model_folder: Folder) -> None:
    given = [str(folder / "rows.jsonl"), "--model", str(model_folder("llama")), *GIVEN]
    done = cli("run", *given, f"distill.teacher={folder / 'teacher'}", "distill.on_policy=0.5", "train.steps=6",
               "export.to=[]", "--name", "r", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "also its weights, for answers of the model to 50% of the rows" in done.stderr
    run = tmp_path / "runs" / "r"
    plan = read(run, "plan")
    assert plan["teacher"]["settings"]["on_policy"] == 0.5
    assert plan["teacher"]["gigabytes"] >= round(4e-9 * plan["teacher"]["parameters"], 3)
    assert "of_rewards" not in {k for k, v in read(run, "training").items() if v}
    lines = [x for n in range(1, 7) for x in read_lines(run / "rollouts", f"step-{n:06d}") if "ids" in x]
    assert 10 < len(lines) < 40, "of 48 rows"
    assert all("reward" not in x and "<|im_end|>" not in x["text"] for x in lines)
    kept = read(run, "training")["weights_sha256"]
    for name in ("training.json", "forgetting.json", "verdict.json", "distillation.json", "report.html"):
        (run / name).unlink()
    (run / "checkpoints" / "final.safetensors").unlink()
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    assert cli("train", "r", cwd=tmp_path).returncode == 0
    assert read(run, "training")["weights_sha256"] == kept


def test_nothing_is_written_after_documents(folder: Path, tmp_path: Path, model_folder: Folder) -> None:
    lines = [f'{{"text": "item {i}: the red house by the river, lot {i * 37 % 101}"}}\n' for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    given = [flag for flag in FLAGS if not flag.startswith(("prove.few_shot", "prove.max_new_tokens"))]
    done = cli("plan", "rows.jsonl", "--model", str(model_folder("llama")), *given, "train.method=distill",
               f"distill.teacher={folder / 'teacher'}", "distill.on_policy=1", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "[CONFIG_CONFLICT] distill.on_policy: documents have no prompts" in done.stderr


def test_a_run_is_a_teacher(trained: Path, folder: Path, tmp_path: Path, model_folder: Folder) -> None:
    done = cli("train", str(folder / "rows.jsonl"), "--model", str(model_folder("llama")), *GIVEN, "train.steps=2",
               f"distill.teacher={trained}", "--name", "r", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "runs" / "r", "plan")["teacher"]["path"] == str(trained / "merged")


@pytest.mark.parametrize(
    ("words", "code", "place"),
    [
        (("train.method=distill",), "CONFIG_CONFLICT", "distill.teacher"),
        (("distill.teacher=./teacher",), "CONFIG_CONFLICT", "distill.teacher"),
        (("distill.temperature=2.0",), "CONFIG_CONFLICT", "distill.temperature"),
        (("train.method=distill", "distill.teacher=./teacher", "distill.beta=0.2"), "CONFIG_CONFLICT", "distill.beta"),
        (("train.method=distill", "distill.teacher=./teacher", "train.fsdp=true"), "CONFIG_CONFLICT", "train.fsdp"),
        (("train.method=distill", "distill.lambda=0.5"), "CONFIG_UNKNOWN_KEY", "lambda"),
        (("distill.on_policy=0.5",), "CONFIG_CONFLICT", "distill.on_policy"),
        ((*SAMPLED, "prove.evidence=full"), "CONFIG_CONFLICT", "prove.evidence"),
        ((*SAMPLED, "experiments.cleaning=true"), "CONFIG_CONFLICT", "experiments.cleaning"),
        ((*SAMPLED, "distill.on_policy=1.5"), "CONFIG_RANGE", "distill.on_policy"),
        (("train.method=distill", "distill.teacher=./nowhere"), "MODEL_NOT_FOUND", "nowhere"),
        (("train.method=distill", "distill.teacher=./other"), "TEACHER_MISMATCH", "distill.teacher"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(
    folder: Path, tmp_path: Path, model_folder: Folder, words: Any, code: str, place: str
) -> None:
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    if "distill.teacher=./other" in words:
        other = byte_tokenizer(special=("<|im_start|>", "<|im_end|>", "<|more|>"))
        tiny_model("llama", vocabulary=len(other)).save_pretrained(tmp_path / "other")
        other.save_pretrained(tmp_path / "other")
    done = cli("plan", str(folder / "rows.jsonl"), "--model", str(model_folder("llama")), *FLAGS, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"[{code}]" in done.stderr
    assert place in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
