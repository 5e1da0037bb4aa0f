"""What a run was made from: hashes of its inputs, versions, machine; and whether these have changed since."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from tunewright.core import records, run_folder
from tunewright.core.config import Plan
from tunewright.core.errors import RunError
from tunewright.core.records import Lengths, MachineFacts, ModelFacts, ProtocolRecord, Receipt, TemplateFacts
from tunewright.data.dataset import Dataset
from tunewright.judge.protocol import Protocol
from tunewright.model.adapting import stored
from tunewright.runtime.context import Context, Work
from tunewright.runtime.inputs import Inputs
from tunewright.tokens.sequences import TrainRow, flat

PACKAGES = ("tunewright", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def input_hashes(data: Dataset, inputs: Inputs, plan: Plan) -> dict[str, str]:
    """Hashes of what the weights of a run depend on; checked at every stage and in every checkpoint."""
    fixed = plan.model_dump_json(exclude={"estimate", "reasons"})
    return {
        "data": data.sha256,
        "model": inputs.facts.sha256,
        "template": inputs.template.sha256,
        "plan": hashlib.sha256(fixed.encode()).hexdigest(),
        **({"start": stored.hashed(Path(plan.adapter.start))} if plan.adapter.start is not None else {}),
    }


def make(context: Context, inputs: Inputs, plan: Plan, protocol: Protocol) -> Receipt:
    """The receipt of a newly planned run."""
    template = inputs.template
    return Receipt(
        command=context.command,
        versions=versions(),
        hashes={
            **input_hashes(context.data, inputs, plan),
            "protocol": protocol.sha256,
            "documents": inputs.documents_sha256,
            "code": code_sha256(),
            "config": run_folder.sha256(context.run.config),
        },
        model=ModelFacts.model_validate(inputs.facts),
        template=TemplateFacts(kwargs=template.kwargs, note=template.reason, day=str(template.day or "")),
        machine=MachineFacts.model_validate(inputs.machine),
        seed=context.config.seed,
        threads=torch.get_num_threads(),
        instruction=context.data.instruction,
        tools=context.data.tools or None,
        lengths={side: _lengths(rows) for side, rows in inputs.rows.items() if rows},
    )


def check(work: Work) -> list[str]:
    """Compares a resumed run's inputs with its receipt. Returns the changes that may affect the last bits of further
    results: versions, code, processor, threads.

    Raises RESUME_MISMATCH, listing the changes, if data, model, template, plan, protocol or documents have changed.
    """
    receipt = records.read(work.run.receipt, Receipt)
    now = {**input_hashes(work.data, work.inputs, work.plan), "protocol": work.protocol.sha256}
    if "documents" in receipt.hashes:  # which older ones do not have
        now["documents"] = work.inputs.documents_sha256
    changed = [k for k in now if now[k] != receipt.hashes.get(k)]
    if changed:
        detail = "; ".join(f"{k} was {receipt.hashes.get(k, '')[:12]}, is {now[k][:12]}" for k in changed)
        if "protocol" in changed:
            detail += f" ({_protocol_changes(work.run.protocol, work.protocol)})"
        raise RunError(
            "RESUME_MISMATCH",
            f"inputs changed since the run started: {detail}.",
            where=str(work.run.path),
            fix="restore them, or start a new run.",
        )
    machine = work.inputs.machine
    current = {**versions(), "code": code_sha256(), "processor": machine.processor, "threads": str(machine.cores)}
    recorded = {
        **receipt.versions,
        "code": receipt.hashes["code"],
        "processor": receipt.machine.processor,
        "threads": str(receipt.threads),
    }
    return [
        f"{k} was {recorded.get(k, '')[:12]}, is {current[k][:12]}" for k in current if current[k] != recorded.get(k)
    ]


def _protocol_changes(file: Path, protocol: Protocol) -> str:
    before = records.read(file, ProtocolRecord).model_dump(mode="json")
    now = json.loads(json.dumps(asdict(protocol)))
    return "; ".join(f"{k} was {before.get(k)}, is {now[k]}" for k in now if now[k] != before.get(k))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}


def code_sha256() -> str:
    """A hash over all source files of this package."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def _lengths(rows: Sequence[TrainRow]) -> Lengths:
    """Token counts of the rendered sequences, and of the targets in them."""
    sequences = flat(rows)
    tokens, targets = [len(s.ids) for s in sequences], [s.supervised for s in sequences]
    numbers = {
        f"{name}_{quantile}": float(np.percentile(x, p))
        for quantile, p in (("median", 50), ("p95", 95), ("longest", 100))
        for name, x in (("tokens", tokens), ("targets", targets))
    }
    return Lengths(rows=len(sequences), **numbers)
