"""Prove: the untrained arms answer dev, which chooses; the chosen arms answer test, which claims; the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewright.core import run_folder
from tunewright.data.metrics import HIGHER_IS_BETTER
from tunewright.judge import calibration, corpus, evaluate, statistics
from tunewright.judge.arms.families import Arm
from tunewright.judge.evaluate import Score
from tunewright.judge.protocol import Protocol, doubts
from tunewright.run.session import Session

ArmResult = dict[str, Any]
REPEATED = 16
CALIBRATED = 400  # dev rows for the temperature and the hand-over: labels are scored fast, and 40 rows choose a threshold badly


def prove(session: Session) -> None:
    """Writes scores/, scores/dev/ and verdict.json; says the verdict."""
    data, task, run = session.data, session.data.task, session.run
    session.trained()
    on_dev: dict[str, float] = {}
    chosen: dict[str, Arm] = {}
    untrained = [s for variants in session.families.values() for s in variants if not s.trained]
    for family, variants in session.families.items():
        if session.rows("dev") and not variants[0].trained and len(untrained) > 1:
            on_dev |= {s.name: mean(answered(session, s, "dev")) for s in variants}
        chosen[family] = best(variants, on_dev, task.metric)
    run.event("test_read", rows=len(session.rows("test")))
    lines_of = {family: answered(session, system, "test") for family, system in chosen.items()}
    judged = (e for e in run_folder.read_lines(run.events) if e["event"] == "judged" and e["side"] == "test" and not e["branch"])
    spent = {e["arm"]: e["seconds"] for e in judged}
    found: dict[str, ArmResult] = {}
    for family, scores in lines_of.items():
        system = chosen[family]
        found[family] = {
            "description": system.description,
            "trained": system.trained,
            "variant": system.variant,
            "on_dev": on_dev.get(system.name),
            "lines": scores,
            "scores": [s["score"] for s in scores],
            "score": mean(scores),
            "summary": evaluate.summary(task, scores),
            "seconds": spent.get(system.name),
            "prompt_tokens": round(sum(s.get("prompt_tokens", 0) for s in scores) / len(scores), 1),
        }
    verdict = decide(found, session.protocol, [data.cluster[i] for i in session.rows("test")])
    verdict["variants_on_dev"] = on_dev
    if session.config.prove.evidence != "plain" and session.rows("dev"):
        verdict |= unsteady(verdict, _again(session, [chosen["tuned"], chosen[verdict["comparator"]["name"]]]))
    verdict["overlap"] = _without_overlap(session, found, verdict["comparator"]["name"])
    verdict["corpus"] = corpus.compare(
        task,
        found["tuned"]["lines"],
        found[verdict["comparator"]["name"]]["lines"],
        verdict["groups"],
        session.config.prove.significance,
    )
    if task.metric == "accuracy" and session.config.prove.evidence != "plain":
        all_dev = session.judged(run.scores / "dev" / "calibration.jsonl", "dev", chosen["tuned"], data.judged(CALIBRATED, "dev"))
        sides = (all_dev, answered(session, chosen["tuned"], "test"))
        dev, test = (([s["shares"] for s in lines], [s["target"] for s in lines]) for lines in sides)
        verdict["calibration"] = calibration.report(task.labels, dev, test, session.config.prove.target_accuracy)
    reads = sum(e["event"] == "test_read" for e in run_folder.read_lines(run.events))
    facts = {
        "task": task.kind,
        "max_new_tokens": session.answer_tokens,
        "test_reads": reads,
        "dev_rows": len(session.rows("dev")),
    }
    run_folder.write_json(run.verdict, {**verdict, **facts, "protocol": session.protocol.sha256})
    session.talk.say(sentence(verdict), "bold")


def _again(session: Session, systems: Sequence[Arm]) -> dict[str, Any]:
    """The instrument measured: some dev rows asked once more. ``floor``: how far the arms' mean scores moved, together."""
    floor, changed, rows = 0.0, 0, session.rows("dev")[:REPEATED]
    for system in systems:
        if system.says is None:
            file = session.run.scores / "again" / f"{system.name}.jsonl"
            first = answered(session, system, "dev")[: len(rows)]
            second = session.judged(file, "dev", system, rows)
            floor += abs(mean(first) - mean(second))
            changed += sum(a.get("answer") != b.get("answer") for a, b in zip(first, second, strict=True))
    return {"rows": len(rows), "changed": changed, "floor": floor}


