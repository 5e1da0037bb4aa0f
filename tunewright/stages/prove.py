"""Prove: evaluates the untrained arms on dev to choose a variant of each, then all chosen arms on test for the
verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.core import records
from tunewright.core.records import Event, TopicContrast, Verdict
from tunewright.data import metrics
from tunewright.data.messages import Chat
from tunewright.data.scores import Score, mean, mean_prompt_tokens
from tunewright.data.task import GENERATION
from tunewright.judge import calibration, corpus, field_errors, statistics
from tunewright.judge.arms import decodings
from tunewright.judge.arms.arm import Arm
from tunewright.judge.calibration import Predictions
from tunewright.judge.search import embedding_index
from tunewright.judge.verdict import RerunNoise, ScoredArm, choose_comparator, choose_variant, final_verdict, sentence
from tunewright.judge.voice import report as voice_report
from tunewright.judge.voice import topic as topics
from tunewright.runtime import branches, weights
from tunewright.runtime.answers import AnswerRequest
from tunewright.runtime.context import Work
from tunewright.runtime.sizes import CALIBRATED, repeated
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import fine_tuning
from tunewright.stages.stage import Stage


def prove(work: Work) -> Verdict:
    """Writes scores/ and scores/dev/."""
    data, inputs, config = work.data, work.inputs, work.config.prove
    trained = weights.at_chosen_scale(work.run, work.plan)
    on_dev, chosen = _choose(work, trained)
    work.run.event("test_read", rows=len(inputs.test))
    scores_of = _on_test(work, chosen, trained)
    arms = _scored_arms(work, chosen, scores_of, on_dev)
    comparator = choose_comparator(arms, data.task.metric.higher_is_better)
    tuned, other = scores_of["tuned"], scores_of[comparator.name]
    facts: dict[str, Any] = {}
    noise = None
    if config.evidence != "plain":
        noise = _rerun(work, [(chosen["tuned"], tuned), (chosen[comparator.name], other)], trained)
        facts["rerun"] = dataclasses.asdict(noise)
    clusters = [data.cluster[i] for i in inputs.test]
    topic = facts["topic"] = _topic(work, chosen["tuned"], trained, tuned, clusters)
    decision = final_verdict(arms, comparator, work.protocol, clusters, noise, topic)
    if data.task.metric.by_label and config.evidence != "plain" and inputs.dev:
        facts["calibration"] = _calibration(work, chosen["tuned"], trained, tuned, statistics.kish_ratio(clusters))
    if data.task.kind is GENERATION and config.evidence != "plain":
        chats = [e for i in data.side("train") if isinstance(e := data.examples[i], Chat)]
        training = [m.text for chat in chats for m in chat.messages if m.role == "assistant" and m.trained]
        folder = config.embedder
        encoder = (Path(folder).name, embedding_index.encoder(folder)) if folder else None
        facts["voice"] = voice_report.voice(scores_of, training, decision.clusters, config.significance, encoder)
    record = {
        **decision.to_json(),
        **facts,
        "variants_on_dev": on_dev,
        "overlap": _without_overlap(work, tuned, other),
        "corpus": corpus.compare(data.task, tuned, other, decision.clusters, config.significance),
        "fields": field_errors.by_field(data.task, [data.examples[i] for i in inputs.test], tuned, other),
        "task": data.task.kind.name,
        "max_new_tokens": work.plan.max_new_tokens,
        "test_reads": records.count_test_reads(records.read_lines(work.run.events, Event)),
        "dev_rows": len(inputs.dev),
        "protocol": work.protocol.sha256,
    }
    return Verdict.model_validate(record, strict=False)


def _choose(work: Work, trained: Weights) -> tuple[dict[str, float], dict[str, Arm]]:
    """Dev scores of the untrained variants, and the variant of each family that answers test, in the decoding that dev
    prefers (with plain evidence or without dev rows, in the first of prove.decoding)."""
    inputs, metric = work.inputs, work.data.task.metric
    untrained = [arm for variants in inputs.arms.values() for arm in variants if arm.can_be_comparator]
    known: dict[str, list[Score]] = {}

    def ask(arms: Sequence[Arm]) -> None:
        new = [arm for arm in arms if arm.name not in known]
        known.update(zip((arm.name for arm in new), work.answers.of_all(new, "dev", trained), strict=True))

    if inputs.dev and len(untrained) > 1:
        ask(untrained)
    on_dev = {arm.name: mean(known[arm.name]) for arm in untrained if arm.name in known}
    chosen = {
        family: choose_variant(variants, on_dev, metric.higher_is_better) for family, variants in inputs.arms.items()
    }
    own = {f: arm for f, arm in chosen.items() if not arm.branch}  # a branch is not trained yet
    decoded = {f: decodings.candidates(arm, work.data.task, work.config.prove.decoding) for f, arm in own.items()}
    several = inputs.dev and work.config.prove.evidence != "plain"
    tried = {f: candidates if several else candidates[:1] for f, candidates in decoded.items() if candidates}
    comparable = [f for f in tried if chosen[f].can_be_comparator and len(untrained) > 1]
    if inputs.dev:
        ask([c for f, candidates in tried.items() if len(candidates) > 1 or f in comparable for c in candidates])
    for family, candidates in tried.items():
        answered = {c.name: known[c.name] for c in candidates if c.name in known}
        values = {name: decodings.value(scores) for name, scores in answered.items()}
        chosen[family] = choose_variant(candidates, values, higher_is_better=True)
        on_dev |= {name: mean(scores) for name, scores in answered.items() if family in comparable}
    for family, arm in chosen.items():
        if arm.branch:
            decoding = [chosen["tuned"].decoding]
            chosen[family] = next(iter(decodings.candidates(arm, work.data.task, decoding)), arm)
    return on_dev, chosen


def _on_test(work: Work, chosen: Mapping[str, Arm], trained: Weights) -> dict[str, list[Score]]:
    """The scores of each family's arm on test; a branch whose weights answer is trained first."""
    own = {family: arm for family, arm in chosen.items() if not arm.branch}
    scores = dict(zip(own, work.answers.of_all(list(own.values()), "test", trained), strict=True))
    for family, arm in chosen.items():
        if arm.branch:
            answering = branches.trained(work, fine_tuning.answers(work))
            file = work.run.scores / f"{family}.jsonl"
            request = AnswerRequest(arm, "test", work.inputs.test, file, arm.branch)
            scores[family] = work.answers.scores(request, answering)
    return {family: scores[family] for family in chosen}


