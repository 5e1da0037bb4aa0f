"""tunewright as a timed process: its own training step, on rows that are already tokenized."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subject import Wire, serve
from workloads import rendered

from tunewright.core.config import AdapterConfig, MethodOptions, Plan
from tunewright.core.records import AdapterNote
from tunewright.methods import METHODS, kto, sft
from tunewright.methods.method import Loss
from tunewright.model import adapters, forward, fused_llama, loading, peft_format
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding, heap
from tunewright.tokens import packing
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TokenSequence, TrainRow, head_sequence, prompt_then_answer, single
from tunewright.train import profile
from tunewright.train.step import make_learner, take_step


def plan_of(setup: dict[str, Any], rows: list[TrainRow]) -> Plan:
    return Plan(
        method="all_logits" if setup.get("all_logits") else setup.get("method", "sft"),
        options=MethodOptions(**{name: setup[name] for name in MethodOptions.ADDED if name in setup}),
        labels=tuple(sorted({answer for r in rows if (answer := class_of(r))})),
        rows=len(rows),
        supervised_tokens=0,
        tokens=sum(r.tokens for r in rows),
        steps=1000,
        epochs=1.0,
        batch_size=setup["batch"],
        tokens_per_pass=setup.get("capacity", 8192),
        max_length=8192,
        max_new_tokens=setup.get("max_new_tokens", 1),
        decode_batch_size=1,
        layout=setup["layout"],
        kernels="fused",
        gradient_checkpointing=setup.get("recompute", "none"),
        dtype=setup["dtype"],
        lr=setup["lr"],
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        eval_every=1000,
        patience=0,
        checkpoint_every=1000,
        checkpoint_keep=1,
        adapter=AdapterConfig(rank=16, alpha=32.0),
        seed=0,
        threads=setup["threads"],
        reasons={},
    )


class AllLogits:
    """For the ablation: the head is applied to every token, labelled or not, as in most systems."""

    prepare, precompute = staticmethod(sft.prepare), staticmethod(sft.precompute)
    microbatches, weight = staticmethod(sft.microbatches), staticmethod(sft.weight)

    @staticmethod
    def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
        logits_BTV = forward.call_module(model, model.module, microbatch, plan.gradient_checkpointing).logits.float()
        flat_N = torch.from_numpy(microbatch.row_N * microbatch.ids_BT.shape[1] + microbatch.at_N)
        target_BT = torch.full(microbatch.ids_BT.shape, -100).flatten()
        target_BT[flat_N] = torch.from_numpy(microbatch.target_N)
        total = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), target_BT, reduction="sum")
        return Loss(total)


def read_rows(given: list[dict[str, Any]]) -> list[TrainRow]:
    """Labelled sequences, pairs of answers, rated answers, or prompts with a class."""

    def answer(number: int, side: str) -> TokenSequence:
        return prompt_then_answer(given[number]["prompt"], given[number][side], number)

    numbers = range(len(given))
    if "chosen" in given[0]:
        return [TrainRow((answer(i, "chosen"), answer(i, "rejected")), i) for i in numbers]
    if "desirable" in given[0]:
        rating = [{"desirable_S": np.array([r["desirable"]])} for r in given]
        return [TrainRow((answer(i, "completion"),), i, rating[i]) for i in numbers]
    if "class" in given[0]:
        classes = [{"answer": np.frombuffer(r["class"].encode(), np.uint8)} for r in given]
        return [TrainRow((head_sequence(given[i]["ids"], 0, i),), i, classes[i]) for i in numbers]
    return [single(r) for r in rendered(given)]


def class_of(row: TrainRow) -> str:
    """Of a row for a head; "" for others."""
    return row.signal["answer"].tobytes().decode() if "answer" in row.signal else ""


def row_before(_prompt_of: object, _rows: int, chosen: Sequence[int], _seed: int, _step: int) -> list[int]:
    """`kto.partners` as TRL has them: of each row, the row before it in the batch."""
    return [chosen[n - 1] for n in range(len(chosen))]


def loaded(setup: dict[str, Any], plan: Plan) -> LanguageModel:
    """The model with its initial adapter, as the plan has it; rows come in the order of the file, as for the peers."""
    heap.keep()
    torch.set_num_threads(plan.threads)
    packing.step_rows = lambda count, batch, seed, step: [(step * batch + i) % count for i in range(batch)]  # type: ignore[assignment]
    kto.partners = row_before  # type: ignore[assignment]
    model = loading.load(setup["model"], loading.torch_dtype(plan.dtype))
    adapters.attach(model.module, plan.adapter, setup.get("seed", 0), outputs=len(plan.labels))
    if "save_adapter" in setup:
        note = AdapterNote(base="", base_sha256="", template_sha256="", run="", files={})
        peft_format.save(model.module, plan.adapter, Path(setup["save_adapter"]), str(setup["model"]), note)
    if setup.get("fused", True) and fused_llama.applies(model.module):
        return dataclasses.replace(model, kernels="fused")
    return model


def decode(model: LanguageModel, rows: list[TrainRow]) -> float:
    """Greedy answers of 16 tokens to the beginnings of eight rows; returns the number of tokens."""
    prompts = [list(r.sequences[0].ids[:60]) for r in rows[:8]]
    return float(sum(map(len, complete(model, prompts, Decoding(16, (-1,), 8)))))


def main() -> None:
    wire = Wire()
    setup = wire.setup
    rows = read_rows(json.loads(Path(setup["rows"]).read_text(encoding="utf-8")))
    METHODS["all_logits"] = AllLogits()
    plan = plan_of(setup, rows)
    model = loaded(setup, plan)
    with torch.no_grad():  # the initial adapter changes nothing: this is the reference
        rows = METHODS[plan.method].precompute(model, rows, plan, lambda _: None)
    profile.calibrate(model, rows[:2], plan)
    student = make_learner(model, plan)
    crowd = crowding.alone(setup["threads"])

    def train(number: int) -> float:
        nonlocal crowd
        if setup.get("adaptive"):
            crowd = crowding.adapted(crowd)
            crowding.use(crowd.threads)
        return take_step(student, rows, plan, number).loss

    with crowding.giving_way() if setup.get("give_way") else contextlib.nullcontext():
        serve(train if not setup.get("decode") else lambda _: decode(model, rows), wire)


if __name__ == "__main__":
    main()
