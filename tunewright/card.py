"""The model card, from the run's own files: what it is, what it was proven to do, how it was checked, how to load it."""

from __future__ import annotations

import json
from typing import Any

from tunewright.runs import Run, read_json, write_atomic


def write(run: Run) -> None:
    """README.md in adapter/ and merged/, where they exist."""
    facts = {
        "verdict": read_json(run.verdict),
        "plan": read_json(run.plan),
        "receipt": read_json(run.receipt),
        "training": read_json(run.training),
        "export": read_json(run.export),
    }
    for checked in facts["export"]:
        folder = run.adapter if checked["kind"] == "adapter" else run.merged
        write_atomic(folder / "README.md", _card(run.name, checked, facts))


def _card(name: str, checked: dict[str, Any], facts: dict[str, Any]) -> str:
    v, plan, receipt, training = facts["verdict"], facts["plan"], facts["receipt"], facts["training"]
    base = receipt["model"]["name"]
    head = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: " + ("peft" if checked["kind"] == "adapter" else "transformers"),
        "pipeline_tag: text-generation",
        "tags: [tunewright]",
        "---",
        "",
    ]
    arms = [f"| {a} | {d['score']:.4f} | [{d['interval'][0]:.4f}, {d['interval'][1]:.4f}] |" for a, d in v["arms"].items()]
    adapter = plan["adapter"]
    kind = (
        "all weights"
        if adapter["kind"] == "none"
        else f"{adapter['kind']}, rank {adapter['rank']}, alpha {adapter['alpha']:g}, on {', '.join(adapter['targets'])}"
    )
    if checked["kind"] == "adapter":
        load = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'base = AutoModelForCausalLM.from_pretrained("{receipt["model"]["path"]}")',
            f'model = PeftModel.from_pretrained(base, "{checked["path"]}")',
        ]
    else:
        load = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'model = AutoModelForCausalLM.from_pretrained("{checked["path"]}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{checked["path"]}")',
        ]
    lines = [
        *head,
        f"# {name} ({checked['kind']})",
        "",
        f"**{v['verdict']}** than the best untrained arm ({v['comparator']['name']}): {v['metric']} {v['tuned']:.4f} against {v['comparator']['score']:.4f}, "
        f"difference {v['difference']:+.4f} with {100 * (1 - v['alpha']):.0f} % interval [{v['interval'][0]:+.4f}, {v['interval'][1]:+.4f}] on {v['n']} held-out rows ({v['test']}).",
        "",
        f"| arm | {v['metric']} | interval |",
        "|---|---|---|",
        *arms,
        "",
        "The claim is about this adapter on rows like those held out. Other abilities of the base model were not measured: expect some to be weaker.",
        "",
        "## Training",
        f"- base: `{base}` (sha256 {receipt['model']['sha256'][:16]}), {kind}",
        f"- rows: {plan['rows']} training sequences, {plan['supervised_tokens']} supervised tokens; {training['steps']} steps of {plan['batch']} rows, peak rate {plan['lr']:g}, seed {plan['seed']}",
        f"- dev loss: {training['first_dev_loss'] if training['first_dev_loss'] is not None else float('nan'):.4f} before, {training['best_dev_loss'] if training['best_dev_loss'] is not None else float('nan'):.4f} at best (step {training['best_step']})",
        "",
        "## Checked after export",
        f"Loaded in a fresh process with {checked['loaded_with']}; {checked['canaries']} held-out prompts in float32: largest logit difference to the trained model **{checked['largest_difference']:.2e}**, "
        f"{checked['same_texts']} of {checked['canaries']} greedy texts equal. Stored as {checked['dtype']}.",
        "",
        "## Load",
        "```python",
        *load,
        "```",
        "",
        "## Reproduce",
        f"`{receipt['command']}` with tunewright {receipt['versions']['tunewright']}, torch {receipt['versions']['torch']}, transformers {receipt['versions']['transformers']}; data sha256 {receipt['hashes']['data'][:16]}.",
        "",
    ]
    return "\n".join(lines)
