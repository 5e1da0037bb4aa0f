"""Runs with other initial values, from an existing adapter, and with adapters of PEFT, from rows to exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from build import FLAGS, Folder, Rows, adapter_note, byte_tokenizer, cli, plan_of, read, read_lines, tiny_lm, tiny_model

from tunewright import api
from tunewright.core.config import AdapterConfig, MethodOptions
from tunewright.core.errors import TunewrightError
from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS, precomputed
from tunewright.model import adapters, peft_format
from tunewright.model.adapting import stored
from tunewright.tokens.template import Template
from tunewright.train import checkpoints, selftest

PLAIN = [flag for flag in FLAGS if not flag.startswith("adapter.")]
QUICK = ["prove.evidence=plain", "export.rows=2"]


PISSA = ["adapter.init=pissa", "adapter.rank=3", "adapter.alpha=6", "forget.apply_best_scale=true"]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([*PISSA, "prove.evidence=standard"], marks=pytest.mark.slow, id="pissa"),
        pytest.param(["adapter.kind=peft:lokr", "adapter.rank=4", "adapter.alpha=8"], id="lokr"),
    ],
)
def test_a_run_from_rows_to_exports(flags: list[str], tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    words = ["run", str(chat_rows(40)), "--name", "r", "--model", str(model_folder("llama")), *PLAIN, *QUICK, *flags]
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "r"
    checks = {check["kind"]: check for check in read(run, "export")}
    assert set(checks) == {"adapter", "merged"}
    assert all(check["largest_difference"] < 1e-3 for check in checks.values())
    assert checks["adapter"]["loaded_with"].startswith("PEFT" if "peft:lokr" in flags[0] else "tunewright")
    assert next(f for f in read(run, "selftest")["findings"] if f["check"] == "base")["passed"]
    assert read(run, "plan")["layout"] == "shared"
    if "pissa" in flags[0]:
        assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == 6
        assert read(run, "forgetting")["chosen"] < 1
        assert read(run, "plan")["kernels"] == "fused"


def test_a_run_continues_from_an_adapter(tmp_path: Path, labelled: api.Result, model_folder: Folder) -> None:
    """Its answers are those of an arm; what it was is recorded in plan, receipt and export."""
    start = tmp_path / "start"
    shutil.copytree(labelled.path / "adapter", start)
    data = labelled.path.parent / "labels.csv"
    own = [
        f"adapter.start={start}",
        "data.instruction=warm or cold?",
        "prove.few_shot=[2]",
        "train.steps=4",
        "threads=1",
    ]
    words = [
        "run",
        str(data),
        "--name",
        "r",
        "--model",
        str(model_folder("llama")),
        *own,
        "train.dtype=float32",
        *QUICK,
    ]
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "r"
    before, plan = json.loads((start / "adapter_config.json").read_text()), read(run, "plan")["adapter"]
    assert (plan["rank"], plan["alpha"], plan["targets"]) == (16, 32.0, before["target_modules"])
    assert "meant for a new adapter" in read(run, "plan")["reasons"]["lr"]
    assert read(run, "plan")["reasons"]["adapter.start"] == "it was trained on this base, by its hash"
    note, receipt = read(run / "adapter", "tunewright"), read(run, "receipt")
    assert note["start_sha256"] == receipt["hashes"]["start"]
    assert "continued from an adapter" in (run / "adapter" / "README.md").read_text()
    # The untrained arms are those of the base, and the arm `start` answers as the first run did.
    arms = read(run, "verdict")["arms"]
    assert arms["start"]["trained"]
    assert read(run, "verdict")["comparator"]["name"] != "start"
    now, then = read_lines(run / "scores", "start"), read_lines(labelled.path / "scores", "tuned")
    assert [line["answer"] for line in now] == [line["answer"] for line in then]
    kept = checkpoints.read_weights(run / "checkpoints" / "start.safetensors")
    final = checkpoints.read_weights(labelled.path / "checkpoints" / "final.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in final.items())
    shutil.rmtree(start)  # the run has a copy, and the error names it
    assert "ADAPTER_MISSING" in cli("report", "runs/r", cwd=tmp_path).stderr
    shutil.copytree(run / "start", start)
    assert cli("report", "runs/r", cwd=tmp_path).returncode == 0
    assert cli("runs", "reproduce", "runs/r", cwd=tmp_path).returncode == 0
    (start / "adapter_config.json").write_text(json.dumps({**before, "lora_alpha": 1.0}))
    assert "RESUME_MISMATCH" in cli("report", "runs/r", cwd=tmp_path).stderr
    losses = [line["dev_loss"] for line in read_lines(run, "metrics") if line.get("dev_loss")]
    assert losses[0] == pytest.approx(read(labelled.path, "training")["best_dev_loss"], rel=1e-4)


def saved(folder: Path, base: str = "x", **more: object) -> Path:
    """An adapter that was trained before."""
    module, config = tiny_model(), AdapterConfig(rank=4, alpha=8.0, **more)
    adapters.attach(module, config, 1)
    for p in adapters.trainable(module).values():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    peft_format.save(module, config, folder, "base", adapter_note(base))
    return folder


def test_the_reference_of_preferences_is_the_adapter_that_training_continues_from(tmp_path: Path) -> None:
    model, method = tiny_lm(vocabulary=300), METHODS["dpo"]
    module = tiny_model(vocabulary=300)
    adapters.attach(module, AdapterConfig(rank=4), 1)
    for p in adapters.trainable(module).values():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    peft_format.save(module, AdapterConfig(rank=4), tmp_path / "a", "base", adapter_note("x"))
    config = AdapterConfig(rank=4, start=str(tmp_path / "a"))
    adapters.attach(model.module, config, 0)
    plan = plan_of(method="dpo", adapter=config, options=method.options(MethodOptions()))
    asking, good, bad = Message("user", "q"), Message("assistant", "yes"), Message("assistant", "never, ever")
    rows = method.prepare(Template(byte_tokenizer()), Chat((asking, good), "x:1", rejected=bad), 0, None)
    done = precomputed(model, rows, plan)
    (check,) = selftest.check_start(model, done, plan)
    assert "0.6931" in check.result
    with adapters.off(model.module):
        of_base = precomputed(model, rows, plan)
    assert abs(done[0].signal["reference_S"] - of_base[0].signal["reference_S"]).min() > 0.01


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """By its base's hash, its files, or its kind."""

    def resolved(folder: Path, base: str = "x") -> AdapterConfig:
        return stored.resolved(AdapterConfig(start=str(folder), dropout=0.1), base)

    folder = saved(tmp_path / "a")
    own = resolved(folder)
    assert (own.rank, own.alpha, own.dropout, own.start) == (4, 8.0, 0.1, str(folder))
    written = json.loads((folder / "adapter_config.json").read_text())
    assert own.targets == written["target_modules"]
    with pytest.raises(TunewrightError, match="ADAPTER_BASE_MISMATCH"):
        resolved(folder, "y")
    with pytest.raises(TunewrightError, match="ADAPTER_MISSING"):
        resolved(tmp_path / "nowhere")
    (folder / "tunewright.json").unlink()  # as PEFT writes it, without a hash of the base
    assert resolved(folder, "y") == own
    for change in ({"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"peft_type": "LOHA"}):
        (folder / "adapter_config.json").write_text(json.dumps({**written, **change}))
        with pytest.raises(TunewrightError, match=f"ADAPTER_UNSUPPORTED.*{next(iter(change.values()))}"):
            resolved(folder)


def test_a_start_of_other_shapes_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    wider = tiny_model(intermediate_size=96)
    config = AdapterConfig(rank=4, start=str(folder), targets=["all-linear"])
    with pytest.raises(TunewrightError, match="ADAPTER_BASE_MISMATCH"):
        adapters.attach(wider, config, 0)
