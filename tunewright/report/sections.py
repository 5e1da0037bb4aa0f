"""The four questions as parts of the report: better than what, at what cost, forgetting what, with enough data? HTML, no model."""

from __future__ import annotations

from typing import Any

from tunewright.data.metrics import METRICS
from tunewright.report import plots
from tunewright.report.page import between, e, spaced, table

CUT = 0.2  # share of cut answers from which the verdict is told with a caution


def arms(v: dict[str, Any]) -> str:
    names = list(v["arms"])
    data = [v["arms"][n] for n in names]
    chart = plots.arms(
        names[::-1],
        [d["score"] for d in data[::-1]],
        [(d["interval"][0], d["interval"][1]) for d in data[::-1]],
        METRICS[v["metric"]].title,
        METRICS[v["metric"]].higher_is_better,
        v["comparator"]["name"],
    )
    rows = []
    for name, d in zip(names, data, strict=True):
        less = d.get("tuned_minus_this")
        rows.append(
            [
                spaced(name) + (" (comparator)" if name == v["comparator"]["name"] else ""),
                f"{d['score']:.4f}",
                between(d["interval"], 4),
                f"{d['on_dev']:.4f}" if d["on_dev"] is not None else "",
                f"{less['difference']:+.4f}, {between(less['interval'], 3, True)}" if less else "",
                ("< 0.0001" if less["p_holm"] < 1e-4 else f"{less['p_holm']:.4f}") if less else "",
            ]
        )
    short = METRICS[v["metric"]].title.split(" (")[0]
    head = ["arm", short, f"{100 * (1 - v['alpha']):.0f} % interval", "on dev", "tuned minus this", "p (Holm)"]
    told = "".join(f"<li><b>{e(spaced(n))}</b>: {e(d['description'])}</li>" for n, d in zip(names, data, strict=True))
    same = (
        f"decoding (greedy, at most {v['max_new_tokens']} new tokens) and the same parser"
        if v["task"] != "text"
        else "pieces of the documents"
    )
    return (
        f"<h2>Better than what?</h2><p>All arms meet the same rows with the same base weights, the same {same}. The comparison with "
        f"the comparator was declared before training; the others are exploratory, their p values adjusted together.</p>"
        f"<figure>{chart}</figure>{table(head, rows, range(1, len(head)))}{_classical(v)}{_corpus(v)}{_overlap(v)}"
        f"<details><summary>what each arm is, its other numbers, and what dev chose among</summary><ul>{told}</ul>{_others(v)}{_variants(v)}</details>"
    )


def cautions(v: dict[str, Any]) -> list[str]:
    """What someone who reads only the verdict must know as well."""
    found = []
    retention = v.get("retention", {})
    what = {"knowledge": "knowledge", "instructions": "following orders"}
    for name, told in (*retention.get("probes", {}).items(), ("keep", retention.get("keep", {}))):
        if told.get("verdict") == "WORSE":
            lost = f"{told['base']:.3f} before, {told['tuned']:.3f} now ({between(told['interval'], 3, True)})"
            found.append(f"It got worse at {what.get(name, 'the rows that must still work')}: {lost}.")
    if _classical(v):
        found.append("A TF-IDF classifier, trained in seconds, is not shown to be worse.")
    cut = {n: v["arms"][n]["summary"].get("cut_answers", 0.0) for n in ("tuned", v["comparator"]["name"])}
    if max(cut.values()) > CUT:
        told = " and ".join(f"{share:.0%} of the answers of {spaced(n)}" for n, share in cut.items())
        found.append(f"{told} were cut at {v['max_new_tokens']} tokens: their ends are not judged (prove.max_new_tokens).")
    return found


def _others(v: dict[str, Any]) -> str:
    """The numbers of every arm beside the one that the verdict is about."""
    extra = sorted({k for d in v["arms"].values() for k in d["summary"]})
    rows = [
        [
            spaced(n),
            *(f"{d['summary'][k]:.4f}" if k in d["summary"] else "" for k in extra),
            f"{d['prompt_tokens']:.0f}" if d["prompt_tokens"] else "",
        ]
        for n, d in v["arms"].items()
    ]
    return table(["arm", *(METRICS[k].title for k in extra), "prompt tokens"], rows, range(1, len(extra) + 2))


def _classical(v: dict[str, Any]) -> str:
    arm = v["arms"].get("classical")
    if arm is None:
        return ""
    less = arm["tuned_minus_this"]
    if less["interval"][0] > 0:
        return ""
    return (
        f'<p class="warning">A TF-IDF classifier, trained in seconds and without a language model, scores {arm["score"]:.3f}: these rows '
        f"do not show that the tuned model is better (difference {less['difference']:+.3f}, {between(less['interval'], 3, True)}).</p>"
    )


