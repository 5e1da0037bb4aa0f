"""The whole evidence on a tiny model: every stage writes what the report reads, stops and goes on, and is not made twice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from build import cli
from safetensors.torch import load_file

import tunewright as tw
from tunewright.core.config import Config, fields, load
from tunewright.core.run_folder import Run, read_lines, write_lines
from tunewright.model import peft_format
from tunewright.report import report, sections
from tunewright.run import chat

Folder = Callable[[str], Path]
STAGES = ("forgetting", "cost", "cleaning", "mitigation", "internalised", "curve", "verdict", "protocol")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Any:
    """Labels with a long instruction, some of them wrong or twice, rows that must still work, documents to look things up in."""
    root = tmp_path_factory.mktemp("full")
    words = [("fire and flame", "warm"), ("ice and snow", "cold")]
    lines = [f"lot {i * 37 % 1009} of {words[i % 2][0]},{words[(i + (i % 17 == 0)) % 2][1]}\n" for i in range(150)]
    (root / "labels.csv").write_text("text,label\n" + "".join([*lines, *lines[:3]]))
    (root / "keep.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {w}", "completion": w}) + "\n" for w in ("yes", "no", "red"))
    )
    (root / "documents").mkdir()
    (root / "documents" / "one.txt").write_text("Fire and flame are warm.\n\nIce and snow are cold.\n")
    return tw.run(
        root / "labels.csv",
        model=str(model_folder("llama")),
        name="all",
        root=root,
        data__instruction="Say whether what is named in the text is warm or cold. " * 4,
        train__steps=12,
        train__batch_size=8,
        threads=1,
        train__dtype="float32",
        prove__evidence="full",
        prove__few_shot=[1],
        prove__documents=str(root / "documents"),
        experiments__prompt_distillation=10,
        experiments__crossfit=True,
        experiments__cleaning=True,
        prove__max_dev_rows=8,
        forget__regression_rows=str(root / "keep.jsonl"),
        experiments__mitigation=True,
        forget__scales=[0.5],
        cost__requests=4,
        cost__batch_size=2,
        cost__price_per_hour=1.0,
    )


def read(run: Any, name: str) -> Any:
    return json.loads((run.path / f"{name}.json").read_text())


def test_every_arm_answers_the_same_rows(full: Any) -> None:
    v = full.verdict
    wanted = ["zero_shot", "few_shot", "nearest", "retrieval", "tuned_retrieval", "constant", "classical", "tuned_short", "tuned"]
    assert list(v["arms"]) == wanted
    for name in wanted:
        lines = [json.loads(x) for x in (full.path / "scores" / f"{name}.jsonl").read_text().splitlines()]
        assert len(lines) == v["n"]
        assert v["arms"][name]["score"] == pytest.approx(sum(x["score"] for x in lines) / v["n"])
    assert v["comparator"]["name"] not in ("classical", "tuned_short", "tuned_retrieval")
    assert v["comparator"]["chosen_on"] == "dev"
    assert v["again"] == {"rows": 8, "changed": 0, "floor": 0.0}, "greedy on a CPU says the same twice"
    shown = (full.path / "scores" / "retrieval.jsonl").read_text()
    assert "Ice and snow are cold." in shown
    short = json.loads((full.path / "scores" / "tuned_short.jsonl").read_text().splitlines()[0])
    assert [m["role"] for m in short["messages"]] == ["user"]


def test_the_protocol_stood_before_training(full: Any) -> None:
    events = [json.loads(x) for x in (full.path / "events.jsonl").read_text().splitlines()]
    names = [e["event"] for e in events]
    assert names.index("plan_finished") < names.index("train_started")
    assert read(full, "receipt")["hashes"]["protocol"] == full.verdict["protocol"]
    assert (full.path / "protocol.json").stat().st_mtime <= (full.path / "metrics.jsonl").stat().st_mtime
    # Read once by the arms; the branches (cleaned, half the rows, internalised) read it too, and each is counted.
    assert full.verdict["test_reads"] == names.count("test_read") == 4
    assert "have been read 4 times" in full.report.read_text()
    assert {*full.verdict} >= {"retention", "cost", "curve", "cleaning", "crossfit", "mitigation", "internalised", "calibration"}


def test_forgetting_costs_and_mitigation_have_their_numbers(full: Any) -> None:
    f = read(full, "forgetting")
    assert f["scales"] == [0.5, 1.0]
    for text in ("task", "generic"):
        assert 0 < f[text]["kl_bits"][0] < f[text]["kl_bits"][1]
    generic = f["generic"]
    assert generic["delta_bits_per_byte"][1] == pytest.approx(generic["delta_bits"][1] * generic["tokens"] / generic["bytes"])
    assert 1 < generic["base_bits_per_byte"] < 9
    assert f["probes"]["knowledge"]["items"] >= 300
    orders = f["probes"]["instructions"]
    assert orders["items"] == sum(k["items"] for k in orders["kinds"].values()) == 300
    assert sum(k["tuned"] * k["items"] for k in orders["kinds"].values()) / 300 == pytest.approx(orders["tuned"])
    assert f["probes"]["refusal"] == {"base_rate": 0.0, "measured": False}  # a random model does not refuse
    assert f["keep"]["items"] == 3
    m = read(full, "mitigation")
    assert set(m["ways"]) >= {"as it is", "rate / 3"}
    assert len(m["ways"]) == 3
    assert m["ways"]["rate / 3"]["generic"]["kl_bits"] < m["ways"]["as it is"]["generic"]["kl_bits"]
    assert m["chosen"] in m["ways"]
    c = read(full, "cost")
    assert {w.split(",")[0] for w in c["ways"]} >= {"tuned", "base"} or full.verdict["comparator"]["name"] == "constant"
    assert c["money"]["per_thousand"]


def test_the_prompt_as_weights_saves_its_tokens(full: Any) -> None:
    i = read(full, "internalised")
    assert i["prompts"] == 10
    assert i["prompt_tokens"]["student"] < i["prompt_tokens"]["teacher"] - 100


def test_every_training_row_is_judged_by_a_model_that_has_not_seen_it(full: Any) -> None:
    split = [json.loads(x) for x in (full.path / "data" / "split.jsonl").read_text().splitlines()]
    train = {x["row"] for x in split if x["side"] == "train"}
    for cut in range(2):
        judged: list[int] = []
        for k in range(2):
            lines = (full.path / "branches" / f"cut-{cut}-fold-{k}" / "scores" / "train-tuned.jsonl").read_text().splitlines()
            judged += [json.loads(x)["row"] for x in lines]
        assert sorted(judged) == sorted(train)
    assert read(full, "crossfit")["measured"]


def test_the_page_tells_in_the_order_of_decisions(full: Any) -> None:
    page = full.report.read_text()
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads[:6] == [
        "Better than what?",
        "What does a request cost?",
        "What was forgotten?",
        "Was the data enough?",
        "Was the data clean?",
        "Row by row",
    ]
    assert not re.search(r'(?:src|href)="https?:|<script|@import|url\((?!#)', page)
    assert "no forgetting" not in page.lower()
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page.lower())
    assert (full.path / "data" / "audit.html").exists()


def test_who_reads_only_the_verdict_is_told_what_else_there_is(full: Any) -> None:
    v = json.loads(json.dumps(full.verdict))
    worse = {"verdict": "WORSE", "base": 0.7, "tuned": 0.4, "interval": [-0.4, -0.2]}
    v["retention"] |= {"probes": {"knowledge": worse, "instructions": {"verdict": "CANNOT TELL"}}, "keep": worse}
    v["arms"]["tuned"]["summary"]["cut_answers"] = 0.5
    v["arms"]["classical"]["tuned_minus_this"]["interval"] = [-0.01, 0.1]
    told = sections.cautions(v)
    assert [t.split(":")[0] for t in told[:2]] == ["It got worse at knowledge", "It got worse at the rows that must still work"]
    assert "TF-IDF" in told[2]
    assert "50% of the answers of tuned" in told[3]
    v["retention"], v["arms"]["tuned"]["summary"] = {}, {}
    v["arms"]["classical"]["tuned_minus_this"]["interval"] = [0.01, 0.1]
    assert sections.cautions(v) == []


def test_the_page_shows_no_private_value(full: Any, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(full.path, copy.path)
    for file in copy.scores.glob("*.jsonl"):
        lines = [{**x, "target": "to anna@mail.example.org", "score": len(file.stem) % 7 / 7} for x in read_lines(file)]
        write_lines(file, lines)
    report.write(copy)
    page = copy.report.read_text()
    assert "mail.example" not in page
    assert "to [e-mail address]" in page


def test_a_stage_that_is_lost_is_made_again_from_what_is_there(full: Any, tmp_path: Path) -> None:
    before = full.verdict
    trained = (full.path / "branches" / "cleaned" / "training.json").stat().st_mtime
    for name in ("verdict", "cleaning", "cost"):
        (full.path / f"{name}.json").unlink()
    done = cli("run", str(full.path), "--gate", cwd=tmp_path)
    assert done.returncode == (0 if before["verdict"] == "BETTER" else 3), done.stderr
    again = full.verdict
    assert again["test_reads"] > before["test_reads"]
    assert again["arms"] == before["arms"]
    assert (full.path / "branches" / "cleaned" / "training.json").stat().st_mtime == trained


def test_the_curve_by_itself(full: Any, tmp_path: Path) -> None:
    (full.path / "curve.json").unlink()
    done = cli("learning-curve", str(full.path), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["points"]) == 2
    assert told["points"][1]["score"] == pytest.approx(full.verdict["tuned"])
    assert told["doubling"]["word"] in ("helps", "does not visibly help", "may or may not help")
    assert "Was the data enough?" in full.report.read_text()


def test_the_chosen_share_is_what_is_judged_exported_and_spoken(tmp_path: Path, model_folder: Folder) -> None:
    """Labels by chance: no share of the update scores better than another, so the rule takes the smallest."""
    rows = [f"lot {i * 37 % 1009},{'warm' if i * i % 7 > 3 else 'cold'}\n" for i in range(80)]
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(rows))
    done = tw.run(tmp_path / "labels.csv", model=str(model_folder("llama")), name="less", root=tmp_path, threads=1,
                  train__steps=4, train__batch_size=4, train__dtype="float32", prove__few_shot=[], prove__max_dev_rows=8,
                  forget__apply_best_scale=True, forget__scales=[0.25])  # fmt: skip
    run = Run(done.path)
    assert run.scale == read(done, "forgetting")["chosen"] == 0.25
    learned, left = load_file(run.weights), load_file(run.adapter / "adapter_model.safetensors")
    spoken = peft_format.state(chat.load(run).model)
    for name, tensor in learned.items():
        wanted = tensor * 0.25 if "lora_B" in name else tensor
        mine = f"base_model.model.{name}.weight"
        assert torch.equal(left[mine], wanted), name
        assert torch.equal(spoken[mine], wanted), name
    chosen, swept = (list(read_lines(run.scores / "dev" / f"{name}.jsonl")) for name in ("tuned", "tuned-scale0.25"))
    assert [{**line, "key": ""} for line in chosen] == [{**line, "key": ""} for line in swept], "calibration reads the same model"


def test_a_run_pins_every_setting(full: Any) -> None:
    """So that another version's defaults cannot change a run that goes on."""
    text = (full.path / "config.yaml").read_text()
    config = load(full.path / "config.yaml")
    assert config == Config.model_validate(config.model_dump())
    for key, *_ in fields():
        assert f"{key.rsplit('.', 1)[-1]}:" in text, key


def test_settings_of_single_stages_are_read(full: Any) -> None:
    from test_settings import LATE

    for key, holds in LATE.items():
        assert holds(lambda name: read(full, name)), key
