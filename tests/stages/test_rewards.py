"""A run of prompts without answers, from the file to the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from build import FLAGS, WORDS, cli, copied, plan_of, read, read_lines

from tunewright.core import records
from tunewright.core.config import MethodOptions, load
from tunewright.core.errors import TunewrightError
from tunewright.core.records import Training
from tunewright.core.run_folder import Run
from tunewright.judge import statistics, verdict
from tunewright.judge.protocol import Protocol
from tunewright.judge.verdict import ScoredArm
from tunewright.model.facts import read_facts
from tunewright.stages.experiments import rewards
from tunewright.system.machine import Machine
from tunewright.train import planning
from tunewright.train.recipe import RowStats

Folder = Callable[[str], Path]
# Any character of an answer counts, more of them for the row's letter; a check that sees something else.
CONFIG = """
model: {model}
data: {{train: rows.jsonl}}
train: {{method: grpo, lr: 0.02, num_generations: 4}}
reward:
  grader:
    type: python
    source: |
      import zlib
      def grade(sample, item):
          text = sample["output_text"]
          return zlib.crc32(repr((text, item["word"])).encode()) % 89 / 100
  check:
    type: string_check
    operation: ilike
    input: "{{{{ sample.output_text }}}}"
    reference: "{{{{ item.word }}}}"
