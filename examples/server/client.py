"""From rows to a verdict and answers, with the unmodified OpenAI client. The server: `tunewright serve`.

pip install openai
export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=tw-...      as `tunewright serve` prints them
python examples/server/client.py examples/addresses/data/addresses.jsonl --rows 300
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI


def upload(client: OpenAI, path: Path, rows: int) -> tuple[str, dict[str, Any]]:
    """The id of a file with the first rows, and the row after them."""
    lines = path.read_bytes().splitlines(keepends=True)
    file = client.files.create(file=(path.name, b"".join(lines[:rows])), purpose="fine-tune")
    return file.id, json.loads(lines[rows])


def wait(client: OpenAI, job_id: str) -> Any:
    """Prints the events of a job as they come, until it has ended."""
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        for event in reversed(client.fine_tuning.jobs.list_events(job_id, limit=100).data):
            if event.id not in seen:
                seen.add(event.id)
                print(event.message, flush=True)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(2)


def schema_of(answer: str) -> dict[str, Any]:
    """Objects with any of the fields that an answer has, all of them strings."""
    names = json.loads(answer)
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "additionalProperties": False}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows_file", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--settings", default="{}", help="JSON: settings of tunewright, such as prove.evidence")
    given = parser.parse_args()
    client = OpenAI()
    file_id, row = upload(client, given.rows_file, given.rows)
    settings = {"tunewright": json.loads(given.settings)}
    job = client.fine_tuning.jobs.create(model=given.model, training_file=file_id, extra_body=settings)
    job = wait(client, job.id)
    if job.status != "succeeded":
        sys.exit(f"{job.status}: {job.error.message if job.error else ''}")
    verdict = job.to_dict()["tunewright"]["verdict"]
    low, high = verdict["interval"]
    print(
        f"{verdict['verdict']}: {verdict['metric']} {verdict['tuned']:.3f}, difference {verdict['difference']:+.3f}"
        f" [{low:+.3f}, {high:+.3f}] on {verdict['n']} held-out rows"
    )
    messages, expected = row["messages"][:-1], row["messages"][-1]["content"]
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema_of(expected)}}
    for model in (given.model, job.fine_tuned_model):
        answer = client.chat.completions.create(
            model=model, messages=messages, max_completion_tokens=200, response_format=form
        )
        print(f"{model}: {' '.join((answer.choices[0].message.content or '').split())}")
    print(f"expected: {expected}")


if __name__ == "__main__":
    main()
