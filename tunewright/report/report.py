"""Run folder -> one self-contained HTML page. Loads no model, no network, no script; light, dark, phone and print.

In the order in which someone decides: the verdict, better than what, at what cost, forgetting what, was the data enough and
clean, which rows got worse; then how it was made, and how to make it again.
"""

from __future__ import annotations

import json
from typing import Any

from tunewright.core.run_folder import Run, read_json, read_lines, write_atomic
from tunewright.data.metrics import METRICS
from tunewright.judge.verdict import doubts
from tunewright.report import page, plots, sections
from tunewright.report.page import e as _e
from tunewright.report.page import table as _table

WORDS = {"BETTER": "good", "WORSE": "bad", "PRACTICALLY EQUAL": "even", "CANNOT TELL": "even"}
WORST = 20


def write(run: Run) -> None:
    """report.html and data/audit.html from what the run folder holds; what has not been measured is said."""
    receipt, plan, v, audit = read_json(run.receipt), read_json(run.plan), read_json(run.verdict), read_json(run.audit)
    nothing: dict[str, Any] = {}
    parts = [
        _head(run, v, plan, receipt),
        sections.arms(v),
        sections.cost(v.get("cost", nothing)),
        sections.forgetting(v.get("retention", nothing), v["metric"]),
        sections.mitigation(v.get("mitigation", nothing), v["metric"]),
        sections.curve(v.get("curve"), v, audit["ceiling"]),
        _audit(audit),
        _lengths(receipt),
        sections.crossfit(v.get("crossfit", nothing)),
        sections.cleaning(v.get("cleaning", nothing)),
        _rows(run, v),
        sections.calibration(v.get("calibration")),
        sections.internalised(v.get("internalised", nothing)),
        _training(run, plan),
        _exports(run),
        _plan(plan),
        _protocol(run, v, receipt),
    ]
    write_atomic(run.report, page.page(f"{run.name}: {v['verdict']}", parts))
    write_atomic(run.audit.with_suffix(".html"), audit_page(audit, run.name))


INSTEAD = {
    "zero_shot": "prompt the base model",
    "few_shot": "show the base model some rows in its prompt",
    "nearest": "show the base model the rows most similar to each question",
    "retrieval": "give the base model passages of your documents",
    "constant": "answer the commonest label",
    "remote": "ask the remote model",
    "base": "use the base model",
}


def audit_page(audit: dict[str, Any], title: str) -> str:
    """The audit alone, as `tunewright check --html` writes it."""
    return page.page(f"{title}: audit", [f"<h1>tunewright check {_e(title)}</h1>", _audit(audit)])


def _head(run: Run, v: dict[str, Any], plan: dict[str, Any], receipt: dict[str, Any]) -> str:
    metric, other = METRICS[v["metric"]].title, v["comparator"]["name"].replace("_", " ")
    confidence = f"{100 * (1 - v['alpha']):.0f} %"
    needed = f" About {v['rows_needed']} rows would." if v["rows_needed"] else ""
    sentence = {
        "BETTER": f"On {v['n']} held-out rows the tuned model is better than the best untrained arm ({other}).",
        "WORSE": f"On {v['n']} held-out rows the tuned model is worse than the best untrained arm ({other}). Do not use it: {INSTEAD.get(v['comparator']['name'], 'use that arm')} instead.",
        "PRACTICALLY EQUAL": f"On {v['n']} held-out rows the tuned model and the best untrained arm ({other}) differ by less than the margin of {v['margin']:g}.",
        "CANNOT TELL": f"{v['n']} held-out rows do not decide between the tuned model and the best untrained arm ({other}).{needed}",
    }[v["verdict"]]
    low, high = v["interval"]
    if unbeaten := doubts(v):
        also = " or ".join(name.replace("_", " ") for name in unbeaten)
        sentence = (
            f"On {v['n']} held-out rows the tuned model is better than the untrained arm that dev chose ({other}), but not shown to be "
            f"better than {also}: dev chose a weak one, and beating it is no ground to fine-tune."
        )
    small = (
        f" The lower end of the interval lies under the margin of {v['margin']:g} that you called useful."
        if v["verdict"] == "BETTER" and low < v["margin"]
        else ""
    )
    tiles = [
        (f"{v['tuned']:.3f}", f"tuned, {metric}"),
        (f"{v['comparator']['score']:.3f}", f"{other}"),
        (f"{v['difference']:+.3f}", f"{confidence} interval {low:+.3f} to {high:+.3f}"),
        (f"{plan['rows']}", f"training sequences, {plan['steps']} steps planned"),
    ]
    return (
        f'<h1>tunewright run {_e(run.name)} · {_e(receipt["model"]["name"])}</h1><p class="verdict {WORDS[v["verdict"]]}">{_e(v["verdict"])}</p><p class="lead">{_e(sentence + small)}</p>'
        + "".join(f'<p class="warning">{_e(told)}</p>' for told in sections.cautions(v))
        + page.tiles(tiles)
    )


