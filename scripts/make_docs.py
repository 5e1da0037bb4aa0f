"""Write the generated pages of docs/ and the generated parts of the README from the code and the benchmark results.

python scripts/make_docs.py [--check] [--without PAGE ...] [PAGE ...]

`--check` writes nothing; it reports whether the pages are up to date. A page: docs/cli.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import forms_table
import records_page
from click.testing import CliRunner
from typer.main import get_command

from tunewright.cli import main as command_line
from tunewright.core import config, errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tunewright"
SPEED = ("<!-- speed: written by scripts/make_docs.py from benchmarks/results -->", "<!-- /speed -->")
FORMS = ("<!-- forms: written by scripts/make_docs.py from tests/data/formats/forms.json -->", "<!-- /forms -->")
TREE = ("<!-- tree: written by scripts/make_docs.py from the docstrings -->", "<!-- /tree -->")
PARAMETERS = (
    "<!-- parameters: written by scripts/make_docs.py from tunewright/server/chat/request.py -->",
    "<!-- /parameters -->",
)
HEAD = "<!-- written by scripts/make_docs.py; do not edit -->\n\n"


def between(text: str, markers: tuple[str, str], new: str) -> str:
    """The text, with what is between the two markers replaced."""
    before, rest = text.split(markers[0])
    return f"{before}{markers[0]}\n{new}{markers[1]}{rest.split(markers[1])[1]}"


def config_page() -> str:
    lines = [
        HEAD + "# Settings\n",
        "In a YAML file, settings are grouped in sections (`train:` / `lr: 1e-4`). On the command line they are dotted",
        "(`train.lr=1e-4`), in Python they have two underscores (`train__lr=1e-4`). Files are read as YAML 1.2:",
        "`1e-4` is a number and `no` is a string. Unknown and duplicate keys are errors.\n",
        "| setting | allowed | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, kind, default, meaning in config.fields():
        kind = kind.replace(" | ", ", ")
        lines.append(f"| `{key}` | {kind} | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    command = get_command(command_line.app)
    runner = CliRunner()
    lines = [HEAD + "# Command line\n"]

    def add(path: list[str]) -> None:
        text = runner.invoke(command, [*path, "--help"], prog_name="tunewright", terminal_width=100).output
        lines.append(f"## {' '.join(['tunewright', *path])}\n\n```\n{text.strip()}\n```\n")

    add([])
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        add([name])
        for inner in getattr(sub, "commands", {}):
            add([name, inner])
    return "\n".join(lines)


def errors_page() -> str:
    lines = [
        HEAD + "# Error codes\n",
        "Codes are stable. Every message has the form `error[CODE] place: what is wrong. Fix: what to do.`",
        "Exit status: 2 for wrong input; 1 for a failure that wrong input did not cause (`TRAIN_*`, `EXPORT_*`,",
        "`CONSUMER_*`, `RANKS_*`, `ROLLOUT_*`, `REWARD_FAILED`, `RUN_DISK`, and `SELFTEST_*` other than",
        "`SELFTEST_PROMPT` and `SELFTEST_STOP`); 4 for `RUN_WAITS`; 130 for `RUN_INTERRUPTED`. Without an error,",
        "`--gate` exits with 3 unless the verdict is BETTER.\n",
        "The examples are the messages for the wrong inputs in `tests/bad_inputs.py`;",
        "`python tests/bad_inputs.py FOLDER` writes all of these inputs, each with its command.\n",
        "| code | meaning | example |",
        "|---|---|---|",
    ]
    examples = messages_in_tests()
    for code, meaning in errors.CODES.items():
        example = f"`{examples[code]}`" if code in examples else ""
        lines.append(f"| `{code}` | {meaning} | {example} |")
    return "\n".join(lines) + "\n"


def messages_in_tests() -> dict[str, str]:
    """Code -> message, for the first wrong input in tests/bad_inputs.py that is rejected with that code."""
    sys.path.insert(0, str(ROOT / "tests"))
    from bad_inputs import CASES, ask, in_the_docs, sound
    from transformers.utils import logging

    logging.set_verbosity_error()  # transformers warns about models that are broken on purpose
    logging.disable_progress_bar()

    from tunewright.tokens import template

    messages: dict[str, str] = {}
    template.SECONDS = 0.5
    with tempfile.TemporaryDirectory() as root:
        inputs = Path(root) / "sound"
        inputs.mkdir()
        sound(inputs)
        for n, case in enumerate(c for c in CASES if c.code not in messages):
            folder = Path(root) / str(n)
            shutil.copytree(inputs, folder)
            case.make(folder)
            with contextlib.chdir(folder):
                line = next(x for x in ask(case)[2].splitlines() if x.startswith("error["))
            messages.setdefault(case.code, in_the_docs(line, folder))
    return messages


def readme() -> str:
    """The README, with its section on speed written from the benchmark results."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import method_tables
    import tables

    files = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("peers", "judging")]
    results = [json.loads(file.read_text(encoding="utf-8")) if file.exists() else {} for file in files]
    speed = tables.readme_table(*results) + method_tables.readme_table(_result("methods"))
    return between((ROOT / "README.md").read_text(encoding="utf-8"), SPEED, speed)