def _scored_arms(
    work: Work, chosen: Mapping[str, Arm], scores_of: Mapping[str, list[Score]], on_dev: Mapping[str, float]
) -> dict[str, ScoredArm]:
    judged = records.judged(records.read_lines(work.run.events, Event))
    seconds = {j.file: j.seconds for j in judged}
    return {
        family: ScoredArm(
            description=chosen[family].description,
            trained=chosen[family].trained,
            scores=tuple(s.score for s in scores),
            variant=chosen[family].variant,
            decoding=chosen[family].decoding,
            on_dev=on_dev.get(chosen[family].name),
            summary=work.data.task.summary(scores),
            seconds=seconds.get(f"scores/{family}.jsonl"),
            prompt_tokens=round(mean_prompt_tokens(scores), 1),
            checks=tuple(s.readings.check for s in scores if s.readings and s.readings.check is not None),
        )
        for family, scores in scores_of.items()
    }


def _rerun(work: Work, on_test: Sequence[tuple[Arm, Sequence[Score]]], trained: Weights) -> RerunNoise:
    """Estimates evaluation noise: the arms answer some test rows again, which now share a batch with other rows."""
    floor, changed, rows = 0.0, 0, work.inputs.test[: repeated(len(work.inputs.test))]
    work.run.event("rerun", side="test", rows=len(rows))
    for arm, scores in on_test:
        if not arm.deterministic:
            file = work.run.scores / "rerun" / f"{arm.name}.jsonl"
            first, second = scores[: len(rows)], work.answers.scores(AnswerRequest(arm, "test", rows, file), trained)
            floor += abs(mean(first) - mean(second))
            changed += sum(a.answer.text != b.answer.text for a, b in zip(first, second, strict=True))
    return RerunNoise(rows=len(rows), changed=changed, floor=floor)


def _topic(
    work: Work, tuned: Arm, trained: Weights, on_test: Sequence[Score], clusters: Sequence[int]
) -> TopicContrast | None:
    """Reads the reference answers of free text after other rows' questions."""
    data = work.data
    if data.task.kind is not GENERATION or data.task.metric.name not in decodings.DECIDED_BY:
        return None
    rows = [data.examples[i] for i in work.inputs.test]
    prompts = [tuned.prompt(e) for e in rows]
    pairs = [(i, j) for i, j in enumerate(topics.partners(prompts, clusters)) if j is not None]
    with work.answers.chat_model(trained) as model:
        other = model.likelihoods([prompts[j] for _, j in pairs], [rows[i].messages[-1] for i, _ in pairs])
    own = [r.reference_bits for i, _ in pairs if (r := on_test[i].readings) and r.reference_bits is not None]
    assert len(own) == len(pairs)
    bits = [metrics.bits_per_byte(one.nats, one.bytes) for one in other]
    return topics.topic(own, bits, [clusters[i] for i, _ in pairs])


def _calibration(work: Work, tuned: Arm, trained: Weights, on_test: Sequence[Score], ratio: float) -> dict[str, Any]:
    rows = work.inputs.short_enough(work.data.sample(CALIBRATED, "dev"))
    file = work.run.scores / "dev" / "calibration.jsonl"
    on_dev = work.answers.scores(AnswerRequest(tuned, "dev", rows, file), trained)
    target = work.config.prove.target_accuracy
    return calibration.report(work.data.task.labels, Predictions.of(on_dev), Predictions.of(on_test), target, ratio)


def _without_overlap(work: Work, tuned: list[Score], other: list[Score]) -> dict[str, Any] | None:
    """The comparison on the test rows that share no long run of words with training rows; None if that is all of them
    or none."""
    rows, flagged = work.inputs.test, set(work.data.overlap)
    kept = [k for k, i in enumerate(rows) if i not in flagged]
    if len(kept) in (0, len(rows)):
        return None
    first, second = ([scores[k] for k in kept] for scores in (tuned, other))
    clusters = [work.data.cluster[rows[k]] for k in kept]
    c = work.protocol.compare([s.score for s in first], [s.score for s in second], clusters)
    return {"rows": len(rows) - len(kept), "tuned": mean(first), "comparator": mean(second), **c.estimate()}


def paired(work: Work, first: Sequence[Score], second: Sequence[Score]) -> statistics.Comparison:
    """``first`` - ``second`` on all test rows."""
    clusters = [work.data.cluster[i] for i in work.inputs.test]
    return work.protocol.compare([s.score for s in first], [s.score for s in second], clusters)


def lines(record: Verdict) -> Sequence[str]:
    worst = field_errors.line(record.fields or ())
    voiced = voice_report.line(record.voice, record.comparator.name) if record.voice else None
    return [sentence(record), *filter(None, (worst, voiced))]


STAGE = Stage(name="prove", run=lambda inputs: prove(inputs.work()), lines=lines, style="bold")