def _rows(run: Run, v: dict[str, Any]) -> str:
    tuned = list(read_lines(run.scores / "tuned.jsonl"))
    other = list(read_lines(run.scores / f"{v['comparator']['name']}.jsonl"))
    sign = 1 if METRICS[v["metric"]].higher_is_better else -1
    change = sorted((sign * (a["score"] - b["score"]), i) for i, (a, b) in enumerate(zip(tuned, other, strict=True)))
    worse = [i for d, i in change if d < 0][:WORST]
    better = [i for d, i in reversed(change) if d > 0][:WORST]

    def show(i: int) -> str:
        a, b = tuned[i], other[i]
        asked = next((m["content"] for m in reversed(a["messages"]) if m["role"] == "user"), "")
        other_name = v["comparator"]["name"].replace("_", " ")
        return page.entry(
            [
                ("row", a["where"].rsplit("/", 1)[-1]),
                ("asked", asked),
                ("wanted", a["target"]),
                (other_name, f"{b['answer']}  [{b['score']:.3f}]"),
                ("tuned", f"{a['answer']}  [{a['score']:.3f}]"),
            ]
        )

    lost = sum(d < 0 for d, _ in change)
    won = sum(d > 0 for d, _ in change)
    none = '<p class="soft">None.</p>'
    return (
        f"<h2>Row by row</h2><p>{won} rows got better, {lost} got worse, {len(change) - won - lost} are unchanged against {_e(v['comparator']['name'].replace('_', ' '))}. A gain on average can hide losses: these are the worst.</p>"
        f"<h3>Worst regressions</h3>{''.join(map(show, worse)) or none}<h3>Largest gains</h3><details{'' if better else ' open'}><summary>show {len(better)}</summary>{''.join(map(show, better)) or none}</details>"
    )


def _training(run: Run, plan: dict[str, Any]) -> str:
    lines = list(read_lines(run.metrics))
    steps = [x for x in lines if "loss" in x]
    dev = [x for x in lines if "dev_loss" in x]
    done = read_json(run.training)
    chart = plots.losses(
        [x["step"] for x in steps],
        [x["loss"] for x in steps],
        [x["step"] for x in dev],
        [x["dev_loss"] for x in dev],
        done["best_step"],
    )
    early = "; stopped early, because the dev loss no longer fell" if done["stopped_early"] else ""
    guess = (
        f" The plan had foreseen {plan['estimate']['train_seconds']:.0f} s and {plan['estimate']['peak_gb']:.1f} GB."
        if plan["estimate"]
        else ""
    )
    kept = f" The weights of step {done['best_step']} were kept (lowest dev loss)." if done["best_step"] is not None else ""
    return f"<h2>Training</h2><figure>{chart}</figure><p>{done['steps']} steps in {done['seconds']:.0f} s ({done['tokens']} tokens){early}.{kept}{_e(guess)} Memory peak {done['peak_gb']:.1f} GB; {done['trained']:,} of {done['total']:,} weights were trained.</p>"


def _audit(a: dict[str, Any]) -> str:
    c = a["characters"]
    text = f"<h2>Was the data clean?</h2><p>{a['rows']} rows, read as <b>{_e(a['form'])}</b>; task: {_e(a['task']['kind'])} ({_e(a['task']['reason'])}). Characters a row: median {c['median']:.0f}, 95 % under {c['p95']:.0f}, longest {c['max']:.0f}. Sides: {', '.join(f'{n} {s}' for s, n in a['sides'].items())}.</p>"
    if a["findings"]:
        rows = "".join(
            f'<tr><td class="{f["level"]}">{_e(f["level"])}</td><td><code>{_e(f["code"])}</code></td><td>{_e(f["message"])}<br><span class="soft">{_e(", ".join(w.rsplit("/", 1)[-1] for w in f["where"][:6]))}{" ..." if len(f["rows"]) > 6 else ""}</span></td></tr>'
            for f in a["findings"]
        )
        text += f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    else:
        text += "<p>The audit flagged nothing. That is what was found, not a promise that the data is clean.</p>"
    if a["suspects"]:
        shown = [[x["where"].rsplit("/", 1)[-1], x["given"], x["likelier"], f"{x['chance']:.3f}"] for x in a["suspects"][:50]]
        text += f"<details><summary>labels that look wrong, the likeliest first ({len(a['suspects'])})</summary>{_table(['row', 'label', 'likelier', 'chance that it is wrong'], shown, [3])}</details>"
    if a["labels"]:
        text += _table(["label", "rows"], list(a["labels"].items())[:30], [1])
    if a["unused"]:
        text += (
            f'<p class="soft">Fields that nothing reads: {_e(", ".join(f"{k} ({n} rows)" for k, n in a["unused"].items()))}.</p>'
        )
    return text