def data_guide() -> str:
    """docs/guide-data.md, with the table of documented forms of rows."""
    text = (ROOT / "docs" / "guide-data.md").read_text(encoding="utf-8")
    return between(text, FORMS, f"\n{forms_table.table()}")


def server_page() -> str:
    """docs/server.md, with what becomes of every parameter."""
    from tunewright.server.chat.request import ChatRequest, CompletionRequest, Declared
    from tunewright.server.chat.responses import ResponseRequest

    lines = ["| parameter | chat.completions | completions | responses |", "|---|---|---|---|"]
    models = (ChatRequest, CompletionRequest, ResponseRequest)
    names = sorted({name for m in models for name in (*m.model_fields, *m.IGNORED, *m.REFUSED)})

    def fate(model: type[Declared], name: str) -> str:
        if name in model.model_fields:
            return "used"
        if name in model.IGNORED:
            return "ignored"
        return f"refused: {model.REFUSED[name]}" if name in model.REFUSED else "refused: unknown"

    lines += [f"| `{name}` | {' | '.join(fate(m, name) for m in models)} |" for name in names]
    text = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    return between(text, PARAMETERS, "\n".join(lines) + "\n")


def architecture_page() -> str:
    """docs/architecture.md, with the tree of the package: one line per module, in import order."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_architecture import FOLDERS

    modules = [(p.relative_to(PACKAGE).parts, first_sentence(p)) for p in sorted(PACKAGE.rglob("*.py"))]
    lines = []
    for folder in FOLDERS:
        inside = [(parts, text) for parts, text in modules if parts[0].removesuffix(".py") == folder]
        for parts, text in sorted(inside, key=lambda m: (m[0][:-1], m[0][-1] != "__init__.py", m[0])):
            *folders, file = parts
            name = "/".join(folders) + "/" if file == "__init__.py" else f"{'  ' if folders else ''}{file}"
            lines.append((name, text))
    width = max(len(name) for name, _ in lines) + 2
    tree = "".join(f"{name:<{width}}{text}\n" for name, text in lines)
    return between((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), TREE, f"```\n{tree}```\n")


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\?)\s|(?<!al)(?<!e\.g)(?<!i\.e)(?<!vs)\.\s", paragraph)[0].removesuffix(".").removesuffix(":")


def correctness_page() -> str:
    """The silent bugs that the tests list, and the results of the torture and fuzz tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_faults import FAULTS

    lines = [
        HEAD + "# What cannot go wrong silently\n",
        "Each of these bugs has occurred in a released trainer or is easy to introduce. `pytest tests/test_faults.py`",
        "checks that a property holds, plants the bug ([tests/faults](../tests/faults)), and checks that the property",
        "no longer holds. The codes are explained in [errors.md](errors.md).\n",
        "| | bug | seen in | property that holds instead |",
        "|---|---|---|---|",
    ]
    for f in FAULTS:
        lines.append(f"| {f.number} | {f.bug} | {f.seen_in} | {f.invariant} |")
    lines.append(SELFTEST_AND_KILLS)
    for name, t in _result("torture").items():
        model = "SmolLM2-135M" if name == "real" else "tiny, random weights"
        counts = (t[key] for key in ("kills", "full", "runs", "points", "lost", "unequal"))
        lines.append(f"| {model} | {' | '.join(map(str, counts))} |")
    served = _result("torture_server")
    statuses = ", ".join(f"{count:,} of {status}" for status, count in served["requests"]["statuses"].items())
    lines.append(SERVER.format(**{**served["jobs"], **served["requests"], "statuses": statuses}))
    lines.append(FUZZING)
    for name, f in _result("fuzz").items():
        lines.append(f"| {READERS[name]} | {f['inputs']:,} | {f['seconds']} | {f['places']} |")
    return "\n".join(lines) + "\n"


