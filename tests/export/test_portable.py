"""Exported folders have the values where other programs look for them, and mean the same to transformers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build import ARCHITECTURES, byte_tokenizer, tiny_model

from tunewright import api
from tunewright.core import run_folder
from tunewright.core.run_folder import write_json
from tunewright.export import portable

OLD = "transformers==4.57.6"  # the last of version 4


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
        (
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}},
        ),
        (
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {
                "rope_theta": 1e6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 1e4,
            },
        ),
    ],
)
def test_rotary_values_are_written_under_their_old_names_too(
    parameters: dict[str, object], names: dict[str, object]
) -> None:
    written = {"rope_parameters": parameters, "use_cache": False, "_name_or_path": "/home/me/model", "hidden_size": 8}
    expected = {"rope_parameters": parameters, "use_cache": True, "hidden_size": 8, **names}
    assert portable.config(written) == expected  # type: ignore[arg-type]


def test_the_tokenizer_has_a_known_class_and_its_chat_template() -> None:
    written = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": ["<tool>"]}
    assert portable.tokenizer_config({**written, "is_local": True}, "{{ messages }}") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<tool>"],
        "chat_template": "{{ messages }}",
    }
    named: dict[str, object] = {"tokenizer_class": "GemmaTokenizer", "extra_special_tokens": {"image": "<image>"}}
    assert portable.tokenizer_config(named, None) == named  # type: ignore[arg-type]


def test_a_command_without_folders_of_this_machine() -> None:
    command = "tunewright run /home/me/my.data/rows.jsonl --model ~/models/x out=runs/a forget.rows='/srv/k.csv' a/b"
    expected = "tunewright run rows.jsonl --model x out=runs/a forget.rows='k.csv' a/b"
    assert portable.without_folders(command) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("https://h/d/rows.jsonl?sv=1&sig=SECRET", "https://h/d/rows.jsonl?"),
        ("https://me:SECRET@h/rows.jsonl", "https://h/rows.jsonl"),
        ("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl"),
        ("[https://h/a,https://me:SECRET@h/b?k=SECRET]", "[https://h/a,https://h/b?"),
        ("file:///home/me/rows.jsonl", "file:rows.jsonl"),
    ],
)
def test_a_command_without_secrets_in_urls(name: str, expected: str) -> None:
    """Quoted as the shell and as Python would."""
    for command in (shlex.join(["tunewright", "run", f"data.dev={name}"]), f"tw.run({name!r}, root='/home/me')"):
        written = portable.without_folders(command)
        assert expected in written
        assert "SECRET" not in written
        assert "home" not in written


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_only_exports_can_be_read_by_others(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, and in a run that an older version wrote too."""
    before = os.umask(umask)
    try:
        run = run_folder.create(tmp_path / "runs", "one", "rows")
        run.event("created")
        write_json(run.verdict, {})
        write_json(run.branch("half").training, {})
        old = run.path / "report.html"
        old.touch(0o644)
        (run.path / "merged").mkdir()
        (run.path / "merged" / "run.sh").touch(0o755)
        (run.path / "merged" / "README.md").touch()
        portable.let_others_read(run.path / "merged")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {
        "runs": 0o711,
        "runs/one": 0o711,
        "runs/one/merged": 0o755,
        "runs/one/merged/run.sh": 0o755,
        "runs/one/merged/README.md": 0o644,
    }
    assert {mode for mode in modes.values() if not mode & 0o077} == {0o600, 0o700}


def test_a_run_from_python_is_as_private_as_one_of_the_command_line(full: api.Result) -> None:
    """Its rows, answers and branches; this process has the usual umask."""
    kinds = ("adapter", "merged")
    exports = {p for kind in kinds for p in [full.path / kind, *(full.path / kind).rglob("*")]}
    assert {p for p in full.path.rglob("*") if p.stat().st_mode & 0o077} == exports
    assert all(p.stat().st_mode & 0o777 == (0o755 if p.is_dir() else 0o644) for p in exports)


def saved(folder: Path, kind: str) -> Path:
    """A tiny model and its tokenizer, as `transformers` writes them, made portable."""
    base = {"rope_theta": 1e5, "rope_type": "default"}
    parameters = {"full_attention": base, "sliding_attention": {**base, "rope_theta": 500.0}}
    tokenizer = byte_tokenizer()
    rope = {"rope_parameters": parameters if kind == "gemma3_text" else base}
    model = tiny_model(kind, vocabulary=len(tokenizer), **rope)
    model.config.use_cache = False
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]}, replace_extra_special_tokens=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model(torch.arange(5, 60)[None]).logits.detach(), folder / "logits.pt")
    portable.make_portable(folder)
    return folder


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_transformers_reads_the_same_model_and_tokenizer(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, tokenizer = saved(tmp_path, kind), byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(model(torch.arange(5, 60)[None]).logits, torch.load(folder / "logits.pt"))
    assert model.config.use_cache
    read = AutoTokenizer.from_pretrained(folder)
    assert read.chat_template == tokenizer.chat_template
    assert "<tool>" in read.all_special_tokens
    text = "Zwölf <tool> 5757!"
    assert "<tool>" in read.convert_ids_to_tokens(read(text)["input_ids"])
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.glob("*.json"))


ASK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi <tool> 5757"}], tokenize=False)
assert __version__.startswith("4."), __version__
with torch.no_grad():
    gap = (model(torch.arange(5, 60)[None]).logits - torch.load(folder + "/logits.pt")).abs().max()
print(float(gap), tokenizer(prompt)["input_ids"])
"""


@pytest.mark.slow
def test_transformers_4_reads_them_too(tmp_path: Path) -> None:
    old = tmp_path / "old"
    words = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(old), OLD, "tokenizers<0.23"]
    subprocess.run([sys.executable, *words, "huggingface_hub<1"], check=True, capture_output=True)
    for kind in ARCHITECTURES:
        folder = saved(tmp_path / kind, kind)
        environment = {**os.environ, "PYTHONPATH": str(old)}
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(folder)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        gap, ids = done.stdout.split(" ", 1)
        assert float(gap) < 1e-5, kind
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi <tool> 5757"}], tokenize=False)
        assert json.loads(ids) == tokenizer(prompt)["input_ids"]
