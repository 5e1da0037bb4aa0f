"""Plan: fixes every number, runs the self-test, writes the protocol and the receipt, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tunewright.core import records, swept
from tunewright.core.config import DISTILLED, HEADS, RANKERS, REWARDED, Plan, Teacher
from tunewright.core.errors import ConfigError
from tunewright.core.records import ProtocolRecord, SelfTest, SelfTestFinding
from tunewright.core.words import counted, duration
from tunewright.data.remedies.change import summaries
from tunewright.data.task import rewards
from tunewright.export import export
from tunewright.export.kind import TrainedRun
from tunewright.judge import protocol as protocols
from tunewright.judge.protocol import Protocol
from tunewright.model.adapting import stored
from tunewright.model.heads import teacher
from tunewright.runtime import receipt
from tunewright.runtime.answers import Answers
from tunewright.runtime.context import Context, Setup, Work
from tunewright.runtime.forecast import estimate
from tunewright.runtime.grading import rollouts
from tunewright.stages.experiments import prompt_distillation
from tunewright.stages.stage import Stage
from tunewright.tokens.rendering import for_generation
from tunewright.tokens.sequences import flat
from tunewright.train import planning, profile, selftest
from tunewright.train.recipe import RowStats
from tunewright.train.sampling import preflight
from tunewright.train.sampling.on_policy import longest_sample

WORTH_MORE = 1.4  # times as fast with two processes


def make_plan(setup: Setup) -> Plan:
    """Resolves every auto. Writes selftest.json, protocol.json and receipt.json; prints the plan."""
    context, inputs = setup.context, setup.inputs
    _warn_about_left_out(setup)
    sizes = RowStats.of(inputs.rows["train"])
    task = context.data.task.kind.name
    plan = swept.plan_of(context.run) or planning.make_plan(
        context.config, inputs.facts, sizes, inputs.machine, task, inputs.max_new_tokens
    )
    if plan.method in HEADS:
        known = context.data.task.numbers
        standard = known and (known.mean, known.deviation)
        one = ("reward",) if plan.method in RANKERS else ("value",)
        labels = context.data.task.labels or context.data.task.label_set or one
        plan = plan.model_copy(update={"labels": labels, "standardised": standard})
    if plan.method in DISTILLED:
        _require_prompts(context)
        plan = plan.model_copy(update={"teacher": _teacher(setup, plan)})
    prompt_distillation.require_possible(context)
    export.require_supported(TrainedRun(context.run, context.config, plan, inputs.facts, inputs.template))
    free_gb = inputs.machine.free_gb - sum(model.gigabytes for model in rewards.reward_models(context.data.task))
    planning.require_memory(plan, inputs.facts, sizes, 1e9 * free_gb, inputs.machine.device)
    plan = after_self_test(setup, plan)
    speed = profile.calibrate(setup.models.untrained(plan), inputs.rows["train"], plan)
    protocol = protocol_of(setup)
    answers = Answers(context.run, context.console, context.data, inputs, plan, setup.models)
    if plan.method in REWARDED:
        _check_rewards(setup, answers, plan)
    plan = plan.model_copy(update={"estimate": estimate.whole_run(Work(setup, plan, protocol, answers), speed)})
    _describe(setup, plan, protocol)
    _write(setup, plan, protocol)
    return plan


def _teacher(setup: Setup, plan: Plan) -> Teacher:
    """The teacher that the config names. Raises TEACHER_MISMATCH, also where its arm would have no room to answer, or
    it would have none to read what the model writes; DATA_TOO_LONG where the model has none to write it."""
    inputs, examples, written = setup.inputs, setup.context.data.examples, 0
    settings, context = setup.context.config.distill, setup.inputs.facts.context
    rows, size = flat([r for side in inputs.rows.values() for r in side]), planning.each_of(plan.dtype)
    for arm in inputs.arms.get("teacher", []):
        prompts = [for_generation(inputs.template, arm.prompt(examples[i])) for i in (*inputs.dev, *inputs.test)]
        written = max(map(len, prompts)) + plan.max_new_tokens
    if settings.on_policy:
        written = max(written, longest_sample(inputs.rows["train"], examples, plan.max_new_tokens, context))
    return teacher.described(settings, inputs.facts, inputs.template, rows, size, written)


def adopt(setup: Setup, plan: Plan) -> Plan:
    """In place of `make_plan`: take over the plan of another run. Nothing is measured; the self-test is run."""
    plan = after_self_test(setup, plan)
    _write(setup, plan, protocol_of(setup))
    return plan


def protocol_of(setup: Setup) -> Protocol:
    """The protocol of the run's comparison on test rows."""
    inputs, context = setup.inputs, setup.context
    return protocols.make(
        context.data, context.config.prove, inputs.arms, inputs.dev, inputs.test, inputs.max_new_tokens
    )


def after_self_test(setup: Setup, plan: Plan) -> Plan:
    """Runs the self-test and writes selftest.json. Returns the plan, or a slower one if a faster way of computing is
    shown not to be exact."""
    context, inputs = setup.context, setup.inputs
    model = setup.models.untrained(plan)
    result = selftest.self_test(model, inputs.template, context.data.examples, inputs.rows["train"], plan)
    for check in result.checks:
        if not check.passed:
            context.console.warn(f"  self-test: {check.result}")
    findings = tuple(SelfTestFinding.model_validate(check) for check in result.checks)
    records.write(context.run.selftest, SelfTest(seconds=result.seconds, findings=findings))
    passed = sum(check.passed for check in result.checks)
    context.console.say(f"self-test: {passed} of {len(findings)} checks passed ({result.seconds:.0f} s)")
    return result.plan