def _corpus(v: dict[str, Any]) -> str:
    c = v.get("corpus")
    if not c or c["metric"] == v["metric"]:
        return ""
    interval = (
        f", interval {between(c['interval'], 3, True)} (BCa bootstrap over groups)"
        if c["interval"]
        else f" ({c.get('note', '')})"
    )
    return (
        f"<p>{e(METRICS[c['metric']].title)} over all rows together: tuned {c['tuned']:.4f}, comparator {c['comparator']:.4f}, "
        f"difference {c['difference']:+.4f}{e(interval)}.</p>"
    )


def _overlap(v: dict[str, Any]) -> str:
    o = v.get("overlap")
    if not o:
        return ""
    return (
        f'<p class="warning">Test rows that share a run of 13 words with training rows: {o["rows"]}. Without them: tuned {o["tuned"]:.4f}, '
        f"comparator {o['comparator']:.4f}, difference {o['difference']:+.4f}, {between(o['interval'], 3, True)}.</p>"
    )


def _variants(v: dict[str, Any]) -> str:
    tried = v.get("variants_on_dev", {})
    return table(["variant", "on dev"], [[spaced(n), f"{s:.4f}"] for n, s in tried.items()], [1]) if tried else ""


def cost(c: dict[str, Any]) -> str:
    if not c.get("measured"):
        return (
            "<h2>What does a request cost?</h2><p>Not timed. <code>prove.evidence=full</code> times the tuned model against the base "
            "with its prompt, cached and not.</p>"
        )
    rows = []
    for name, w in c["ways"].items():
        cached = f"\n{w['cached_tokens']} cached" if w["cached_tokens"] else ""
        rows.append(
            [
                name,
                f"{w['prompt_tokens']:.0f}{cached}",
                f"{w['answer_tokens']:.0f}",
                *(
                    f"{w[k][q][0]:.2f}\n{between(w[k][q][1:], 2)}"
                    for k, q in (("first_token", "p50"), ("seconds", "p50"), ("seconds", "p95"))
                ),
                f"{w['requests_per_second_together']:.2f}",
            ]
        )
    head = [
        "",
        "prompt tokens",
        "answer tokens",
        "first token, s",
        "answer p50, s",
        "answer p95, s",
        "requests/s",
    ]
    return (
        f"<h2>What does a request cost?</h2><p>{c['requests']} test prompts, one by one, the ways in turn and in shuffled order, on the machine of "
        f"this run; intervals are 95 %, from order statistics; requests a second with {c['together']} together. A prompt that a server keeps in its prefix cache is cheap: compare with that line.</p>"
        f"{table(head, rows, range(1, len(head)))}{_money(c.get('money'))}"
    )


def _money(m: dict[str, Any] | None) -> str:
    if not m:
        return '<p class="soft">No prices were given (<code>cost.price_per_hour</code>), so no sum is told.</p>'
    lines = [[name, f"{price:.4f}"] for name, price in m["per_thousand"].items()]
    if m["break_even_requests"] is not None:
        told = f"Training and judging ({m['training_and_judging']:.3f}) is paid for after {m['break_even_requests']:,} requests."
    else:
        told = f"No break-even is told: {m['why_not']}."
    return f"{table(['a thousand requests, by the hour of this machine', 'price'], lines, [1])}<p>{e(told)}</p>"


def forgetting(f: dict[str, Any], metric: str) -> str:
    head = "<h2>What was forgotten?</h2>"
    if not f.get("measured"):
        return f"{head}<p>Not measured (<code>prove.evidence=plain</code>).</p>"
    rows = []
    for name in ("task", "generic"):
        if name in f:
            t = f[name]
            for i, scale in enumerate(f["scales"]):
                interval = between(t["kl_interval"][i], 4) if t["kl_interval"][i] else ""
                rows.append(
                    [
                        f"{t['what']}" if i == 0 else "",
                        f"{scale:g}",
                        f"{t['kl_bits'][i]:.4f}",
                        interval,
                        f"{t['delta_bits'][i]:+.4f}",
                        f"{t['delta_bits_per_byte'][i]:+.4f}" if "bytes" in t else "",
                        f"{t['base_bits']:.3f}",
                        f"{t['tokens']}",
                    ]
                )
    parts = [
        head,
        "<p>How far the tuned model's next-token shares lie from the base's (KL, bits a token; 0 is the base itself), and how many bits "
        "more it needs for a token. Some is always lost; the question is how much, and of what.</p>",
        table(
            ["text", "share of the update", "KL", "95 % interval", "more bits a token", "a byte", "base, bits a token", "tokens"],
            rows,
            range(1, 8),
        ),
    ]
    if "sweep" in f and "task" in f:
        dev = [f["sweep"]["dev"][f"{s:g}"] for s in f["scales"]]
        kl = f["generic" if "generic" in f else "task"]["kl_bits"]
        parts.append(f"<figure>{plots.pareto(f['scales'], kl, dev, METRICS[metric].title, f['sweep']['chosen'])}</figure>")
        kept = (
            "was kept"
            if f["chosen"] == f["sweep"]["chosen"]
            else "would be kept by <code>forget.apply_best_scale=true</code>; this run keeps the whole update"
        )
        parts.append(f"<p>Rule: {e(f['rule'])}. By it a share of <b>{f['sweep']['chosen']:g}</b> {kept}.</p>")
    parts += [_probes(f), _kept(f)]
    return "".join(parts)


