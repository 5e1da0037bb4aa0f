"""What every record is made of: the two base classes, intervals, and "not measured"."""

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

Word = Literal["BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL"]
Side = Literal["train", "dev", "test"]


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the unit of the number beside it; JSON: [low, high]."""

    low: float
    high: float


class Value(BaseModel):
    """A frozen part of a record. Unknown keys, wrong types and numbers that are not finite are refused.

    A field whose default is None is left out of the file while it is None; a required field is always written, as null
    if need be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, from_attributes=True)

    @model_serializer(mode="wrap")
    def _written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Every key but those of absent fields."""
        optional = {k for k, field in type(self).model_fields.items() if not field.is_required()}
        return {k: v for k, v in serialize(self).items() if v is not None or k not in optional}


class Record(Value):
    """What one file holds. A change that older readers would misread raises the record's own default ``version``."""

    version: int = Field(1, ge=1, description="Version of this record's schema; a file without it is version 1.")

    @field_validator("version")
    @classmethod
    def _not_newer(cls, version: int) -> int:
        if version > cls.model_fields["version"].default:
            raise PydanticCustomError("newer_version", "written by a newer tunewright")
        return version


class Line(Record):
    """What one line of a JSON Lines file holds. To keep lines short, ``version`` is left out while it is 1."""

    @model_serializer(mode="wrap")
    def _written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        absent = {
            k for k, field in type(self).model_fields.items() if getattr(self, k) is None and not field.is_required()
        }
        return {k: v for k, v in serialize(self).items() if k not in absent and (k, v) != ("version", 1)}


class NotMeasured(Record):
    """In place of a stage's result: the stage was not asked for, or could not measure anything."""

    measured: Literal[False] = Field(False, description="Always false.")
    reason: str | None = Field(None, description="Why not, where that needs saying.")


def flag(key: str) -> Discriminator:
    """Chooses between the members of a union tagged YES and NO by their boolean field ``key``."""

    def tag(value: object) -> str | None:
        chosen = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        return YES if chosen is True else NO if chosen is False else None

    return Discriminator(tag, f"not_{key}", f"Input should be an object whose `{key}` is true or false")


YES, NO = "<yes>", "<no>"  # tags of unions begin with `<`, so that no field or key of a dictionary looks like one
T = TypeVar("T")
Measured = Annotated[Annotated[T, Tag(YES)] | Annotated[NotMeasured, Tag(NO)], flag("measured")]
"""What the file of an optional stage holds: its result, or why there is none."""
