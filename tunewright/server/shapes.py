"""The shape of what goes over the wire."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]  # an object of OpenAI's API
