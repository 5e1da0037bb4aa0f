"""The pages of data: what the audit says before a job is started, rows as the model sees them, and a new file without
or with other rows."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel, StringConstraints

from tunewright.core import config as configuration
from tunewright.core.errors import TunewrightError
from tunewright.core.records import Audit
from tunewright.data.messages import from_json
from tunewright.methods import METHODS
from tunewright.report.rows import MOST_EDITED, Part
from tunewright.server.engine.base import Base
from tunewright.server.errors import bad
from tunewright.server.jobs.request import JobRequest
from tunewright.server.routes import datasets, files, fine_tuning
from tunewright.server.routes.common import The
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.files import StoredFile, of_row
from tunewright.server.web.pages import Visitor, see, shown
from tunewright.tokens.sequences import flat
from tunewright.tokens.template import for_rows

router = APIRouter(include_in_schema=False)
PAGE = 10  # rows
MOST_TOKENS = 2000  # of a row that are shown
MOST_LISTED = 200


@router.get("/data")
def data_page(the: The, tenant: Visitor) -> Response:
    rows = the.files.page(tenant, "fine-tune", None, MOST_LISTED, newest_first=True).rows
    stored = the.completions.page(tenant, (None, {}), None, 1, newest_first=True).rows
    return shown("data.html.j2", tenant, "data", {"files": [of_row(row) for row in rows], "stored": bool(stored)})


@router.post("/data")
def upload(the: The, tenant: Visitor, file: UploadFile) -> Response:
    made = files.create_file(the, tenant, file, "fine-tune")
    return see(f"/data/{made['id']}")


@router.post("/data/from-stored")
def from_stored(the: The, tenant: Visitor) -> Response:
    made = datasets.from_completions(the, tenant, datasets.FromCompletions())
    return see(f"/data/{made['id']}")


@router.get("/data/{file_id}")
async def file_page(
    the: The, tenant: Visitor, file_id: str, start: Annotated[int, Query(ge=0, le=10**9)] = 0, flagged: bool = False
) -> Response:
    file = await asyncio.to_thread(files.file_of, the, tenant, file_id)
    common = {"file": file, "bases": list(the.bases)}
    part = Part(start=start, count=PAGE, flagged=flagged)
    try:
        page = await asyncio.wrap_future(the.reader.submit(_config(the, file), part))
    except TunewrightError as error:
        problems = [str(p) for p in error.problems[:50]]
        return shown("file.html.j2", tenant, "data", {**common, "audit": None, "problems": problems})
    base = next(iter(the.bases.values()))

    def with_rows() -> Response:
        audit = Audit.model_validate(page["audit"], strict=False)
        rows = [_row(row, base, page["thoughts"]) for row in page["rows"]]
        of_page = {"audit": audit, "rows": rows, "editable": page["are_lines"] and _may_be_lines(file)}
        values = {**common, **page, **of_page, "start": start, "flagged": flagged, "problems": []}
        return shown("file.html.j2", tenant, "data", values)

    return await asyncio.to_thread(with_rows)


def _config(the: Service, file: StoredFile) -> configuration.Config:
    return configuration.load(None, [f"data.train={json.dumps(str(the.files.path(file)))}"])


def _may_be_lines(file: StoredFile) -> bool:
    return not file.filename.lower().endswith((".csv", ".json", ".parquet")) and file.bytes <= MOST_EDITED


def _lines(the: Service, file: StoredFile) -> list[bytes] | None:
    """None if the file cannot be edited. Whether each line is a row, the page of the file has asked."""
    return the.files.path(file).read_bytes().split(b"\n") if _may_be_lines(file) else None


def _row(row: JsonObject, base: Base, thoughts: bool) -> JsonObject:
    """A row as the model sees it: its text in pieces, of which the targets are marked."""
    line = row["where"].rpartition(":")[2]
    shown = {**row, "line": int(line) if line.isdigit() else None}
    if row["example"] is None:
        return {**shown, "pieces": [], "tokens": 0, "targets": 0, "problem": "The row is too long to be shown."}
    try:
        template = for_rows(base.template, thoughts)
        prepare = METHODS["sft"].prepare
        sequences = flat(prepare(template, from_json(row["example"]), row["number"], base.facts.context))
    except TunewrightError as error:
        return {**shown, "pieces": [], "tokens": 0, "targets": 0, "problem": str(error)}
    ids, weights = sequences[0].ids[:MOST_TOKENS], sequences[0].weights
    pieces = []
    for is_target, group in itertools.groupby(zip(ids, weights, strict=False), key=lambda pair: bool(pair[1])):
        pieces.append((is_target, template.tokenizer.decode([token for token, _ in group])))
    tokens, targets = sum(len(s.ids) for s in sequences), sum(s.supervised for s in sequences)
    return {**shown, "pieces": pieces, "tokens": tokens, "targets": targets, "problem": ""}


@router.post("/data/{file_id}/rows")
async def edit(the: The, tenant: Visitor, http: Request, file_id: str) -> Response:
    """A new file, without the rows of `drop` and with the text of `row-LINE` in place of that line. The old file stays;
    the new one names it."""
    file = files.file_of(the, tenant, file_id)
    lines = await asyncio.to_thread(_lines, the, file)
    if lines is None:
        raise bad("invalid_value", "Only files with a row on each line can be edited here.", "file")
    async with http.form(max_fields=4 * PAGE) as form:
        dropped = {int(str(line)) for line in form.getlist("drop") if _is_number(str(line))}
        texts = {key.removeprefix("row-"): str(text) for key, text in form.items() if key.startswith("row-")}
    changed = {int(line): text for line, text in texts.items() if _is_number(line)}
    content = _edited(lines, dropped, changed)
    made = await asyncio.to_thread(the.files.add, tenant, file.filename, "fine-tune", content, parent=file.id)
    return see(f"/data/{made.id}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _edited(lines: list[bytes], dropped: set[int], changed: dict[int, str]) -> bytes:
    for line, text in changed.items():
        if 1 <= line <= len(lines) and line not in dropped and text.strip().encode() != lines[line - 1].strip():
            lines[line - 1] = _one_line(text, line)
    return b"\n".join(text for number, text in enumerate(lines, 1) if number not in dropped)


def _one_line(text: str, line: int) -> bytes:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).encode()
    except ValueError as error:
        raise bad("invalid_value", f"Line {line} is not valid JSON: {error}", f"row-{line}") from None


@router.get("/data/{file_id}/lines/{line}")
def line_text(the: The, tenant: Visitor, file_id: str, line: int) -> Response:
    """A line as it is in the file, for the form that edits it."""
    file = files.file_of(the, tenant, file_id)
    lines = _lines(the, file) or []
    text = lines[line - 1].decode("utf-8", "replace") if 1 <= line <= len(lines) else ""
    return shown("line.html.j2", tenant, "data", {"line": line, "text": text})


class JobForm(BaseModel):
    model: Annotated[str, StringConstraints(max_length=200)]
    suffix: Annotated[str, StringConstraints(max_length=64)] = ""
    evidence: Annotated[str, StringConstraints(max_length=20)] = "standard"


@router.post("/data/{file_id}/job")
def start_job(the: The, tenant: Visitor, http: Request, file_id: str, form: Annotated[JobForm, Form()]) -> Response:
    try:
        request = JobRequest(
            model=form.model,
            training_file=file_id,
            suffix=form.suffix.strip() or None,
            tunewright={"prove.evidence": form.evidence},
        )
    except ValueError:
        raise bad("invalid_value", "A suffix has letters, digits, dots, dashes and underscores.", "suffix") from None
    made = fine_tuning.create_job(the, tenant, http, request)
    return see(f"/jobs/{made['id']}")
