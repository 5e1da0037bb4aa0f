"""A finished run's records with every kind of evidence, as the stages write them; the numbers are plausible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build import plan_of
from pydantic import TypeAdapter

from tunewright.core.config import Plan
from tunewright.core.records import (
    CONSUMER_CHECKS,
    EXPORTS,
    METRICS,
    Audit,
    Preferences,
    ProtocolRecord,
    Receipt,
    RecipeSweep,
    ScoreLine,
    SelfTest,
    Training,
    Verdict,
)
from tunewright.core.run_folder import Run
from tunewright.report.build import Files

ROWS = 12


def comparison(difference: float = 0.2, verdict: str = "BETTER") -> dict[str, Any]:
    return {"difference": difference, "interval": [difference - 0.1, difference + 0.1], "verdict": verdict}


def arm(score: float, description: str, **more: Any) -> dict[str, Any]:
    against = {"difference": 0.7 - score, "interval": [0.6 - score, 0.8 - score], "p_value": 0.002, "p_holm": 0.004}
    plain = {"trained": False, "variant": "", "on_dev": None, "seconds": 3.0, "prompt_tokens": 40.0}
    return {
        **plain,
        "description": description,
        "score": score,
        "summary": {"exact_match": score, "cut_answers": 0.0},
        "interval": [score - 0.1, score + 0.1],
        "tuned_minus_this": against,
        **more,
    }


def arms() -> dict[str, Any]:
    tuned = arm(0.7, "the trained weights, prompted as in training", trained=True)
    del tuned["tuned_minus_this"]
    return {
        "zero_shot": arm(0.2, "the base model with the rows' own instruction", on_dev=0.25),
        "nearest": arm(
            0.5,
            "the base model, shown the 4 most similar training rows",
            variant="k4",
            on_dev=0.55,
            prompt_tokens=410.0,
        ),
        "classical": arm(0.4, "TF-IDF and logistic regression", trained=True, prompt_tokens=0.0),
        "tuned": tuned,
    }


def probe(items: int, **more: Any) -> dict[str, Any]:
    counts = {"lost": 40, "won": 18, "detectable": 0.063, "items": items}
    return {**comparison(-0.06, "CANNOT TELL"), "base": 0.73, "tuned": 0.67, **counts, **more}


def probes() -> dict[str, Any]:
    kinds = {"begins": {"items": 30, "base": 0.0, "tuned": 0.1}, "json": {"items": 30, "base": 1.0, "tuned": 0.0}}
    return {
        "knowledge": probe(346, verdict="WORSE"),
        "instructions": probe(300, kinds=kinds),
        "refusal": {"base_rate": 0.07, "measured": False},
    }


def refusals_measured() -> dict[str, Any]:
    pair = {k: v for k, v in probe(50).items() if k != "verdict"}
    return {**probes(), "refusal": {"base_rate": 0.8, "measured": True, **pair}, "over_refusal": pair}


def divergence(what: str, scales: int, **more: Any) -> dict[str, Any]:
    return {
        "what": what,
        "rows": 37,
        "tokens": 2016,
        "base_bits": 0.847,
        "kl_bits": [0.5 + i for i in range(scales)],
        "kl_interval": [None, *([0.4 + i, 0.6 + i] for i in range(1, scales))],
        "delta_bits": [0.4 + i for i in range(scales)],
        **more,
    }


def forgetting() -> dict[str, Any]:
    return {
        "measured": True,
        "scales": [0.5, 1.0],
        "rule": "the smallest scale whose dev score is within one standard error of the best scale's",
        "chosen": 1.0,
        "task": divergence("the base model's own answers to dev prompts", 2),
        "generic": divergence(
            "bundled text of four kinds", 2, bytes=17392, base_bits_per_byte=1.1, delta_bits_per_byte=[-0.01, 0.03]
        ),
        "sweep": {"dev": {"0.5": 0.55, "1": 0.7}, "chosen": 0.5},
        "probes": probes(),
        "regression_rows": probe(3, metric="exact_match"),
    }


def cost() -> dict[str, Any]:
    time = {"p50": [3.57, 2.48, 5.79], "p95": [5.75, 4.79, 5.79]}
    way = {
        "prompt_tokens": 40.0,
        "cached_tokens": 0,
        "answer_tokens": 53.0,
        "first_token": time,
        "seconds": time,
        "requests_per_second_together": 0.86,
    }
    ways = {"tuned, merged": way, "base, nearest": way, "base, nearest, prompt cached": {**way, "cached_tokens": 20}}
    money = {
        "per_thousand": dict.fromkeys(ways, 0.32),
        "training_and_judging": 0.21,
        "break_even_requests": 12345,
    }
    return {"measured": True, "requests": 8, "batch_size": 8, "setups": ways, "money": money}


def curve() -> dict[str, Any]:
    points = [{"rows": 83 * 2**i, "seeds": [0.4 + 0.1 * i, 0.42 + 0.1 * i], "score": 0.41 + 0.1 * i} for i in range(4)]
    back = {"predicted": 0.68, "interval": [0.6, 0.75], "measured": 0.71}
    return {
        "points": points,
        "doubling": {"gain": 0.1, "interval": [0.05, 0.15], "seeds": 2, "outcome": "helps"},
        "forecast": {
            "available": True,
            "rows": 1328,
            "score": 0.78,
            "interval": [0.7, 0.85],
            "alpha": 0.1,
            "back_test": back,
        },
        "recipe": "same epochs and rate at every size, the same test rows",
    }


def suspects(count: int) -> list[dict[str, Any]]:
    return [
        {"row": i, "given": "neutral", "predicted": "positive", "prob_wrong": 0.99, "where": f"data/rows.csv:{i + 2}"}
        for i in range(count)
    ]


def crossfit() -> dict[str, Any]:
    actual = {"rate": 0.39, "interval": [0.335, 0.45], "accuracy": 0.6, "expected": 2.1, "suspects": suspects(3)}
    return {"measured": True, "folds": 2, "cuts": 2, "rows": 690, **actual}


def cleaning() -> dict[str, Any]:
    flagged = {"duplicates": 3, "suspect rows": 12}
    return {
        "measured": True,
        "flagged": flagged,
        "dropped": 14,
        "rows": 441,
        "cleaned": 0.575,
        "as_is": 0.658,
        **comparison(-0.08, "CANNOT TELL"),
    }


def calibration() -> dict[str, Any]:
    side = {"log_loss": 0.81, "brier": 0.47, "ece": 0.16, "ece_interval": [0.0, 0.23]}
    return {
        "temperature": 0.63,
        "uncalibrated": side,
        "calibrated": side,
        "rows": 73,
        "enough_rows": False,
        "target_accuracy": 0.95,
        "curve": [[0.99, 0.1, 1.0], [0.8, 0.5, 0.9], [0.3, 1.0, 0.7]],
        "handover": {"threshold": 0.708, "answered": 0.49, "accuracy": 0.806, "interval": [0.65, 0.902]},
    }


def mitigation() -> dict[str, Any]:
    text = {"kl_bits": 0.5, "delta_bits": 0.1}
    ways = {name: {"dev": 0.7, "task": text, "generic": text} for name in ("unchanged", "rate / 3")}
    return {"measured": True, "rule": "the least KL on generic text", "chosen": "rate / 3", "variants": ways}


def distillation() -> dict[str, Any]:
    tokens = {"student": 49.0, "teacher": 50.0}
    figures = {"prompts": 16, "student": 0.274, "teacher": 0.479, "same_answers": 0.589, "prompt_tokens": tokens}
    return {"measured": True, **figures, **comparison(-0.2, "WORSE")}


def fields() -> list[dict[str, Any]]:
    """Errors by field, for a task whose answers have fields."""
    example = {"where": "data/rows.csv:3", "expected": "12.5", "given": ""}
    wrong = {"path": "items[].price", "tuned": [9, 1, 2], "comparator": [2, 8, 9], "example": example}
    right = {"path": "id", "tuned": [12, 0, 0], "comparator": [11, 1, 1], "example": None}
    return [wrong, *({**right, "path": f"id{i}"} for i in range(25))]


def answer_schema() -> dict[str, Any]:
    return {
        "source": "inferred",
        "json_schema": {"type": "object", "properties": {"id": {"type": "integer"}}},
        "fields": {"id": "integer, always present"},
        "satisfied": {"dev": 1.0, "test": 0.98},
    }


def verdict() -> dict[str, Any]:
    """verdict.json after the stage `report`, with the results of every other stage."""
    return {
        **comparison(0.2, "BETTER"),
        "metric": "accuracy",
        "task": "label",
        "tuned": 0.7,
        "comparator": {
            "name": "nearest",
            "score": 0.5,
            "variant": "k4",
            "chosen_on": "dev",
            "on_dev": {"nearest": 0.55},
        },
        "arms": arms(),
        "n": ROWS,
        "clusters": ROWS,
        "groups": list(range(ROWS)),
        "p_value": 0.002,
        "test": "Newcombe paired interval, exact McNemar",
        "only_tuned": 3,
        "only_comparator": 1,
        "margin": 0.02,
        "alpha": 0.05,
        "rows_needed": None,
        "unbeaten": [],
        "max_new_tokens": 96,
        "test_reads": 2,
        "dev_rows": 37,
        "protocol": "92e27c4b",
        "variants_on_dev": {"zero_shot": 0.25, "nearest-k4": 0.55},
        "rerun": {"rows": 16, "changed": 0, "floor": 0.0},
        "overlap": {"rows": 2, "tuned": 0.69, "comparator": 0.5, "difference": 0.19, "interval": [0.1, 0.3]},
        "corpus": {
            "metric": "macro_f1",
            "tuned": 0.57,
            "comparator": 0.41,
            "difference": 0.16,
            "interval": [0.05, 0.29],
        },
        "fields": fields(),
        "topic": {"rows": ROWS, "difference": 0.13, "interval": [0.09, 0.17]},
        "voice": voice(),
        "calibration": calibration(),
        "forgetting": forgetting(),
        "cost": cost(),
        "learning_curve": curve(),
        "crossfit": crossfit(),
        "cleaning": cleaning(),
        "mitigation": mitigation(),
        "prompt_distillation": distillation(),
    }


def plan() -> dict[str, Any]:
    reason = "1 pass on real rows at 275 tokens/s"
    estimate = {"tokens_per_second": 275.0, "train_seconds": 35.6, "peak_gb": 1.7, "reason": reason}
    reasons = {"steps": "as configured", "lr": "narrower models need higher rates"}
    return plan_of(rows=1327, steps=20, estimate=estimate, reasons=reasons).model_dump()


def audit() -> dict[str, Any]:
    message = "41 rows are near-duplicates (18 groups)"
    finding = {"level": "notice", "code": "NEAR_DUPLICATES", "message": message, "rows": list(range(9)), "groups": []}
    return {
        "rows": 800,
        "cluster": list(range(800)),
        "format": "label",
        "task": {
            "kind": "label",
            "metric": "accuracy",
            "reason": "3 different short answers",
            "labels": ["negative", "positive"],
        },
        "characters": {"min": 3.0, "median": 72.0, "p95": 142.0, "max": 151.0},
        "labels": {"positive": 326, "negative": 267},
        "ceiling": 0.97,
        "findings": [
            {**finding, "where": [f"data/rows.csv:{i + 2}" for i in range(9)]},
            {**finding, "level": "warning", "where": []},
        ],
        "suspects": suspects(51),
        "unused": {"id": 800},
        "notices": [],
        "changes": [
            {
                "code": "DATA_CONTROL_CHAR",
                "setting": "data.control=strip",
                "action": "changed",
                "rows": 7,
                "message": "removed U+001B",
                "where": [f"data/rows.csv:{i + 50}" for i in range(7)],
            }
        ],
        "answer_schema": answer_schema(),
        "sides": {"train": 690, "dev": 37, "test": 73},
        "sha256": "9f15bf46",
    }


def model() -> dict[str, Any]:
    sizes = {"hidden": 576, "layers": 30, "heads": 9, "vocabulary": 49152, "context": 8192, "parameters": 134515008}
    probed = {
        "window": None,
        "shareable": True,
        "packable": True,
        "leak": "",
        "draws": False,
        "fused": True,
    }
    name = {"name": "smollm2-135m", "path": "models/smollm2", "model_type": "llama", "dtype": "F32"}
    return {**name, **sizes, **probed, "sha256": "645a1bc5c9dec9bbe6ea249614a89c34"}


def receipt() -> dict[str, Any]:
    tokens = {"tokens_median": 54.5, "tokens_p95": 73.0, "tokens_longest": 102.0}
    learned = {"targets_median": 2.0, "targets_p95": 2.0, "targets_longest": 2.0}
    machine = {"device": "cpu", "processor": "AMD EPYC", "cores": 2, "memory_gb": 25.3, "free_gb": 20.0}
    return {
        "command": "tunewright run rows.csv --name one",
        "versions": {"python": "3.11.7", "tunewright": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "hashes": {"data": "9f15bf46fdaa67d30efab19b24360aaf89d69136eb3deec041942b637eba779d", "model": "645a1bc5"},
        "model": model(),
        "template": {"kwargs": {}, "note": "", "day": ""},
        "machine": {**machine, "fp32_gflops": 92.4, "bf16_gflops": 30.0},
        "seed": 0,
        "threads": 1,
        "instruction": None,
        "lengths": {side: {"rows": 690, **tokens, **learned} for side in ("train", "dev", "test")},
    }


def protocol() -> dict[str, Any]:
    return {
        "rule": "dev chooses one variant of every family of arms",
        "metric": "accuracy",
        "higher_is_better": True,
        "margin": 0.02,
        "alpha": 0.05,
        "arms": {"tuned": ["the trained weights, prompted as in training"]},
        "max_new_tokens": 96,
        "dev_rows": 37,
        "test_rows": ROWS,
        "rows_sha256": "cad02009",
        "detectable": 0.18,
        "assumed": "the arms disagree on 30% of them",
        "list_order": "ignored",
        "number_tolerance": 0.01,
    }


def training() -> dict[str, Any]:
    figures = {"tokens": 8988, "seconds": 43.5, "peak_gb": 1.72, "trained": 4884480, "total": 139399488}
    losses = {"best_step": 20, "best_dev_loss": 0.36, "first_dev_loss": 3.05}
    return {"steps": 20, "stopped_early": False, **losses, **figures, "weights_sha256": "43e32b5f"}


def consumer_check(**changed: Any) -> dict[str, Any]:
    figures = {"prompts": 9, "same_texts": 9, "tokens": 203, "largest_difference": 2.2e-05, "allowed": 0.001}
    names = {"path": "merged", "consumer": "vLLM", "consumer_version": "0.32.0", "model": "one"}
    result = {"base_difference": 3.1, "encoded": 8, "cause": None, "finding": None}
    return {**names, "time": "2026-11-28T12:00:00+00:00", **figures, **result, **changed}


def voice() -> dict[str, Any]:
    arm = {"reference_bits": 1.25, "auc": {"value": 0.75, "interval": [0.6, 0.9]}, "copied": 1, "loops": 2, "cut": 3}
    traits = [{"name": "begins with 'certainly'", "reference": 0.4, "arm": 0.1, "auc": 0.65}]
    contrast = {"difference": 0.125, "interval": [0.05, 0.2]}
    return {
        "rows": ROWS,
        "encoder": "minilm",
        "arms": {
            "zero_shot": {**arm, "traits": traits, "extra_bits": contrast},
            "remote": {**arm, "traits": [], "reference_bits": None, "auc": None},
            "tuned": {**arm, "traits": traits},
        },
    }


def preferences() -> dict[str, Any]:
    rate = {"rate": 0.625, "interval": [0.5, 0.75], "rows": 40, "won": 20, "tied": 10, "same": 2, "lost": 10}
    judge = {
        "model": "judge-1",
        "alone": rate,
        "contradicted": 0.25,
        "first": 0.6,
        "longer": 0.7,
        "unreadable": 1,
        "agreement": {"rate": 0.6, "interval": [0.45, 0.75], "rows": 30, "expected": 0.55, "beyond": [-0.1, 0.2]},
        "corrected": [0.55, 0.7],
        "corrected_rate": 0.61,
        "weight": 0.4,
    }
    return {"comparisons": [{"against": "nearest", "asked": 40, "people": rate, "judge": judge}]}


def sweep() -> dict[str, Any]:
    def recipe(lr: float, losses: list[float], seeds: int, **more: Any) -> dict[str, Any]:
        settings = {"train.lr": lr} if lr != 2e-3 else {}
        rungs = [
            {"fraction": f, "loss": x, **({"difference": x - 0.5, "interval": [x - 0.6, x - 0.4]} if settings else {})}
            for f, x in zip((0.25, 0.5, 1.0), losses, strict=False)
        ]
        facts = {"settings": settings, "branch": f"recipe-{lr:g}", "lr": lr, "steps": 40, "rungs": rungs}
        return {**facts, "seeds": seeds, **more}

    return {
        "measured": True,
        "tried": 4,
        "dev_rows": 30,
        "recipes": [
            recipe(2e-3, [0.9, 0.7, 0.5], 2),
            recipe(1e-2, [0.8, 0.6, 0.3], 2),
            recipe(1e-5, [1.5], 0),
            recipe(0.9, [], 0, error="[TRAIN_NOT_FINITE] the loss became NaN"),
        ],
        "challenger": 1,
        "difference": -0.2,
        "interval": [-0.35, -0.05],
        "chosen": 1,
        "steps": 130,
        "full_steps": 320,
        "seconds": 65.0,
    }


def exports() -> list[dict[str, Any]]:
    again = {"rows": 20, "same": 18, "score": 0.65, "verdict": 0.7, "dtype": "float32", "judged": "bfloat16"}
    loss = {"tokens": 812, "same_likeliest": 0.97, "rows": 20, "score": 0.66, "verdict": "CANNOT TELL"}
    loss |= {"difference": -0.01, "interval": [-0.05, 0.03]}
    figures = {"dtype": "float32", "largest_difference": 3.8e-05, "same_texts": 8, "prompts": 8, "encoded": 8}
    return [
        {
            "kind": "adapter",
            "path": "runs/one/adapter",
            **figures,
            "loaded_with": "tunewright (base model and adapter)",
            "reproduced": again,
        },
        {"kind": "merged", "path": "runs/one/merged", **figures, "loaded_with": "transformers alone"},
        *(
            {
                "kind": "gguf",
                "path": f"runs/one/gguf/one-{kind.upper()}.gguf",
                **figures,
                "dtype": kind,
                "kl": 0.004,
                "rows": 12,
                "tokenizer": "llama.cpp",
                "loaded_with": "transformers' GGUF reader",
                "file": {"bytes": 145_000_000, "tensors": {kind.upper(): 211, "F32": 61}},
                "loss": {**loss, "kl": 0.004 if kind == "q8_0" else 1e-6},
            }
            for kind in ("f16", "q8_0")
        ),
        {
            "kind": "lora-gguf",
            "path": "runs/one/lora-gguf/one-lora-F32.gguf",
            **figures,
            "loaded_with": "tunewright (base model and the file's matrices)",
        },
    ]


def scores(right: float) -> list[dict[str, Any]]:
    """The lines of one arm; scores rise by a third from row to row, and wrap around."""
    messages = [{"role": "system", "content": "Say it."}, {"role": "user", "content": "fire and flame"}]
    texts = {"messages": messages, "target": "warm", "answer": "cold", "key": "100a0c8b"}
    return [{"row": i, "where": f"data/rows.csv:{i + 2}", "score": (right + i / 3) % 1, **texts} for i in range(ROWS)]


def step(number: int) -> dict[str, Any]:
    """A line of metrics.jsonl; dev loss before the first step and after every tenth."""
    dev = {"dev_loss": 2.0 / (number + 1)} if number % 10 == 0 else {}
    figures = {"lr": 0.002, "grad_norm": 1.0, "tokens": 400, "computed": 300, "supervised": 16.0, "seconds": 2.0}
    return {"step": number, **({"loss": 3.0 / number, **figures} if number else {}), **dev}


def everything() -> dict[str, Any]:
    """The records of one run folder, by file name without suffix."""
    return {
        "verdict": verdict(),
        "plan": plan(),
        "data/audit": audit(),
        "receipt": receipt(),
        "training": training(),
        "forgetting": forgetting(),
        "protocol": protocol(),
        "selftest": {"seconds": 4.1, "findings": [{"check": "prompts", "result": "4 turns of 4 rows", "passed": True}]},
        "export": exports(),
        "verify": [consumer_check()],
        "people": preferences(),
        "sweep": sweep(),
        "metrics": [step(s) for s in range(21)],
        "events": [{"time": "", "event": "resumed_elsewhere", "what": ["torch was 2.12, is 2.13"]}],
        "scores/tuned": scores(0.9),
        "scores/nearest": scores(0.4),
    }


LINES = ("metrics", "events", "scores/tuned", "scores/nearest")


def write(folder: Path, records: dict[str, Any]) -> Run:
    """Write a run folder with these records; a record that is None has no file."""
    for name, record in records.items():
        file = folder / f"{name}.{'jsonl' if name in LINES else 'json'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if record is not None:
            lines = "".join(json.dumps(x) + "\n" for x in record) if name in LINES else json.dumps(record)
            file.write_text(lines, encoding="utf-8")
    return Run(folder)


def files(records: dict[str, Any]) -> Files:
    """The same records, typed, as the templates of the report receive them."""
    return Files(
        name="one",
        verdict=typed(Verdict, records["verdict"]),
        plan=typed(Plan, records["plan"]),
        audit=typed(Audit, records["data/audit"]),
        receipt=typed(Receipt, records["receipt"]),
        training=typed(Training, records["training"]),
        protocol=typed(ProtocolRecord, records["protocol"]),
        selftest=typed(SelfTest, records["selftest"]) if records["selftest"] else None,
        exports=typed(EXPORTS, records["export"]) if records["export"] else None,
        consumer_checks=typed(CONSUMER_CHECKS, records["verify"]),
        preferences=typed(Preferences, records["people"]) if records["people"] else None,
        sweep=typed(RecipeSweep, records["sweep"]) if records["sweep"] else None,
        metrics=[typed(METRICS, x) for x in records["metrics"]],
        moved=records["events"][0]["what"] if records["events"] else [],
        scores=tuple([typed(ScoreLine, x) for x in records[f"scores/{arm}"]] for arm in ("tuned", "nearest")),  # type: ignore[arg-type]
    )


def typed(kind: Any, record: Any) -> Any:
    """The record as the reader of the run folder returns it."""
    return (kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)).validate_json(json.dumps(record))
