"""Rows, audit, split and metrics: plain values, no model."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core import config, pii
from tunewright.core.config import ProveConfig
from tunewright.core.errors import DataError
from tunewright.data import dataset, examples, metrics, near_duplicates, sources, split
from tunewright.data.examples import Chat, Message
from tunewright.data.sources import Row
from tunewright.judge.arms import families

FORMS = {
    "chat": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "completion": {"prompt": "q", "completion": "a"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "label": {"text": "q", "label": "a"},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_all_forms_say_the_same(form: str) -> None:
    found = examples.parse([Row({**FORMS[form], "note": 1}, "x:1")])
    assert found.format == form
    assert found.unused == {"note": 1}
    (chat,) = found.examples
    assert isinstance(chat, Chat)
    assert [(m.role, m.content) for m in chat.messages] == [("user", "q"), ("assistant", "a")]


def test_columns_and_instruction() -> None:
    found = examples.parse(
        [Row({"question": "q", "reply": "a"}, "x:1")],
        columns={"prompt": "question", "completion": "reply"},
        instruction="Be kind.",
    )
    assert found.examples[0].messages[0] == Message("system", "Be kind.")  # type: ignore[union-attr]


def test_fields_of_messages_that_nothing_reads_are_told() -> None:
    turns = [
        {"role": "user", "content": "q", "name": "anna", "weight": 0},
        {"role": "assistant", "content": "a", "weight": 1, "x": 2},
    ]
    found = examples.parse([Row({"messages": turns, "tools": []}, "x:1")])
    assert found.unused == {"tools": 1, "messages[].name": 1, "messages[].weight": 1, "messages[].x": 1}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "json"])
def test_files_of_all_kinds_hold_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f'say "{w}", please', "completion": f"{w},\nyes; \u2028 é"} for w in ("one", "two", "three")]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    assert [r.data for r in sources.read(path).rows] == rows


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_a_rows_side_does_not_depend_on_the_order_or_on_other_rows(seed: int) -> None:
    random = Random(seed)
    questions = {f"{random.random()} and {random.random()}" for _ in range(60)}
    chats = [Chat((Message("user", q), Message("assistant", "a")), "x") for q in sorted(questions)]

    def sides(some: list[Chat]) -> dict[str, str]:
        found = split.hold_out(some, range(len(some)), 0.2, 0.3)
        return {some[i].prompt[0].content: name for name in ("train", "dev", "test") for i in getattr(found, name)}

    before = sides(chats)
    assert set(before) == questions
    shuffled = list(chats)
    random.shuffle(shuffled)
    assert sides(shuffled) == before
    assert all(before[k] == v for k, v in sides(chats[:-10]).items())


def test_near_duplicates_stay_together() -> None:
    base = "The quick brown fox jumps over the lazy dog near the old mill by the river number"
    rows = [
        f"{base} {i // 2}{'!' * (i % 2)}" if i < 20 else f"{i * 7919} quite different words {i * 104729} here {i}"
        for i in range(60)
    ]
    cluster = near_duplicates.alike([examples.normalised(r) for r in rows], 0.8).cluster
    chats = [Chat((Message("user", q), Message("assistant", "a")), f"x:{i}") for i, q in enumerate(rows)]
    found = split.hold_out(chats, cluster, 0.2, 0.2)
    side = {i: name for name in ("train", "dev", "test") for i in getattr(found, name)}
    for i in range(0, 20, 2):
        assert cluster[i] == cluster[i + 1]
        assert side[i] == side[i + 1]
    assert sorted(side) == list(range(60))


@pytest.mark.parametrize("many", [40, 150, 1200])
def test_rows_of_one_form_are_told_apart_by_what_fills_it(many: int) -> None:
    """The instruction stands in every user message, far longer than what differs: no reason to call the rows equal."""
    form = (
        "Read the message of a customer of our shop and say which department answers it, billing, shipping or returns. Message: "
    )
    random = Random(many)
    fills = ["".join(random.choices("abcdefghij klmnop", k=60)) for _ in range(many)]
    rows = [form + fill for fill in fills] + [form + fills[0] + "!", form + fills[1].upper()]
    found = near_duplicates.alike([examples.normalised(r) for r in rows], 0.8)
    assert found.cluster == (*range(many), 0, 1)
    assert min(found.form) > 0.5
    chats = [Chat((Message("user", q), Message("assistant", "a")), f"x:{i}") for i, q in enumerate(rows)]
    held = split.hold_out(chats, found.cluster, 0.2, 0.2)
    assert len(held.train) > len(held.test) > 0


def test_near_duplicates_are_those_of_a_search_of_all_pairs() -> None:
    random = Random(2)
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    texts = ["".join(random.choices(alphabet, k=80)) for _ in range(150)]
    for text in texts[:150]:  # copies with some characters changed: on both sides of the threshold
        copy = list(text)
        for at in random.sample(range(80), random.randint(1, 4)):
            copy[at] = random.choice(alphabet)
        texts.append("".join(copy))
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in texts]
    pairs = {(i, j) for j in range(300) for i in range(j) if len(grams[i] & grams[j]) >= 0.8 * len(grams[i] | grams[j])}
    cluster = near_duplicates.alike(texts, 0.8).cluster
    assert 30 < len(pairs) < 140
    found = {(i, j) for j in range(300) for i in range(j) if cluster[i] == cluster[j]}
    assert found <= pairs
    assert len(found) >= 0.98 * len(pairs)


def test_clusters_of_any_size_fall_to_test_alike() -> None:
    for size in (1, 2, 6):
        chats = [
            Chat((Message("user", f"{size} of question {i}"), Message("assistant", "a")), f"x:{i}") for i in range(600 * size)
        ]
        held = split.hold_out(chats, [i // size * size for i in range(600 * size)], 0.1, 0.2)
        assert len(held.test) / len(chats) == pytest.approx(0.2, abs=0.05)
        assert len(held.dev) / len(chats) == pytest.approx(0.1, abs=0.04)


def test_a_cluster_of_many_rows_is_never_most_of_test() -> None:
    chats = [Chat((Message("user", f"question {max(0, i - 30)}"), Message("assistant", "a")), f"x:{i}") for i in range(100)]
    cluster = [0 if i <= 30 else i for i in range(100)]
    for share in (0.2, 0.5, 0.8):
        held = split.hold_out(chats, cluster, 0.05, share)
        assert set(range(31)) <= set(held.train)


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
def test_what_looks_private_is_found_and_masked(kind: str) -> None:
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
def test_no_text_takes_long_to_look_through(piece: str) -> None:
    pii.masked(piece * 300_000)  # a pattern that tries every length from every place would take hours


def test_a_message_about_a_broken_row_does_not_show_an_address(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "write to anna.b@mail.example.org" "label": "a"}\n')
    with pytest.raises(DataError) as caught:
        sources.read(path)
    assert "example" not in str(caught.value)
    assert "`" in str(caught.value)


def test_the_audit_flags_with_rows_and_reasons(tmp_path: Path) -> None:
    rows = [{"text": f"a text about number {i * 7919} and {i}", "label": ("good", "bad")[i % 2]} for i in range(60)]
    rows += [
        rows[3],
        {**rows[4], "label": "bad"},
        {"text": "write to someone@example.org now", "label": "Good"},
        {"text": "card 4111 1111 1111 1111 is mine", "label": "good"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = dataset.load(config.load(None, data__train=str(path))).audit_json()
    codes = {f["code"]: f for f in found["findings"]}
    assert {"DUPLICATES", "CONTRADICTIONS", "LABELS_RARE", "LABELS_NEAR_DUPLICATE", "PRIVATE_DATA"} <= set(codes)
    assert codes["CONTRADICTIONS"]["rows"] == (4, 61)
    assert codes["CONTRADICTIONS"]["where"][0].endswith("rows.jsonl:5")
    assert "4111" not in json.dumps(found), "what may be private is not shown"
    assert "someone@" not in json.dumps(found)


GOLD = '{"a": "x", "b": {"c": [1, 2]}}'


@pytest.mark.parametrize(
    ("answer", "f1", "valid"),
    [
        (GOLD, 1.0, True),
        ('{"b": {"c": [2, 1]}, "a": "X "}', 1.0, True),
        (f"Sure! ```json\n{GOLD}\n```", 1.0, False),
        ("", 0.0, False),
        ("I cannot help with that.", 0.0, False),
        ("Extract the parts as one JSON object.", 0.0, False),
        ('{"a": "x", "b":', 0.0, False),
        ("[1, 2]", 0.0, False),
        ('{"a": "y"}', 0.0, True),
        ('{"a": "x"}', 0.5, True),
        ('{"a": "x", "z": "q"}', 0.4, True),
    ],
)
def test_oracles_of_the_field_score(answer: str, f1: float, valid: bool) -> None:
    """A right answer oddly put scores 1; empty, refusing, echoing and cut ones score 0; validity is told apart."""
    counts = metrics.field_counts(GOLD, answer)
    assert counts.f1 == pytest.approx(f1)
    assert counts.valid == valid


def test_oracles_of_the_text_scores() -> None:
    assert metrics.score_answer("exact_match", "Paris", " paris\n") == 1.0
    assert metrics.score_answer("exact_match", "B", "Berlin") == 0.0
    assert metrics.score_answer("chrf", "The same text.", "The same text.") == pytest.approx(1.0)
    assert metrics.score_answer("chrf", "The same text.", "") == 0.0
    assert metrics.bits_per_byte(8 * 0.6931471805599453, 4) == pytest.approx(2.0)


def test_tasks_are_told_from_the_rows() -> None:
    def chats(*targets: str) -> list[Chat]:
        return [Chat((Message("user", f"q{i}"), Message("assistant", t)), "x") for i, t in enumerate(targets)]

    assert metrics.detect_task(chats(*["yes", "no"] * 20)).kind == "label"
    assert metrics.detect_task(chats(*[json.dumps({"a": i}) for i in range(20)])).kind == "json"
    assert metrics.detect_task(chats(*[f"word{i}" for i in range(20)])).metric == "exact_match"
    assert metrics.detect_task(chats(*[f"a long answer with number {i} in many words" for i in range(20)])).metric == "chrf"
    assert metrics.detect_task([examples.Text("a document", "x")]).kind == "text"


def test_shots_come_from_train_and_cover_the_labels() -> None:
    train = [
        Chat((Message("system", "s"), Message("user", f"q{i}"), Message("assistant", ("a", "b", "c")[i % 3])), "x")
        for i in range(30)
    ]
    task = metrics.detect_task(train)
    found = families.arms(task, train, ProveConfig(few_shot=[3]))
    assert list(found) == ["zero_shot", "few_shot", "nearest", "constant", "classical", "tuned"]
    (few,) = found["few_shot"]
    assert isinstance(few.shots, tuple)
    assert {s.target for s in few.shots} == {"a", "b", "c"}
    asked = families.prompt(few, train[0])
    assert [m.role for m in asked] == ["system", *["user", "assistant"] * 3, "user"]
    assert asked[-1].content == "q0"
    near = families.prompt(found["nearest"][0], train[0])
    assert len(near) == len(asked)
    assert "q0" not in [m.content for m in near[:-1]]  # a row is not its own neighbour
    told = [families.prompt(s, train[0])[0].content for s in found["zero_shot"]]
    assert told[0] == "s"
    assert "a, b, c" in told[1]
    assert told[2].startswith("s\n")
