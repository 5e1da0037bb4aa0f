"""No setting is ignored: changing any of them changes the inputs of a run or its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bad_inputs import chat
from build import CHATML, FLAGS, cli
from stage_settings import LATE

from tunewright.core import config
from tunewright.core.config import AdapterConfig, Config, explain
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run
from tunewright.data import dataset
from tunewright.export import merged
from tunewright.judge import calibration
from tunewright.judge.arms.arm import Arm
from tunewright.model.facts import Facts, read_facts
from tunewright.runtime import inputs
from tunewright.stages import plan
from tunewright.stages.probes import paired
from tunewright.system import machine
from tunewright.tokens.packing import step_rows
from tunewright.train import planning
from tunewright.train.recipe import RowStats

Folder = Callable[[str], Path]
BASE = {"threads": 1, "train.dtype": "float32", "train.batch_size": 4, "data.train": "labels.csv"}
GRADER = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "a", "operation": "like"}
REWARDED = {"data.train": "prompts.jsonl", "train.method": "grpo", "reward.grader": GRADER}
# Each setting with a value other than the default, and the settings that it needs to have an effect.
EARLY: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("MODEL qwen3", {}),
    "quantise": ("nf4", {}),
    "template": ("other.jinja", {}),
    "date": ("2024-07-26", {"template": "dated.jinja"}),
    "seed": (5, {}),
    "threads": (2, {}),
    "data.train": ("more.csv", {}),
    "data.dev": ("dev.csv", {}),
    "data.test": ("test.csv", {}),
    "data.format": ("text", {"train.max_length": 64}),
    "data.answer_schema": ("schema.json", {"data.train": "objects.jsonl"}),
    "data.instruction": ("Say warm or cold.", {}),
    "data.columns": ({"text": "label", "label": "text"}, {"data.format": "label"}),
    "data.label_names": (["no", "yes"], {"data.train": "numbers.csv"}),
    "data.encoding": ("cp1252", {"data.train": "western.csv"}),
    "data.control": ("strip", {"data.train": "control.csv"}),
    "data.empty": ("drop", {"data.train": "empty.csv"}),
    "data.turns": ("fix", {"data.train": "turns.jsonl"}),
    "data.invalid": ("drop", {"data.train": "ragged.csv"}),
    "data.duplicates": ("drop", {"data.train": "twice.csv"}),
    "data.contradictions": ("drop", {"data.train": "contrary.csv"}),
    "data.leaks": ("drop", {"data.test": "labels.csv", "data.train": "more.csv"}),
    "data.labels": ("merge", {"data.train": "spelling.csv"}),
    "data.unseen_labels": ("drop", {"data.test": "unseen.csv"}),
    "data.too_long": ("drop", {"data.train": "long.csv", "train.max_length": 90}),
    "split.dev": (0.3, {}),
    "split.test": (0.4, {}),
    "split.near_duplicate": (0.5, {}),
    "adapter.kind": ("dora", {}),
    "adapter.rank": (2, {}),
    "adapter.alpha": (3.0, {}),
    "adapter.dropout": (0.2, {}),
    "adapter.targets": (["q_proj"], {}),
    "adapter.loraplus_lr_ratio": (4.0, {}),
    "adapter.init": ("pissa", {}),
    "adapter.rank_pattern": ({"q_proj": 2}, {}),
    "adapter.alpha_pattern": ({"q_proj": 2.0}, {}),
    "adapter.options": ({"decompose_both": True}, {"adapter.kind": "peft:lokr"}),
    "train.method": ("dpo", {"data.train": "pairs.jsonl", "data.format": "preference"}),
    "train.beta": (0.3, {"data.train": "pairs.jsonl", "train.method": "dpo"}),
    "train.label_smoothing": (0.2, {"data.train": "pairs.jsonl", "train.method": "dpo"}),
    "train.nll_weight": (0.2, {"data.train": "pairs.jsonl", "train.method": "dpo"}),
    "train.gamma_beta_ratio": (0.2, {"data.train": "pairs.jsonl", "train.method": "simpo"}),
    "train.desirable_weight": (2.0, {"data.train": "pairs.jsonl", "train.method": "kto"}),
    "train.undesirable_weight": (2.0, {"data.train": "pairs.jsonl", "train.method": "kto"}),
    "train.epochs": (7.0, {}),
    "train.steps": (3, {}),
    "train.batch_size": (2, {}),
    "train.tokens_per_pass": (64, {}),
    "train.max_length": (100, {}),
    "train.lr": (0.1, {}),
    "train.lr_multiplier": (2.0, {}),
    "train.schedule": ("linear", {}),
    "train.warmup": (0.5, {}),
    "train.weight_decay": (0.1, {}),
    "train.optimizer": ("adamw8", {}),
    "train.max_grad_norm": (0.5, {}),
    "train.dtype": ("bfloat16", {}),
    "train.layout": ("padded", {}),
    "train.kernels": ("transformers", {}),
    "train.gradient_checkpointing": ("layers", {}),
    "train.fsdp": (True, {}),
    "train.eval_every": (2, {}),
    "train.patience": (0, {}),
    "train.center_rewards_coefficient": (0.1, {"data.train": "pairs.jsonl", "train.method": "reward_model"}),
    "train.loss_type": ("gspo", REWARDED),
    "train.num_generations": (3, REWARDED),
    "train.temperature": (0.5, REWARDED),
    "train.kl_weight": (0.1, REWARDED),
    "train.num_iterations": (2, REWARDED),
    "reward.grader": ({**GRADER, "operation": "eq"}, REWARDED),
    "reward.check": (GRADER, REWARDED),
    "checkpoint.every": (2, {}),
    "checkpoint.keep": (7, {}),
    "prove.metric": ("exact_match", {}),
    "prove.list_order": ("counted", {"data.train": "objects.jsonl"}),
    "prove.number_tolerance": (0.01, {"data.train": "objects.jsonl"}),
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
ELSEWHERE = {
    "experiments.raft": "stages/test_rewards.py",
    "reward.sampler.url": "train/test_outside.py",
    "reward.sampler.api_key_env": "train/test_outside.py",
    **{
        f"distill.{name}": "stages/test_distill.py"
        for name in ("teacher", "divergence", "beta", "temperature", "on_policy")
    },
    "train.pooling": "model/test_encoders.py",
    "embed.query_prefix": "methods/test_embed.py",
    "embed.document_prefix": "methods/test_embed.py",
    "embed.temperature": "methods/test_embed.py",
    "adapter.start": "stages/test_adapters.py",
    "sweep.grid": "stages/test_sweep.py",
    "sweep.halve": "stages/test_sweep.py",
    "sweep.seeds": "stages/test_sweep.py",
    "forget.apply_best_scale": "stages/test_forget.py: the chosen scale",
    "prove.embedder": "judge: embedding index",
    "prove.decoding": "stages/test_voice.py",
    "prove.target_accuracy": "below",
    "forget.margin": "below",
    "track": "track/test_follow.py",
    "export.to": "below",
    "export.dtype": "below",
    "export.gguf": "export/test_gguf.py",
    "export.llama_cpp": "export/test_gguf_official.py",
    "export.rows": "export: the verdict's answers",
}


def test_every_setting_is_in_one_of_the_tables() -> None:
    assert sorted([*EARLY, *LATE, *ELSEWHERE]) == sorted(key for key, *_ in config.fields())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("settings")

    def write(name: str, rows: range, tail: str = "") -> None:
        lines = [
            f"lot {i * 37 % 1009} of {'fire' if i % 2 else 'ice'} and {i % 5},{'warm' if i % 2 else 'cold'}\n"
            for i in rows
        ]
        (root / name).write_text("text,label\n" + "".join(lines) + tail)

    write("labels.csv", range(48), "one two three four five six,warm\none two three four five nine,warm\n")
    write("more.csv", range(60))
    write("dev.csv", range(100, 110))
    write("test.csv", range(200, 210))
    write("long.csv", range(48), f"{'very ' * 20}long,cold\n")
    answers = [json.dumps({"n": i, "kind": "ab"[i % 2]}) for i in range(48)]
    lines = [json.dumps({"prompt": f"lot {i * 37 % 1009}", "completion": a}) for i, a in enumerate(answers)]
    (root / "objects.jsonl").write_text("\n".join(lines))
    (root / "schema.json").write_text('{"type": "object", "required": ["n"]}')
    first = "lot 0 of ice and 0"
    write("control.csv", range(48), "a\x1bb,cold\n")
    write("empty.csv", range(48), " ,cold\n")
    write("ragged.csv", range(48), "a,b,c\n")
    write("twice.csv", range(48), f"{first},cold\n")
    write("contrary.csv", range(48), f"{first},cold\n{first},warm\n")
    write("spelling.csv", range(48), "more ice,Cold\n")
    write("unseen.csv", range(200, 210), "more ice,lukewarm\n")
    (root / "western.csv").write_bytes((root / "labels.csv").read_bytes() + b"caf\xe9,warm\n")
    (root / "numbers.csv").write_text((root / "labels.csv").read_text().replace(",warm", ",1").replace(",cold", ",0"))
    talk = [chat(("user", f"lot {i * 37 % 1009} of {i}"), ("assistant", f"it is {i}")) for i in range(40)]
    odd = chat(("user", "a"), ("user", "b"), ("assistant", "c"))
    (root / "turns.jsonl").write_text("\n".join([*talk, odd]))
    compared = [{"prompt": f"lot {i * 37 % 1009}", "chosen": f"it is {i}", "rejected": f"{i}"} for i in range(40)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, compared)))
    asked = [{"prompt": f"lot {i * 37 % 1009}", "n": i} for i in range(40)]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (root / "other.jinja").write_text(CHATML.replace("\n{{", "\n\n{{").replace("assistant\n{%", "assistant\n\n{%"))
    (root / "dated.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    (root / "documents").mkdir()
    (root / "documents" / "one.txt").write_text("Fire is warm.")
    return root


def observed(root: Path, model_folder: Folder, settings: dict[str, Any], known: dict[str, Facts]) -> str:
    """The inputs of a run: data, prompts, plan, order, arms, protocol; or the error that rejects the settings."""
    given = {"model": "MODEL llama", **BASE, **settings}
    for key, value in given.items():
        if key in ("template", "prove.documents", "data.train", "data.dev", "data.test", "data.answer_schema"):
            given[key] = str(root / value)
        if isinstance(value, str) and value.startswith("MODEL "):
            given[key] = str(model_folder(value.removeprefix("MODEL ")))
    try:
        asked = config.load(None, **{k.replace(".", "__"): v for k, v in given.items()})
        return _observed(asked, root, known)
    except TunewrightError as error:
        return f"{error.code} {error.where}"


def _observed(asked: Config, root: Path, known: dict[str, Facts]) -> str:
    run, data = Run(root / "run"), dataset.load(asked)

    def facts(model: str, quantise: str, adapter: AdapterConfig) -> Facts:
        key = f"{model} {quantise} {adapter if adapter.of_peft else ''}"
        if key not in known:
            known[key] = read_facts(model, quantise, adapter)
        return known[key]

    def hardware(threads: int | None) -> machine.Machine:
        return machine.Machine("cpu", threads or 1, 8.0, 8.0, 10.0, 10.0, "test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "read_facts", facts)
        patch.setattr(machine, "measure", hardware)
        gathered = inputs.gather(asked, run, data)
    setup: Any = SimpleNamespace(context=SimpleNamespace(data=data, config=asked), inputs=gathered)
    train, sizes = gathered.rows["train"], RowStats.of(gathered.rows["train"])
    task = data.task.kind.name
    made = planning.make_plan(asked, gathered.facts, sizes, gathered.machine, task, gathered.max_new_tokens)
    return json.dumps(
        {
            "facts": gathered.facts.sha256,
            "data": [data.sha256, data.sides, data.cluster, task, data.answer_schema],
            "tokens": [[s.ids for r in rows for s in r.sequences] for rows in gathered.rows.values()],
            "plan": made.model_dump(exclude={"reasons"}),
            "order": step_rows(len(train), made.batch_size, made.seed, 0),
            "protocol": plan.protocol_of(setup).sha256,
            "arms": [(a.name, a.description, endpoint_of(a)) for arms in gathered.arms.values() for a in arms],
        },
        default=str,
    )


def endpoint_of(arm: Arm) -> dict[str, Any]:
    """Everything that a remote arm knows about its endpoint, including the key."""
    endpoint = getattr(arm.responder, "endpoint", None)
    return vars(endpoint) if endpoint else {}


@pytest.mark.parametrize("key", EARLY)
def test_a_setting_changes_the_inputs_of_a_run(
    key: str, files: Path, model_folder: Folder, known: dict[str, Facts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K", "one")
    monkeypatch.setenv("SECRET", "another")
    value, context = EARLY[key]
    before, after = (observed(files, model_folder, s, known) for s in (context, {**context, key: value}))
    assert not before.startswith("CONFIG_UNKNOWN")
    assert before != after, f"{key} changes nothing"


@pytest.fixture(scope="module")
def known() -> dict[str, Facts]:
    return {}


def test_old_names_and_synonyms_point_to_settings() -> None:
    keys = {key for key, *_ in config.fields()}
    assert {*explain.RENAMED.values(), *explain.SYNONYMS.values()} - {"--runs"} <= keys
    assert not set(explain.RENAMED) & keys


@pytest.mark.parametrize("old", explain.RENAMED)
def test_an_old_name_is_an_error_that_names_the_new_one(old: str) -> None:
    with pytest.raises(TunewrightError, match=rf"CONFIG_UNKNOWN_KEY.*it is now called {explain.RENAMED[old]}"):
        config.load(None, [f"{old}=1"])


def test_settings_that_single_functions_read() -> None:
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, generator=rng).numpy()
    right = confidence > 0.4
    assert calibration.handover(confidence, right, 0.95) != calibration.handover(confidence, right, 0.7)

    verdicts = [paired([1.0] * 99 + [0.0], [1.0] * 100, margin, 0.05)["verdict"] for margin in (0.01, 0.3)]
    assert verdicts[0] != verdicts[1]
    for dtype, stored in (("float16", "float16"), ("auto", "float32")):
        chosen, plan = config.load(None, export__dtype=dtype), SimpleNamespace(dtype="float32")
        source: Any = SimpleNamespace(config=chosen, plan=plan)
        assert merged.stored_dtypes(source) == [stored]


def test_flags_of_one_run(tmp_path: Path, chat_rows: Callable[..., Path], model_folder: Folder) -> None:
    """--name, --runs, --model, --quiet, --json, --profile and export.to in one run; the others have tests."""
    where = ["--runs", "elsewhere", "--name", "n", "--model", str(model_folder("llama"))]
    done = cli("train", str(chat_rows()), *where, *FLAGS, "export.to=[adapter]", "--quiet", "--profile", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("USDT")] == [], (
        "quiet, but for torch's profiler"
    )
    assert "a step of" in done.stdout, "profile"
    exported = cli("export", "n", "--runs", "elsewhere", "--json", cwd=tmp_path)
    assert [x["kind"] for x in json.loads(exported.stdout)] == ["adapter"]
    assert not (tmp_path / "elsewhere" / "n" / "merged").exists()
