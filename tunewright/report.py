"""Run folder -> one self-contained HTML page. Loads no model, no network, no script; light, dark, phone and print."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tunewright import plots
from tunewright.metrics import HIGHER_IS_BETTER
from tunewright.runs import Run, read_json, read_lines, write_atomic

NAMES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "field_f1": "field F1 (mean over rows)",
    "chrf": "chrF (mean over rows)",
    "bits_per_byte": "bits per byte (lower is better)",
    "field_micro_f1": "field micro-F1",
    "valid_json": "valid JSON",
    "cut_answers": "answers cut at the limit",
    "corpus_chrf": "chrF (corpus)",
    "corpus_bits_per_byte": "bits per byte (corpus)",
}
WORDS = {"BETTER": "good", "WORSE": "bad", "PRACTICALLY EQUAL": "even", "CANNOT TELL": "even"}
CSS = """
:root{--ink:#17191c;--soft:#6d737b;--paper:#fff;--panel:#f5f6f4;--line:#dfe2de;--accent:#17694c;--other:#b4632a;--bad:#a92f2f;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e9ebe8;--soft:#9aa29c;--paper:#15181a;--panel:#1e2225;--line:#33393c;--accent:#5fc49c;--other:#e39a62;--bad:#ec8080}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:62rem;margin:0 auto;padding:2.2rem 1.2rem 4rem}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.8rem 0 .6rem;padding-top:1.1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}p{margin:.5rem 0;max-width:46rem}
.verdict{font-size:2.1rem;line-height:1.2;font-weight:700;margin:.1rem 0 .5rem;letter-spacing:-.01em}
.good{color:var(--accent)}.bad{color:var(--bad)}.even{color:var(--other)}.lead{font-size:1.1rem;max-width:48rem}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1.4rem 0 .4rem}
.tile{background:var(--panel);border-radius:.6rem;padding:.75rem .9rem}.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.86rem}
figure{margin:1rem 0;overflow-x:auto}svg{width:100%;max-width:46rem;height:auto;display:block}
.scroll{overflow-x:auto;margin:.7rem 0}table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;color:var(--soft);font-weight:600}th,td{padding:.42rem .8rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n,td:first-child{white-space:nowrap}th{vertical-align:bottom}td.why{color:var(--soft);min-width:16rem}
code,pre,.text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.84rem}
pre{background:var(--panel);padding:.8rem 1rem;border-radius:.6rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}
.row{background:var(--panel);border-radius:.6rem;padding:.8rem 1rem;margin:.7rem 0;break-inside:avoid}
.row dl{display:grid;grid-template-columns:6.2rem 1fr;gap:.25rem .8rem;margin:0}.row dt{color:var(--soft);font-size:.86rem}.row dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
details summary{cursor:pointer;color:var(--soft);margin:.6rem 0}.warning{color:var(--other)}.error{color:var(--bad)}.hash{overflow-wrap:anywhere}
@media(max-width:38rem){main{padding:1.2rem .9rem 3rem}.verdict{font-size:1.6rem}.row dl{grid-template-columns:1fr}.row dt{margin-top:.35rem}}
@media print{:root{--ink:#000;--paper:#fff;--panel:#f4f4f4;--line:#ccc;--soft:#555;--accent:#17694c;--other:#8a4717;--bad:#8f1d1d}main{max-width:none;padding:0}h2{break-after:avoid}details{display:block}body{font-size:11pt}}
"""


def write(run: Run) -> None:
    """report.html from what the run folder holds; a stage that has not run is left out and said."""
    receipt, plan, verdict = read_json(run.receipt), read_json(run.plan), read_json(run.verdict)
    parts = [
        _head(run, verdict, plan, receipt),
        _arms(verdict),
        _rows(run, verdict),
        _training(run, plan),
        _audit(read_json(run.audit)),
        _exports(run),
        _plan(plan),
        _protocol(run, verdict, receipt),
    ]
    title = html.escape(f"{run.name}: {verdict['verdict']}")
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title><style>{CSS}</style></head><body><main>{"".join(parts)}</main></body></html>\n'
    write_atomic(run.report, page)


def _e(value: object) -> str:
    return html.escape(str(value))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = (), why: int | None = None) -> str:
    """Cells are escaped. ``numbers``: columns set right; ``why``: the column that explains."""

    def cell(tag: str, i: int, value: object) -> str:
        kind = ' class="n"' if i in numbers else ' class="why"' if i == why and tag == "td" else ""
        return f"<{tag}{kind}>{_e(value)}</{tag}>"

    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{"".join(cell("th", i, h) for i, h in enumerate(head))}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(run: Run, v: dict[str, Any], plan: dict[str, Any], receipt: dict[str, Any]) -> str:
    metric, other = NAMES[v["metric"]], v["comparator"]["name"].replace("_", " ")
    confidence = f"{100 * (1 - v['alpha']):.0f} %"
    sentence = {
        "BETTER": f"On {v['n']} held-out rows the tuned model is better than the best untrained arm ({other}).",
        "WORSE": f"On {v['n']} held-out rows the tuned model is worse than the best untrained arm ({other}). Do not ship it.",
        "PRACTICALLY EQUAL": f"On {v['n']} held-out rows the tuned model and the best untrained arm ({other}) differ by less than the margin of {v['margin']:g}.",
        "CANNOT TELL": f"{v['n']} held-out rows do not decide between the tuned model and the best untrained arm ({other}). About {v['rows_needed']} rows would.",
    }[v["verdict"]]
    low, high = v["interval"]
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
        f'<div class="tiles">{"".join(f"<div class=tile><b>{_e(a)}</b><span>{_e(b)}</span></div>" for a, b in tiles)}</div>'
    )


def _arms(v: dict[str, Any]) -> str:
    names = list(v["arms"])
    data = [v["arms"][n] for n in names]
    bounded = HIGHER_IS_BETTER[v["metric"]]
    chart = plots.arms(
        names[::-1],
        [d["score"] for d in data[::-1]],
        [(d["interval"][0], d["interval"][1]) for d in data[::-1]],
        NAMES[v["metric"]],
        bounded,
    )
    extra = sorted({k for d in data for k in d["summary"]})
    rows = [
        [
            n.replace("_", " "),
            f"{d['score']:.4f}",
            f"{d['interval'][0]:.4f} to {d['interval'][1]:.4f}",
            *[f"{d['summary'][k]:.4f}" if k in d["summary"] else "" for k in extra],
            f"{d['prompt_tokens']:.0f}" if d["prompt_tokens"] else "",
            f"{d['seconds']:.0f}",
        ]
        for n, d in zip(names, data, strict=True)
    ]
    head = [
        "arm",
        NAMES[v["metric"]],
        f"{100 * (1 - v['alpha']):.0f} % interval",
        *[NAMES.get(k, k) for k in extra],
        "prompt tokens",
        "seconds",
    ]
    told = "".join(f"<li><b>{_e(n.replace('_', ' '))}</b>: {_e(d['description'])}</li>" for n, d in zip(names, data, strict=True))
    same = (
        f"decoding (greedy, at most {v['max_new_tokens']} new tokens) and the same parser"
        if v["task"] != "text"
        else "pieces of the documents"
    )
    return f"<h2>The arms</h2><p>All arms meet the same rows with the same base weights, the same {same}.</p><figure>{chart}</figure>{_table(head, rows, range(1, len(head)))}<ul>{told}</ul>"


def _rows(run: Run, v: dict[str, Any]) -> str:
    tuned = list(read_lines(run.scores / "tuned.jsonl"))
    other = list(read_lines(run.scores / f"{v['comparator']['name']}.jsonl"))
    sign = 1 if HIGHER_IS_BETTER[v["metric"]] else -1
    change = sorted((sign * (a["score"] - b["score"]), i) for i, (a, b) in enumerate(zip(tuned, other, strict=True)))
    worse = [i for d, i in change if d < 0][:10]
    better = [i for d, i in reversed(change) if d > 0][:5]

    def show(i: int) -> str:
        a, b = tuned[i], other[i]
        asked = next((m["content"] for m in reversed(a["messages"]) if m["role"] == "user"), "")
        pairs = [
            ("row", a["where"].rsplit("/", 1)[-1]),
            ("asked", asked),
            ("wanted", a["target"]),
            (v["comparator"]["name"].replace("_", " "), f"{b['answer']}  [{b['score']:.3f}]"),
            ("tuned", f"{a['answer']}  [{a['score']:.3f}]"),
        ]
        return f'<div class="row"><dl>{"".join(f"<dt>{_e(k)}</dt><dd class=text>{_e(str(t)[:1500])}</dd>" for k, t in pairs if t)}</dl></div>'

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
    text = f"<h2>The data</h2><p>{a['rows']} rows, read as <b>{_e(a['form'])}</b>; task: {_e(a['task']['kind'])} ({_e(a['task']['reason'])}). Characters a row: median {c['median']:.0f}, 95 % under {c['p95']:.0f}, longest {c['max']:.0f}. Sides: {', '.join(f'{n} {s}' for s, n in a['sides'].items())}.</p>"
    if a["findings"]:
        rows = "".join(
            f'<tr><td class="{f["level"]}">{_e(f["level"])}</td><td><code>{_e(f["code"])}</code></td><td>{_e(f["message"])}<br><span class="soft">{_e(", ".join(w.rsplit("/", 1)[-1] for w in f["where"][:6]))}{" ..." if len(f["rows"]) > 6 else ""}</span></td></tr>'
            for f in a["findings"]
        )
        text += f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    else:
        text += "<p>The audit flagged nothing. That is what was found, not a promise that the data is clean.</p>"
    if a["labels"]:
        text += _table(["label", "rows"], list(a["labels"].items())[:30], [1])
    if a["unused"]:
        text += (
            f'<p class="soft">Fields that nothing reads: {_e(", ".join(f"{k} ({n} rows)" for k, n in a["unused"].items()))}.</p>'
        )
    return text


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
    told = f"{chosen} Test: {_e(v['test'])}, two-sided p {p}; {v['clusters']} independent groups in {v['n']} rows; the tuned model scored higher on {v['only_tuned']} rows, the comparator on {v['only_other']}. Margin {v['margin']:g}, alpha {v['alpha']:g}. The test rows of this run have been read {v['test_reads']} time(s)."
    facts = [
        *receipt["versions"].items(),
        *((f"sha256 of {k}", h) for k, h in receipt["hashes"].items()),
        (
            "machine",
            f"{receipt['machine']['processor']}, {receipt['machine']['cores']} threads, {receipt['machine']['memory_gb']} GB",
        ),
        ("seed", receipt["seed"]),
    ]
    return f'<h2>Protocol and reproduction</h2><p>{told}</p><div class="hash">{_table(["what", "value"], facts)}</div><p>Run it again:</p><pre>{_e(receipt["command"])}</pre>'
