"""The story of a run on a tiny model, through the command line and the Python face, stopped and continued; what leaves is loaded by others."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from build import FLAGS, cli

import tunewright as tw
from tunewright.core import run_folder
from tunewright.core.config import Config, load
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.data.examples import Message
from tunewright.model import adapters, loading, peft_format
from tunewright.run.session import Session
from tunewright.tokens import rendering
from tunewright.train import checkpoints

Rows = Callable[..., Path]
Folder = Callable[[str], Path]
QUICK = {
    "train__steps": 6,
    "train__batch_size": 8,
    "train__eval_every": 3,
    "prove__max_new_tokens": 6,
    "prove__few_shot": [1, 2],
    "adapter__rank": 4,
    "adapter__alpha": 8.0,
    "train__dtype": "float32",
    "threads": 1,
}


def test_the_main_job_from_the_command_line(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    done = cli("run", str(chat_rows()), "--model", str(model_folder("llama")), "--name", "one", *FLAGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"(BETTER|WORSE|PRACTICALLY EQUAL|CANNOT TELL): ", done.stdout)
    run = tmp_path / "runs" / "one"
    for name in (
        "config.yaml",
        "plan.json",
        "receipt.json",
        "metrics.jsonl",
        "events.jsonl",
        "verdict.json",
        "export.json",
        "report.html",
        "adapter/adapter_model.safetensors",
        "adapter/README.md",
        "merged/model.safetensors",
        "merged/README.md",
        "data/audit.json",
        "scores/tuned.jsonl",
        "scores/zero_shot.jsonl",
        "scores/few_shot.jsonl",
        "scores/nearest.jsonl",
        "scores/dev/zero_shot-wording2.jsonl",
        "protocol.json",
    ):
        assert (run / name).is_file(), name
    verdict = json.loads((run / "verdict.json").read_text())
    assert set(verdict["arms"]) == {"zero_shot", "few_shot", "nearest", "constant", "classical", "tuned"}
    lines = [json.loads(x) for x in (run / "scores" / "tuned.jsonl").read_text().splitlines()]
    assert verdict["tuned"] == pytest.approx(sum(x["score"] for x in lines) / len(lines))
    assert (
        verdict["n"] == len(lines) == sum('"side": "test"' in x for x in (run / "data" / "split.jsonl").read_text().splitlines())
    )
    exported = json.loads((run / "export.json").read_text())
    assert {x["kind"] for x in exported} == {"adapter", "merged"}
    assert all(x["largest_difference"] < 1e-4 and x["same_texts"] == x["canaries"] for x in exported)
    page = (run / "report.html").read_text()
    assert not re.search(r'(?:src|href)="https?:|<script|@import|url\((?!#)', page), "the page is self-contained"
    assert verdict["verdict"] in page
    assert (run.stat().st_mode & 0o777) == 0o700
    again = cli("run", str(run), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    listed = json.loads(cli("runs", "list", "--json", cwd=tmp_path).stdout)
    assert [(r["name"], r["stage"], r["verdict"]) for r in listed] == [("one", "reported", verdict["verdict"])]
    assert cli("run", str(chat_rows()), "--name", "one", *FLAGS, cwd=tmp_path).returncode == 2
    said = cli("chat", str(run), "item 3: red", "--max-new-tokens", "5", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert not [p for p in [run, *run.rglob("*")] if p.stat().st_mode & 0o077], "rows and answers are the owner's alone"
    logged = [done.stderr, said.stderr, *((run / f"{name}.jsonl").read_text() for name in ("events", "metrics"))]
    assert not any(" by the " in text for text in logged), "a row's text in a log"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Any:
    """A finished run on a learnable classification set."""
    root = tmp_path_factory.mktemp("labelled")
    data = root / "labels.csv"
    data.write_text(
        "text,label\n"
        + "".join(
            f"lot {i * 37 % 1009} of {w},{x}\n"
            for i, (w, x) in enumerate([("fire and flame", "warm"), ("ice and snow", "cold")] * 60)
        )
    )
    return tw.run(
        data,
        model=str(model_folder("llama")),
        name="labels",
        root=root,
        data__instruction="warm or cold?",
        train__steps=120,
        train__batch_size=8,
        train__lr=0.005,
        threads=1,
        train__dtype="float32",
        prove__few_shot=[2],
    )


def test_a_learnable_task_is_better(labelled: Any) -> None:
    v = labelled.verdict
    assert v["task"] == "label"
    assert v["metric"] == "accuracy"
    assert v["verdict"] == "BETTER", v
    assert v["tuned"] > 0.95


def test_peft_loads_the_adapter_and_plain_transformers_the_merged_folder(labelled: Any) -> None:
    """Neither uses anything of ours; the logits are those of the trained model."""
    import peft
    from transformers import AutoModelForCausalLM

    receipt = json.loads((labelled.path / "receipt.json").read_text())
    ids = torch.tensor([list(range(5, 40))])
    ours = loading.load(receipt["model"]["path"], torch.float32)
    adapters.attach(ours, load(labelled.path / "config.yaml").adapter, 0)
    checkpoints.load_weights(labelled.path / "checkpoints" / "final.safetensors", adapters.trainable(ours))
    base = AutoModelForCausalLM.from_pretrained(receipt["model"]["path"], dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(labelled.adapter)).eval()
    merged = AutoModelForCausalLM.from_pretrained(labelled.path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = ours(ids).logits
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_peft_loads_the_other_adapters(kind: str, tmp_path: Path, model_folder: Folder) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    from tunewright.core.config import AdapterConfig

    folder = model_folder("llama")
    config = AdapterConfig(kind=kind, rank=4, alpha=6.0)
    ours = loading.load(folder, torch.float32)
    adapters.attach(ours, config, 0)
    for p in adapters.trainable(ours).values():
        torch.nn.init.normal_(p, std=0.1)
    peft_format.save(ours, config, tmp_path, str(folder), {"base_sha256": "x"})
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(tmp_path)
    ).eval()
    again = loading.load(folder, torch.float32)
    peft_format.load(again, tmp_path)
    ids = torch.tensor([list(range(5, 40))])
    with torch.no_grad():
        expected = ours(ids).logits
        assert torch.equal(again(ids).logits, expected)
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
    (tmp_path / "tunewright.json").write_text('{"base_sha256": "other"}')
    with pytest.raises(TunewrightError, match="ADAPTER_BASE_MISMATCH"):
        peft_format.load(loading.load(folder, torch.float32), tmp_path, "mine")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**written, "r": 3}))
    with pytest.raises(TunewrightError, match="ADAPTER_CORRUPT"):
        peft_format.load(loading.load(folder, torch.float32), tmp_path)


def test_the_chat_serves_what_was_trained(labelled: Any) -> None:
    """The prompt of `chat` is the prefix of the training sequence, and the tuned model answers with a label."""
    config = load(labelled.path / "config.yaml")
    session = Session(run_folder.Run(labelled.path), config, Console(True), "")
    first = next(e for e in session.data.examples if not isinstance(e, rendering.Text))
    (sequence,) = rendering.for_training(session.template, first)
    prompt = rendering.for_generation(
        session.template, [Message("system", config.data.instruction or ""), Message("user", first.prompt[-1].content)]
    )
    assert list(sequence.ids[: len(prompt)]) == prompt
    assert labelled.chat("lot 5 of fire and flame", max_new_tokens=6) == "warm"
    assert labelled.chat("lot 5 of ice and snow", max_new_tokens=6) == "cold"


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_other_architectures_run_end_to_end(kind: str, tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    run = tw.run(chat_rows(), model=str(model_folder(kind)), name="x", root=tmp_path, **QUICK)
    assert all(x["largest_difference"] < 1e-3 for x in json.loads((run.path / "export.json").read_text()))
    assert json.loads((run.path / "plan.json").read_text())["layout"] == "shared"


def test_full_fine_tuning_runs_end_to_end(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    given = {k: v for k, v in QUICK.items() if not k.startswith(("adapter", "train__dtype"))}
    run = tw.run(chat_rows(), model=str(model_folder("llama")), name="full", root=tmp_path, adapter__kind="none", **given)
    assert not run.adapter.exists()
    base = loading.load(model_folder("llama"), torch.float32).state_dict()
    tuned = loading.load(run.path / "merged", torch.float32).state_dict()
    assert all(not torch.equal(base[k], tuned[k]) for k in base)


def test_raw_documents_run_end_to_end(tmp_path: Path, model_folder: Folder) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(26):
        (folder / f"page-{i}.md").write_text(
            f"# Page {i}\n" + " ".join(f"{chr(97 + i)}{(i * j) % 17}{chr(97 + j % 26)}" for j in range(60))
        )
    run = tw.run(
        folder,
        model=str(model_folder("llama")),
        name="pages",
        root=tmp_path,
        train__steps=8,
        train__max_length=64,
        split__dev=0.0,
        train__lr=0.01,
        train__dtype="float32",
    )
    v = run.verdict
    assert (run.path / "report.html").exists()
    assert v["metric"] == "bits_per_byte"
    assert set(v["arms"]) == {"base", "tuned"}
    assert v["tuned"] < v["arms"]["base"]["score"]
    assert v["difference"] > 0


def test_an_interrupted_run_says_how_to_go_on_and_ends_equal(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """SIGINT in the middle of training, then the same command on the run folder: weights as if nothing had happened."""
    flags = [
        "--model",
        str(model_folder("llama")),
        "train.steps=40",
        "train.batch_size=4",
        "adapter.rank=4",
        "adapter.dropout=0.1",
        "train.eval_every=10",
        "train.patience=0",
        "threads=1",
        "train.dtype=float32",
    ]
    data = str(chat_rows())
    assert cli("train", data, "--name", "straight", *flags, cwd=tmp_path).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "tunewright", "train", data, "--name", "stopped", *flags],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = tmp_path / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "TRAIN_INTERRUPTED" in said
    assert "tunewright run" in said
    assert not (tmp_path / "runs" / "stopped" / "training.json").exists()
    assert cli("train", "runs/stopped", cwd=tmp_path).returncode == 0
    finals = [(tmp_path / "runs" / n / "checkpoints" / "final.safetensors").read_bytes() for n in ("straight", "stopped")]
    assert finals[0] == finals[1]


def test_going_on_over_changed_data_is_refused(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    data = chat_rows()
    assert cli("plan", str(data), "--name", "p", "--model", str(model_folder("llama")), *FLAGS, cwd=tmp_path).returncode == 0
    data.write_text(data.read_text().replace("RED", "Red"))
    done = cli("run", "p", cwd=tmp_path)
    assert done.returncode == 2
    assert "RESUME_MISMATCH" in done.stderr
    assert "data was" in done.stderr


def test_plan_stops_there_and_gives_reasons(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    done = cli("plan", str(chat_rows()), "--name", "p", "--model", str(model_folder("llama")), "--json", cwd=tmp_path)
    plan = json.loads(done.stdout)
    resolved = {"steps", "batch", "capacity", "max_length", "layout", "dtype", "lr", "eval_every", "checkpoint_every"}
    assert resolved <= set(plan["reasons"])
    assert all(plan["reasons"].values())
    assert plan["estimate"]["train_seconds"] > 0
    assert not (tmp_path / "runs" / "p" / "training.json").exists()


def test_rows_over_the_limit_are_named_or_left_out_on_request(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    data = chat_rows()
    with open(data, "a") as file:
        file.write(
            json.dumps({"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "Y"}]}) + "\n"
        )
    arguments = ["plan", str(data), "--model", str(model_folder("llama")), "train.max_length=200"]
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "[DATA_TOO_LONG]" in done.stderr
    assert "rows.jsonl:61" in done.stderr
    assert cli(*arguments, "data.too_long=drop", cwd=tmp_path).returncode == 0


def test_overrides_and_yaml_numbers(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  lr: 1e-4\n  epochs: 2\nmodel: no\ndata:\n  train: rows.jsonl\n")
    config = load(file, ["train.lr=3e-4", "adapter.targets=[q_proj, v_proj]"])
    assert config.train.lr == 3e-4
    assert config.model == "no", "YAML 1.2: `no` is a word"
    assert config.data.train == str(tmp_path / "rows.jsonl")
    assert config.adapter.targets == ["q_proj", "v_proj"]
    from tunewright.core.config import to_yaml

    file.write_text(to_yaml(config))
    assert load(file) == config
    assert Config().train.lr == "auto"


def test_show_colours_what_is_learned(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    done = cli("preview", str(chat_rows()), "--row", "3", "--model", str(model_folder("llama")), "--json", cwd=tmp_path)
    (sequence,) = json.loads(done.stdout)
    assert "".join(t for t, w in zip(sequence["tokens"], sequence["weights"], strict=True) if w) == "BLUE<|im_end|>"


def test_check_loads_no_torch_on_5000_rows(tmp_path: Path) -> None:
    data = tmp_path / "many.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"{i * 7919 % 5003} questions about {i} things", "completion": f"answer {i % 977}"}) + "\n"
            for i in range(5000)
        )
    )
    code = f"import sys; sys.argv=['tunewright','check',{str(data)!r}]\nfrom tunewright import cli\ntry:\n cli.main()\nexcept SystemExit as e:\n assert not e.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5000 rows" in done.stdout


def test_the_loss_curve_is_the_same_with_sharing_and_without(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """Fifty steps in float32 through the command line: packed rows, shared beginnings, and transformers' padded rows."""
    data = [json.loads(line) for line in chat_rows(80).read_text().splitlines()]
    system = {"role": "system", "content": "Answer with the colour, the animal or the thing that the item names, in capitals."}
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"messages": [system, *row["messages"]]}) + "\n" for row in data))
    flags = ("--model", str(model_folder("llama")), "threads=1", "train.steps=50", "train.dtype=float32", "train.lr=2e-3")
    curves = {}
    for layout in ("shared", "packed", "padded"):
        done = cli("train", str(file), "--name", layout, *flags, f"train.layout={layout}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / "runs" / layout / "metrics.jsonl").read_text().splitlines()]
        curves[layout] = [line for line in lines if "loss" in line]
    assert len(curves["shared"]) == 50
    assert curves["shared"][-1]["loss"] < 0.7 * curves["shared"][0]["loss"]
    for layout in ("shared", "padded"):
        assert max(abs(a["loss"] - b["loss"]) for a, b in zip(curves[layout], curves["packed"], strict=True)) < 1e-5
    assert sum(a["computed"] for a in curves["shared"]) < 0.6 * sum(a["tokens"] for a in curves["shared"])
    assert all(0.9 * a["tokens"] < a["computed"] < a["tokens"] for a in curves["packed"])  # the stop token is only predicted
