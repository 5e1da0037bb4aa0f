"""Reward models as graders: their scores are those of their own runs, alone and in a run that learns from them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from build import FLAGS, QUICK, byte_tokenizer, cli, copied, flip, read, read_lines, tiny_model
from stages.test_pairs import write_pairs
from stages.test_rewards import write_prompts

from tunewright import api
from tunewright.core import config
from tunewright.core.errors import TunewrightError
from tunewright.data.graders import graders
from tunewright.data.graders.grade import Output
from tunewright.data.graders.reward_model import RewardModel
from tunewright.data.messages import Message, Prompt, question
from tunewright.runtime.grading import reward_models

Folder = Callable[[str], Path]
NEW = {k: v for k, v in QUICK.items() if k not in ("prove__few_shot", "prove__max_new_tokens")}
CONFIG = """
model: {model}
data: {{train: rows.jsonl}}
train: {{method: grpo, lr: 0.02, num_generations: 4}}
reward:
  grader: {{type: reward_model, model: rm, range: [-1, 3]}}
  check: {{type: multi, calculate_output: "1 - a", graders: {{a: {{type: reward_model, model: rm/merged}}}}}}
"""


def trained_on_pairs(root: Path, model: Path) -> api.Result:
    rows = write_pairs(root / "pairs.jsonl", 60)
    settings = {**NEW, "train__method": "reward_model", "train__steps": 24, "train__lr": 3e-3}
    return api.run(rows, model=str(model), name="rm", root=root, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Path:
    return trained_on_pairs(tmp_path_factory.mktemp("reward_models"), model_folder("llama")).path


def grader(folder: Path, **more: Any) -> RewardModel:
    made = graders.of({"type": "reward_model", "model": str(folder), **more}, "reward.grader")
    ready = graders.scored_by(made, reward_models.scores("2026-01-01"))
    assert isinstance(ready, RewardModel)
    return ready


def scores(folder: Path, asked: Sequence[Output]) -> list[float]:
    ready = grader(folder).prepared([({}, output) for output in asked])
    return [float(ready.known[repr(output)]) for output in asked]


def judged(run: Path) -> tuple[list[Output], list[float]]:
    """Both answers to every test prompt, and the scores that the run gave them."""
    rows = {row["prompt"]: row for row in map(json.loads, (run.parent / "pairs.jsonl").read_text().splitlines())}
    outputs, expected = [], []
    for line in read_lines(run / "scores", "tuned"):
        row = rows[line["messages"][0]["content"]]
        outputs += [Output(row[side], question(row["prompt"])) for side in ("chosen", "rejected")]
        expected += line["ranked"]
    return outputs, expected


def test_a_score_is_that_of_the_reward_models_own_run(run: Path) -> None:
    """Computed in the same passes as its verdict: equal bit for bit."""
    outputs, expected = judged(run)
    assert len(set(expected)) == len(expected) > 20
    assert scores(run, outputs) == expected


def test_the_merged_export_has_the_same_scores(run: Path) -> None:
    outputs, expected = judged(run)
    assert scores(run / "merged", outputs) == pytest.approx(expected, rel=0, abs=1e-5)


@pytest.mark.parametrize("kind", ["run", "merged"])
def test_a_score_does_not_depend_on_what_is_scored_with_it(run: Path, kind: str) -> None:
    folder = run if kind == "run" else run / "merged"
    outputs = [*judged(run)[0], Output("", question("who")), Output("x" * 300, question("who"))]
    together = scores(folder, outputs)
    assert [scores(folder, [output])[0] for output in outputs] == pytest.approx(together, rel=0, abs=1e-5)
    assert scores(folder, [*outputs[::-1], *outputs])[: len(outputs)] == pytest.approx(together[::-1], rel=0, abs=1e-5)
    assert scores(folder, outputs) == together, "deterministic"
    answers = [*outputs, *outputs[:3]]
    rewards = [g.reward for g in graders.grade_all(grader(folder), [({}, output) for output in answers])]
    assert rewards[:3] == rewards[-3:], "the last bits of equal answers' scores are equal"


def test_all_of_the_prompt_is_read(run: Path) -> None:
    asked = [
        Prompt((Message("user", "who"),)),
        Prompt((Message("user", "what"),)),
        Prompt((Message("system", "Be brief."), Message("user", "who"))),
        Prompt((Message("user", "hi"), Message("assistant", "yes", trained=False), Message("user", "who"))),
    ]
    assert len(set(scores(run, [Output("nobody", prompt) for prompt in asked]))) == len(asked)


def test_a_reward_is_from_0_to_1(run: Path) -> None:
    output = Output("RED 0", question("item 0: red by the tree"))
    (score,) = scores(run, [output])

    def reward(**more: Any) -> float | None:
        return graders.grade(grader(run, **more), {}, output).reward

    assert reward() == pytest.approx(1 / (1 + math.exp(-score)))
    assert reward(range=[score - 1, score + 3]) == pytest.approx(0.25)
    assert reward(range=[score + 1, score + 3]) == 0.0
    assert reward(range=[score - 3, score - 1]) == 1.0
    huge = replace(grader(run), scores=lambda model, chats: [5000.0, -5000.0, math.nan, "why"])
    rewards = graders.grade_all(huge, [({}, Output(text)) for text in "abcd"])
    assert [g.reward for g in rewards] == [1.0, 0.0, None, None]
    assert [g.problem for g in rewards[2:]] == ["the reward model's score is nan", "why"]


def test_what_it_cannot_read_has_no_reward(run: Path) -> None:
    answers = [({}, Output(text, question("who"))) for text in ("x" * 3000, "x")]
    long, short = graders.grade_all(grader(run), answers)
    assert "reads 2048 tokens, and these are 30" in long.problem
    assert short.reward is not None


# -- identity


def test_a_grader_is_its_weights_and_not_their_place(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "moved"
    shutil.copytree(run, again)
    for part in (".", "merged"):
        assert grader(run / part) == grader(again / part)
        assert repr(grader(run / part)) == repr(grader(again / part))
    assert repr(grader(run, range=[0, 1])) != repr(grader(run))
    trained = json.loads((again / "training.json").read_text())
    (again / "training.json").write_text(json.dumps({**trained, "weights_sha256": "0" * 64}))
    assert repr(grader(again)) != repr(grader(run))
    (again / "merged" / "vocab.txt").write_text("[UNK]")
    assert repr(grader(again / "merged")) != repr(grader(run / "merged")), "a tokenizer in files of its own"
    (again / "merged" / "vocab.txt").unlink()
    flip(again / "merged" / "model.safetensors")
    assert repr(grader(again / "merged")) != repr(grader(run / "merged"))


def test_weights_that_changed_are_not_loaded(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "damaged"
    shutil.copytree(run, again)
    flip(again / "checkpoints" / "final.safetensors")
    with pytest.raises(TunewrightError, match="RUN_DAMAGED"):
        scores(again, [Output("x", question("who"))])


def test_another_template_than_that_of_its_training_is_refused(tmp_path: Path, model_folder: Folder) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder("llama"), base)
    trained_on_pairs(tmp_path, base)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant:\n").replace(
        "{{ m['role'] }}\n", "{{ m['role'] }}:\n"
    )
    tokenizer.save_pretrained(base)
    with pytest.raises(TunewrightError, match=r"RESUME_MISMATCH.*template"):
        scores(tmp_path / "rm", [Output("x", question("who"))])


# -- folders that are no reward models


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("nowhere", "CONFIG_NOT_FOUND"),
        ("rm/adapter", "CONFIG_NOT_FOUND"),
        ("language", "MODEL_UNSUPPORTED"),
        ("two", "MODEL_UNSUPPORTED"),
        ("broken", "MODEL_UNSUPPORTED"),
        ("sft", "CONFIG_CONFLICT"),
        ("planned", "RUN_INCOMPLETE"),
        ("untrained", "RUN_INCOMPLETE"),
    ],
)
def test_other_folders_are_refused(folder: str, code: str, run: Path, tmp_path: Path, model_folder: Folder) -> None:
    shutil.copytree(run, tmp_path / "rm")
    for name, missing in (("planned", "verdict.json"), ("untrained", "plan.json")):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / missing).unlink()
    shutil.copytree(run, tmp_path / "sft")
    plan = json.loads((run / "plan.json").read_text())
    (tmp_path / "sft" / "plan.json").write_text(json.dumps({**plan, "method": "sft"}))
    shutil.copytree(model_folder("llama"), tmp_path / "language")
    for name, text in (("two", None), ("broken", "{")):
        shutil.copytree(run / "merged", tmp_path / name)
        labels = json.dumps({**read(run / "merged", "config"), "id2label": {"0": "a", "1": "b"}})
        (tmp_path / name / "config.json").write_text(text or labels)
    with pytest.raises(TunewrightError) as refused:
        grader(tmp_path / folder)
    assert refused.value.code == code
    assert "train.method=reward_model" in str(refused.value) or code == "RUN_INCOMPLETE"


@pytest.mark.parametrize(
    ("more", "code"),
    [({"model": 3}, "CONFIG_RANGE"), ({"range": [1, 0]}, "CONFIG_RANGE"), ({"input": []}, "CONFIG_UNKNOWN_KEY")],
)
def test_keys_are_checked(more: dict[str, Any], code: str, run: Path) -> None:
    with pytest.raises(TunewrightError, match=code):
        graders.of({"type": "reward_model", "model": str(run), **more}, "reward.grader")


def test_an_export_without_a_chat_template_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(run / "merged", folder)
    byte_tokenizer(chat_template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(TunewrightError, match="TEMPLATE_MISSING"):
        scores(folder, [Output("x", question("who"))])


def test_a_folder_is_relative_to_its_config_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(model="smollm2-135m"))
    asked = config.load(tmp_path / "config.yaml").reward
    assert asked.grader["model"] == str(tmp_path / "rm")
    assert asked.check["graders"] == {"a": {"type": "reward_model", "model": str(tmp_path / "rm" / "merged")}}


# -- a run that learns from one


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """With another base than the reward model's."""
    folder, tokenizer = tmp_path_factory.mktemp("graded"), byte_tokenizer()
    for name in ("model", "rm"):
        (folder / name).mkdir()
    shutil.copytree(run, folder / "rm", dirs_exist_ok=True)
    tiny_model("qwen3", seed=5, vocabulary=len(tokenizer), dtype=torch.float32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_prompts(folder / "rows.jsonl", 60)
    (folder / "config.yaml").write_text(CONFIG.format(model=folder / "model"), encoding="utf-8")
    loads, own = [], (reward_models._of_run, reward_models._of_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_models, "_of_run", lambda path: (loads.append("run"), own[0](path))[1])
        patch.setattr(reward_models, "_of_folder", lambda *given: (loads.append("folder"), own[1](*given))[1])
        done = cli("run", "config.yaml", *FLAGS, "experiments.raft=true", "--name", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(loads) == ["folder", "run"], "each is loaded once"
    assert f"the reward model in {folder / 'rm'} grades, and is kept in memory: 0.00 GB" in done.stderr
    assert "compared with RAFT at as many sampled tokens" in done.stderr
    return folder / "runs" / "r"


def test_every_stage_grades_by_the_same_scores(learned: Path, run: Path) -> None:
    verdict, prompts = read(learned, "verdict"), {}
    for row in map(json.loads, (learned.parents[1] / "rows.jsonl").read_text().splitlines()):
        prompts[row["place"]] = row["prompt"]
    assert set(verdict["arms"]) == {"zero_shot", "best_of", "tuned"}
    for name in ("tuned", "best_of"):
        lines = read_lines(learned / "scores", name)
        own = scores(run, [Output(x["answer"], question(x["messages"][-1]["content"])) for x in lines[:4]])
        assert [x["reward"] for x in lines[:4]] == pytest.approx([(s + 1) / 4 for s in own], abs=1e-5)
        assert [x["check"] for x in lines[:4]] == pytest.approx([1 / (1 + math.exp(s)) for s in own], abs=1e-5)
    drawn = [x for x in read_lines(learned / "rollouts", "step-000001") if "reward" in x]
    own = scores(run, [Output(x["text"], question(prompts[x["row"]])) for x in drawn])
    assert [x["reward"] for x in drawn] == pytest.approx([(s + 1) / 4 for s in own], abs=1e-5)
    assert verdict["arms"]["best_of"]["score"] > verdict["arms"]["zero_shot"]["score"]


def test_a_run_does_not_continue_with_another_reward_model(learned: Path, tmp_path: Path) -> None:
    again = copied(learned.parents[1], tmp_path)
    (again / "report.html").unlink()
    assert cli("run", str(again), cwd=tmp_path).returncode == 0, "its folder may move"
    (again / "report.html").unlink()
    training = tmp_path / "rm" / "training.json"
    training.write_text(json.dumps({**json.loads(training.read_text()), "weights_sha256": "0" * 64}))
    done = cli("run", str(again), cwd=tmp_path)
    assert done.returncode == 2
    assert "RESUME_MISMATCH" in done.stderr
    assert "grader was RewardModel" in done.stderr


def test_memory_of_reward_models_is_part_of_the_plan(run: Path, learned: Path) -> None:
    receipt = read(run, "receipt")
    assert grader(run).gigabytes == pytest.approx(4e-9 * receipt["model"]["parameters"])
    size = (run / "merged" / "model.safetensors").stat().st_size
    assert grader(run / "merged").gigabytes == pytest.approx(1e-9 * size)


def test_a_reward_model_too_large_for_the_memory_is_refused(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(learned.parents[1], tmp_path)
    monkeypatch.setattr(graders, "reward_models", lambda grader: [RewardModel("", path=Path("rm"), gigabytes=1e6)])
    done = cli("run", "config.yaml", *FLAGS, "--name", "large", cwd=tmp_path)
    assert (done.returncode, "TRAIN_MEMORY" in done.stderr) == (1, True), done.stderr
