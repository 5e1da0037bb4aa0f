"""Ollama: a Modelfile for the GGUF export, and the files that `ollama run hf.co/OWNER/NAME` reads from a repository.

The Modelfile has no TEMPLATE: Ollama then renders with the GGUF's own chat template, which has a long comment, so that
it resembles none of Ollama's stored templates.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from tunewright.core.run_folder import write_atomic
from tunewright.data.messages import Prompt
from tunewright.export.bundles import linear_template
from tunewright.export.bundles.bundle import Bundle, BundleInputs
from tunewright.export.templating import render
from tunewright.tokens import template


def write(inputs: BundleInputs, folder: Path) -> None:
    file = gguf_file(inputs)
    try:
        os.link(file, folder / file.name)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, folder / file.name)
    parameters = {"temperature": 0, "num_ctx": inputs.context, "stop": list(inputs.stop)}
    files = {
        "Modelfile": modelfile(file.name, parameters, inputs.system),
        "params": json.dumps(parameters, ensure_ascii=False, indent=1) + "\n",
        "system": inputs.system,
        "template": linear_template.as_go(inputs.source.template),
        "system.json": None,
    }
    if inputs.system is not None and quoted(inputs.system) is None:
        request = {"model": inputs.name, "from": inputs.name, "system": inputs.system}
        files["system.json"] = json.dumps(request, ensure_ascii=False) + "\n"
    written = {name: text for name, text in files.items() if text is not None}
    for name, text in written.items():
        write_atomic(folder / name, text)
    question = [{"role": "user", "content": "Ping?"}]
    check = {"model": inputs.name, "messages": question, "stream": False, "_debug_render_only": True}
    prompt = Prompt(tuple(inputs.messages("Ping?")))
    expected = template.render(inputs.source.template, prompt, True) if inputs.chat else None
    readme = render("ollama.md", name=inputs.name, files=written, check=check, expected=expected)
    write_atomic(folder / "README.md", readme)


def gguf_file(inputs: BundleInputs) -> Path:
    """The model in GGUF; of several types, the most precise."""
    files = [file for file in inputs.export("gguf").glob("*.gguf") if "-lora-" not in file.name]
    return max(files, key=lambda file: file.stat().st_size)


def modelfile(file: str, parameters: dict[str, object], system: str | None) -> str:
    lines = [f"FROM ./{file}"]
    for key, value in parameters.items():
        lines += [f"PARAMETER {key} {quoted(str(v))}" for v in (value if isinstance(value, list) else [value])]
    instruction = None if system is None else quoted(system)
    return "\n".join([*lines, *([] if instruction is None else [f"SYSTEM {instruction}"])]) + "\n"


def quoted(text: str) -> str | None:
    """A value of a Modelfile; None if there is no way to write it. There are no escapes: a value ends at the first line
    that ends with its quotation mark, and characters that Go does not call printable are dropped (spaces other than
    U+0020 among them)."""
    printable = all(c.isprintable() or c in "\n\r\t" for c in text)
    return f'"""{text}"""' if printable and not re.search(r'"""\s*[\r\n]', text) else None


OLLAMA = Bundle(kind="ollama", needs=("gguf",), write=write)
