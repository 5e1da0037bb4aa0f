"""Model folders that must be refused, with the code and before anything of theirs runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunewright import models, rendering
from tunewright.errors import ConfigError, ModelError


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


CASES: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "MODEL_FILE_MISSING"),
    ("config is no JSON", lambda f: (f / "config.json").write_text("{"), "MODEL_CORRUPT"),
    ("code by auto_map", lambda f: edit(f, auto_map={"AutoModel": "x.Y"}), "MODEL_REMOTE_CODE"),
    ("code by a nested switch", lambda f: edit(f, text_config={"trust_remote_code": True}), "MODEL_REMOTE_CODE"),
    ("code as a file", lambda f: (f / "modeling.py").write_text("raise SystemExit"), "MODEL_REMOTE_CODE"),
    ("pickle only", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "MODEL_UNSAFE_FORMAT"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "MODEL_FILE_MISSING"),
    (
        "a shard is missing",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
        "MODEL_FILE_MISSING",
    ),
    (
        "a shard outside",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}'),
        "MODEL_FILE_MISSING",
    ),
    ("weights cut off", cut, "MODEL_CORRUPT"),
    ("weights are text", lambda f: (f / "model.safetensors").write_text("hello"), "MODEL_CORRUPT"),
    ("NaN weights", nan, "MODEL_CORRUPT"),
    ("unknown architecture", lambda f: edit(f, model_type="nonesuch"), "MODEL_UNSUPPORTED"),
]


@pytest.mark.parametrize(("break_it", "code"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_broken_folders(
    tmp_path: Path, model_folder: Callable[[str], Path], break_it: Callable[[Path], object], code: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    break_it(folder)
    with pytest.raises(ModelError) as caught:
        models.load(models.facts(str(folder)).path, torch.float32)
    assert caught.value.code == code
    assert caught.value.problems[0].mend, "every error says what to do"


@pytest.mark.parametrize("name", ["nobody/nothing-at-all", "no-such-folder", "missing.gguf"])
def test_models_that_are_not_there(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.resolve(name)
    assert caught.value.code == "MODEL_NOT_FOUND"


def test_a_file_that_is_no_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUFnot really" * 10)
    with pytest.raises(ModelError) as caught:
        models.resolve(str(tmp_path / "x.gguf"))
    assert caught.value.code == "MODEL_CORRUPT"
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-made is left"


def test_tokenizers_that_cannot_stop_or_are_missing(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in ("eos_token", "pad_token")}))
    with pytest.raises(ModelError, match="TOKENIZER_NO_EOS"):
        rendering.load_template(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="MODEL_FILE_MISSING"):
        rendering.load_template(folder)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "TEMPLATE_UNSAFE"),
        ("{{ cycler.__init__.__globals__ }}", "TEMPLATE_UNSAFE"),
        ("{% for i in range(10**12) %}x{% endfor %}", "TEMPLATE_UNSAFE"),
        ("{{ 'x' * 10**7 }}", "TEMPLATE_UNSAFE"),
        ("{# " + "x" * 300_000 + " #}", "TEMPLATE_UNSAFE"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "TEMPLATE_TIMEOUT"),
    ],
)
def test_a_template_that_escapes_or_runs_wild_is_stopped(
    tmp_path: Path, model_folder: Callable[[str], Path], text: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    file = tmp_path / "t.jinja"
    file.write_text(text)
    with pytest.raises(ModelError) as caught:
        rendering.load_template(model_folder("llama"), str(file))
    assert caught.value.code == code
    assert caught.value.problems[0].mend


def test_a_template_file_that_is_not_there(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="CONFIG_NOT_FOUND"):
        rendering.load_template(model_folder("llama"), "nowhere.jinja")
