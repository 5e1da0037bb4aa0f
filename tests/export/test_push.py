"""`tunewright push`: the unmodified huggingface_hub sends an export to a Hub on this machine; nothing else leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from build import Done, cli, process
from export import fake_hub
from export.fake_hub import FakeHub
from huggingface_hub import ModelCard
from report import records as made

from tunewright import api
from tunewright.core import records
from tunewright.core.errors import RunError
from tunewright.core.run_folder import Run, read_json, write_json
from tunewright.export import hub as hub_module
from tunewright.model import loading, peft_format

BASE = ("--base", "HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub.running() as started:
        yield started


def run_of(result: api.Result, folder: Path) -> Run:
    """A run of its own, whose files are those of a finished run."""
    run = Run(folder / "runs" / "labels")
    run.path.mkdir(parents=True)
    for path in result.path.iterdir():
        (run.path / path.name).symlink_to(path)
    return run


def own(run: Run, name: str) -> Path:
    """The run's own copy of an export, which a test changes."""
    linked = run.path / name
    files = {path.name: path.read_bytes() for path in linked.iterdir()}
    linked.unlink()
    linked.mkdir()
    for file, content in files.items():
        (linked / file).write_bytes(content)
    return linked


def push(hub: FakeHub, folder: Path, *words: str) -> Done:
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_secret"}
    return process("-m", "tunewright", "push", "labels", "me/lots", *words, cwd=folder, **environment)


def test_an_adapter_arrives_with_a_card_that_the_hub_reads(tmp_path: Path, labelled: api.Result, hub: FakeHub) -> None:
    run = run_of(labelled, tmp_path)
    done = push(hub, tmp_path, *BASE, "--private", "--license", "apache-2.0")
    assert (done.returncode, done.stdout.strip()) == (0, f"{hub.url}/me/lots/commit/{'1' * 40}"), done.stderr
    assert hub.repos["me/lots"]["visibility"] == "private"
    assert hub.tokens <= {"Bearer hf_secret", ""}
    expected = {"adapter_config.json", "adapter_model.safetensors", "tunewright.json", "README.md"}
    assert expected <= set(hub.files) <= {p.name for p in labelled.adapter.iterdir()}
    assert hub.files["adapter_model.safetensors"] == (labelled.adapter / "adapter_model.safetensors").read_bytes()
    card = ModelCard(hub.files["README.md"].decode())
    verdict = records.read(run.verdict, records.Verdict)
    assert card.data.base_model == BASE[1]
    assert card.data.base_model_relation == "adapter"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "peft")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == (verdict.metric, verdict.tuned)
    assert result.metric_args["verdict"] == verdict.verdict
    everything = b"".join(content for name, content in hub.files.items() if not name.endswith(".safetensors")).decode()
    assert str(tmp_path) not in everything
    assert str(labelled.path) not in everything
    receipt = records.read(run.receipt, records.Receipt)
    assert receipt.model.path not in everything
    assert '"me/lots"' in card.text, "the snippet loads it from the Hub"
    row = json.loads((run.scores / "tuned.jsonl").read_text().splitlines()[0])
    assert row["messages"][-1]["content"] not in everything


def test_an_adapter_that_names_its_base_on_the_hub_still_loads(tmp_path: Path, labelled: api.Result) -> None:
    """Its config names another base, so the hashes beside it must follow."""
    run = run_of(labelled, tmp_path)
    receipt = records.read(run.receipt, records.Receipt)
    with hub_module.staged(run, "adapter", BASE[1], None) as there:
        assert read_json(there / "adapter_config.json")["base_model_name_or_path"] == BASE[1]
        peft_format.load(loading.load(receipt.model.path, torch.float32).module, there, receipt.model.sha256)


def test_a_dry_run_sends_nothing(tmp_path: Path, labelled: api.Result) -> None:
    """In tests, huggingface_hub is offline: a request would be an error."""
    run_of(labelled, tmp_path)
    done = cli("push", "labels", "me/lots", "--kind", "merged", "--dry-run", *BASE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"[\d,]+  model\.safetensors\n", done.stdout)
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in done.stdout
    assert "base_model_relation: finetune\n" in done.stdout
    assert "license" not in done.stdout, "nothing is invented"
    assert "PUSH_FAILED" in cli("push", "labels", "me/lots", *BASE, cwd=tmp_path).stderr


