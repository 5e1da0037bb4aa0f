"""Nothing is ignored: every setting, changed by itself, changes what a run stands on or what it leaves; and every flag does too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from build import CHATML, FLAGS, cli

from tunewright.core import config
from tunewright.core.config import Config, explain
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run
from tunewright.export import export
from tunewright.judge import calibration
from tunewright.model import loading
from tunewright.run.session import Session
from tunewright.stages import forget
from tunewright.tokens.packing import step_rows
from tunewright.train import machine, planning

Folder = Callable[[str], Path]
BASE = {"threads": 1, "train.dtype": "float32", "train.batch_size": 4, "data.train": "labels.csv"}
# Each setting with another value, and what else has to be set for it to have a meaning.
EARLY: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("MODEL qwen3", {}),
    "template": ("other.jinja", {}),
    "date": ("2024-07-26", {"template": "dated.jinja"}),
    "seed": (5, {}),
    "threads": (2, {}),
    "data.train": ("more.csv", {}),
    "data.dev": ("dev.csv", {}),
    "data.test": ("test.csv", {}),
    "data.format": ("text", {"train.max_length": 64}),
    "data.instruction": ("Say warm or cold.", {}),
    "data.columns": ({"text": "label", "label": "text"}, {"data.format": "label"}),
    "data.too_long": ("drop", {"data.train": "long.csv", "train.max_length": 90}),
    "split.dev": (0.3, {}),
    "split.test": (0.4, {}),
    "split.near_duplicate": (0.5, {}),
    "adapter.kind": ("dora", {}),
    "adapter.rank": (2, {}),
    "adapter.alpha": (3.0, {}),
    "adapter.dropout": (0.2, {}),
    "adapter.targets": (["q_proj"], {}),
    "train.epochs": (7.0, {}),
    "train.steps": (3, {}),
    "train.batch_size": (2, {}),
    "train.tokens_per_pass": (64, {}),
    "train.max_length": (100, {}),
    "train.lr": (0.1, {}),
    "train.schedule": ("linear", {}),
    "train.warmup": (0.5, {}),
    "train.weight_decay": (0.1, {}),
    "train.max_grad_norm": (0.5, {}),
    "train.dtype": ("bfloat16", {}),
    "train.layout": ("padded", {}),
    "train.gradient_checkpointing": ("layers", {}),
    "train.eval_every": (2, {}),
    "train.patience": (0, {}),
    "checkpoint.every": (2, {}),
    "checkpoint.keep": (7, {}),
    "prove.metric": ("exact_match", {}),
    "prove.evidence": ("plain", {}),
    "prove.few_shot": ([3], {}),
    "prove.prompts": (["Now?"], {}),
    "prove.documents": ("documents", {}),
    "prove.max_test_rows": (3, {}),
    "prove.max_dev_rows": (2, {}),
    "prove.max_new_tokens": (3, {}),
    "prove.batch_size": (1, {}),
    "prove.margin": (0.1, {}),
    "prove.significance": (0.2, {}),
    "prove.remote.url": ("http://127.0.0.1:9/v1", {"prove.remote.model": "m"}),
    "prove.remote.model": ("other", {"prove.remote.url": "http://127.0.0.1:9/v1", "prove.remote.api_key_env": "K"}),
    "prove.remote.api_key_env": ("SECRET", {"prove.remote.url": "http://127.0.0.1:9/v1", "prove.remote.model": "m"}),
    "prove.remote.concurrency": (3, {"prove.remote.url": "http://127.0.0.1:9/v1", "prove.remote.model": "m"}),
}
# Settings of single stages: what the stage makes of another value. The runs are those of `test_full_evidence`.
LATE: dict[str, Callable[[Any], bool]] = {
    "experiments.prompt_distillation": lambda run: run("internalised")["prompts"] == 10,
    "experiments.crossfit": lambda run: run("crossfit")["measured"],
    "experiments.cleaning": lambda run: run("cleaning")["measured"],
    "forget.regression_rows": lambda run: run("forgetting")["keep"]["items"] == 3,
    "forget.scales": lambda run: run("forgetting")["scales"] == [0.5, 1.0],
    "experiments.mitigation": lambda run: run("mitigation")["measured"],
    "cost.requests": lambda run: run("cost")["requests"] == 4,
    "cost.batch_size": lambda run: run("cost")["together"] == 2,
    "cost.price_per_hour": lambda run: run("cost")["money"]["training_and_judging"] > 0,
}
ELSEWHERE = {
    "forget.apply_best_scale": "test_full_evidence.test_the_chosen_share_is_what_is_judged_exported_and_spoken",
    "prove.embedder": "test_evidence (dense)",
    "prove.target_accuracy": "below",
    "forget.margin": "below",
    "export.merged": "below",
    "export.dtype": "below",
}


def test_every_setting_is_in_one_of_the_tables() -> None:
    assert sorted([*EARLY, *LATE, *ELSEWHERE]) == sorted(key for key, *_ in config.fields())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("settings")

    def write(name: str, rows: range, tail: str = "") -> None:
        lines = [f"lot {i * 37 % 1009} of {'fire' if i % 2 else 'ice'} and {i % 5},{'warm' if i % 2 else 'cold'}\n" for i in rows]
        (root / name).write_text("text,label\n" + "".join(lines) + tail)

    write("labels.csv", range(48), "one two three four five six,warm\none two three four five nine,warm\n")
    write("more.csv", range(60))
    write("dev.csv", range(100, 110))
    write("test.csv", range(200, 210))
    write("long.csv", range(48), f"{'very ' * 20}long,cold\n")
    (root / "other.jinja").write_text(CHATML.replace("\n{{", "\n\n{{").replace("assistant\n{%", "assistant\n\n{%"))
    (root / "dated.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    (root / "documents").mkdir()
    (root / "documents" / "one.txt").write_text("Fire is warm.")
    return root


def observed(root: Path, model_folder: Folder, settings: dict[str, Any], known: dict[str, Any]) -> str:
    """What a run with these settings stands on: data, prompts, plan, order, arms, protocol, or the error that refuses it."""
    given = {"model": "MODEL llama", **BASE, **settings}
    for key, value in given.items():
        if key in ("template", "prove.documents", "data.train", "data.dev", "data.test"):
            given[key] = str(root / value)
        if isinstance(value, str) and value.startswith("MODEL "):
            given[key] = str(model_folder(value.removeprefix("MODEL ")))
    try:
        asked = config.load(None, **{k.replace(".", "__"): v for k, v in given.items()})
        return _observed(asked, root, known)
    except TunewrightError as error:
        return f"{error.code} {error.where}"


def _observed(asked: Config, root: Path, known: dict[str, Any]) -> str:
    session = Session(Run(root / "run"), asked, Console(quiet=True), "")
    facts = known.setdefault(asked.model, None) or loading.facts(asked.model)
    known[asked.model] = facts
    box = machine.Machine("cpu", 1 if asked.threads == "auto" else asked.threads, 8.0, 8.0, 10.0, 10.0, "test")
    vars(session).update(facts=facts, machine=box)
    train = session.rendered["train"]
    made = planning.make(asked, facts, planning.RowStats.of(train), box, session.data.task.kind.name)
    session.plan = made
    return json.dumps(
        {
            "facts": facts.sha256,
            "data": [session.data.sha256, session.data.sides, session.data.cluster, session.data.task.kind.name],
            "tokens": [[r.ids for r in rows] for rows in session.rendered.values()],
            "plan": made.model_dump(exclude={"reasons"}),
            "order": step_rows(len(train), made.batch_size, made.seed, 0),
            "protocol": session.protocol.sha256,
            "arms": {f: [(s.name, s.description, vars(s.responder.endpoint) if f == "remote" else "") for s in v]
                     for f, v in session.families.items()},
            "batch": planning.judged_together(asked, facts, made, box, session.answer_tokens),
        },
        default=str,
    )  # fmt: skip


@pytest.mark.parametrize("key", EARLY)
def test_a_setting_changes_what_a_run_stands_on(
    key: str, files: Path, model_folder: Folder, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K", "one")
    monkeypatch.setenv("SECRET", "another")
    value, context = EARLY[key]
    before, after = (observed(files, model_folder, s, known) for s in (context, {**context, key: value}))
    assert not before.startswith("CONFIG_UNKNOWN")
    assert before != after, f"{key} changes nothing"


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {}


def test_old_names_and_synonyms_point_to_settings() -> None:
    keys = {key for key, *_ in config.fields()}
    assert {*explain.RENAMED.values(), *explain.SYNONYMS.values()} - {"--runs"} <= keys
    assert not set(explain.RENAMED) & keys


@pytest.mark.parametrize("old", explain.RENAMED)
def test_an_old_name_is_answered_with_the_new_one(old: str) -> None:
    with pytest.raises(TunewrightError, match=f"CONFIG_UNKNOWN_KEY.*it is now called {explain.RENAMED[old]}"):
        config.load(None, [f"{old}=1"])


def test_what_single_functions_make_of_the_rest() -> None:
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, generator=rng).numpy()
    right = confidence > 0.4
    assert calibration.handover(confidence, right, 0.95) != calibration.handover(confidence, right, 0.7)

    def verdict(margin: float) -> str:
        asked = SimpleNamespace(
            config=SimpleNamespace(forget=SimpleNamespace(margin=margin), prove=SimpleNamespace(significance=0.05))
        )
        found: str = forget._paired([1.0] * 99 + [0.0], [1.0] * 100, asked)["verdict"]  # type: ignore[arg-type]
        return found

    assert verdict(0.01) != verdict(0.3)
    facts: Any = SimpleNamespace(parameters=10, dtype="F32")
    assert [export.merged_dtype(config.load(None, export__dtype=d), facts)[0] for d in ("float16", "auto")] == [
        "float16",
        "float32",
    ]


def test_flags_do_what_they_say(tmp_path: Path, chat_rows: Callable[..., Path], model_folder: Folder) -> None:
    """--name, --runs, --model, --quiet, --json, --profile and export.merged in one run; the others have tests of their own."""
    where = ["--runs", "elsewhere", "--name", "n", "--model", str(model_folder("llama"))]
    done = cli("train", str(chat_rows()), *where, *FLAGS, "export.merged=false", "--quiet", "--profile", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("USDT")] == [], "quiet, but for torch's profiler"
    assert "a step of" in done.stdout, "profile"
    told = cli("export", "n", "--runs", "elsewhere", "--json", cwd=tmp_path)
    assert [x["kind"] for x in json.loads(told.stdout)] == ["adapter"]
    assert not (tmp_path / "elsewhere" / "n" / "merged").exists()
