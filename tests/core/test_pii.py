"""Private data is recognised and masked, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.core import pii

SECRETS = {
    "e-mail address": "anna.b+c@mail.example.org",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc/+=",
    "access key": "AKIA" + "ABCDEFGH12345678",
    "password": "hunter2Zq9x",
    "card number": "4111 1111 1111 1111",
    "bank account (IBAN)": "GB82 WEST 1234 5698 7654 32",
    "phone number": "+44 20 7946 0958",
    "social security number": "078-05-1120",
}


@pytest.mark.parametrize("kind", list(SECRETS))
def test_what_looks_private_is_masked(kind: str) -> None:
    text = f"before {'password: ' if kind == 'password' else ''}{SECRETS[kind]}, after"
    assert pii.kinds(text) == {kind}
    assert SECRETS[kind] not in pii.masked(text)
    assert f"[{kind}]" in pii.masked(text)
    assert len(pii.masked(text, in_place=True)) == len(text)
    assert SECRETS[kind] not in pii.masked(text, in_place=True)


@pytest.mark.parametrize(
    "text",
    [
        "1234567812345678",
        "the password: please choose one",
        "see section 3.2.1 of 2024-10-11",
        "call 555",
        "0.7071067811865476",
        "1e-4",
    ],
)
def test_what_only_resembles_private_data_is_left(text: str) -> None:
    assert pii.masked(text) == text


@given(st.text(max_size=80), st.sampled_from(sorted(SECRETS.values())), st.text(max_size=80))
def test_masking_keeps_places_and_is_done_once(before: str, secret: str, after: str) -> None:
    text = f"{before} {secret} {after}"
    assert len(pii.masked(text, in_place=True)) == len(text)
    assert pii.kinds(pii.masked(text, in_place=True)) <= pii.kinds(text)


@pytest.mark.parametrize("piece", ["a.", "1 ", "sk-", "eyJa.", "+1", "(", "password", "A1", "@a", "-----BEGIN "])
def test_masking_is_fast_for_any_text(piece: str) -> None:
    pii.masked(piece * 300_000)  # a pattern that tries every length from every position would take hours
