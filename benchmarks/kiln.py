"""Kiln, unmodified, with `tunewright serve` as its custom OpenAI-compatible provider: a task in each of its modes of
structured output.

python benchmarks/kiln.py [--model MODEL] [--program PYTHON]      (makes an environment of 1.5 GB, unless it is given)

Kiln 1.2 starts fine-tunes with Fireworks, Together and Vertex only, so what it asks of a custom provider is chat.
Writes results/kiln.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from serve import served

from tunewright.model import loading

HERE = Path(__file__).parent
PACKAGES = ("kiln-ai==1.2.0", "mcp<1.25", "together<2")  # the newest of these have lost what Kiln imports
TEMPLATE = HERE.parent / "tunewright" / "tokens" / "templates" / "chatml-tools.jinja"  # SmolLM2's has no tools
KILN = """
import asyncio, json, os, sys
from pathlib import Path
from kiln_ai.adapters.adapter_registry import adapter_for_task
from kiln_ai.adapters.ml_model_list import ModelProviderName
from kiln_ai.datamodel import Project, StructuredOutputMode, Task
from kiln_ai.datamodel.run_config import KilnAgentRunConfigProperties
from kiln_ai.utils.config import Config

provider = {"name": "own", "base_url": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
Config.shared().openai_compatible_providers = [provider]
project = Project(name="project", path=Path(sys.argv[2]) / "project.kiln")
project.save_to_file()
field = {"colour": {"type": "string", "enum": ["red", "blue"]}, "days": {"type": "integer"}}
schema = {"type": "object", "properties": field, "required": ["colour", "days"], "additionalProperties": False}
instruction = "Answer with the colour that the text names, red or blue, and the number of days."


async def ask(mode):
    text = mode == "text"
    task = Task(name=mode, instruction=instruction, parent=project,
                output_json_schema=None if text else json.dumps(schema))
    task.save_to_file()
    config = KilnAgentRunConfigProperties(
        model_name=f"own::{sys.argv[1]}", model_provider_name=ModelProviderName.openai_compatible,
        prompt_id="simple_prompt_builder", structured_output_mode=StructuredOutputMode("default" if text else mode),
        temperature=0.0, top_p=1.0)
    try:
        run = await adapter_for_task(task, config).invoke("The red car is here for 3 days.")
        return "answered", run.output.output
    except Exception as error:
        return "failed", str(error)


async def main():
    modes = ("text", "json_schema", "function_calling", "function_calling_weak", "json_mode", "json_instructions")
    print(json.dumps([(mode, *await ask(mode)) for mode in modes]))

asyncio.run(main())
"""


def kiln_python(root: Path) -> str:
    python = root / "kiln" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(root / "kiln")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--program", help="the Python of an environment with kiln-ai")
    given = parser.parse_args()
    python = given.program or kiln_python(HERE.parent / "build" / "consumers")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(loading.resolve(given.model), folder / "base")
        shutil.copy(TEMPLATE, folder / "base" / "chat_template.jinja")
        with served(folder, "home", "--model", str(folder / "base")) as (client, _):
            environment = {
                **os.environ,
                "HOME": str(folder),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "OPENAI_API_KEY": client.api_key,
                "OPENAI_BASE_URL": str(client.base_url),
            }
            command = [python, "-c", KILN, "base", str(folder)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    rows = json.loads(done.stdout.splitlines()[-1])
    text = [
        "# Kiln and `tunewright serve`\n",
        f"`python benchmarks/kiln.py`; {', '.join(PACKAGES)}; {given.model}, untrained, with a chat template that has",
        "tools. In `json_mode` and `json_instructions` the schema is only a part of the prompt.\n",
        "| mode | result | |",
        "|---|---|---|",
        *(f"| {mode} | {result} | {' '.join(what.split())[:150].replace('|', ' ')} |" for mode, result, what in rows),
    ]
    (HERE / "results" / "kiln.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