"""


def write_prompts(path: Path, count: int) -> Path:
    rows = []
    for i in range(count):
        word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
        rows.append({"prompt": f"item {i}: {word} by the {other}, lot {i * 37 % 101}", "word": word, "place": i})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    write_prompts(folder / "rows.jsonl", 60)
    (folder / "config.yaml").write_text(CONFIG.format(model=model_folder("llama")), encoding="utf-8")
    done = cli("run", "config.yaml", *FLAGS, "experiments.raft=true", "--name", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "trained: dev reward 0." in done.stderr
    assert "samples at temperature 1, before and after training: best of 1 0." in done.stderr
    assert "compared with RAFT at as many sampled tokens" in done.stderr
    assert "format prompt, task rewards" in done.stderr
    assert "rewards before training: mean 0." in done.stderr
    return folder / "runs" / "r"


def test_a_run_is_judged_by_rewards(trained: Path) -> None:
    seen = read(trained, "verdict")
    assert (seen["metric"], seen["task"]) == ("reward", "rewards")
    assert set(seen["arms"]) == {"zero_shot", "best_of", "tuned"}, "nobody wrote an answer to show"
    assert set(seen["arms"]["tuned"]["summary"]) == {"reward_check", "ungraded", "cut_answers"}
    assert set(seen["reward_check"]) == {"tuned", "comparator", "difference", "interval"}
    scores = read_lines(trained / "scores", "tuned")
    assert seen["tuned"] == pytest.approx(sum(s["reward"] for s in scores) / len(scores))
    assert seen["arms"]["best_of"]["score"] > seen["arms"]["zero_shot"]["score"], "by what it is chosen by"
    assert all(s["score"] == s["reward"] and s["target"] == "" for s in scores)
    metrics = [line for line in read_lines(trained, "metrics") if "loss" in line]
    assert len(metrics) == 6
    assert all(0 < line["metrics"]["reward"] < 1 for line in metrics)
    assert metrics[-1]["dev_loss"] < 0
    assert len(list((trained / "rollouts").glob("step-*.jsonl"))) == 6


def test_samples_and_raft_are_compared(trained: Path) -> None:
    seen, verdict = read(trained, "rewards"), read(trained, "verdict")
    assert verdict["rewards"] == seen
    assert (seen["samples"], seen["binary"]) == (4, False)
    assert [h["k"] for h in seen["highest"]] == [1, 4]
    one, best = (h["reward"] for h in seen["highest"])
    assert one["run"] < best["run"]
    assert one["other"] < best["other"]
    for side in ("tuned", "before"):
        lines = [x for x in read_lines(trained / "rollouts", f"test-{side}") if "reward" in x]
        mean = sum(x["reward"] for x in lines) / len(lines)
        assert one["run" if side == "tuned" else "other"] == pytest.approx(mean)
    raft = seen["raft"]
    drawn = [x for n in range(1, 7) for x in read_lines(trained / "rollouts", f"step-{n:06d}") if "ids" in x]
    assert raft["run_tokens"] == sum(len(x["ids"]) for x in drawn)
    assert raft["run_tokens"] - 6 < raft["tokens"] <= raft["run_tokens"], "to a sample of at most 6 tokens"
    plan = read(trained / "branches" / "raft", "branch")["plan"]
    assert (plan["method"], plan["rows"]) == ("sft", raft["rows"])
    assert plan["steps"] <= 6
    scores = read_lines(trained / "branches" / "raft" / "scores", "test-tuned")
    assert raft["metric"]["other"] == pytest.approx(sum(s["reward"] for s in scores) / len(scores))
    assert raft["metric"]["run"] == pytest.approx(verdict["tuned"])
    assert raft["check"] is not None
    assert read(trained, "plan")["estimate"]["stages"]["rewards"] > 0


@pytest.mark.parametrize(("updates", "prompts"), [(1, 80), (4, 24)])
def test_raft_has_the_prompts_of_the_run(updates: int, prompts: int, tmp_path: Path) -> None:
    """A rollout of several updates asks its prompts once, also the last, which an early stop has cut."""
    done = Training(
        steps=10, stopped_early=True, best_step=8, best_dev_loss=-0.5, first_dev_loss=-0.1, seconds=1.0, tokens=1,
        weights_sha256="", peak_gb=1.0, trained=1, total=1,
    )  # fmt: skip
    records.write(Run(tmp_path).training, done)
    asked = plan_of(method="grpo", batch_size=8, options=MethodOptions(num_iterations=updates))
    work: Any = SimpleNamespace(run=Run(tmp_path), plan=asked)
    assert rewards.prompts_asked(work) == prompts


def test_the_report_shows_it(trained: Path) -> None:
    html = (trained / "report.html").read_text(encoding="utf-8")
    assert "mean reward" in html
    assert "highest dev reward" in html
    assert "the best of 4" in html
    assert "RAFT, fine-tuning on the best samples" in html
    assert "dev reward: 0." in (trained / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "Traceback" not in html


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("reward.grader={}",), "CONFIG_CONFLICT"),
        (("train.method=sft",), "CONFIG_CONFLICT"),
        (("train.beta=0.2",), "CONFIG_CONFLICT"),
        (("adapter.dropout=0.1",), "CONFIG_CONFLICT"),
        (("prove.evidence=full",), "CONFIG_CONFLICT"),
        (("experiments.cleaning=true",), "CONFIG_CONFLICT"),
        (("train.kl_weight=0.1", "train.loss_type=rloo"), "CONFIG_CONFLICT"),
        (("train.kl_weight=0.1", "adapter.kind=none"), "CONFIG_CONFLICT"),
        (("train.num_iterations=2", "checkpoint.every=3"), "CONFIG_CONFLICT"),
        (("forget.regression_rows=rows.jsonl",), "CONFIG_CONFLICT"),
        (("sweep.grid={train.lr: [0.1]}",), "CONFIG_CONFLICT"),
        (("data.format=completion",), "DATA_FORMAT_MISMATCH"),
        (("data.answer_schema=rows.jsonl",), "DATA_FORMAT_MISMATCH"),
        (("prove.metric=chrf",), "DATA_FORMAT_MISMATCH"),
        (("reward.check={type: regex}",), "CONFIG_RANGE"),
        (
            ('reward.check={type: string_check, operation: eq, input: "{{ item.gold }}", reference: a}',),
            "DATA_FIELD_MISSING",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: tuple[str, ...], code: str, tmp_path: Path, model_folder: Folder) -> None:
    write_prompts(tmp_path / "rows.jsonl", 30)
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=model_folder("llama")), encoding="utf-8")
    done = cli("check", "config.yaml", *settings, cwd=tmp_path)
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr


def test_settings_of_rewards_are_refused_elsewhere() -> None:
    for setting in (
        "train.num_generations=4",
        "train.loss_type=grpo",
        "train.temperature=0.5",
        "train.kl_weight=0.1",
        "train.num_iterations=2",
        "experiments.raft=true",
        "reward.check={type: a}",
    ):
        with pytest.raises(TunewrightError, match="CONFIG_CONFLICT"):
            load(None, [setting])


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "DATA_TURN_ORDER"),
        ({"messages": []}, "DATA_EMPTY_TARGET"),
        ({"question": "q", "answer": "a"}, "DATA_FIELD_MISSING"),
        ({"prompt": ""}, "DATA_EMPTY"),
        ({"prompt": "q", "image": "a.png"}, "DATA_FORM_UNSUPPORTED"),
    ],
)
def test_rows_that_are_no_prompts(row: dict[str, object], code: str) -> None:
    from tunewright.data import formats
    from tunewright.data.formats import RowSettings
    from tunewright.data.sources import Row

    with pytest.raises(TunewrightError, match=code):
        formats.parse([Row(row, "x:1")], RowSettings(rewards=True))  # type: ignore[arg-type]


def test_every_other_field_is_handed_to_graders() -> None:
    from tunewright.data import formats
    from tunewright.data.formats import RowSettings
    from tunewright.data.messages import Chat
    from tunewright.data.sources import Row

    given = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "gold": [1],
        "label": True,
    }
    parsed = formats.parse([Row(given, "x:1")], RowSettings(rewards=True))  # type: ignore[arg-type]
    (chat,) = parsed.examples
    assert isinstance(chat, Chat)
    assert chat.item == given
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    assert (chat.target, chat.question, parsed.unused) == ("", "q", {})


def judged(tuned: list[float], check: tuple[list[float], list[float]] | None) -> str:
    own, other = check or ([], [])
    arms = {
        "zero_shot": ScoredArm("", trained=False, scores=(0.2,) * 40, checks=tuple(other)),
        "tuned": ScoredArm("", trained=True, scores=tuple(tuned), checks=tuple(own)),
    }
    protocol = Protocol("", "reward", True, 0.02, 0.05, {}, 8, 0, 40, "", None, "")
    comparator = verdict.choose_comparator(arms, True)
    return verdict.final_verdict(arms, comparator, protocol, range(40)).verdict


def test_a_higher_reward_with_a_lower_check_is_hacked() -> None:
    high, low = [0.9, 0.8] * 20, [0.1, 0.2] * 20
    assert judged(high, None) == "BETTER"
    assert judged(high, (high, low)) == "BETTER"
    assert judged(high, (low, high)) == "HACKED"
    assert judged(high, ([0.5, 0.6] * 20, [0.6, 0.5] * 20)) == "BETTER", "no difference is shown"
    assert judged(low, (low, high)) != "HACKED", "the reward is not higher"
    assert statistics.MIN_CLUSTERS <= 40


def test_a_changed_grader_is_another_run(trained: Path, tmp_path: Path) -> None:
    """Also one whose source only looks different: what it would have given cannot be known."""
    run = copied(trained.parent.parent, tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("% 89 / 100", "% 89 / 100.0"))
    for name in ("verdict.json", "report.html"):
        (run / name).unlink()
    done = cli("run", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "[RESUME_MISMATCH]" in done.stderr
    assert "grader was" in done.stderr


def test_answers_are_part_of_the_memory_that_is_needed(model_folder: Folder) -> None:
    sizes = RowStats(rows=10, tokens=200, supervised=10, longest=30)
    trained = sizes.with_samples(4, 50)
    assert (trained.rows, trained.tokens, trained.supervised, trained.longest) == (40, 2800, 2000, 80)
    config = load(None, ["train.method=grpo", "reward.grader={type: a}", "adapter.kind=none", "threads=1"])
    facts = read_facts(str(model_folder("llama")), "none", config.adapter)
    hardware = Machine("cpu", 1, 8.0, 8.0, 10.0, 10.0, "test")
    made = planning.make_plan(config, facts, sizes, hardware, "rewards", 50)
    kept = planning._kept(facts, "float32", "none")
    samples, recompute = sizes.with_samples(8, 50), made.gradient_checkpointing
    each = planning.bytes_per_token(facts, samples, "float32", made.kernels, recompute)
    planning.require_memory(made, facts, sizes, kept + samples.tokens * each)
    with pytest.raises(TunewrightError, match="TRAIN_MEMORY"):
        planning.require_memory(made, facts, sizes, kept + sizes.tokens * each)
