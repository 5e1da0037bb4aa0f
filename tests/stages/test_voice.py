"""A run on free text: the voice in the verdict, and a decoding for every arm, pinned in chat and exports."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from build import QUICK, Folder, cli, read
from endpoints import endpoint

from tunewright import api
from tunewright.core.run_folder import Run
from tunewright.judge.arms import decodings
from tunewright.judge.people import judge
from tunewright.runtime import chat, people, people_page

OWN = {
    "do_sample": True,
    "temperature": 0.9,
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 30,
    "repetition_penalty": 1.5,
    "suppress_tokens": [40, 41, 42],
}
WORDS = ("river", "stone", "marsh", "heron", "reed", "mill", "ford", "barley")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> api.Result:
    """Answers of a dozen words. The penalty is made to win on dev, whatever the answers of a random model are. The base
    model has settings of its own for `generate`, which no arm has."""
    root = tmp_path_factory.mktemp("free")
    base = root / "base"
    shutil.copytree(model_folder("llama"), base)
    own = read(base, "generation_config") if (base / "generation_config.json").exists() else {}
    (base / "generation_config.json").write_text(json.dumps(own | OWN))
    rows = [
        {
            "prompt": f"tell of lot {i * 37 % 1009}",
            "completion": f"lot {i * 37 % 1009} lies by the {WORDS[i % 8]}, with {i % 7} stones of {WORDS[i % 5]}",
        }
        for i in range(150)
    ]
    data = root / "free.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decodings, "value", _the_second())
        settings: dict[str, Any] = {**QUICK, "prove__max_new_tokens": 12, "prove__decoding": ["greedy", "penalty"]}
        return api.run(data, model=str(base), name="free", root=root, **settings)


def _the_second() -> Any:
    calls: list[object] = []

    def value(scores: object) -> float:
        calls.append(scores)
        return float(len(calls) % 2 == 0)

    return value


def test_dev_chooses_a_decoding_for_every_arm_that_writes(free: api.Result) -> None:
    arms = free.verdict["arms"]
    assert {name: arm.get("decoding") for name, arm in arms.items()} == dict.fromkeys(arms, "penalty")
    dev = {p.stem for p in (free.path / "scores" / "dev").glob("*.jsonl")}
    assert {"tuned", "tuned-penalty", "zero_shot-penalty"} <= dev
    assert free.verdict["variants_on_dev"]["zero_shot-penalty"] == free.verdict["arms"]["zero_shot"]["on_dev"]


def test_the_answers_of_the_verdict_are_those_of_chat_and_exports(free: api.Result) -> None:
    """With the penalty; greedy answers are others."""
    first = json.loads((free.path / "scores" / "tuned.jsonl").read_text().splitlines()[0])
    model = chat.load_run(Run(free.path))
    assert chat.answer(model, first["messages"][-1]["content"], max_new_tokens=12) == first["answer"]
    config = read(free.path / "merged", "generation_config")
    assert (config["do_sample"], config["repetition_penalty"]) == (False, 1.1)
    assert "temperature" not in config
    for check in json.loads((free.path / "export.json").read_text()):
        assert check["reproduced"]["same"] == check["reproduced"]["rows"]


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_generate_gives_the_answers_of_the_verdict_whatever_the_base_sets(
    kind: str, free: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of the card, in transformers alone; for the merged folder, `generate` without any setting too."""
    folder = tmp_path / kind
    shutil.copytree(free.path / kind, folder)
    (folder / "base").symlink_to(free.path.parent / "base")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    first = json.loads((free.path / "scores" / "tuned.jsonl").read_text().splitlines()[0])
    monkeypatch.chdir(folder)
    asked = code.replace('"..."', json.dumps(first["messages"][-1]["content"]))
    variants = [asked] if kind == "adapter" else [asked, re.sub(r"(max_new_tokens=\d+)[^)]*", r"\1", asked)]
    for variant in variants:
        exec(variant, {})
        assert capsys.readouterr().out.strip() == first["answer"].strip(), variant


def test_the_voice_of_every_arm_is_in_the_verdict_and_the_report(free: api.Result) -> None:
    voice = free.verdict["voice"]
    assert list(voice["arms"]) == list(free.verdict["arms"])
    assert voice["rows"] == free.verdict["n"]
    tuned, other = voice["arms"]["tuned"], voice["arms"]["zero_shot"]
    assert other["extra_bits"]["difference"] == pytest.approx(other["reference_bits"] - tuned["reference_bits"])
    assert free.verdict["arms"]["tuned"]["summary"]["reference_bits"] == pytest.approx(tuned["reference_bits"])
    topic = free.verdict["topic"]
    assert topic["rows"] <= free.verdict["n"]
    assert topic["interval"][0] < topic["difference"] < topic["interval"][1]
    assert "Does it sound like you?" in free.report.read_text()


def test_people_are_asked_about_a_finished_run(
    free: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n2\n0\n"))
    words = ("compare", str(free.path), "--rows", "3", "--against", "reference")
    done = cli(*words, "--terminal", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "by people, the win rate of tuned over reference is" in done.stdout
    assert "Tuned or reference: which answers do people prefer?" in free.report.read_text()
    again = cli(*words, "--result", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["people"]["rows"] == 3
    assert not any(p.other_cut for p in people.comparing(Run(free.path), "reference", 3).pairs), (
        "nobody cut the reference"
    )
    wrong = cli("compare", str(free.path), "--judge", "http://127.0.0.1:9/v1", cwd=tmp_path)
    assert (wrong.returncode, "--judge-model NAME" in wrong.stderr) == (2, True)


def test_a_judge_is_asked_about_all_rows_in_the_user_s_words(
    free: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with endpoint(lambda asked: "1") as (url, seen):
        words = ("compare", "free", "--runs", str(free.path.parent), "--judge", url, "--judge-model", "m")
        done = cli(*words, "--rubric", "the drier one", "--api-key-env", "JUDGE_KEY", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the choice of m depends on the order of the answers in 100%" in done.stdout
    assert len(seen) <= 2 * free.verdict["n"]
    assert all("the drier one" in body["messages"][0]["content"] for body in seen)
    assert {body["authorization"] for body in seen} == {"Bearer secret"}


@pytest.mark.parametrize("flags", [[], ["--no-open"]])
def test_the_page_is_opened_unless_asked_not_to(
    flags: list[str], free: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Done:
        url = "http://127.0.0.1:1/x"

        def __init__(self, comparing: object, port: int, better: str) -> None:
            assert port == 4711
            assert better == f"The better answer is {judge.RUBRIC}."
            self.done = threading.Event()
            self.done.set()

        def close(self) -> None:
            opened.append("closed")

    monkeypatch.setattr(people_page, "Page", Done)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = cli("compare", str(free.path), "--rows", "20", "--port", "4711", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = free.path / ".compare.html"
    assert opened == ([] if flags else [page.as_uri()]) + ["closed"]
    assert not page.exists(), "it held the address"
    assert Done.url in done.stderr


def test_the_verdict_can_be_about_the_reference_answers(free: api.Result, model_folder: Folder) -> None:
    settings: dict[str, Any] = {**QUICK, "prove__max_new_tokens": 4, "prove__metric": "reference_bits"}
    data = free.path.parent / "free.jsonl"
    run = api.run(data, model=str(model_folder("llama")), name="bits", root=free.path.parent, **settings)
    assert run.verdict["metric"] == "reference_bits"
    assert run.verdict["tuned"] == pytest.approx(run.verdict["voice"]["arms"]["tuned"]["reference_bits"])
