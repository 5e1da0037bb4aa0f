"""The building blocks of records: base classes, intervals, and "not measured"."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

VerdictWord = Literal["BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL"]
RunVerdict = Literal["BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL", "HACKED"]
Side = Literal["train", "dev", "test"]


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the unit of the estimate; JSON: [low, high]."""

    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """``[+0.029, +0.181]``: both ends in the format of a number."""
        return f"[{self.low:{spec}}, {self.high:{spec}}]"


class Value(BaseModel):
    """A frozen part of a record. Unknown keys, wrong types and numbers that are not finite are rejected.

    A field whose default is None is omitted from the file when it is None; a required field is always written, as null
    if necessary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, from_attributes=True)

    @model_serializer(mode="wrap")
    def _written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """All keys except those of absent fields."""
        optional = {k for k, field in type(self).model_fields.items() if not field.is_required()}
        return {k: v for k, v in serialize(self).items() if v is not None or k not in optional}


class Record(Value):
    """One file. A change that older readers would misread increments the record's default ``version``."""

    version: int = Field(1, ge=1, description="Version of this record's schema; a file without it is version 1.")

    @field_validator("version")
    @classmethod
    def _not_newer(cls, version: int) -> int:
        if version > cls.model_fields["version"].default:
            raise PydanticCustomError("newer_version", "written by a newer tunewright")
        return version


class Line(Record):
    """One line of a JSON Lines file. To keep lines short, ``version`` is omitted when it is 1."""

    @model_serializer(mode="wrap")
    def _written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        absent = {
            k for k, field in type(self).model_fields.items() if getattr(self, k) is None and not field.is_required()
        }
        return {k: v for k, v in serialize(self).items() if k not in absent and (k, v) != ("version", 1)}


class NotMeasured(Record):
    """Replaces a stage's result: the stage was not requested, or could not measure anything."""

    measured: Literal[False] = Field(False, description="Always false.")
    reason: str | None = Field(None, description="Why not; absent if it is obvious.")


def flag(key: str) -> Discriminator:
    """Selects the union member tagged YES or NO by the boolean field ``key``."""

    def tag(value: object) -> str | None:
        chosen = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        return YES if chosen is True else NO if chosen is False else None

    return Discriminator(tag, f"not_{key}", f"Input should be an object whose `{key}` is true or false")


YES, NO = "<yes>", "<no>"  # a union tag begins with `<`, so that it cannot be mistaken for a field or key
T = TypeVar("T")
Measured = Annotated[Annotated[T, Tag(YES)] | Annotated[NotMeasured, Tag(NO)], flag("measured")]
"""The content of an optional stage's file: its result, or why there is none."""
