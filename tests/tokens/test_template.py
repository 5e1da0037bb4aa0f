"""Chat templates that must be stopped, and template files that cannot be read."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from build import CHATML, byte_tokenizer

from tunewright.core.config.load import absolute, load
from tunewright.core.config.schema import TEMPLATES
from tunewright.core.errors import ConfigError, DataError, ModelError
from tunewright.data.messages import Chat, Message, Prompt
from tunewright.tokens import template
from tunewright.tokens.rendering import for_generation, for_training
from tunewright.tokens.template import Template, fitted, for_rows, has_thoughts, hashed_as, load_template


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


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1 // 0", "integer division or modulo by zero"),
        ("'{a}'.format()", "'a'"),
        ("raise_exception('')", "TemplateError"),
        ("raise_exception(' \\n')", "TemplateError"),
        ("messages[0].content[0]['a'].b.c", "'str object' has no attribute"),
    ],
)
def test_a_template_that_fails_says_why(expression: str, reason: str) -> None:
    failing = Template(byte_tokenizer("{{ " + expression + " }}"))
    with pytest.raises(ModelError) as caught:
        template.render(failing, Prompt((Message("user", "q"),)), True)
    assert caught.value.code == "TEMPLATE_LOSES_CONTENT"
    assert reason in caught.value.problems[0].message


def test_a_template_file_that_is_not_there(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"CONFIG_NOT_FOUND.*or use chatml-tools"):
        load_template(model_folder("llama"), "nowhere.jinja")


def test_our_own_templates_have_names(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """In a config file, a name is no path relative to that file."""
    assert [p.stem for p in sorted(template.BUILT_IN.iterdir())] == list(TEMPLATES)
    (tmp_path / "config.yaml").write_text("template: chatml-tools\n")
    config = load(tmp_path / "config.yaml")
    assert absolute(config).template == config.template == "chatml-tools"
    loaded = load_template(model_folder("llama"), config.template)
    assert "<tool_call>" in loaded.tokenizer.chat_template
    (tmp_path / "config.yaml").write_text("template: other.jinja\n")
    assert load(tmp_path / "config.yaml").template == str(tmp_path / "other.jinja")


def test_the_hash_covers_the_tokens_that_begin_and_end_a_text() -> None:
    """A run of an earlier version, whose hash does not cover them, keeps its hash."""
    ends = ("<|im_start|>", "<|im_end|>")
    made = [Template(byte_tokenizer(eos=eos, bos=bos)) for eos in ends for bos in (None, *ends)]
    assert len({t.sha256 for t in made}) == len(made)
    before = replace(made[0], ends_hashed=False)
    assert hashed_as(made[0], before.sha256) == before
    assert hashed_as(made[0], made[0].sha256) == made[0] == hashed_as(made[0], "another")


def test_our_templates_are_in_the_package() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["package-data"]["tunewright.tokens"] == ["templates/*"]


OPENS_A_THOUGHT = CHATML.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{{ '<think>' if enable_thinking | default(true) else '' }}{% endif %}",
).replace(
    "{{ m['content'] }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}",
)


def test_rows_with_thoughts_are_served_a_prompt_that_opens_one() -> None:
    """The switch of a template follows from the rows, so that every prompt is the beginning of a trained turn."""
    own = Template(byte_tokenizer(OPENS_A_THOUGHT))
    user, thought = Message("user", "q"), Message("assistant", "a", reasoning="Hm.")
    with_thoughts, inside = (
        Chat((user, thought), "x:1"),
        Chat((user, Message("assistant", "<think>Hm.</think>a")), "x:1"),
    )
    without = Chat((user, Message("assistant", "a")), "x:1")
    for chat, kwargs in ((with_thoughts, {}), (inside, {}), (without, {"enable_thinking": False})):
        fitting = for_rows(fitted(own), has_thoughts([chat]))
        assert fitting.kwargs == kwargs
        (sequence,) = for_training(fitting, chat)
        prompt = for_generation(fitting, chat.prompt)
        assert list(sequence.ids[: len(prompt)]) == prompt
    with pytest.raises(DataError, match="TEMPLATE_NOT_PREFIX"):
        for_training(fitted(own, thoughts=True), without)
