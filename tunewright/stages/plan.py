"""Plan: fixes every number, runs the self-test, writes the protocol and the receipt, before anything is trained."""

from __future__ import annotations

from dataclasses import asdict

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import ProtocolRecord, SelfTest, SelfTestFinding
from tunewright.data.remedies.change import summaries
from tunewright.judge import protocol
from tunewright.judge.protocol import Protocol
from tunewright.runtime import receipt
from tunewright.runtime.context import Setup
from tunewright.stages.stage import Stage
from tunewright.train import machine, planning, profile, selftest


def plan(setup: Setup) -> Plan:
    """Resolves every auto. Writes selftest.json, protocol.json and receipt.json; prints the plan."""
    context, inputs = setup.context, setup.inputs
    _warn_about_left_out(setup)
    sizes = planning.RowStats.of(inputs.rows["train"])
    task = context.data.task.kind.name
    made = planning.make_plan(context.config, inputs.facts, sizes, inputs.machine, task, inputs.max_new_tokens)
    made = self_tested(setup, made)
    speed = profile.calibrate(setup.models.untrained(made), inputs.rows["train"], made)
    made = planning.with_estimate(made, speed.tokens_per_second, machine.peak_gb(), speed.passes)
    agreed = protocol_of(setup)
    _describe(setup, made, agreed)
    _write(setup, made, agreed)
    return made


def adopt(setup: Setup, made: Plan) -> Plan:
    """In place of `plan`: take over the plan of another run. Nothing is measured; the self-test is run."""
    made = self_tested(setup, made)
    _write(setup, made, protocol_of(setup))
    return made


def protocol_of(setup: Setup) -> Protocol:
    """The protocol of the run's comparison on test rows."""
    inputs, context = setup.inputs, setup.context
    return protocol.make(
        context.data, context.config.prove, inputs.arms, inputs.dev, inputs.test, inputs.max_new_tokens
    )


def self_tested(setup: Setup, made: Plan) -> Plan:
    """The plan, or a slower one if the self-test shows that a faster way of computing is not exact."""
    context, inputs = setup.context, setup.inputs
    model = setup.models.untrained(made)
    result = selftest.run(model, inputs.template, context.data.examples, inputs.rows["train"], made)
    for finding in result.findings:
        if not finding.passed:
            context.console.warn(f"  self-test: {finding.result}")
    findings = tuple(SelfTestFinding.model_validate(f) for f in result.findings)
    records.write(context.run.selftest, SelfTest(seconds=result.seconds, findings=findings))
    held = sum(f.passed for f in findings)
    context.console.say(
        f"self-test: {held} of {len(findings)} properties hold on rows of this run ({result.seconds:.0f} s)"
    )
    return result.plan


def _warn_about_left_out(setup: Setup) -> None:
    context, inputs = setup.context, setup.inputs
    if inputs.too_long:
        first = ", ".join(context.data.examples[i].where for i in inputs.too_long[:5])
        context.console.warn(
            f"{len(inputs.too_long)} rows exceed {inputs.limit} tokens and are left out (data.too_long=drop): {first}"
        )
        context.run.event("rows_left_out", rows=list(inputs.too_long), limit=inputs.limit)
    for summary in summaries(inputs.document_changes):
        context.console.warn(f"  prove.documents: {summary.text}")
    for name in inputs.left_out:
        context.console.warn(f"  {name} is left out: its prompts do not fit into {inputs.facts.context} tokens")


def _describe(setup: Setup, made: Plan, agreed: Protocol) -> None:
    say, estimate = setup.context.console.say, made.estimate
    assert estimate is not None
    rank = f" rank {made.adapter.rank}" if made.adapter.kind != "none" else ""
    kind = f"{made.dtype}, {made.layout}, {made.adapter.kind}{rank}"
    say(f"plan: {made.steps} steps of {made.batch_size} rows ({made.epochs:g} epochs), lr {made.lr:g}, {kind}")
    say(
        f"      about {estimate.train_seconds:.0f} s of training at {estimate.tokens_per_second:.0f} tokens/s, "
        f"{estimate.peak_gb:.1f} GB"
    )
    if setup.inputs.machine.free_gb < estimate.peak_gb:
        setup.context.console.warn(f"      only {setup.inputs.machine.free_gb:.1f} GB of memory is free now")
    if agreed.detectable is not None:
        points = 100 * agreed.detectable
        what = f"differences of about {points:.0f} points" if points < 99 else "no difference with certainty"
        say(f"      {agreed.test_rows} test rows can detect {what}, if {agreed.assumed}")


def _write(setup: Setup, made: Plan, agreed: Protocol) -> None:
    run = setup.context.run
    records.write(run.protocol, ProtocolRecord.model_validate(asdict(agreed), strict=False))
    records.write(run.receipt, receipt.make(setup.context, setup.inputs, made, agreed))


STAGE = Stage(name="plan", record=Plan, needs="setup", run=plan)
