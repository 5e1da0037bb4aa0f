"""Prove: the untrained arms answer dev, which chooses; the chosen arms answer test, which decides; the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tunewright.core import run_folder
from tunewright.data.scores import Score, mean, mean_prompt_tokens
from tunewright.judge import calibration, corpus, statistics
from tunewright.judge.arms.arm import Arm
from tunewright.judge.calibration import Predictions
from tunewright.judge.verdict import ArmResult, RerunNoise, choose_variant, decide, sentence, with_rerun_noise
from tunewright.run.session import Session

REPEATED = 16
CALIBRATED = 400  # dev rows for temperature and hand-over: labels are scored fast, and 40 rows choose a threshold badly


def prove(session: Session) -> None:
    """Writes scores/, scores/dev/ and verdict.json; prints the verdict."""
    data, task, run = session.data, session.data.task, session.run
    session.trained()
    on_dev: dict[str, float] = {}
    chosen: dict[str, Arm] = {}
    untrained = [s for variants in session.families.values() for s in variants if not s.learned_from_rows]
    for family, variants in session.families.items():
        if session.rows("dev") and not variants[0].learned_from_rows and len(untrained) > 1:
            on_dev |= {s.name: mean(answered(session, s, "dev")) for s in variants}
        chosen[family] = choose_variant(variants, on_dev, task.metric.higher_is_better)
    run.event("test_read", rows=len(session.rows("test")))
    scores_of = {family: answered(session, arm, "test") for family, arm in chosen.items()}
    results = _results(session, chosen, scores_of, on_dev)
    verdict = decide(results, session.protocol, [data.cluster[i] for i in session.rows("test")])
    tuned, other = scores_of["tuned"], scores_of[verdict.comparator.name]
    again: dict[str, Any] = {}
    if session.config.prove.evidence != "plain" and session.rows("dev"):
        noise = _rerun(session, [chosen["tuned"], chosen[verdict.comparator.name]])
        verdict, again = with_rerun_noise(verdict, noise), {"again": dataclasses.asdict(noise)}
    record = {
        **verdict.to_json(),
        "variants_on_dev": on_dev,
        **again,
        "overlap": _without_overlap(session, tuned, other),
        "corpus": corpus.compare(task, tuned, other, verdict.clusters, session.config.prove.significance),
    }
    if task.metric.by_label and session.config.prove.evidence != "plain":
        dev = session.judged(run.scores / "dev" / "calibration.jsonl", "dev", chosen["tuned"], data.sample(CALIBRATED, "dev"))
        target = session.config.prove.target_accuracy
        record["calibration"] = calibration.report(task.labels, Predictions.of(dev), Predictions.of(tuned), target)
    reads = sum(e["event"] == "test_read" for e in run_folder.read_lines(run.events))
    facts = {
        "task": task.kind.name,
        "max_new_tokens": session.answer_tokens,
        "test_reads": reads,
        "dev_rows": len(session.rows("dev")),
    }
    run_folder.write_json(run.verdict, {**record, **facts, "protocol": session.protocol.sha256})
    session.talk.say(sentence(record), "bold")


def _results(
    session: Session, chosen: dict[str, Arm], scores_of: dict[str, list[Score]], on_dev: dict[str, float]
) -> dict[str, ArmResult]:
    events = run_folder.read_lines(session.run.events)
    judged = (e for e in events if e["event"] == "judged" and e["side"] == "test" and not e["branch"])
    seconds = {e["arm"]: e["seconds"] for e in judged}
    return {
        family: ArmResult(
            description=chosen[family].description,
            learned_from_rows=chosen[family].learned_from_rows,
            scores=tuple(s.score for s in scores),
            variant=chosen[family].variant,
            on_dev=on_dev.get(chosen[family].name),
            summary=session.data.task.summary(scores),
            seconds=seconds.get(chosen[family].name),
            prompt_tokens=round(mean_prompt_tokens(scores), 1),
        )
        for family, scores in scores_of.items()
    }


def _rerun(session: Session, arms: Sequence[Arm]) -> RerunNoise:
    """Estimates evaluation noise by re-running some dev rows."""
    floor, changed, rows = 0.0, 0, session.rows("dev")[:REPEATED]
    for arm in arms:
        if not arm.repeatable:
            file = session.run.scores / "again" / f"{arm.name}.jsonl"
            first = answered(session, arm, "dev")[: len(rows)]
            second = session.judged(file, "dev", arm, rows)
            floor += abs(mean(first) - mean(second))
            changed += sum(a.answer.text != b.answer.text for a, b in zip(first, second, strict=True))
    return RerunNoise(rows=len(rows), changed=changed, floor=floor)


def _without_overlap(session: Session, tuned: list[Score], other: list[Score]) -> dict[str, Any] | None:
    """The comparison on the test rows that share no long run of words with training rows; None if that is all or none."""
    rows, flagged = session.rows("test"), set(session.data.overlap)
    kept = [k for k, i in enumerate(rows) if i not in flagged]
    if len(kept) in (0, len(rows)):
        return None
    first, second = ([scores[k] for k in kept] for scores in (tuned, other))
    clusters = [session.data.cluster[rows[k]] for k in kept]
    c = session.protocol.compare([s.score for s in first], [s.score for s in second], clusters)
    return {"rows": len(rows) - len(kept), "tuned": mean(first), "comparator": mean(second), **c.estimate()}


def paired(session: Session, first: Sequence[Score], second: Sequence[Score]) -> statistics.Comparison:
    """``first`` - ``second`` on all test rows."""
    clusters = [session.data.cluster[i] for i in session.rows("test")]
    return session.protocol.compare([s.score for s in first], [s.score for s in second], clusters)


def answered(session: Session, arm: Arm, side: str) -> list[Score]:
    """The scores of an arm on dev or test, one line per row in scores/."""
    file = session.run.scores / ("dev" if side == "dev" else "") / f"{arm.name if side == 'dev' else arm.family}.jsonl"
    return session.judged(file, side, arm)
