"""Chats that clients asked to store: what people really asked, and later rows to train on."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import Database, Page


class Completions:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        tenant: str,
        messages: list[Any],
        response: JsonObject,
        metadata: dict[str, str],
        tools: list[Any] | None = None,
    ) -> None:
        written = [json.dumps(value) for value in (messages, response, metadata, tools or None)]
        self._database.change(
            "INSERT INTO completions (id, tenant, created_at, model, messages, response, metadata, tools, bytes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(response["id"], tenant, response["created"], response["model"]),
            *written,
            sum(len(text.encode()) for text in written),
        )

    def get(self, tenant: str, completion_id: str) -> sqlite3.Row | None:
        sql = "SELECT * FROM completions WHERE id = ? AND tenant = ?"
        return self._database.row(sql, completion_id, tenant)

    def page(
        self, tenant: str, which: tuple[str | None, dict[str, str]], after: str | None, limit: int, newest_first: bool
    ) -> Page:
        """``which``: a model, and values of metadata."""
        model, metadata = which
        where = {"tenant": tenant} | ({"model": model} if model else {})
        matching: list[sqlite3.Row] = []
        while True:
            page = self._database.page("completions", where, after, 100, newest_first)
            for row in page.rows:
                if metadata.items() <= json.loads(row["metadata"]).items():
                    matching.append(row)
                    if len(matching) > limit:
                        return Page(matching[:limit], True)
            if not page.more:
                return Page(matching, False)
            after = page.rows[-1]["id"]

    def update(self, tenant: str, completion_id: str, metadata: dict[str, str]) -> None:
        sql = "UPDATE completions SET metadata = ? WHERE id = ? AND tenant = ?"
        self._database.change(sql, json.dumps(metadata), completion_id, tenant)

    def remove(self, tenant: str, completion_id: str) -> None:
        self._database.change("DELETE FROM completions WHERE id = ? AND tenant = ?", completion_id, tenant)


def stored_json(row: sqlite3.Row) -> JsonObject:
    """The response, with what it has as a stored one."""
    return {**json.loads(row["response"]), "metadata": json.loads(row["metadata"])}


def training_row(row: sqlite3.Row) -> JsonObject | None:
    """The chat with its answer, as a row of training data; None if the answer was cut: it would teach to stop there."""
    choice = json.loads(row["response"])["choices"][0]
    if choice["finish_reason"] == "length":
        return None
    answer = {k: v for k, v in choice["message"].items() if v is not None}
    tools = json.loads(row["tools"]) if row["tools"] else None
    return {"messages": [*json.loads(row["messages"]), answer], **({"tools": tools} if tools else {})}
