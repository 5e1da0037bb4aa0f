"""`tunewright push`: the unmodified huggingface_hub sends an export to a Hub on this machine; nothing else leaves."""

from __future__ import annotations

import json
import re
import shutil
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
from tunewright.core.config import load, to_yaml
from tunewright.core.errors import RunError
from tunewright.core.run_folder import Run, read_json, write_json
from tunewright.export import card
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
    data = ModelCard(hub.files["README.md"].decode()).data
    verdict = records.read(run.verdict, records.Verdict)
    assert data.base_model == BASE[1]
    assert data.base_model_relation == "adapter"
    assert (data.license, data.library_name) == ("apache-2.0", "peft")
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == (verdict.metric, verdict.tuned)
    assert result.metric_args["verdict"] == verdict.verdict
    everything = b"".join(content for name, content in hub.files.items() if not name.endswith(".safetensors")).decode()
    assert str(tmp_path) not in everything
    assert str(labelled.path) not in everything
    receipt = records.read(run.receipt, records.Receipt)
    assert receipt.model.path not in everything
    row = json.loads((run.scores / "tuned.jsonl").read_text().splitlines()[0])
    assert row["messages"][-1]["content"] not in everything


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_of_the_card_runs_with_the_hub_alone(
    tmp_path: Path, labelled: api.Result, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place of the Hub, a folder in which the ids are folders."""
    there = tmp_path / "hub"
    (there / BASE[1]).parent.mkdir(parents=True)
    (there / BASE[1]).symlink_to(records.read(labelled.path / "receipt.json", records.Receipt).model.path)
    with hub_module.staged(run_of(labelled, tmp_path), kind, "me/lots", BASE[1], None) as folder:
        shutil.copytree(folder, there / "me" / "lots")
    (code,) = re.findall(r"```python\n(.*?)```", (there / "me/lots/README.md").read_text(), re.DOTALL)
    names = set(re.findall(r'from_pretrained\((?:model, )?"(.*?)"', code))
    assert names == ({BASE[1], "me/lots"} if kind == "adapter" else {"me/lots"})
    monkeypatch.chdir(there)
    exec(code.replace('"..."', '"lot 5 of fire and flame"'), {})
    assert capsys.readouterr().out.strip() == "warm"


def test_the_code_of_the_card_names_the_revision_of_the_base(tmp_path: Path) -> None:
    everything = made.everything()
    everything["receipt"]["model"]["name"] = "A/B@v1"
    run = made.write(tmp_path / "one", everything)
    checks = made.typed(records.EXPORTS, everything["export"])
    for kind, loaded in (
        ("adapter", '"A/B", revision="v1"'),
        ("gguf", 'Llama.from_pretrained("me/lots", "one-F16.gguf", '),
    ):
        own = [check for check in checks if check.kind == kind]
        card.write(run, own)
        text = (run.path / kind / "README.md").read_text()
        for_hub = card.for_hub(run, own, text, hub_module._hub_base("A/B@v1"), "me/lots")
        assert loaded in for_hub
        assert "In this folder" in text
        assert "In this folder" not in for_hub
        assert for_hub.partition("## Load")[0] == text.partition("## Load")[0]
        assert for_hub.partition("## Reproduce")[2] == text.partition("## Reproduce")[2] != ""


def test_an_adapter_that_names_its_base_on_the_hub_still_loads(tmp_path: Path, labelled: api.Result) -> None:
    """Its config names another base, so the hashes beside it must follow."""
    run = run_of(labelled, tmp_path)
    receipt = records.read(run.receipt, records.Receipt)
    with hub_module.staged(run, "adapter", "me/lots", BASE[1], None) as there:
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


def gguf_run(result: api.Result, folder: Path, **files: str) -> Run:
    """A run with one checked file in GGUF, and another that an earlier export left."""
    import gguf

    run = run_of(result, folder)
    (first, *_) = read_json(run.export)
    run.export.unlink()
    write_json(run.export, [{**first, "kind": "gguf", "path": "runs/labels/gguf/labels-Q8_0.gguf"}])
    (run.path / "gguf").mkdir()
    for kind in ("Q8_0", "F16"):
        writer = gguf.GGUFWriter(run.path / "gguf" / f"labels-{kind}.gguf", "llama")
        writer.add_chat_template(files.get("template", "{{ messages }}"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    card = (result.path / "merged" / "README.md").read_text()
    (run.path / "gguf" / "README.md").write_text(card.replace("library_name: transformers", "library_name: gguf"))
    (run.path / "gguf" / "notes.txt").write_text("not for others")
    return run


def with_ollama(run: Run, *kinds: str) -> None:
    """An Ollama bundle of the run; ``kinds``: its `export.to`."""
    (run.path / "ollama").mkdir()
    for name in ("system", "params", "Modelfile", "README.md", "system.json", "labels-F16.gguf"):
        (run.path / "ollama" / name).write_text("warm or cold?")
    config = load(run.config, [f"export.to=[{', '.join(kinds)}]"])
    run.config.unlink()
    run.config.write_text(to_yaml(config))


def test_a_gguf_is_pushed_with_what_ollama_reads(tmp_path: Path, labelled: api.Result, hub: FakeHub) -> None:
    run = gguf_run(labelled, tmp_path)
    with_ollama(run, "merged", "gguf", "ollama")
    done = push(hub, tmp_path, "--kind", "gguf", *BASE)
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"labels-Q8_0.gguf", "README.md", "system", "params"}
    assert hub.files["system"] == b"warm or cold?"
    assert b"library_name: gguf" in hub.files["README.md"]


def test_what_earlier_exports_left_is_not_pushed(tmp_path: Path, labelled: api.Result) -> None:
    """export.json lists what is current; a bundle is current if `export.to` names it."""
    run = gguf_run(labelled, tmp_path)
    with_ollama(run, "merged", "gguf")
    with hub_module.staged(run, "gguf", "me/lots", BASE[1], None) as folder:
        assert {path.name for path in folder.iterdir()} == {"labels-Q8_0.gguf", "README.md"}
    with (
        pytest.raises(RunError, match="the run has no adapter export") as caught,
        hub_module.staged(run, "adapter", "me/lots", BASE[1], None),
    ):
        pass
    assert caught.value.code == "RUN_INCOMPLETE"
    (run.path / "gguf" / "labels-Q8_0.gguf").unlink()
    with pytest.raises(RunError, match="no gguf"), hub_module.staged(run, "gguf", "me/lots", BASE[1], None):
        pass


def test_the_chat_template_in_a_gguf_is_searched_too(tmp_path: Path, labelled: api.Result) -> None:
    run = gguf_run(labelled, tmp_path, template="Ask jane.doe@example.org. {{ messages }}")
    with (
        hub_module.staged(run, "gguf", "me/lots", BASE[1], None) as folder,
        pytest.raises(RunError, match=r"labels-Q8_0\.gguf: e-mail address"),
    ):
        hub_module.require_public(folder)


def test_a_private_push_does_not_publish(tmp_path: Path, labelled: api.Result, hub: FakeHub) -> None:
    """The Hub ignores `private` for a repository that exists."""
    run_of(labelled, tmp_path)
    hub.repos["me/lots"] = {"visibility": "public"}
    done = push(hub, tmp_path, *BASE, "--private")
    assert (done.returncode, "[PUSH_FAILED] me/lots: the repository exists and is public" in done.stderr) == (2, True)
    assert not hub.files
    assert not hub.commits
    hub.repos["me/lots"] = {"visibility": "private"}
    assert push(hub, tmp_path, *BASE, "--private").returncode == 0
    assert "adapter_config.json" in hub.files


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
        hub_module.staged(run, "merged", "me/lots", BASE[1], None) as folder,
        pytest.raises(RunError, match=r"config\.json: /") as caught,
    ):
        hub_module.require_public(folder)
    assert caught.value.code == "PUSH_PRIVATE"


def test_a_path_in_the_card_is_not_pushed_but_a_url_is(tmp_path: Path, labelled: api.Result) -> None:
    """Also one with a space. The card that we write has none: see `portable.without_folders`."""
    readme = own(run_of(labelled, tmp_path), "adapter") / "README.md"
    (tmp_path / "secret project.jsonl").touch()
    card = readme.read_text()
    for text, private in (
        (f"`run {tmp_path}/rows.jsonl`", True),
        (f"{tmp_path}/secret project.jsonl", True),
        ("https://a.b/tmp/c", False),
    ):
        readme.write_text(f"{card}\n{text}\n")
        done = cli("push", "labels", "me/lots", "--dry-run", *BASE, cwd=tmp_path)
        assert ("[PUSH_PRIVATE]" in done.stderr, done.returncode) == (private, 2 if private else 0), text


def test_what_is_missing_or_refused_is_one_line(tmp_path: Path, labelled: api.Result, hub: FakeHub) -> None:
    run_of(labelled, tmp_path)
    hub.refuse = 403
    done = push(hub, tmp_path, *BASE)
    assert (done.returncode, "[PUSH_FAILED] me/lots:" in done.stderr, "hf auth login" in done.stderr) == (2, True, True)
    assert len(done.stderr.strip().splitlines()) == 1
    hub.refuse = 500
    failed = push(hub, tmp_path, *BASE).stderr
    hub.url = "http://127.0.0.1:9"
    for output in (failed, push(hub, tmp_path, *BASE).stderr):
        assert ("[PUSH_FAILED]" in output, "check the network" in output, "hf auth login" in output) == (
            True,
            True,
            False,
        )
    for name in ("lots", "me/lo ts", "a/b/c"):
        wrong = cli("push", "labels", name, "--dry-run", *BASE, cwd=tmp_path)
        assert (wrong.returncode, "[CONFIG_RANGE] REPO:" in wrong.stderr) == (2, True)
    local = cli("push", "labels", "me/lots", cwd=tmp_path)
    assert (local.returncode, "[PUSH_BASE]" in local.stderr, "--base OWNER/NAME" in local.stderr) == (2, True, True)
    absent = cli("push", "labels", "me/lots", "--kind", "gguf", *BASE, cwd=tmp_path)
    assert (absent.returncode, "[RUN_INCOMPLETE]" in absent.stderr) == (2, True)


@pytest.mark.parametrize(
    ("model", "base"),
    [("smollm2-135m", BASE[1]), ("Qwen/Qwen2.5-0.5B@v1", "Qwen/Qwen2.5-0.5B@v1"), ("HF/Other", "HF/Other")],
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
