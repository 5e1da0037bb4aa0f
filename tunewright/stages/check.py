"""Check: audits the data, and assigns every row to a side of the split."""

from __future__ import annotations

from tunewright.core import records, run_folder
from tunewright.core.locations import title
from tunewright.core.records import Audit
from tunewright.core.words import counted, listed_fields
from tunewright.data.remedies.change import changed_rows, summaries
from tunewright.runtime.context import Context
from tunewright.stages.stage import Stage


def check(context: Context) -> None:
    """Writes data/audit.json and data/split.jsonl."""
    data, console, run = context.data, context.console, context.run
    counts = {side: len(data.every(side)) for side in ("train", "dev", "test")}
    name, task = title(context.config.data.train), data.task
    console.say(
        f"data {name}: {counted(len(data.examples), 'row')}{changed_rows(data.changes)}, format {data.format}, "
        f"task {task.kind.name} ({task.reason}); " + ", ".join(f"{n} {side}" for side, n in counts.items())
    )
    for notice in data.notices:
        console.say(f"  notice: {notice}")
    for summary in summaries(data.changes):
        console.warn(f"  {summary.text}")
    if data.unused:
        console.say(f"  unused fields: {listed_fields(data.unused)}")
    if not counts["dev"]:
        console.warn("  no dev rows: no early stopping; the last weights are kept")
    for finding in data.findings():
        print_line = console.warn if finding.level == "warning" else console.say
        print_line(f"  {finding.level} {finding.code}: {finding.message}")
    records.write(run.audit, Audit.model_validate(data.audit_json(), strict=False))
    run_folder.write_lines(run.split, data.split_json())


STAGE = Stage(name="check", run=lambda inputs: check(inputs.context))
