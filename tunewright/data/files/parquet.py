"""Parquet and Arrow tables -> rows; lists and structs stay as they are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tunewright.core.errors import MissingExtra, data_error
from tunewright.data.files.compression import MAX_EXPANDED
from tunewright.data.files.rows import FileSettings, Item
from tunewright.data.files.values import rows_of

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BATCH = 1000  # rows
CALLS = ("arguments", "parameters", "input_schema", "tools", "functions")
NO_NAMES: Mapping[str, Sequence[str]] = {}


def items(raw: bytearray, name: str, how: FileSettings) -> Iterator[Item]:
    """The rows of a Parquet file. Raises DATA_NOT_TEXT if it is damaged, MissingExtra without pyarrow."""
    try:
        import pyarrow.parquet as pq
        from pyarrow import ArrowException
    except ImportError:
        raise MissingExtra("pyarrow", "reading Parquet", "pip install 'tunewright[parquet]'", where=name) from None
    try:
        # in batches: a few bytes can stand for billions of equal values
        yield from of_batches(pq.ParquetFile(io.BytesIO(raw)).iter_batches(BATCH), name, how)
    except (ArrowException, OSError, UnicodeError) as error:  # the last: names and cells that are not UTF-8
        raise data_error(
            "DATA_NOT_TEXT",
            f"this is not a valid Parquet file: {(str(error).splitlines() or ['damaged'])[0]}",
            where=name,
            fix="export it again, or use JSONL.",
        ) from None


def of_batches(
    batches: Iterable[RecordBatch], name: str, how: FileSettings, label_names: Mapping[str, Sequence[str]] = NO_NAMES
) -> Iterator[Item]:
    """The rows of Arrow batches, numbered from 1, without columns that are null. ``label_names``: columns of numbers,
    or of lists of numbers, that are read as names; a number without a name is null."""
    number, size = 0, 0
    for batch in batches:
        size += batch.nbytes
        if size > MAX_EXPANDED:
            fix = "select fewer rows or columns."
            raise data_error("DATA_TOO_LARGE", f"the rows are larger than {size >> 30} GiB.", where=name, fix=fix)
        for row in batch.to_pylist():
            number += 1
            row |= {column: _named(row[column], names) for column, names in label_names.items()}
            filled = {k: _without_padding(v, k in CALLS) for k, v in row.items() if v is not None}
            yield from rows_of(filled, f"{name}:{number}", how)


def _without_padding(value: object, of_call: bool) -> object:
    """Without the nulls that Arrow adds to arguments and definitions of functions, because all structs of a column have
    the same members."""
    if isinstance(value, list):
        return [_without_padding(inner, of_call) for inner in value]
    if isinstance(value, dict):
        members = value.items()
        return {k: _without_padding(v, of_call or k in CALLS) for k, v in members if not (of_call and v is None)}
    return value


def _named(value: object, names: Sequence[str]) -> object:
    if isinstance(value, list):
        return [_named(inner, names) for inner in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