def mitigation(m: dict[str, Any], metric: str) -> str:
    if not m.get("measured"):
        return ""
    rows = [
        [
            name,
            f"{w['dev']:.4f}",
            *(
                f"{w[k][x]:{'+' if x == 'delta_bits' else ''}.4f}" if k in w else ""
                for k in ("task", "generic")
                for x in ("kl_bits", "delta_bits")
            ),
        ]
        for name, w in m["ways"].items()
    ]
    head = ["trained", f"dev {METRICS[metric].title}", "KL on task text", "more bits", "KL on generic text", "more bits"]
    return f"{table(head, rows, range(1, 6))}<p>Rule: {e(m['rule'])}. It chooses <b>{e(m['chosen'])}</b>; the run itself is as it was planned.</p>"


def _probes(f: dict[str, Any]) -> str:
    found = f.get("probes")
    if not found:
        return (
            '<p class="soft">Probes of knowledge and of following instructions are part of <code>prove.evidence=full</code>.</p>'
        )
    what = {
        "knowledge": "knowledge, one of four",
        "instructions": "orders, checked by a program",
        "refusal": "refuses the harmful",
        "over_refusal": "refuses the harmless",
    }
    rows = []
    for name, p in found.items():
        if "items" in p:
            rows.append(
                [
                    what[name],
                    p["items"],
                    f"{p['base']:.3f}",
                    f"{p['tuned']:.3f}",
                    f"{p['difference']:+.3f}",
                    between(p["interval"], 3, True),
                    f"{p['lost']}, {p['won']}",
                    p.get("verdict", ""),
                    f"{p['detectable']:.3f}",
                ]
            )
    told = table(
        ["probe", "items", "base", "tuned", "difference", "95 % interval", "lost, won", "word", "could show"], rows, range(1, 9)
    )
    if kinds := found["instructions"].get("kinds"):
        lines = [[k, p["items"], f"{p['base']:.2f}", f"{p['tuned']:.2f}"] for k, p in kinds.items()]
        told += (
            "<details><summary>orders by kind: which forms were lost or won</summary>"
            f"{table(['what a program looks for', 'items', 'base', 'tuned'], lines, [1, 2, 3])}</details>"
        )
    if not found["refusal"]["measured"]:
        told += f'<p class="soft">The base refuses {100 * found["refusal"]["base_rate"]:.0f} % of harmful requests: there is no refusal to lose, so the pair is not told.</p>'
    return told


def _kept(f: dict[str, Any]) -> str:
    k = f.get("keep")
    if not k:
        return ""
    return (
        f"<p>Your rows that must still work ({k['items']}, {e(METRICS[k['metric']].title)}): base {k['base']:.3f}, tuned {k['tuned']:.3f}, "
        f"difference {k['difference']:+.3f} ({between(k['interval'], 3, True)}): {e(k['verdict'])}. So many rows show a loss of about {k['detectable']:.3f} or more.</p>"
    )


def curve(c: dict[str, Any] | None, v: dict[str, Any], ceiling: float | None) -> str:
    head = "<h2>Was the data enough?</h2>"
    if c is None:
        return f"{head}<p>Not measured. <code>tunewright curve RUN</code> trains on half of the rows and compares; <code>--full</code> draws the curve.</p>"
    d, n = c["doubling"], [p["rows"] for p in c["points"]]
    chart = plots.curve(
        n,
        [p["seeds"] for p in c["points"]],
        v["comparator"]["score"],
        ceiling,
        c["forecast"] if c["forecast"].get("told") else None,
        METRICS[v["metric"]].title,
    )
    own, *others = c["points"][-1]["seeds"]
    noise = (
        f" On all rows this run scored {own:.3f}, other seeds {' and '.join(f'{s:.3f}' for s in others)}: the verdict above is of these weights, "
        "this curve of the recipe."
        if others
        else " One seed each: what another seed would change is not in the interval."
    )
    f = c["forecast"]
    forecast = (
        f"Forecast for {f['rows']} rows: {f['score']:.3f} ({between(f['interval'])}, 90 %); the same method, given all but the last point, foretold "
        f"{f['back_test']['predicted']:.3f} where {f['back_test']['measured']:.3f} was measured."
        if f.get("told")
        else f"No forecast: {f['why']}."
    )
    return (
        f"{head}<p>From {n[-2]} to {n[-1]} rows the score changed by <b>{d['gain']:+.3f}</b> ({between(d['interval'], 3, True)}): more data of this kind "
        f'<b>{e(d["word"])}</b>.{noise} {e(forecast)}</p><figure>{chart}</figure><p class="soft">{e(c["recipe"])}.</p>'
    )