def unsteady(verdict: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """What changes in the verdict: a difference that asking twice makes as well tells nothing."""
    within = verdict["verdict"] in ("BETTER", "WORSE") and abs(verdict["difference"]) <= again["floor"]
    return {"again": again, **({"verdict": "CANNOT TELL"} if within else {})}


def _without_overlap(session: Session, arms: dict[str, ArmResult], other: str) -> dict[str, Any] | None:
    """The comparison on the test rows that share no long run of words with training rows, where some do."""
    rows, flagged = session.rows("test"), set(session.data.overlap)
    kept = [k for k, i in enumerate(rows) if i not in flagged]
    if len(kept) in (0, len(rows)):
        return None
    tuned, base = ([arms[name]["scores"][k] for k in kept] for name in ("tuned", other))
    clusters = [session.data.cluster[rows[k]] for k in kept]
    c = session.protocol.compare(tuned, base, clusters)
    mine, theirs = sum(tuned) / len(kept), sum(base) / len(kept)
    return {
        "rows": len(rows) - len(kept),
        "tuned": mine,
        "comparator": theirs,
        "difference": c.difference,
        "interval": list(c.interval),
    }


def paired(session: Session, first: Sequence[float], second: Sequence[float]) -> statistics.Comparison:
    """``first`` - ``second`` on all test rows."""
    return session.protocol.compare(first, second, [session.data.cluster[i] for i in session.rows("test")])


def sentence(v: dict[str, Any]) -> str:
    """The verdict on one line."""
    other, (low, high) = v["comparator"], v["interval"]
    also = [f"{name} ({v['arms'][name]['score']:.3f})" for name in doubts(v)]
    return (
        f"{v['verdict']}: {v['metric']} tuned {v['tuned']:.3f}, {other['name']} {other['score']:.3f}, "
        f"difference {v['difference']:+.3f} [{low:+.3f}, {high:+.3f}] on {v['n']} held-out rows"
        + (f"; not shown to be better than {', '.join(also)}" if also else "")
    )


def mean(scores: Sequence[Score]) -> float:
    return float(sum(s["score"] for s in scores) / len(scores))


def best(variants: Sequence[Arm], on_dev: dict[str, float], metric: str) -> Arm:
    """The variant that dev liked best; the first where dev did not choose, and of equals."""
    if variants[0].name not in on_dev:
        return variants[0]
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    return max(variants, key=lambda s: sign * on_dev[s.name])


def answered(session: Session, system: Arm, side: str) -> list[Score]:
    """The scores of an arm on dev or test, a line a row in scores/."""
    file = session.run.scores / ("dev" if side == "dev" else "") / f"{system.name if side == 'dev' else system.family}.jsonl"
    return session.judged(file, side, system)


def decide(arms: dict[str, ArmResult], protocol: Protocol, clusters: list[int]) -> dict[str, Any]:
    """verdict.json from the arms' scores on test: tuned against the untrained arm that was best on dev. Where no dev row chose,
    it is the best on these very rows, which favours that arm. Every other arm is compared with tuned too: exploratory.

    Dev rows are few and may choose a weak comparator. So BETTER asks that every untrained arm is beaten, each at alpha: a union of
    null hypotheses, all of them rejected, needs no adjustment (Berger 1982, Technometrics 24:295). ``unbeaten`` names the others.
    """
    higher = protocol.higher_is_better
    untrained = {name: arm for name, arm in arms.items() if not arm["trained"]}
    on_dev = {name: arm["on_dev"] for name, arm in untrained.items() if arm["on_dev"] is not None}
    other = (max if higher else min)(untrained, key=lambda n: on_dev[n] if on_dev else arms[n]["score"])
    tuned = arms["tuned"]["scores"]
    against = {name: protocol.compare(tuned, arm["scores"], clusters) for name, arm in arms.items() if name != "tuned"}
    adjusted = dict(zip(against, statistics.holm([c.p_value for c in against.values()]), strict=True))
    shown = {}
    for name, arm in arms.items():
        interval = statistics.mean_interval(arm["scores"], clusters, protocol.alpha, protocol.bound)
        shown[name] = {**{k: v for k, v in arm.items() if k not in ("scores", "lines")}, "interval": list(interval)}
        if name in against:
            c = against[name]
            shown[name]["tuned_minus_this"] = {
                "difference": c.difference,
                "interval": list(c.interval),
                "p_value": c.p_value,
                "p_holm": adjusted[name],
            }
    facts = against[other].to_json()
    facts["n"] = facts.pop("rows")
    facts["unbeaten"] = [name for name in untrained if against[name].interval[0] <= 0]
    if facts["verdict"] == "BETTER" and facts["unbeaten"]:
        facts["verdict"] = "CANNOT TELL"
        facts["rows_needed"] = max(against[name].rows_needed or 0 for name in facts["unbeaten"]) or None
    return {
        "metric": protocol.metric,
        "tuned": arms["tuned"]["score"],
        "comparator": {
            "name": other,
            "score": arms[other]["score"],
            "variant": arms[other]["variant"],
            "chosen_on": "dev" if on_dev else "test",
            "on_dev": on_dev,
        },
        "arms": shown,
        "groups": clusters,
        **facts,
    }
