"""Text in any encoding: as it was written, or an error that names the setting with which it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.data.files import encoding
from tunewright.data.files.rows import AUTO, FileSettings

WESTERN = (
    "Größe: 5 €, “café” — naïve résumé, and then many words of plain English text without any such letters.\n" * 20
)
POLISH = "Zażółć gęślą jaźń\n" * 20
GREEK = "Καλημέρα κόσμε, τι κάνεις\n" * 20


def read(raw: bytes, codec: str) -> tuple[str, list[str]]:
    text, changes = encoding.decode(bytearray(raw), "a", FileSettings(encoding=codec))
    return text, [c.where for c in changes]


def advice(raw: bytes, codec: str = "utf-8") -> str:
    with pytest.raises(DataError) as caught:
        read(raw, codec)
    assert caught.value.code == "DATA_ENCODING"
    return caught.value.problems[0].fix


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_the_advice_is_enough(codec: str) -> None:
    raw = WESTERN.encode(codec)
    if codec.startswith("utf-8"):
        assert read(raw, AUTO)[0].lstrip(encoding.BOM) == WESTERN
        return
    fix = advice(raw)
    if codec == "utf-32":
        return  # rare enough to be set by hand
    (setting,) = re.findall(r"data\.encoding=([\w-]+)", fix)
    assert read(raw, setting)[0] == WESTERN
    assert read(raw, AUTO)[0] == WESTERN


def test_some_lines_of_another_encoding() -> None:
    lines = ["é plain\n".encode(), "ä odd\n".encode("cp1252"), "日本\n".encode(), "ö odd\n".encode("cp1252")]
    raw = b"".join(lines) + b"ascii\n" * 50
    assert "data.encoding=auto" in advice(raw)
    text, changed = read(raw, AUTO)
    assert text.splitlines()[:4] == ["é plain", "ä odd", "日本", "ö odd"]
    assert changed == ["a:2", "a:4"]


@pytest.mark.parametrize(
    ("text", "codec"), [(POLISH, "cp1250"), (GREEK, "iso8859-7"), ("日本語の文章\n" * 20, "shift_jis")]
)
def test_another_alphabet_is_never_guessed(text: str, codec: str) -> None:
    raw = text.encode(codec)
    for given_ in ("utf-8", AUTO):
        fix = advice(raw, given_)
        assert not re.search(r"data\.encoding=\w", fix), fix
    assert read(raw, codec) == (text, [])


def test_a_wrong_setting_is_corrected() -> None:
    assert "data.encoding=utf-8." in advice("a\x81".encode(), "ascii")


def test_what_is_read_in_another_way_is_shown_without_private_data() -> None:
    raw = b"caf\xe9 anna.b@mail.example.org\n" + b"plain text\n" * 50
    _, (change,) = encoding.decode(bytearray(raw), "a", FileSettings(encoding=AUTO))
    assert "café" in change.message
    assert "anna" not in change.message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["utf-8", AUTO, "utf-16", "cp1252", "shift_jis", "utf-7", "punycode"]))
def test_any_bytes_are_text_or_an_error(raw: bytes, codec: str) -> None:
    try:
        text, _ = read(raw, codec)
    except DataError as error:
        assert error.code == "DATA_ENCODING"  # noqa: PT017
    else:
        assert isinstance(text, str)
        if codec == AUTO:
            assert text.count("\n") == raw.count(b"\n") or b"\0" in raw or raw[:1] in b"\xff\xfe"


@pytest.mark.parametrize("at", [0, 5])
def test_the_advice_for_some_lines_of_another_encoding(at: int) -> None:
    """A line in Windows-1252 among those in UTF-8, wherever it is."""
    utf_8, western = "in plain words and so on, a naïve café for 5 € or more", "seen: déjà vu"
    lines = [f"{utf_8}\n".encode()] * 9
    lines[at] = f"{western}\n".encode("cp1252")
    (setting,) = re.findall(r"data\.encoding=([\w-]+)", advice(b"".join(lines)))
    assert read(b"".join(lines), setting)[0].splitlines() == [western if i == at else utf_8 for i in range(9)]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_valid_utf_8(codec: str) -> None:
    raw = '{"text": "plain"}\n'.encode(codec) * 20
    (setting,) = re.findall(r"data\.encoding=([\w-]+)", advice(raw))
    assert read(raw, setting)[0] == read(raw, AUTO)[0] == '{"text": "plain"}\n' * 20
    assert read(b"a\0\0\0\0\0\0b" * 20, "utf-8")[0] == "a\0\0\0\0\0\0b" * 20, "NULs that are no halves of characters"
