"""Synthetic rows: asked of a real HTTP server, and of our own; nothing is asked twice, and no refusal ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import FLAGS, cli, write_chat_rows
from endpoints import endpoint
from listening import listening

from tunewright.core import config
from tunewright.data import dataset, formats
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat
from tunewright.data.remedies.answered import answered
from tunewright.data.sources import Row
from tunewright.server.app import create_app
from tunewright.server.service import Settings, open_service

Folder = Callable[[str], Path]


def prompts(folder: Path, count: int = 30) -> Path:
    file = folder / "prompts.jsonl"
    rows = [{"prompt": f"what is {i * 104729} of {i * 7919 % 1009}", "id": i} for i in range(count)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ask(folder: Path, url: str, file: Path, *words: str) -> tuple[int, Any, str]:
    given = ("synthesize", str(file), "--url", url, "--model", "big", "--out", "made.jsonl", "--json", *words)
    done = cli(*given, cwd=folder)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_every_row_has_its_lineage_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    file = prompts(tmp_path)
    with endpoint(lambda asked: f"answer to {asked}") as (url, seen):
        status, result, _ = ask(tmp_path, url, file, "--temperature", "0.5", "--concurrency", "5")
    assert (status, result["written"], result["requests"], result["refused"]) == (0, 30, 30, [])
    assert {(r["temperature"], r["model"], r["max_tokens"]) for r in seen} == {(0.5, "big", 512)}
    made = lines(tmp_path / "made.jsonl")
    assert [r["prompt"] for r in made] == [json.loads(x)["prompt"] for x in file.read_text().splitlines()]
    assert [r["completion"] for r in made] == [f"answer to {r['prompt']}" for r in made]
    assert all(r["id"] == i for i, r in enumerate(made))
    for r in made:
        own = dict(r["synthetic"])
        assert len(own.pop("date")) == 10
        assert len(own.pop("prompt")) == 16
        assert own == {"model": "big", "endpoint": "127.0.0.1", "temperature": 0.5, "max_tokens": 512}
    assert len({r["synthetic"]["prompt"] for r in made}) == 30


def test_nothing_is_asked_for_twice(tmp_path: Path) -> None:
    """The endpoint rejects the key after some requests, as good as a kill; the last line is torn."""
    file = prompts(tmp_path)
    with endpoint(lambda asked: f"answer to {asked}", fail_after=11) as (url, _):
        status, result, _ = ask(tmp_path, url, file, "--concurrency", "1")
    assert status != 0
    assert "REMOTE_FAILED" in json.dumps(result)
    made = tmp_path / "made.jsonl"
    assert len(lines(made)) == 11
    with made.open("a") as torn:
        torn.write('{"prompt": "wh')
    with endpoint(lambda asked: f"answer to {asked}") as (url, seen):
        status, result, _ = ask(tmp_path, url, file)
        assert (status, result["before"], result["requests"], len(seen)) == (0, 11, 19, 19)
        status, result, _ = ask(tmp_path, url, file)
        assert (status, result["before"], result["requests"], len(seen)) == (0, 30, 0, 19)
        status, result, _ = ask(tmp_path, url, file, "--temperature", "1")
        assert (status, result["before"], result["requests"], len(seen)) == (0, 0, 30, 49), "other settings, other rows"
    assert len(lines(made)) == 60


def test_refused_rows_are_listed_and_do_not_end_it(tmp_path: Path) -> None:
    file = prompts(tmp_path)
    bad = {json.loads(line)["prompt"] for line in file.read_text().splitlines()[4::10]}
    empty = json.loads(file.read_text().splitlines()[7])["prompt"]

    def reply(asked: str) -> str | int:
        return 400 if asked in bad else "  " if asked == empty else "yes"

    with endpoint(reply) as (url, seen):
        status, result, _ = ask(tmp_path, url, file, "--concurrency", "1")
        assert (status, result["written"], len(result["refused"])) == (0, 26, 4)
        assert [r["where"].rpartition(":")[2] for r in result["refused"]] == ["5", "8", "15", "25"]
        assert result["refused"][1]["reason"] == "the answer is empty"
        count = len(seen)
        assert ask(tmp_path, url, file)[1]["requests"] == 0
        assert len(seen) == count
    assert len(lines(tmp_path / "made.jsonl.refused.jsonl")) == 4
    with endpoint(lambda _: 400) as (url, seen):
        status, result, _ = ask(tmp_path, url, file, "--temperature", "1", "--concurrency", "1")
    assert status != 0, "an endpoint that refuses whatever it is asked ends it"
    assert 3 <= len(seen) < 30


def test_a_busy_endpoint_is_asked_again(tmp_path: Path) -> None:
    file, seen_once = prompts(tmp_path, 6), set[str]()

    def reply(asked: str) -> str | int:
        if asked not in seen_once:
            seen_once.add(asked)
            return 429
        return "yes"

    with endpoint(reply) as (url, seen):
        status, result, _ = ask(tmp_path, url, file)
    assert (status, result["written"], len(seen)) == (0, 6, 12)


def test_a_cut_answer_and_one_that_is_no_label_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    text = [f"lot {i * 104729} of {'fire' if i % 2 else 'ice'}" for i in range(24)]
    file.write_text("text,label\n" + "".join(f"{t},{'warm' if i % 2 else 'cold'}\n" for i, t in enumerate(text)))
    cut = {"choices": [{"message": {"content": "warm, because"}, "finish_reason": "length"}]}

    def reply(asked: str) -> str | bytes:
        i = text.index(asked)
        return json.dumps(cut).encode() if i == 3 else "I cannot say" if i == 5 else "Warm." if i % 2 else "cold"

    with endpoint(reply) as (url, _):
        status, result, _ = ask(tmp_path, url, file)
    assert (status, result["written"]) == (0, 22)
    assert [r["reason"] for r in result["refused"]] == [
        "the answer reached the token limit (--max-tokens)",
        "'I cannot say' is none of the labels",
    ]
    made = lines(tmp_path / "made.jsonl")
    assert {r["label"] for r in made} == {"warm", "cold"}, "as the rows have it"
    listed = config.load(None, data__train=[str(file), str(tmp_path / "made.jsonl")])
    data = dataset.load(listed)
    assert sum(bool(e.author) for e in data.examples) + sum(c.code == "SYNTHETIC" for c in data.changes) == 22


ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "new"}),
    ({"instruction": "i", "input": "x", "output": "a"}, {"instruction": "i", "input": "x", "output": "new"}),
    ({"question": "q", "answer": "a"}, {"question": "q", "answer": "new"}),
    (
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "new"}]},
    ),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 3},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "new"}], "id": 3},
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "new"}]},
    ),
    (
        {"question": "q", "choices": ["new", "b"], "answer": 1},
        {"messages": [{"role": "user", "content": "q\n- new\n- b"}, {"role": "assistant", "content": "new"}]},
    ),
    ({"text": "q", "label": "a", "synthetic": "old"}, {"text": "q", "label": "new"}),
]


@pytest.mark.parametrize(("row", "made"), ROWS)
def test_an_answered_row_is_the_row_with_another_answer(row: dict[str, Any], made: dict[str, Any]) -> None:
    parsed = formats.parse([Row(row, "x:1")], RowSettings())
    row_format = next(f for f in formats.FORMATS if f.name == parsed.format)
    (example,) = parsed.examples
    written = answered(row, row_format, example, "new", {})
    assert written == made
    (again,) = formats.parse([Row({**written, "synthetic": {"model": "m"}}, "x:1")], RowSettings()).examples
    assert (again.prompt, again.target, again.author) == (example.prompt, "new", "m")


@pytest.mark.parametrize("row", [{"prompt": "q", "x": 1}, {"messages": [{"role": "user", "content": "q"}], "x": 1}])
def test_an_answered_prompt_is_a_row(row: dict[str, Any]) -> None:
    parsed = formats.parse([Row(row, "x:1")], RowSettings(rewards=True))
    row_format = next(f for f in formats.FORMATS if f.name == parsed.format)
    written = answered(row, row_format, parsed.examples[0], "new", {})
    (again,) = formats.parse([Row(written, "x:1")], RowSettings()).examples
    assert isinstance(again, Chat)
    assert (again.prompt, again.target) == (parsed.examples[0].prompt, "new")


def test_our_own_server_is_a_teacher(tmp_path: Path, model_folder: Folder) -> None:
    rows = write_chat_rows(tmp_path / "rows.jsonl", 30)
    service = open_service(Settings(home=tmp_path / "home", models=(str(model_folder("llama")),), dtype="float32"))
    try:
        with listening(create_app(service)) as url, pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOKEN", service.tokens.token_of("default"))
            name = next(iter(service.bases))
            words = ("--model", name, "--api-key-env", "TOKEN", "--max-tokens", "64", "--rows", "5", "--json")
            done = cli("synthesize", str(rows), "--url", f"{url}/v1", "--out", "made.jsonl", *words, cwd=tmp_path)
    finally:
        service.close()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["written"] + len(result["refused"]) == 5
    assert result["requests"] == 5


def test_a_run_on_rows_of_both_kinds_reports_who_wrote_them(tmp_path: Path, model_folder: Folder) -> None:
    rows = write_chat_rows(tmp_path / "rows.jsonl", 60)
    with endpoint(lambda asked: asked.split(": ")[1].split()[0].upper()) as (url, _):
        ask(tmp_path, url, rows)
    given = f"data.train=[{rows}, {tmp_path / 'made.jsonl'}]"
    (tmp_path / "c.yaml").write_text("data: {}\n")
    done = cli("run", "c.yaml", given, "--model", str(model_folder("llama")), *FLAGS, "prove.evidence=plain",
               "prove.few_shot=[]", "--name", "r", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "were written by models" in done.stderr
    assert "big at 127.0.0.1" in (tmp_path / "runs" / "r" / "report.html").read_text(encoding="utf-8")
    split = [json.loads(line) for line in (tmp_path / "runs" / "r" / "data" / "split.jsonl").read_text().splitlines()]
    assert not [s for s in split if s["side"] == "test" and "made.jsonl" in s["where"]]
