"""What methods.py compares: for each method its rows, the peer and the settings that are tried of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads import CURVE, Workload, rows

from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS
from tunewright.tokens.template import Template

EXAMPLES = Path(__file__).parent.parent / "examples"
RULES = (
    "You write a satirical dictionary in the voice of a bitter and well-read newspaper editor of 1906. Answer with one"
    " definition of the word that the user names, in the part of speech that is given. Be brief and dry. Never explain"
    " the joke, never praise, give no example sentence, no etymology and no list. If a word has a respectable meaning,"
    " find the one that people act on instead. End with a full stop."
)
# Hardly two samples are worth the same, so both sides train on all of them.
GRADER = '''
def grade(sample, item):
    """Half for the wanted keys, half for the marks of JSON among the characters."""
    text = sample["output_text"]
    named = sum(f'"{key}"' in text for key in item["keys"]) / len(item["keys"])
    marks = sum(text.count(mark) for mark in '{}":,') / max(1, len(text))
    return 0.5 * named + 0.5 * min(1.0, marks)
'''

Row = dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """``batch`` rows a step; ``rows``: of a template, tokenized. ``seconds``: of a round, of both sides, predicted for
    a machine of `REFERENCE_GFLOPS`; of loss curves, of a step."""

    description: str
    target: float
    batch: int
    rows: Callable[[Template], list[Row]]
    seconds: float


@dataclass(frozen=True)
class Group:
    """A method. ``scripts``: of our process and of the peer's. ``common``: given to both. ``tried``: the workload on
    which the settings of the peer are tried; ``plain``: the setting for loss curves. ``equal``: what is the same on
    both sides, and what is not, in words. ``seconds``: to try a setting; ``start``: until both sides are ready."""

    peer: str
    scripts: tuple[str, str]
    common: Mapping[str, Any]
    workloads: Mapping[str, Timed]
    curve: Timed | None
    settings: Mapping[str, Mapping[str, Any]]
    tried: str
    plain: str
    equal: str
    seconds: float
    start: float


REFERENCE_GFLOPS = 130.0


# -- rows


def pairs(template: Template, count: int, instruction: str | None = None) -> list[Row]:
    """Two definitions of a word, rendered by the model's template."""
    made = []
    lines = (EXAMPLES / "preferences" / "data" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines[:count]):
        given = json.loads(line)
        system = (Message("system", instruction),) if instruction else ()
        asked = (*system, Message("user", given["prompt"]), Message("assistant", given["chosen"]))
        chat = Chat(asked, where=f"line {i + 1}", rejected=Message("assistant", given["rejected"]))
        (pair,) = METHODS["dpo"].prepare(template, chat, i, None)
        prompt = pair.sequences[0].prompt
        chosen, rejected = (list(s.ids[len(prompt) :]) for s in pair.sequences)
        made.append({"prompt": list(prompt), "chosen": chosen, "rejected": rejected})
    return made


