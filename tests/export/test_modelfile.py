"""The reader of Modelfiles that other tests rely on gives what Ollama's own tests expect; system messages survive."""

from __future__ import annotations

import pytest
from export.modelfile import ModelfileError, parse
from hypothesis import example, given
from hypothesis import strategies as st

from tunewright.export.bundles.ollama import quoted

CASES = {
    "FROM model1\nADAPTER adapter1\nPARAMETER param1 value1\n": [
        ("model", "model1"),
        ("adapter", "adapter1"),
        ("param1", "value1"),
    ],
    'FROM "     model 1"\nLICENSE "MIT       "\nPARAMETER param1        value1\n': [
        ("model", "     model 1"),
        ("license", "MIT       "),
        ("param1", "value1"),
    ],
    "FROM     FOOO BAR    ": [("model", "FOOO BAR")],
    "PARAMETER what the \nFROM lemons make lemonade ": [("what", "the"), ("model", "lemons make lemonade")],
    'FROM foo\nSYSTEM """\nThis is a\nmultiline system.\n"""\n\t\t\t': [
        ("model", "foo"),
        ("system", "\nThis is a\nmultiline system.\n"),
    ],
    'FROM foo\nSYSTEM """This is a\nmultiline system with "quotes"."""\n': [
        ("model", "foo"),
        ("system", 'This is a\nmultiline system with "quotes".'),
    ],
    'FROM foo\nSYSTEM """"""\n': [("model", "foo"), ("system", "")],
    'FROM foo\nSYSTEM """\'\'"\'""\'""\'"\'\'\'\'\'""\'""\'"""\n': [
        ("model", "foo"),
        ("system", "''\"'\"\"'\"\"'\"'''''\"\"'\"\"'"),
    ],
    "\n# comment\nFROM foo\n\t": [("model", "foo")],
    'FROM foo\nPARAMETER stop "### User: "': [("model", "foo"), ("stop", "### User: ")],
    'FROM foo\nPARAMETER stop """### User:\n"""': [("model", "foo"), ("stop", "### User:\n")],
}


@pytest.mark.parametrize("text", CASES)
def test_the_reader_agrees_with_ollamas_tests(text: str) -> None:
    assert parse(text) == CASES[text]


@pytest.mark.parametrize(
    "text", ["FROM foo\nBADCOMMAND x y\n", 'FROM foo\nSYSTEM """one""', "FROM foo\nPARAMETER param1\n"]
)
def test_the_reader_refuses_what_ollama_refuses(text: str) -> None:
    with pytest.raises(ModelfileError):
        parse(text)


PIECES = [*'" \n\t\r\\ab#', '"""', "SYSTEM ", "\u00a0", "é", "🙂", "\u200b", "\x1b"]
HARD = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(st.text(max_size=60) | HARD)
@example('say """hi"""\nbye')
@example('say """hi""" bye\n"""')
@example('C:\\new\\table \\" \\\\')
@example("a narrow\u00a0space")
@example('"quoted"\n')
def test_a_system_message_survives_or_is_known_not_to(text: str) -> None:
    value = quoted(text)
    if value is not None:
        assert parse(f"FROM x\nSYSTEM {value}\nPARAMETER seed 1\n") == [("model", "x"), ("system", text), ("seed", "1")]
        return
    for way in (f'"""{text}"""', f'"{text}"', text):
        try:
            survives = parse(f"FROM x\nSYSTEM {way}\n") == [("model", "x"), ("system", text)]
        except ModelfileError:
            survives = False
        assert not survives, "there would have been a way to write it"