def _lengths(receipt: dict[str, Any]) -> str:
    rows = [
        [
            side,
            *(
                f"{x[k]:.0f}"
                for k in ("rows", "tokens_median", "tokens_p95", "tokens_longest", "learned_median", "learned_longest")
            ),
        ]
        for side, x in receipt["lengths"].items()
    ]
    head = ["side", "sequences", "tokens, median", "95 % under", "longest", "learned, median", "longest"]
    return f"<p>Under the model's own template; a row that does not fit is refused or left out and named, never cut.</p>{_table(head, rows, range(1, 7))}"


def _exports(run: Run) -> str:
    if not run.export.exists():
        return "<h2>Exports</h2><p>Not exported yet.</p>"
    rows = [
        [
            x["kind"],
            x["dtype"],
            f"{x['largest_difference']:.1e}",
            f"{x['same_texts']} of {x['canaries']}",
            x["loaded_with"],
            x["path"],
        ]
        for x in read_json(run.export)
    ]
    return (
        "<h2>Exports, reloaded and compared</h2><p>Each was loaded in a fresh process and asked held-out prompts in float32; the difference is to the model as it was trained.</p>"
        + _table(["export", "stored as", "largest logit difference", "equal greedy texts", "loaded with", "folder"], rows, [2, 3])
    )


def _plan(plan: dict[str, Any]) -> str:
    why = plan["reasons"]
    skip = {"reasons", "estimate", "adapter"}
    rows = [[k, json.dumps(v) if isinstance(v, dict) else v, why.get(k, "")] for k, v in plan.items() if k not in skip]
    rows += [[f"adapter.{k}", json.dumps(v) if isinstance(v, list) else v, ""] for k, v in plan["adapter"].items()]
    if plan["estimate"]:
        rows.append(
            [
                "estimate",
                f"{plan['estimate']['train_seconds']:.0f} s, {plan['estimate']['peak_gb']:.1f} GB",
                plan["estimate"]["reason"],
            ]
        )
    return "<h2>The plan</h2><p>Fixed before training; nothing was changed afterwards.</p>" + _table(
        ["number", "value", "reason"], rows, [1], 2
    )


def _protocol(run: Run, v: dict[str, Any], receipt: dict[str, Any]) -> str:
    p = "less than 0.0001" if v["p_value"] < 1e-4 else f"{v['p_value']:.4f}"
    chosen = (
        f"The comparator is the untrained arm that did best on the {v['dev_rows']} dev rows."
        if v["comparator"]["chosen_on"] == "dev"
        else "The comparator is the untrained arm with the best score on the same test rows, which favours it."
    )
    told = f"{chosen} Test: {_e(v['test'])}, two-sided p {p}; {v['clusters']} independent groups in {v['n']} rows; the tuned model scored higher on {v['only_tuned']} rows, the comparator on {v['only_other']}. Margin {v['margin']:g}, alpha {v['alpha']:g}. The test rows of this run have been read {v['test_reads']} time{'s' if v['test_reads'] != 1 else ''}."
    planned = read_json(run.protocol)
    if planned["detectable"] is not None:
        told += f" Told before training: these rows can show differences of about {100 * planned['detectable']:.0f} points, if {planned['assumed']}."
    if again := v.get("again"):
        told += f" Asked a second time, the two arms changed {again['changed']} of their answers to {again['rows']} dev rows; their mean scores moved by {again['floor']:.4f} together, and no difference up to that is called one."
    tested = read_json(run.selftest) if run.selftest.exists() else {"findings": []}
    found = [[f["check"], f["told"]] for f in tested["findings"]]
    checks = _table(["before the first step", "found on rows of this run"], found) if found else ""
    facts = [
        *receipt["versions"].items(),
        *((f"sha256 of {k}", h) for k, h in receipt["hashes"].items()),
        (
            "machine",
            f"{receipt['machine']['processor']}, {receipt['machine']['cores']} threads, {receipt['machine']['memory_gb']} GB",
        ),
        ("seed", receipt["seed"]),
    ]
    moved = [what for e in read_lines(run.events) if e["event"] == "went_on_elsewhere" for what in e["what"]]
    if moved:
        checks += f'<p class="warning">The run was gone on with elsewhere: {_e("; ".join(dict.fromkeys(moved)))}. What came after may differ in the last bits.</p>'
    return f'<h2>Protocol and reproduction</h2><p>{told}</p>{checks}<div class="hash">{_table(["what", "value"], facts)}</div><p>Run it again:</p><pre>{_e(receipt["command"])}</pre>'
