"""Chat templates that must be stopped, and template files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.core.errors import ConfigError, ModelError
from tunewright.tokens import template
from tunewright.tokens.template import load_template


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
    monkeypatch.setattr(template, "SECONDS", 0.5)
    file = tmp_path / "t.jinja"
    file.write_text(text)
    with pytest.raises(ModelError) as caught:
        load_template(model_folder("llama"), str(file))
    assert caught.value.code == code
    assert caught.value.problems[0].fix


def test_a_template_file_that_is_not_there(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="CONFIG_NOT_FOUND"):
        load_template(model_folder("llama"), "nowhere.jinja")