SERVER = """
The same for `tunewright serve` (`tests/torture_server.py`, a part of `make torture`): the server was killed
{kills} times while it had {jobs} jobs, and continued {continued} of these. It lost {lost}, ended or reported {twice}
twice, and ended {out_of_order} out of order. No answer to {requests:,} requests that no client would send came from
another tenant; their statuses: {statuses}."""

SELFTEST_AND_KILLS = """
## Before the first step of every run

The self-test checks for the worst of these bugs on the run's own rows, with the real model: inference prompts are
prefixes of the training sequences; every turn ends where generation stops; with the adapter disabled, the model is
identical to the base, bit for bit; every trainable tensor gets a gradient and no other does; rows computed together
by tunewright's fused kernels have the same loss and gradient as rows computed one by one by the model's own modules.
A failure aborts the run (`SELFTEST_*`), except for the last check, where the plan falls back to a slower way of
computing and reports it. `tunewright doctor --selftest DATA` runs only the self-test; `selftest.json` in the run
folder and the report contain the results.

## Interrupts and kills

A checkpoint is complete or absent: its files have checksums and are flushed before it is renamed into place. Resuming
uses the newest valid checkpoint and warns about newer ones that are damaged. The entire training state is the weights,
the optimizer moments and one integer; row order, learning rate and dropout are functions of (seed, step). One process
at a time writes a run folder; the operating system releases its lock when the process dies.

`make torture` kills training (SIGKILL) before and after every call that changes the disk, with truncated files, with
a full disk, and at random moments. It then resumes training and compares weights, moments and logged losses with an
uninterrupted run, bit for bit:

| model | kills | full disks | runs | calls that change the disk | lost checkpoints | unequal runs |
|---|---|---|---|---|---|---|"""

FUZZING = """
## Arbitrary bytes

Known kinds of wrong files are listed in [bad_inputs.py](../tests/bad_inputs.py) with the code, place and exit status
of each. For all others, `make fuzz` runs a coverage-guided fuzzer (atheris) that mutates valid files for as long as
you like. It checks that each file is either read or rejected with one of our errors within 20 s, and that no files
are left behind:

| reader of | inputs | seconds | code locations reached |
|---|---|---|---|"""

READERS = {
    "rows": "JSONL",
    "table": "CSV",
    "compressed": "gzip, bzip2, xz, zstd",
    "remedied": "JSONL, with repairs",
    "settings": "YAML configs",
    "weights": "safetensors headers",
    "model": "a model's config.json",
}


def _result(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")))


PAGES = {
    "docs/config.md": config_page,
    "docs/cli.md": cli_page,
    "docs/errors.md": errors_page,
    "docs/correctness.md": correctness_page,
    "docs/architecture.md": architecture_page,
    "docs/guide-data.md": data_guide,
    **records_page.PAGES,
    "docs/server.md": server_page,
    "README.md": readme,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="*")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--without", nargs="+", default=[])
    asked, stale = parser.parse_args(), []
    for name in [n for n in asked.pages or PAGES if n not in asked.without]:
        path, text = ROOT / name, PAGES[name]()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not asked.check:
                path.write_text(text, encoding="utf-8")
    print("up to date" if not stale else f"{'stale' if asked.check else 'written'}: {', '.join(stale)}")
    sys.exit(bool(stale) and asked.check)


if __name__ == "__main__":
    main()
