"""Judging: which weights answered, how answers are decoded, and what counts as right."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from build import plan_of, tiny_lm

import tunewright
from faults import Fault, Patch
from tunewright.core import config
from tunewright.core.console import Console
from tunewright.core.run_folder import Run
from tunewright.data import metrics
from tunewright.data.messages import Chat, Message
from tunewright.data.scores import Answer, LabelProbs
from tunewright.data.task import LABEL, Task
from tunewright.judge.arms.arm import Arm
from tunewright.judge.probes import bank as probes
from tunewright.model.decoding import generate
from tunewright.model.decoding.generate import Decoding
from tunewright.runtime import answers
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import mitigation

PROMPTS = [[7, 3, 9, 40], [5], [90, 91, 92, 93, 94, 95, 2], [33, 34]]
HOW = Decoding(12, (256,), batch_size=4)


def another_weight_answers_anew() -> None:
    """Cached scores are used only for the weights that gave them: one different digit of the file's hash is enough."""
    with tempfile.TemporaryDirectory() as folder:
        run, asked = Run(Path(folder)), []
        task = Task(LABEL, metrics.METRICS["accuracy"], "", ("a", "b"))

        def answer(examples: list[Chat], *_: Any) -> list[Answer]:
            asked.append(len(examples))
            return [Answer("a", LabelProbs({"a": 1.0, "b": 0.0}), prompt_tokens=0) for _ in examples]

        arm = Arm("tuned", "", SimpleNamespace(needs_model=False, answer=answer, decoding="greedy"), uses_adapter=True)  # type: ignore[arg-type]
        example = Chat((Message("user", "q"), Message("assistant", "a")), "x:1")
        data = SimpleNamespace(examples=[example], task=task)
        inputs = SimpleNamespace(facts=SimpleNamespace(sha256="f"), template=SimpleNamespace(sha256="t"))
        own = answers.Answers(run, Console(True), data, inputs, plan_of(), None)  # type: ignore[arg-type]
        for sha256 in ("0" * 64, "0" * 64, "1" + "0" * 63):
            weights = Weights(plan_of(), run.weights, sha256)
            own.scores(answers.AnswerRequest(arm, "dev", [0], run.path / "scores.jsonl"), weights)
    assert len(asked) == 2


def keyed_by_name_alone(patch: Patch) -> None:
    patch.setattr(answers.Answers, "_key", lambda *_: "tuned")


def decoding_is_ours() -> None:
    """The base's generation config sets sampling and a repetition penalty; no arm uses them."""
    model = tiny_lm()
    plain = generate.complete(model, PROMPTS, HOW)
    model.module.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=3.0)
    assert generate.complete(model, PROMPTS, HOW) == plain
    answer = generate.complete(tiny_lm(), [PROMPTS[0]], HOW)[0]
    ids = list(PROMPTS[0])
    for token in answer:  # by hand: the most probable token, one after another
        with torch.no_grad():
            assert token == int(model.module(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def by_transformers(patch: Patch, mask: bool = True) -> None:
    def complete(model: Any, prompts: Any, how: Decoding, *_: Any) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]) if mask else torch.ones_like(ids)
        model.module.config.use_cache = True
        out = model.module.generate(
            ids, attention_mask=seen, max_new_tokens=how.max_new_tokens, eos_token_id=256, pad_token_id=256
        )
        return [[t for t in row[width:].tolist() if t != 256] for row in out]

    patch.setattr(generate, "complete", complete)


def together_as_alone() -> None:
    model = tiny_lm()
    assert generate.complete(model, PROMPTS, HOW) == [generate.complete(model, [p], HOW)[0] for p in PROMPTS]


def padding_is_seen(patch: Patch) -> None:
    by_transformers(patch, mask=False)


def labels_are_words() -> None:
    assert metrics.read_label("Berlin", ["A", "B"]) is None
    assert metrics.read_label("the answer is B", ["A", "B"]) == "B"
    assert metrics.read_label("either A or B", ["A", "B"]) is None
    assert metrics.read_label("not spam", ["spam", "not spam"]) == "not spam"
    assert metrics.exact_match("42", r"\boxed{42}") == 1.0


def labels_are_letters(patch: Patch) -> None:
    patch.setattr(metrics, "read_label", lambda answer, labels: next((x for x in labels if x in answer), None))


def every_setting_is_read() -> None:
    """The last part of its name is an attribute that some module outside core/config reads."""
    read: set[str] = set()
    for file in Path(tunewright.__file__).parent.rglob("*.py"):
        if file.parent.name != "config":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    ignored = [key for key, *_ in config.fields() if key.rsplit(".", 1)[-1] not in read]
    assert not ignored, ignored


def a_setting_that_nothing_reads(patch: Patch) -> None:
    plain = config.fields
    patch.setattr(config, "fields", lambda *a: [*plain(*a), ("train.warp_factor", "number", "1", "faster")])


def probes_are_not_taught() -> None:
    prompts = [q.prompt for q in (*probes.knowledge(), *probes.instructions())] + [p for p, _ in probes.refusals()]
    asked = [m.content for prompt in prompts for m in prompt.messages]
    taught = [ask.format(noun) for ask in mitigation.PROMPTS for noun in probes.NOUNS]
    taught += [t.text for t in probes.generic([])]
    runs = {g for text in asked for g in _runs(text)}
    assert not [t for t in taught if runs & set(_runs(t)) or t in asked]


def _runs(text: str, n: int = 13) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def a_probe_is_replayed(patch: Patch) -> None:
    patch.setattr(
        mitigation,
        "PROMPTS",
        (
            *mitigation.PROMPTS,
            probes.instructions()[0].prompt.messages[-1].content.replace("{", "{{").replace("}", "}}"),
        ),
    )


FAULTS = [
    Fault(28, "cached scores of other weights are used", "", "a cached score is used only for the weights, scale, template and token limit that it was computed with",
          another_weight_answers_anew, keyed_by_name_alone),
    Fault(29, "one arm decodes with the base's generation config", "", "all arms decode as declared; only the stop tokens of that config are used",
          decoding_is_ours, by_transformers),
    Fault(30, "answers in a batch differ from answers one by one", "", "greedy answers in a batch equal those computed alone, token by token", together_as_alone, padding_is_seen),
    Fault(31, "a label is matched inside a word, or in an echo of the prompt", "Soup", "a label must be a whole word, and the only label in the answer", labels_are_words, labels_are_letters),
    Fault(32, "a setting is never read", "Soup: four flags", "every setting is read somewhere; an unknown one is CONFIG_UNKNOWN_KEY", every_setting_is_read, a_setting_that_nothing_reads),
    Fault(34, "replay or generic text contains the probes", "", "they share no 13 consecutive words, and no replay prompt is a probe", probes_are_not_taught, a_probe_is_replayed),
]  # fmt: skip