def rated(template: Template, count: int, batch: int, instruction: str | None = None) -> list[Row]:
    """The answers of pairs, each by itself: in each batch first the chosen ones and then the rejected ones, so that
    the row before a row has another prompt."""
    made, given = [], pairs(template, count, instruction)
    for start in range(0, count, batch // 2):
        for side in ("chosen", "rejected"):
            part = given[start : start + batch // 2]
            made += [{"prompt": r["prompt"], "completion": r[side], "desirable": side == "chosen"} for r in part]
    return made


def prompts(template: Template, count: int) -> list[Row]:
    """Requests for JSON objects, of different subjects."""
    made = []
    lines = (EXAMPLES / "rewards" / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines[:: len(lines) // count][:count]:
        item = json.loads(line)
        chat = Chat((Message("user", item["prompt"]), Message("assistant", "")), where="", item=item)
        (row,) = METHODS["grpo"].prepare(template, chat, 0, None)
        made.append({"prompt": item["prompt"], "ids": list(row.sequences[0].prompt), "item": item})
    return made


def classified(template: Template, count: int, workload: Workload) -> list[Row]:
    """The rows of a workload without their last three tokens; the class is the last token of the answer."""
    given = rows(workload, count, template.tokenizer)
    return [{"ids": r["ids"][:-3], "class": template.tokenizer.decode(r["ids"][-2])} for r in given]


# -- methods


# What makes TRL fast: nothing is recomputed, and the reference is computed once. TRL computes in bfloat16 by default.
FAST = {"gradient_checkpointing": False}
ONCE = {**FAST, "precompute_ref_log_probs": True}


def tried(more: Mapping[str, Any], passes: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """The settings of a trainer, with what makes it fast; also in passes of so many rows."""
    plain = {"dtype": "float32", "settings": {**more, "bf16": False}}
    narrow = {"dtype": "bfloat16", "settings": {**more, "bf16": True}}
    named = {"float32": plain, **{f"float32, passes of {of}": {**plain, "micro": n} for n, of in passes.items()}}
    (smallest, of), *_ = sorted(passes.items())
    return named | {"bf16": narrow, f"bf16, passes of {of}": {**narrow, "micro": smallest}}


DEFAULTS = {"defaults (bf16, activations recomputed)": {"dtype": "float32", "settings": {}}}
INSTRUCTED = "the same, after an instruction of 92 tokens"
DPO = Group(
    peer="TRL's DPOTrainer",
    scripts=("ours.py", "trl_dpo.py"),
    common={"method": "dpo", "beta": 0.1, "lr": 1e-4},
    workloads={
        "pairs": Timed("DPO: 8 pairs of definitions", 4.0, 8, functools.partial(pairs, count=24), 12),
        "pairs-instruction": Timed(INSTRUCTED, 6.0, 8, functools.partial(pairs, count=24, instruction=RULES), 25),
    },
    curve=Timed("2 pairs", 0.0, 2, functools.partial(pairs, count=32), 2.5),
    settings={**DEFAULTS, **tried(ONCE, {2: "2 pairs", 1: "1 pair"})},
    tried="pairs",
    plain="float32",
    equal="the reference is computed before the first step, which is not timed",
    seconds=30,
    start=60,
)
KTO = Group(
    peer="TRL's KTOTrainer",
    scripts=("ours.py", "trl_kto.py"),
    common={"method": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "lr": 1e-4},
    workloads={
        "rated": Timed("KTO: 16 rated definitions", 5.0, 16, functools.partial(rated, count=24, batch=16), 16),
        "rated-instruction": Timed(
            INSTRUCTED, 5.0, 16, functools.partial(rated, count=24, batch=16, instruction=RULES), 35
        ),
    },
    curve=Timed("4 rated answers", 0.0, 4, functools.partial(rated, count=32, batch=4), 3.5),
    settings={**DEFAULTS, **tried(ONCE, {8: "8 rows", 4: "4 rows"})},
    tried="rated",
    plain="float32",
    equal="the chosen and the rejected answers of 8 pairs, each by itself; z0 is estimated from each row's prompt with "
    "the answer of the row before it, on both sides. TRL knows these answers before the first step and computes their "
    "reference once; tunewright draws other ones in each epoch, and computes their reference in every step. Passes of "
    "fewer rows than a step change the mathematics of TRL's: z0 is that of the pass",
    seconds=35,
    start=60,
)
GRPO = Group(
    peer="TRL's GRPOTrainer",
    scripts=("ours_grpo.py", "trl_grpo.py"),
    common={
        "method": "grpo",
        "loss_type": "grpo",
        "num_generations": 8,
        "max_new_tokens": 40,
        "grader": GRADER,
        "lr": 1e-4,
    },
    workloads={
        "rewards": Timed(
            "GRPO, sampling included: 4 prompts, 8 samples of 40 tokens",
            2.5,
            4,
            functools.partial(prompts, count=12),
            40,
        ),
    },
    curve=None,
    settings={**DEFAULTS, **tried(FAST, {16: "16 samples", 8: "8 samples"})},
    tried="rewards",
    plain="float32",
    equal="prompts, groups, temperature 1, the reward program and the loss, without a KL term. Each sample has exactly "
    "40 tokens: TRL may not sample an end before, tunewright does not stop at one. The tokens differ, because random "
    "numbers do. Ours also writes its samples to a file and computes four log-probabilities again; TRL grades in its "
    "own process, ours in another",
    seconds=35,
    start=45,
)
HEAD_ROWS = Workload("head", "", 200, (48, 48), 3, 16, 6.0)
HEAD = Group(
    peer="transformers' Trainer",
    scripts=("ours.py", "peft_head.py"),
    common={"method": "classify", "lr": 1e-4},
    workloads={
        "head": Timed(
            "head: instruction of 200 tokens, message of 45; 16 rows",
            6.0,
            16,
            functools.partial(classified, count=48, workload=HEAD_ROWS),
            20,
        ),
    },
    curve=Timed(
        "4 rows, instruction of 60, message of 30",
        0.0,
        4,
        functools.partial(classified, count=64, workload=replace(CURVE, name="head-curve")),
        2.0,
    ),
    settings=tried({}, {4: "4 rows", 2: "2 rows", 1: "1 row"}),
    tried="head",
    plain="float32",
    equal="a head of zeros and the adapter of the other workloads, by transformers' class for sequence classification, "
    "PEFT and Trainer",
    seconds=35,
    start=30,
)
GROUPS = {"dpo": DPO, "kto": KTO, "grpo": GRPO, "head": HEAD}