def test_a_gguf_is_pushed_with_what_ollama_reads(tmp_path: Path, labelled: api.Result, hub: FakeHub) -> None:
    run = run_of(labelled, tmp_path)
    for name, content in {
        "gguf/labels-F16.gguf": "GGUF",
        "gguf/notes.txt": "not for others",
        "ollama/system": "warm or cold?",
        "ollama/params": "{}",
        "ollama/Modelfile": "FROM ./labels-F16.gguf",
        "ollama/README.md": "of the bundle",
    }.items():
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text(content)
    card = (labelled.path / "merged" / "README.md").read_text()
    (run.path / "gguf" / "README.md").write_text(card.replace("library_name: transformers", "library_name: gguf"))
    assert push(hub, tmp_path, "--kind", "gguf", *BASE).returncode == 0
    assert set(hub.files) == {"labels-F16.gguf", "README.md", "system", "params"}
    assert hub.files["system"] == b"warm or cold?"
    assert b"library_name: gguf" in hub.files["README.md"]


@pytest.mark.parametrize("secret", ["sk-abcdefghijklmnopqrstuvwxyz123456", "ask jane.doe@example.org"])
def test_private_data_is_not_pushed_unless_allowed(tmp_path: Path, labelled: api.Result, secret: str) -> None:
    readme = own(run_of(labelled, tmp_path), "adapter") / "README.md"
    readme.write_text(readme.read_text() + f"\n{secret}\n")
    command = ("push", "labels", "me/lots", "--dry-run", *BASE)
    done = cli(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "[PUSH_PRIVATE]" in done.stderr
    assert "README.md: " in done.stderr
    assert secret not in done.stdout + done.stderr
    assert cli(*command, "--allow-private", cwd=tmp_path).returncode == 0


def test_a_path_of_this_machine_is_not_pushed(tmp_path: Path, labelled: api.Result) -> None:
    run = run_of(labelled, tmp_path)
    merged = own(run, "merged")
    write_json(merged / "config.json", {**read_json(merged / "config.json"), "_name_or_path": str(labelled.path)})
    with (
        hub_module.staged(run, "merged", BASE[1], None) as folder,
        pytest.raises(RunError, match=r"config\.json: /") as caught,
    ):
        hub_module.require_public(folder)
    assert caught.value.code == "PUSH_PRIVATE"


def test_paths_in_the_card_become_names(tmp_path: Path, labelled: api.Result) -> None:
    run = run_of(labelled, tmp_path)
    readme = own(run, "adapter") / "README.md"
    file = tmp_path / "secret project.jsonl"
    file.write_text("")
    readme.write_text(readme.read_text() + f"\n`tunewright run {tmp_path}/rows.jsonl`, {file}, https://a.b/tmp/c\n")
    with hub_module.staged(run, "adapter", BASE[1], None) as folder:
        text = (folder / "README.md").read_text()
    assert "`tunewright run rows.jsonl`, secret project.jsonl, https://a.b/tmp/c" in text


def test_what_is_missing_or_refused_is_one_line(tmp_path: Path, labelled: api.Result, hub: FakeHub) -> None:
    run_of(labelled, tmp_path)
    hub.refuse = 403
    done = push(hub, tmp_path, *BASE)
    assert (done.returncode, "[PUSH_FAILED] me/lots:" in done.stderr, "hf auth login" in done.stderr) == (2, True, True)
    assert len(done.stderr.strip().splitlines()) == 1
    local = cli("push", "labels", "me/lots", cwd=tmp_path)
    assert (local.returncode, "[PUSH_BASE]" in local.stderr, "--base OWNER/NAME" in local.stderr) == (2, True, True)
    absent = cli("push", "labels", "me/lots", "--kind", "gguf", *BASE, cwd=tmp_path)
    assert (absent.returncode, "[RUN_INCOMPLETE]" in absent.stderr) == (2, True)


@pytest.mark.parametrize(
    ("model", "base"),
    [("smollm2-135m", BASE[1]), ("Qwen/Qwen2.5-0.5B@v1", "Qwen/Qwen2.5-0.5B"), ("HF/Other", "HF/Other")],
)
def test_the_base_is_known_where_the_config_names_it(model: str, base: str) -> None:
    assert hub_module._hub_base(model) == base


def test_a_card_of_every_export_is_valid(tmp_path: Path) -> None:
    everything: dict[str, Any] = made.everything()
    run = made.write(tmp_path / "one", everything)
    for kind, relation in (("adapter", "adapter"), ("merged", "finetune"), ("gguf", "finetune")):
        text = hub_module._card(run, kind, "A/B", None, "---\nlibrary_name: peft\n---\n# Title\n")
        card = ModelCard(text)
        assert (card.data.base_model, card.data.base_model_relation) == ("A/B", relation)
        assert card.data.eval_results[0].metric_value == everything["verdict"]["tuned"]
        assert "license" not in text
