"""Ollama: a Modelfile for the GGUF export, and the files that `ollama run hf.co/OWNER/NAME` reads from a repository.

The Modelfile has no TEMPLATE: Ollama then renders with the GGUF's own chat template, which has a long comment, so that
it resembles none of Ollama's stored templates.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

from tunewright.core.run_folder import write_atomic
from tunewright.data.messages import Message, Prompt
from tunewright.export.bundles.bundle import Bundle, BundleInputs, Readme
from tunewright.export.kind import TrainedRun
from tunewright.tokens import template

API = "curl -s http://localhost:11434/api"


def write(inputs: BundleInputs, folder: Path) -> Readme:
    file, name, system = gguf_file(inputs.source), inputs.name, inputs.system
    assert file is not None
    try:
        os.link(file, folder / file.name)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, folder / file.name)
    commands = [f"ollama create {name} -f Modelfile", f"ollama run {name}"]
    how = inputs.sampling
    choosing: dict[str, float] = {"temperature": how.temperature}
    if how.temperature:
        choosing |= {"top_k": 0, "top_p": 1, "min_p": 0}
    if how.repetition_penalty != 1:
        choosing |= {"repeat_penalty": how.repetition_penalty, "repeat_last_n": -1}
    values = [*((k, f"{v:g}") for k, v in choosing.items()), ("num_ctx", str(inputs.context))]
    values += [("stop", text) for text in inputs.stop]
    lines = [f"FROM ./{file.name}", *(f"PARAMETER {key} {quoted(value)}" for key, value in values)]
    if system and (text := quoted(system)):
        lines.append(f"SYSTEM {text}")
    elif system:  # the same, through Ollama's API
        write_atomic(folder / "system.json", json.dumps({"model": name, "from": name, "system": system}))
        commands.insert(1, f"{API}/create -d @system.json")
    parameters = {**choosing, "num_ctx": inputs.context, "stop": inputs.stop}
    go = inputs.linear.as_go(_added_bos(inputs.source)) if inputs.linear else ""
    for title, content in {"params": json.dumps(parameters), "system": system, "template": go}.items():
        if content:
            write_atomic(folder / title, content)
    write_atomic(folder / "Modelfile", "\n".join(lines) + "\n")
    notes = ["`params`, `system` and `template` are for `ollama run hf.co/...`; `tunewright push` adds them to a GGUF."]
    if inputs.source.template.tokenizer.chat_template:
        messages = inputs.messages("Ping?")
        asked = {"model": name, "messages": messages[-1:], "stream": False, "_debug_render_only": True}
        commands.append(f"{API}/chat -d {shlex.quote(json.dumps(asked))}")
        prompt = Prompt(tuple(Message(m["role"], m["content"]) for m in messages))
        rendered = json.dumps(template.render(inputs.source.template, prompt, True))
        notes.append(f"The last command must print `{rendered}`, the prompt that the model was trained on.")
    return Readme(f"{name} in Ollama", commands, notes)


def _added_bos(source: TrainedRun) -> str:
    """What Ollama itself puts before the text: the BOS token, if the GGUF file says so (add_bos_token)."""
    tokenizer = source.template.tokenizer
    ids = tokenizer("").input_ids
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def gguf_file(source: TrainedRun) -> Path | None:
    """The model in GGUF, if it is exported (the folder may be an older one's); of several types, the most precise."""
    files = (source.run.path / "gguf").glob("*.gguf") if "gguf" in source.config.export.to else ()
    return max(files, key=lambda file: file.stat().st_size, default=None)


def quoted(text: str) -> str | None:
    """A value of a Modelfile; None if there is no way to write it. There are no escapes: a value ends at the first line
    that ends with its quotation mark, and characters that Go does not call printable are dropped (spaces other than
    U+0020 among them)."""
    printable = all(c.isprintable() or c in "\n\r\t" for c in text)
    return f'"""{text}"""' if printable and not re.search(r'"""\s*[\r\n]', text) else None


OLLAMA = Bundle(kind="ollama", needs=("gguf",), write=write)
