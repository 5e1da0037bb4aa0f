"""A linear chat template is recognised, its default system message is known, and its form in Go renders the same."""

from __future__ import annotations

import re

import pytest
from build import CHATML, byte_tokenizer, stock_templates, stock_tokenizer

from tunewright.data.messages import Message, Prompt
from tunewright.export.bundles import linear_template
from tunewright.export.bundles.linear_template import Linear
from tunewright.tokens.template import Template, render

SYSTEM = "<|im_start|>system\nBe {{ '{{' }}brief.<|im_end|>\n"
DEFAULT = "{% if messages[0]['role'] != 'system' %}" + SYSTEM + "{% endif %}" + CHATML
INSTRUCT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
STOCK = stock_templates()


def linear_ones() -> dict[str, tuple[Template, Linear]]:
    texts = {
        "chatml": CHATML,
        "default": DEFAULT,
        "instruct": INSTRUCT,
        **{p.stem: p.read_text(encoding="utf-8") for p in STOCK},
    }
    templates = {name: Template(stock_tokenizer(text)) for name, text in texts.items()}
    return {name: (t, linear) for name, t in templates.items() if (linear := linear_template.find(t)) is not None}


LINEAR = linear_ones()


def go(text: str, messages: list[Message]) -> str:
    """Executes the part of Go's templates that ours use, with the values that Ollama passes."""
    literal = text.replace('{{ "{{" }}', "\0")
    match = re.fullmatch(
        r"{{ if \.System }}(.*?){{ \.System }}(.*?){{ else }}(.*?){{ end }}{{ range \.Messages }}{{ if eq \.Role "
        r'"user" }}{{ \.Content }}{{ else if eq \.Role "assistant" }}(.*?){{ \.Content }}(.*?){{ end }}{{ end }}(.*)',
        literal,
        re.DOTALL,
    )
    assert match
    before, after, plain, before_answer, after_answer, end = match.groups()
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    written = f"{before}{system}{after}" if system else plain
    for m in messages:
        if m.role == "user":
            written += m.content
        elif m.role == "assistant":
            written += f"{before_answer}{m.content}{after_answer}"
    return (written + end).replace("\0", "{{")


def conversations() -> list[list[Message]]:
    turns = [Message("user" if i % 2 == 0 else "assistant", f"text {i}") for i in range(5)]
    return [[*head, *turns[:n]] for head in ([], [Message("system", "Do it.")]) for n in (1, 3, 5)]


def test_the_default_system_message_is_known() -> None:
    template = Template(byte_tokenizer(DEFAULT))
    linear = linear_template.find(template)
    assert linear is not None
    assert linear.default_system == "Be {{brief."
    given = [Message("system", linear.default_system), Message("user", "hi")]
    assert render(template, Prompt(tuple(given)), True) == render(template, Prompt((Message("user", "hi"),)), True)
    plain = linear_template.find(Template(byte_tokenizer(CHATML)))
    assert plain is not None
    assert plain.default_system is None


@pytest.mark.parametrize(
    "jinja", [None, NO_SYSTEM, "{{ messages | length }}", CHATML.replace("m['content']", "m['content'] | upper")]
)
def test_a_template_that_is_not_linear_is_not_taken_for_one(jinja: str | None) -> None:
    assert linear_template.find(Template(byte_tokenizer(jinja))) is None


def test_thoughts_removed_from_earlier_turns_are_no_obstacle_but_changed_turns_are() -> None:
    earlier = "m['content'] if loop.last or m['role'] != 'assistant' else m['content'].split('</think>')[-1]"
    template = Template(byte_tokenizer(CHATML.replace("m['content']", earlier)))
    answer = Message("assistant", "<think>hm</think>text")
    turns = (Message("user", "one"), answer, Message("user", "two"))
    assert "hm" not in render(template, Prompt(turns), True), "it does remove them"
    assert linear_template.find(template) == linear_template.find(Template(byte_tokenizer(CHATML))) is not None
    numbered = CHATML.replace("{{ m['role'] }}", "{{ m['role'] }} {{ loop.index }}")
    assert linear_template.find(Template(byte_tokenizer(numbered))) is None


@pytest.mark.parametrize("name", LINEAR)
def test_the_go_form_renders_the_same(name: str) -> None:
    template, linear = LINEAR[name]
    bos = template.tokenizer.bos_token or ""
    for messages in conversations():
        expected = render(template, Prompt(tuple(messages)), True)
        assert go(linear.as_go(bos), messages) == expected.removeprefix(bos)


def test_most_stock_templates_are_linear() -> None:
    assert {"chatml", "default"} <= set(LINEAR)
    assert len(LINEAR.keys() & {p.stem for p in STOCK}) >= len(STOCK) // 3, LINEAR.keys()
