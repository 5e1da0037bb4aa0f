"""Kiln's own code for OpenAI's fine-tuning, unmodified, against `tunewright serve`: upload, job, status, answer.

python benchmarks/kiln.py [--program PYTHON]      (makes an environment with kiln-ai, 1.5 GB, unless it is given)

Writes results/kiln.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from serve_vllm import server

from tunewright.cli.demo import rows_file

HERE = Path(__file__).parent
ROWS = 80
KILN = """
import asyncio, json, os, sys, time
from importlib import metadata
from pathlib import Path
from kiln_ai.adapters.fine_tune.openai_finetune import OpenAIFinetune
from kiln_ai.datamodel import (DataSource, DataSourceType, DatasetSplit, Finetune, Project, StructuredOutputMode, Task,
                               TaskOutput, TaskRun)
from kiln_ai.datamodel.dataset_split import AllDatasetFilter, Train80Val20SplitDefinition
from kiln_ai.utils.config import Config

given = [json.loads(line)["messages"] for line in open(sys.argv[1])]
rows = [{"question": chat[-2]["content"], "answer": chat[-1]["content"]} for chat in given]
folder = Path(sys.argv[2])
Config.shared().open_ai_api_key = os.environ["OPENAI_API_KEY"]
project = Project(name="addresses", path=folder / "project.kiln")
project.save_to_file()
names = sorted({name for row in rows for name in json.loads(row["answer"])})
schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
task = Task(name="parse", instruction="Write the parts of a US address as JSON.", parent=project,
            output_json_schema=json.dumps(schema))
task.save_to_file()
human = DataSource(type=DataSourceType.human, properties={"created_by": "somebody"})
for row in rows:
    output = TaskOutput(output=row["answer"], source=human)
    TaskRun(parent=task, input=row["question"], input_source=human, output=output).save_to_file()
split = DatasetSplit.from_task("split", task, Train80Val20SplitDefinition, "all", None)
split.parent = task
split.save_to_file()
tune = Finetune(name="tune", parent=task, provider="openai", base_model_id=sys.argv[3], dataset_split_id=split.id,
                train_split_name="train", validation_split_name="val", system_message=task.instruction,
                structured_output_mode=StructuredOutputMode.json_schema, parameters={"n_epochs": 1, "batch_size": 4})
tune.save_to_file()

async def main():
    adapter = OpenAIFinetune(tune)
    await adapter.start(split)
    seen = []
    while True:
        status = await adapter.status()
        said = (status.status.value, status.message.partition("[")[0])
        if said not in seen:
            seen.append(said)
        if status.status.value in ("completed", "failed", "unknown"):
            break
        await asyncio.sleep(2)
    print(json.dumps({"kiln": metadata.version("kiln-ai"), "openai": metadata.version("openai"),
                      "status": status.status.value, "message": status.message, "seen": seen,
                      "model": tune.fine_tune_model_id, "base": tune.base_model_id, "job": tune.provider_id}))

asyncio.run(main())
"""


def kiln_python(root: Path) -> str:
    python = root / "kiln" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(root / "kiln")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "kiln-ai"], check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", help="the Python of an environment with kiln-ai")
    given = parser.parse_args()
    python = given.program or kiln_python(HERE.parent / "build" / "consumers")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = rows_file().read_text(encoding="utf-8").splitlines()[: ROWS + 1]
        (folder / "rows.jsonl").write_text("\n".join(lines[:ROWS]), encoding="utf-8")
        with server(folder, "home", "smollm2-135m") as client:
            environment = {**os.environ, "HOME": str(folder), "OPENAI_API_KEY": client.api_key}
            environment["OPENAI_BASE_URL"] = str(client.base_url)
            command = [python, "-c", KILN, str(folder / "rows.jsonl"), str(folder), "smollm2-135m"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-4000:])
            result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
