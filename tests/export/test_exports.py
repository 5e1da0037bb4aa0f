"""Exports load in PEFT and in plain transformers, and survive kills."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from build import QUICK, Folder, Rows, cli, copied, process

from tunewright import api
from tunewright.core.config import load
from tunewright.model import adapters, loading
from tunewright.train import checkpoints

TORTURE = Path(__file__).parent.parent / "torture_export.py"


def test_peft_loads_the_adapter_and_plain_transformers_the_merged_folder(labelled: api.Result) -> None:
    """Neither uses our code; the logits are those of the trained model."""
    import peft
    from transformers import AutoModelForCausalLM

    receipt = json.loads((labelled.path / "receipt.json").read_text())
    ids = torch.tensor([list(range(5, 40))])
    ours = loading.load(receipt["model"]["path"], torch.float32).module
    adapters.attach(ours, load(labelled.path / "config.yaml").adapter, 0)
    checkpoints.load_weights(labelled.path / "checkpoints" / "final.safetensors", adapters.trainable(ours))
    base = AutoModelForCausalLM.from_pretrained(receipt["model"]["path"], dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(labelled.adapter)).eval()
    merged = AutoModelForCausalLM.from_pretrained(labelled.path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = ours(ids).logits
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)


def test_a_killed_export_leaves_no_half_and_is_repeated_completely(tmp_path: Path) -> None:
    """The short form of `python tests/torture_export.py`."""
    done = process(str(TORTURE), "--every", "19", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tally = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert tally["kills"] >= 30
    assert (tally["broken"], tally["unequal"]) == (0, 0)


def test_export_settings_of_a_run_can_be_changed_and_no_others(tmp_path: Path, proved: Path) -> None:
    """A run whose export is rejected, or that needs another one, is not lost."""
    run = copied(proved, tmp_path)
    done = cli("export", "r", "export.to=[adapter]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [x["kind"] for x in json.loads((run / "export.json").read_text())] == ["adapter"]
    assert load(run / "config.yaml").export.to == ["adapter"]
    done = cli("export", "r", "export.to=[merged]", "export.dtype=bfloat16", "--json", cwd=tmp_path)
    (merged,) = json.loads(done.stdout)
    assert (merged["kind"], merged["dtype"]) == ("merged", "bfloat16")
    refused = cli("export", "r", "train.lr=0.1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "CONFIG_CONFLICT" in refused.stderr


def test_an_export_is_written_again_only_if_it_would_be_another(tmp_path: Path, proved: Path) -> None:
    run = copied(proved, tmp_path)
    weights = run / "adapter" / "adapter_model.safetensors"

    def written(*settings: str) -> tuple[int, int]:
        done = cli("export", "r", *settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (run / ".exports.json").exists()
        stored = weights.stat()
        return stored.st_ino, stored.st_mtime_ns  # the number of a removed file is given to another one

    first, content = written("export.to=[adapter]"), weights.read_bytes()
    assert written("export.to=[adapter, merged]") == first
    assert [x["kind"] for x in json.loads((run / "export.json").read_text())] == ["adapter", "merged"]
    assert written("export.to=[adapter]") == first
    assert written("export.to=[adapter]", "export.rows=1") != first, "another setting"
    (run / "adapter" / "chat_template.jinja").write_text("changed by hand")
    again = written("export.to=[adapter, merged]", "export.rows=1")
    assert again != first
    assert weights.read_bytes() == content
    weights.unlink()
    assert written("export.to=[adapter]", "export.rows=1") != again
    assert weights.read_bytes() == content


def test_a_run_whose_rows_have_moved_continues(tmp_path: Path, proved: Path) -> None:
    """If their content is the same; the report is written again after other exports."""
    run = copied(proved, tmp_path)
    rows = Path(str(load(run / "config.yaml").data.train))
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(rows.read_bytes())
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(rows), "/nowhere/rows.jsonl"))
    lost = cli("report", "r", cwd=tmp_path)
    assert (lost.returncode, "data.train=FILE" in lost.stderr) == (2, True)
    other = tmp_path / "other.jsonl"
    first, *rest = rows.read_text().splitlines()
    other.write_text("\n".join([first, *rest[:-1]]) + "\n")
    assert "RESUME_MISMATCH" in cli("report", "r", f"data.train={other}", cwd=tmp_path).stderr
    done = cli("report", "r", "data.train=elsewhere.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(run / "config.yaml").data.train == str(elsewhere)
    written = (run / "export.json").stat().st_mtime_ns
    assert cli("export", "r", cwd=tmp_path).returncode == 0
    assert (run / "export.json").stat().st_mtime_ns == written, "exports do not depend on where the rows are"
    assert cli("export", "r", "export.to=[adapter]", cwd=tmp_path).returncode == 0
    assert (run / "report.html").exists()


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_of_the_card_runs_on_another_machine(
    tmp_path: Path, labelled: api.Result, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the folder alone, beside the base model, answers what the run's chat answers."""
    folder = tmp_path / kind
    shutil.copytree(labelled.path / kind, folder)
    base = Path(json.loads((labelled.path / "receipt.json").read_text())["model"]["path"])
    (folder / base.name).symlink_to(base)
    texts = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".md", ".jinja")}
    assert not [name for name, text in texts.items() if str(base.parent) in text or str(labelled.path) in text]
    (code,) = re.findall(r"```python\n(.*?)```", texts["README.md"], re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code.replace('"..."', '"lot 5 of fire and flame"'), {})
    assert capsys.readouterr().out.strip() == "warm"


def test_an_export_answers_rows_of_the_verdict_again(labelled: api.Result) -> None:
    lines = [json.loads(x) for x in (labelled.path / "scores" / "tuned.jsonl").read_text().splitlines()]
    for check in json.loads((labelled.path / "export.json").read_text()):
        again = check["reproduced"]
        assert again["rows"] == again["same"] == min(32, len(lines))
        assert again["score"] == again["verdict"] == sum(x["score"] for x in lines[:32]) / again["rows"]
        assert again["dtype"] == again["judged"] == "float32"


def test_a_run_that_was_judged_in_bfloat16_is_exported_in_it(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    settings = {**QUICK, "train__dtype": "bfloat16", "export__rows": 3, "prove__evidence": "plain"}
    run = api.run(chat_rows(), model=str(model_folder("llama")), name="x", root=tmp_path, **settings)
    adapter, merged = json.loads((run.path / "export.json").read_text())
    assert (adapter["dtype"], merged["dtype"]) == ("float32", "bfloat16")
    assert (adapter["reproduced"]["dtype"], merged["reproduced"]["dtype"]) == ("float32", "bfloat16")
    assert {c["reproduced"]["rows"] for c in (adapter, merged)} == {3}
    card = (run.path / "adapter" / "README.md").read_text()
    assert "Rerun in float32 on 3 held-out rows (the verdict was computed in bfloat16)" in card
    done = cli("export", str(run.path), "export.rows=0", "--json", cwd=tmp_path)
    assert all("reproduced" not in check for check in json.loads(done.stdout))
