"""The model card, from the run's own files: what it is, what it was proven to do, how it was checked, how to load it."""

from __future__ import annotations

import json
from typing import Any

from tunewright.core.run_folder import Run, read_json, write_atomic
from tunewright.judge.verdict import doubts


def write(run: Run) -> None:
    """README.md in adapter/ and merged/, where they exist."""
    facts = {
        "verdict": read_json(run.verdict),
        "plan": read_json(run.plan),
        "receipt": read_json(run.receipt),
        "training": read_json(run.training),
        "export": read_json(run.export),
        "forgetting": read_json(run.forgetting),
    }
    for checked in facts["export"]:
        folder = run.adapter if checked["kind"] == "adapter" else run.merged
        write_atomic(folder / "README.md", _card(run.name, checked, facts))


def _card(name: str, checked: dict[str, Any], facts: dict[str, Any]) -> str:
    receipt = facts["receipt"]
    library = "peft" if checked["kind"] == "adapter" else "transformers"
    parts = [
        f"---\nbase_model: {json.dumps(receipt['model']['name'])}\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [tunewright]\n---",
        f"# {name} ({checked['kind']})",
        _proof(facts["verdict"]),
        _forgotten(facts["forgetting"]),
        _training(facts["plan"], facts["training"], receipt),
        _check(checked),
        _loading(checked, receipt),
        f"## Reproduce\n`{receipt['command']}` with tunewright {receipt['versions']['tunewright']}, torch {receipt['versions']['torch']}, "
        f"transformers {receipt['versions']['transformers']}; data sha256 {receipt['hashes']['data'][:16]}.",
    ]
    return "\n\n".join(parts) + "\n"


def _proof(v: dict[str, Any]) -> str:
    other, (low, high) = v["comparator"], v["interval"]
    arms = [f"| {a} | {d['score']:.4f} | [{d['interval'][0]:.4f}, {d['interval'][1]:.4f}] |" for a, d in v["arms"].items()]
    return "\n".join(
        [
            f"**{v['verdict']}**, compared with the best untrained arm ({other['name']}, chosen on {other['chosen_on']}): {v['metric']} {v['tuned']:.4f} against "
            f"{other['score']:.4f}, difference {v['difference']:+.4f}, {100 * (1 - v['alpha']):.0f} % interval [{low:+.4f}, {high:+.4f}], "
            f"on {v['n']} held-out rows ({v['test']})"
            + (f"; not shown to be better than {', '.join(unbeaten)}." if (unbeaten := doubts(v)) else "."),
            "",
            f"| arm | {v['metric']} | interval |",
            "|---|---|---|",
            *arms,
            "",
            "The claim is about these weights on rows like those held out.",
        ]
    )


def _forgotten(f: dict[str, Any]) -> str:
    if not f["measured"]:
        return "## Forgotten\nOther abilities of the base model were not measured: expect some to be weaker."
    lines = ["## Forgotten", "Expect abilities beside the task to be weaker; what was measured:"]
    for name in ("task", "generic"):
        if name in f:
            lines.append(
                f"- KL to the base on {f[name]['what']}: {f[name]['kl_bits'][-1]:.4f} bits a token ({f[name]['tokens']} tokens)"
            )
    for name, p in f.get("probes", {}).items():
        if "verdict" in p:
            lines.append(f"- {name}: {p['base']:.3f} before, {p['tuned']:.3f} after ({p['items']} items): {p['verdict']}")
    if f["chosen"] != 1.0:
        lines.append(f"- the weights hold {f['chosen']:g} of the trained update ({f['rule']})")
    return "\n".join(lines)


def _training(plan: dict[str, Any], done: dict[str, Any], receipt: dict[str, Any]) -> str:
    a = plan["adapter"]
    kind = (
        "all weights"
        if a["kind"] == "none"
        else f"{a['kind']}, rank {a['rank']}, alpha {a['alpha']:g}, on {', '.join(a['targets'])}"
    )
    lines = [
        "## Training",
        f"- base: `{receipt['model']['name']}` (sha256 {receipt['model']['sha256'][:16]}), {kind}",
        f"- {plan['rows']} training sequences, {plan['supervised_tokens']} supervised tokens; {done['steps']} steps of {plan['batch_size']} rows, "
        f"peak rate {plan['lr']:g}, seed {plan['seed']}",
    ]
    if done["best_dev_loss"] is not None:
        lines.append(
            f"- dev loss: {done['first_dev_loss']:.4f} before, {done['best_dev_loss']:.4f} at best (step {done['best_step']})"
        )
    return "\n".join(lines)


def _check(c: dict[str, Any]) -> str:
    return (
        f"## Checked after export\nLoaded in a fresh process with {c['loaded_with']}; {c['canaries']} held-out prompts in float32: largest "
        f"logit difference to the trained model **{c['largest_difference']:.2e}**, {c['same_texts']} of {c['canaries']} greedy texts equal. "
        f"Stored as {c['dtype']}."
    )


def _loading(checked: dict[str, Any], receipt: dict[str, Any]) -> str:
    path, base = checked["path"], receipt["model"]["path"]
    if checked["kind"] == "adapter":
        code = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{path}")',
        ]
    else:
        code = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'tokenizer = AutoTokenizer.from_pretrained("{path}")',
            f'model = AutoModelForCausalLM.from_pretrained("{path}")',
        ]
    day = receipt["template"].get("day")
    dated = (
        [f"Where its chat template wrote today's date it writes {day}, the day of training; `strftime_now` gives today's again."]
        if day
        else []
    )
    return "\n".join(["## Load", "```python", *code, "```", *dated])