def _check_rewards(setup: Setup, answers: Answers, plan: Plan) -> None:
    model = setup.models.untrained(plan)
    drawn = rollouts.of(answers, model, setup.context.config.reward.sampler)
    assert drawn is not None
    setup.context.console.say(preflight.preflight(drawn, model, setup.inputs.rows["train"], plan).sentence)


def _require_prompts(context: Context) -> None:
    """Raises CONFIG_CONFLICT for documents, to which no model can write an answer."""
    if context.config.distill.on_policy and not context.data.task.kind.prompted:
        message, fix = "documents have no prompts, after which the model could write.", "leave it at 0."
        raise ConfigError("CONFIG_CONFLICT", message, where="distill.on_policy", fix=fix)


def _warn_about_left_out(setup: Setup) -> None:
    context, inputs = setup.context, setup.inputs
    if inputs.too_long:
        first = ", ".join(context.data.examples[i].where for i in inputs.too_long[:5])
        context.console.warn(
            f"{counted(len(inputs.too_long), 'row')} of more than {inputs.limit} tokens left out "
            f"(data.too_long=drop): {first}"
        )
        context.run.event("rows_left_out", rows=list(inputs.too_long), limit=inputs.limit)
    for summary in summaries(inputs.document_changes):
        context.console.warn(f"  prove.documents: {summary.text}")
    for name in inputs.left_out:
        context.console.warn(
            f"  {name} is left out: its prompts plus {inputs.max_new_tokens} answer tokens exceed the context of "
            f"{inputs.facts.context} tokens"
        )


def _describe(setup: Setup, plan: Plan, protocol: Protocol) -> None:
    say, predicted = setup.context.console.say, plan.estimate
    assert predicted is not None
    rank = f" rank {plan.adapter.rank}" if "rank" in plan.adapter.sizes else ""
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs:g} epochs"
    kind = f"{plan.dtype}, {plan.layout}, {plan.adapter.kind}{rank}"
    say(f"plan: {counted(plan.steps, 'step')} of {counted(plan.batch_size, 'row')} ({epochs}), lr {plan.lr:g}, {kind}")
    if plan.adapter.start is not None:
        say(f"      continues from the adapter in {plan.adapter.start}; {plan.reasons['adapter.start']}")
    if (t := plan.teacher) is not None:
        on_policy = t.settings.on_policy
        say(
            f"      learns from {t.title} ({t.parameters / 1e6:.0f} million parameters), which reads the rows before "
            f"training; {t.gigabytes:.2f} GB of what it computes, and of its output head, are kept in memory"
            + (f"; also its weights, for answers of the model to {on_policy:.0%} of the rows" if on_policy else "")
        )
    for model in rewards.reward_models(setup.context.data.task):
        say(f"      the reward model in {model.path} grades, and is kept in memory: {model.gigabytes:.2f} GB")
    if plan.adapter.init != "zero":
        spent = duration(setup.models.initial_seconds)
        say(f"      initial values ({plan.adapter.init}): {spent}, again whenever a process starts to train")
    longest = sorted(predicted.stages.items(), key=lambda stage: -stage[1])[:3]
    parts = ", ".join(f"{name.replace('_', ' ')} {duration(seconds)}" for name, seconds in longest)
    say(f"      about {duration(sum(predicted.stages.values()))} in all ({parts}), {predicted.peak_gb:.1f} GB")
    if predicted.ranks:
        say(f"      {_with_more_processes(predicted.ranks)}")
    if setup.inputs.machine.free_gb < predicted.peak_gb:
        setup.context.console.warn(f"      only {setup.inputs.machine.free_gb:.1f} GB of memory is free now")
    if protocol.detectable is not None:
        say(f"      {_detectable(protocol, protocol.detectable)}")


def _with_more_processes(ranks: Mapping[int, float]) -> str:
    times = ", ".join(f"{factor:.1f}x on {count}" for count, factor in ranks.items())
    few = "; each step has few passes, so lower train.tokens_per_pass, or run separate trainings with --on"
    text = f"estimated speedup of training with torchrun: {times} processes"
    return text + (few if min(ranks.values()) < WORTH_MORE else "")


def _detectable(protocol: Protocol, difference: float) -> str:
    """The difference that the test rows can detect, as a sentence."""
    rows = counted(protocol.test_rows, "test row")
    if difference >= 1.0:
        return f"{rows}: too few to detect even the largest difference with 80% power, assuming that {protocol.assumed}"
    return (
        f"with {rows}, a difference of about {100 * difference:.0f} points is detectable (80% power, assuming that "
        f"{protocol.assumed})"
    )


def _write(setup: Setup, plan: Plan, protocol: Protocol) -> None:
    run = setup.context.run
    if plan.adapter.start is not None:
        stored.keep(Path(plan.adapter.start), run.start)
    records.write(run.protocol, ProtocolRecord.model_validate(asdict(protocol), strict=False))
    records.write(run.receipt, receipt.make(setup.context, setup.inputs, plan, protocol))


STAGE = Stage(name="plan", run=lambda inputs: make_plan(inputs.setup()))
