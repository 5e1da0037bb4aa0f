"""Names that do not lead to a model; broken folders are in bad_inputs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.core.errors import ModelError
from tunewright.model import loading


@pytest.mark.parametrize("name", ["nobody/nothing-at-all", "no-such-folder", "missing.gguf"])
def test_models_that_are_not_there(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        loading.resolve(name)
    assert caught.value.code == "MODEL_NOT_FOUND"


def test_a_file_that_is_not_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUFnot really" * 10)
    with pytest.raises(ModelError) as caught:
        loading.resolve(str(tmp_path / "x.gguf"))
    assert caught.value.code == "MODEL_CORRUPT"
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-made is left"
