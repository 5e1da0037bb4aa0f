"""data/: the result of the audit, and the side of every row."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from tunewright.core.records.common import Line, Record, Side, Value


class AuditTask(Value):
    """The task, as inferred from the rows."""

    kind: str = Field(
        description="label, label_set, number, entities, tags, json, yaml, xml, csv, tool_calls, generation, text, "
        "retrieval, rewards or ranking."
    )
    metric: str = Field(description="The metric that the verdict is about.")
    reason: str = Field(description="What the kind and the metric were inferred from.")
    labels: tuple[str, ...] = Field(description="All labels, sorted; empty unless kind is label.")


class Characters(Value):
    """Quantiles of the rows' lengths, question and answer together, in characters after normalisation."""

    min: float = Field(description="Shortest row, in characters.")
    median: float = Field(description="Median, in characters.")
    p95: float = Field(description="95th percentile, in characters.")
    max: float = Field(description="Longest row, in characters.")


class AuditFinding(Value):
    """One observation of the audit. Rows are numbered from 0, over all files in order."""

    level: Literal["error", "warning", "notice"] = Field(description="How serious it is.")
    code: str = Field(description="Stable name, such as DUPLICATES.")
    message: str = Field(description="Human-readable; private values are never quoted.")
    rows: tuple[int, ...] = Field(description="The rows concerned.")
    groups: tuple[tuple[int, ...], ...] = Field(description="The same rows, grouped by what they share; may be empty.")
    where: tuple[str, ...] = Field(description="file:line of the first 20 rows.")


class RowChanges(Value):
    """What a setting did to rows before the audit."""

    code: str = Field(description="Code of the error or finding that the setting avoids, such as DATA_CONTROL_CHAR.")
    setting: str = Field(description="The setting, such as data.control=strip.")
    action: Literal["dropped", "changed"] = Field(description="Whether the rows were left out.")
    rows: int = Field(description="Number of rows.")
    message: str = Field(description="What was wrong with the first of them, or what was done to it.")
    where: tuple[str, ...] = Field(description="file:line of the first 20 rows.")


class LabelSuspect(Value):
    """A row whose label is probably wrong, according to a model that was not trained on it."""

    row: int = Field(description="Row number, from 0.")
    given: str = Field(description="The label in the data.")
    predicted: str = Field(description="The label that the model prefers.")
    prob_wrong: float = Field(description="Probability, 0 to 1, that the given label is wrong.")
    where: str = Field(description="file:line.")


class AnswerSchema(Value):
    """The JSON Schema of structured answers."""

    source: str = Field(description="The file of data.answer_schema, or inferred (from the training answers).")
    json_schema: dict[str, JsonValue] = Field(description="The schema.")
    fields: dict[str, str] = Field(description="Path -> description of each field of an inferred schema; else empty.")
    satisfied: dict[Side, float] = Field(
        description="Fraction of the reference answers that satisfy it, by side; without train if it is inferred."
    )


class Audit(Record):
    """The audit of the data (`tunewright check`). Lengths in characters, counts in rows."""

    rows: int = Field(description="Rows of the training file, before it was split.")
    task: AuditTask = Field(description="The task, as inferred from the rows.")
    cluster: tuple[int, ...] = Field(description="For each row, the first row with nearly the same question.")
    characters: Characters = Field(description="How long the rows are.")
    labels: dict[str, int] = Field(description="Rows per label, most frequent first; empty unless the task is label.")
    ceiling: float = Field(
        description="Largest fraction of rows that a model with one answer per question can match exactly."
    )
    findings: tuple[AuditFinding, ...] = Field(description="Most serious first.")
    suspects: tuple[LabelSuspect, ...] = Field(description="Labels that are probably wrong, most likely first.")
    format: str = Field(description="Format of the rows, a value of `data.format`.")
    unused: dict[str, int] = Field(description="Fields that are not used, with the number of rows that have them.")
    notices: tuple[str, ...] = Field(
        description="Remarks from reading the files, such as a byte order mark that was skipped."
    )
    changes: tuple[RowChanges, ...] | None = Field(
        None, description="What settings dropped or changed, dropped rows first; absent in files of earlier versions."
    )
    answer_schema: AnswerSchema | None = Field(None, description="The schema of JSON and YAML answers.")
    sides: dict[Side, int] = Field(description="Rows per side; a side without rows is absent.")
    sha256: str = Field(description="Hash over all data files.")

    def reasons(self) -> dict[int, list[str]]:
        """Why rows are flagged, by their number."""
        reasons: dict[int, list[str]] = {}
        for finding in self.findings:
            if finding.level != "notice":
                for row in finding.rows:
                    reasons.setdefault(row, []).append(finding.message)
        for suspect in self.suspects:
            message = f"the label {suspect.given!r} looks wrong: more likely {suspect.predicted!r}"
            reasons.setdefault(suspect.row, []).append(message)
        return reasons


class SplitRow(Line):
    """The side of the split that a row is assigned to, permanently. Rows are numbered from 0."""

    row: int = Field(description="Row number, from 0, over all files in order.")
    where: str = Field(description="file:line.")
    side: Side = Field(description="train, dev or test.")
    cluster: int = Field(description="The first row with nearly the same question.")
    hash: str = Field(description="First 16 hex digits of the question's content hash.")
