"""What the type of a GGUF file costs is measured on dev rows; `auto` writes no type that costs too much. `--to` names
exports and what they are made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from build import QUICK, Rows
from export import families

from tunewright import api
from tunewright.cli import export_kinds
from tunewright.core import records
from tunewright.core.errors import ConfigError
from tunewright.core.records import EXPORTS, Loss
from tunewright.export.gguf import model

Finished = Callable[..., api.Result]


@pytest.fixture
def finished(tmp_path: Path, shared: Callable[..., Path], chat_rows: Rows) -> Finished:
    folder = shared("gguf-smollm", lambda folder: families.save("smollm", folder))

    def make(**settings: Any) -> api.Result:
        given = {**QUICK, "prove__evidence": "plain", "export__to": ["gguf"], "export__rows": 0, **settings}
        return api.run(chat_rows(), model=str(folder), name="x", root=tmp_path, **given)

    return make


def test_what_a_type_costs_is_measured_on_dev_rows(finished: Finished) -> None:
    run = finished(export__gguf=["f32", "q8_0"])
    exact, quantised = records.read(run.path / "export.json", EXPORTS)
    assert exact.loss is not None
    assert quantised.loss is not None
    audit = json.loads((run.path / "data" / "audit.json").read_text())
    assert exact.loss.rows == quantised.loss.rows == audit["sides"]["dev"] > 0
    assert exact.loss.tokens == quantised.loss.tokens > exact.loss.rows
    assert exact.loss.kl < 1e-9 < 1e-6 < quantised.loss.kl
    assert (exact.loss.same_likeliest, exact.loss.difference) == (1, 0)
    assert quantised.file is not None
    assert quantised.file.tensors == {"Q8_0": 15, "F32": 5}
    assert quantised.file.bytes == Path(quantised.path).stat().st_size
    for text in ((run.path / "gguf" / "README.md").read_text(), run.report.read_text()):
        assert "15 Q8_0, 5 F32" in text
        assert f"{quantised.loss.kl:.1e}" in text


def test_auto_writes_a_more_precise_type_if_one_costs_too_much(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "SIZES", ((float("inf"), "q8_0"),))
    monkeypatch.setattr(Loss, "passes", property(lambda loss: loss.kl < 0))  # nothing passes
    run = finished()
    (check,) = records.read(run.path / "export.json", EXPORTS)
    assert check.dtype == "f16"
    assert [file.name for file in (run.path / "gguf").glob("*.gguf")] == ["x-F16.gguf"]
    assert "q8_0 changes too much (on" in capsys.readouterr().err


def test_a_type_that_is_named_is_written_whatever_it_costs(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loss, "passes", property(lambda loss: False))
    run = finished(export__gguf=["q8_0"])
    assert [file.name for file in (run.path / "gguf").glob("*.gguf")] == ["x-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("verdict", "likeliest", "passes"),
    [
        ("CANNOT TELL", 0.95, True),
        ("PRACTICALLY EQUAL", 1.0, True),
        ("CANNOT TELL", 0.94, False),
        ("WORSE", 1.0, False),
    ],
)
def test_a_loss_passes_if_nothing_is_shown_to_be_lost(verdict: Any, likeliest: float, passes: bool) -> None:
    numbers = {"tokens": 10, "kl": 0.1, "rows": 3, "score": 0.5, "difference": 0.0, "interval": (-1.0, 1.0)}
    assert Loss.model_validate({**numbers, "verdict": verdict, "same_likeliest": likeliest}).passes is passes


@pytest.mark.parametrize(
    ("size", "installed", "kind"),
    [(1e8, False, "f16"), (2e9, False, "q8_0"), (7e9, True, "q4_k_m"), (7e9, False, "q8_0")],
)
def test_the_type_follows_the_size(
    size: float, installed: bool, kind: str, tmp_path: Path, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = families.run_of(shared("gguf-smollm", lambda folder: families.save("smollm", folder)), tmp_path)
    source = replace(source, facts=replace(source.facts, parameters=int(size)))
    monkeypatch.setattr(model.llama_cpp, "installed", lambda: installed)
    assert model.types(source) == [kind]


BEFORE = ["adapter", "merged"]


@pytest.mark.parametrize(
    ("to", "settings"),
    [
        ("gguf", ["export.to=[adapter, merged, gguf]"]),
        ("gguf:f16,q8_0", ["export.to=[adapter, merged, gguf]", "export.gguf=[f16, q8_0]"]),
        ("gguf:f16,q8_0,mlx", ["export.to=[adapter, merged, gguf, mlx]", "export.gguf=[f16, q8_0]"]),
        ("ollama", ["export.to=[adapter, merged, gguf, ollama]"]),
        ("vllm, sglang", ["export.to=[adapter, merged, serve]"]),
        ("llama-server", ["export.to=[adapter, merged, gguf, serve]"]),
    ],
)
def test_to_adds_exports_and_what_they_are_made_from(to: str, settings: list[str]) -> None:
    assert export_kinds.settings(to, BEFORE) == settings


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("hub", "tunewright push RUN OWNER/NAME"),
        ("ggfu", "'ggfu'.*gguf:f16,q8_0"),
        ("mlx:f16", "'mlx:f16'"),
        ("f16", "'f16'"),
        ("gguf:f17", "'f17' is not a type of GGUF.*q4_k_m"),
        ("llama_server", "did you mean llama-server"),
        ("GGUF", "did you mean gguf"),
    ],
)
def test_an_unknown_name_is_refused_with_what_to_do(to: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_kinds.settings(to, BEFORE)


def test_a_type_is_added_to_those_that_were_written() -> None:
    assert export_kinds.settings("gguf:q8_0", BEFORE, ["f16"])[1] == "export.gguf=[f16, q8_0]"
    assert export_kinds.settings("gguf", BEFORE, ["f16"]) == ["export.to=[adapter, merged, gguf]"]
