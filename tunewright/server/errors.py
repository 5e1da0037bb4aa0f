"""Errors of the server in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

OpenAI's clients repeat a POST by themselves after 408, 409, 429 and 5xx, unless the header x-should-retry forbids it;
so every error says whether repeating it can help.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunewright.core.errors import TunewrightError
from tunewright.server.shapes import JsonObject

PLAIN = re.compile(r"(?!constrained-|literal|function-)[\w\[\]-]+(?<!\])|expires_after\[\w+\]")
KINDS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """``param``: the parameter that is wrong. ``retry_after``: seconds, if repeating the request can help."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    def body(self) -> JsonObject:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"x-should-retry": "true", "retry-after": str(max(1, round(self.retry_after)))}


def bad(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(400, code, message, param)


def not_found(what: str, name: str) -> ApiError:
    """Also for what belongs to another tenant."""
    return ApiError(404, f"{what}_not_found", f"No such {what.replace('_', ' ')}: {name[:200]}")


def of_error(error: TunewrightError, param: str | None = None) -> ApiError:
    """Our own error: a full disk is the server's, everything else the request's."""
    status = 507 if error.code == "RUN_DISK" else 503 if error.code == "RUN_LOCKED" else 400
    return ApiError(status, error.code, str(error)[:4000], param or error.where[:200] or None)


def of_validation(problems: Sequence[Any]) -> ApiError:
    """pydantic's problems: the most telling one, with its place. Of a value that may have several types, there is a
    problem for each; that it is not of one type says less than what is wrong with it as another."""

    def tells(problem: Any) -> tuple[bool, int]:
        return not problem["type"].endswith(("_type", "literal_error")), len(problem["loc"])

    first = max(problems, key=tells)
    names = (str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    param = ".".join(name for name in names if PLAIN.fullmatch(name)) or None
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(
        first["type"], "invalid_value"
    )
    if first["type"] == "json_invalid":
        return bad("invalid_json", f"The body is not valid JSON: {first.get('ctx', {}).get('error', '')}")
    return bad(code, f"{param or 'The request'}: {first['msg']}", param)


def unexpected(error: Exception) -> ApiError:
    """Our own mistake: only its kind is reported, because its text may quote a request."""
    return ApiError(500, "internal_error", f"Internal error: {type(error).__name__}.")


def no_token() -> ApiError:
    return ApiError(401, "invalid_api_key", "Give the server's token as the API key (Authorization: Bearer ...).")