def internalised(i: dict[str, Any]) -> str:
    if not i.get("measured"):
        return ""
    tokens = i["prompt_tokens"]
    own = " The model's template writes a system message of its own where there is none, so little is saved here."
    own = own if tokens["student"] > 0.9 * tokens["teacher"] else ""
    return (
        f"<h2>The prompt as weights</h2><p>A student learned from the base's own answers under the instruction ({i['prompts']} prompts, no gold answer) "
        f"and is asked without it: {i['student']:.4f} against the base's {i['teacher']:.4f} with it, difference {i['difference']:+.4f} "
        f"({between(i['interval'], 3, True)}): {e(i['verdict'])}. {100 * i['same_answers']:.0f} % of the answers are the same; {tokens['student']:.0f} prompt tokens "
        f"instead of {tokens['teacher']:.0f}.{own}</p>"
    )


def crossfit(c: dict[str, Any]) -> str:
    if not c.get("measured"):
        return ""
    where = [x["where"].rsplit("/", 1)[-1] for x in c["suspects"][:50]]
    if "rate" in c:
        rows = [[w, x["given"], x["likelier"], f"{x['chance']:.3f}"] for w, x in zip(where, c["suspects"], strict=False)]
        head = ["row", "label", "likelier", "chance that it is wrong"]
        told = (
            f"some {c['expected']:.0f} of them are expected to be wrong; in all {c['rate']:.1%} ({between([100 * x for x in c['interval']], 1)} %), "
            "if wrong labels fall at random"
        )
    else:
        rows = [[w, f"{x['nats_over_base']:+.3f}"] for w, x in zip(where, c["suspects"], strict=False)]
        head = ["row", "nats a token, over the base's"]
        told = "the twentieth of the rows that training on others helped least"
    if not rows:
        return f"<p>A model trained on the other rows calls no row suspect; wrong labels in all: {c['rate']:.1%} ({between([100 * x for x in c['interval']], 1)} %), if they fall at random: labels that are wrong in one systematic way look right to it.</p>"
    return (
        f"<p>A model trained on the other rows calls {len(c['suspects'])} rows suspect ({e(told)}).</p>"
        f"<details><summary>the likeliest first</summary>{table(head, rows, [len(head) - 1])}</details>"
    )


def cleaning(c: dict[str, Any]) -> str:
    if not c.get("flagged"):
        return ""
    what = ", ".join(f"{n} {k}" for k, n in c["flagged"].items())
    if not c["measured"]:
        return f"<p>Flagged: {e(what)}. Whether the run would be better without them is not measured (<code>--prove-cleaning</code>); nothing was dropped.</p>"
    return (
        f"<p>Trained without the flagged rows ({e(what)}), on {c['rows']} rows: {c['cleaned']:.4f} against {c['as_is']:.4f} as it is, difference "
        f"{c['difference']:+.4f} ({between(c['interval'], 3, True)}): {e(c['verdict'])}. The run itself keeps all rows.</p>"
    )


def calibration(c: dict[str, Any] | None) -> str:
    if not c:
        return ""
    given, mended = c["as_given"], c["tempered"]
    rows = [
        [name, f"{s['ece']:.4f}", between(s["ece_interval"], 4), f"{s['log_loss']:.4f}", f"{s['brier']:.4f}"]
        for name, s in (("as it comes", given), (f"at temperature {c['temperature']:.2f} (from dev)", mended))
    ]
    few = "" if c["enough_rows"] else f" With {c['rows']} rows, read them as a hint."
    h = c.get("handover")
    hand = (
        f"If only answers of at least {h['threshold']:.3f} confidence are given (threshold from dev, for {100 * c['wanted']:.0f} % right), the model answers "
        f"{100 * h['answered']:.0f} % of the test rows itself, {100 * h['accuracy']:.1f} % of them right ({between([100 * x for x in h['interval']], 1)}); the rest goes to a person."
        if h and h["accuracy"] is not None
        else f"No threshold gave {100 * c['wanted']:.0f} % right answers on dev, so none is told."
    )
    return (
        f"<h2>Does it know when it is wrong?</h2><p>Expected calibration error: how far its confidence lies from the share that is right.{few}</p>"
        + table(["shares", "calibration error", "95 % interval", "log loss", "Brier score"], rows, range(1, 5))
        + f"<figure>{plots.risk_coverage(c['curve'], h['threshold'] if h else None)}</figure><p>{e(hand)}</p>"
    )
