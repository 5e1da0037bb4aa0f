"""Write docs/config.md, cli.md, errors.md and correctness.md, and the README's table, from the code and the results. `--check` only says whether they are up to date."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import records_page
from click.testing import CliRunner
from typer.main import get_command

from tunewright.cli import main as command_line
from tunewright.core import config, errors

ROOT = Path(__file__).parent.parent
SPEED = ("<!-- speed: written by scripts/make_docs.py from benchmarks/results -->", "<!-- /speed -->")
HEAD = "<!-- written by scripts/make_docs.py; do not edit -->\n\n"


def config_page() -> str:
    lines = [
        HEAD + "# Settings\n",
        "In a YAML file as sections (`train:` / `lr: 1e-4`), on the command line dotted (`train.lr=1e-4`), in Python with two underscores (`train__lr=1e-4`).",
        "YAML is version 1.2: `1e-4` is a number and `no` is a word. An unknown or repeated key is an error.\n",
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
        "Codes are stable. Every message has the form `error[CODE] place: what was found. Fix: what to do.`",
        "Exit status: 2 for these, 1 for `TRAIN_*` and `EXPORT_*`, 130 for `TRAIN_INTERRUPTED`.\n",
        "The examples are what the wrong inputs of `tests/bad_inputs.py` get; `python tests/bad_inputs.py FOLDER` writes them all, with their commands.\n",
        "| code | meaning | for example |",
        "|---|---|---|",
    ]
    met = met_in_tests()
    for code, meaning in errors.CODES.items():
        example = f"`{met[code]}`" if code in met else ""
        lines.append(f"| `{code}` | {meaning} | {example} |")
    return "\n".join(lines) + "\n"


def met_in_tests() -> dict[str, str]:
    """What the tables of wrong inputs are told, a message a code."""
    sys.path.insert(0, str(ROOT / "tests"))
    from bad_inputs import CASES, ask, sound
    from transformers.utils import logging

    logging.set_verbosity_error()  # its warnings are about models that are wrong on purpose
    logging.disable_progress_bar()

    from tunewright.tokens import rendering

    found: dict[str, str] = {}
    rendering.SECONDS = 0.5
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        whole.mkdir()
        sound(whole)
        for n, case in enumerate(c for c in CASES if c.code not in found):
            folder = Path(root) / str(n)
            shutil.copytree(whole, folder)
            case.make(folder)
            with contextlib.chdir(folder):
                line = next(x for x in ask(case)[2].splitlines() if x.startswith("error["))
            told = line.partition("] ")[2].replace(f"{folder}/", "").replace("`", "'").replace("|", "/")
            found.setdefault(case.code, " ".join(told.split()))
    return found


def readme() -> str:
    """The README with its part about speed as the benchmarks' results have it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from tables import readme_table

    files = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("peers", "judging")]
    results = [json.loads(file.read_text(encoding="utf-8")) if file.exists() else {} for file in files]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, rest = text.split(SPEED[0])
    return f"{head}{SPEED[0]}\n{readme_table(*results)}{SPEED[1]}{rest.split(SPEED[1])[1]}"


def correctness_page() -> str:
    """The silent bugs as the tests have them, and how many kills training has survived."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_faults import FAULTS

    lines = [
        HEAD + "# What cannot go wrong silently\n",
        "Each bug has been in a released trainer or is one slip away. `pytest tests/test_faults.py` asks that the property holds, plants the bug",
        "([tests/faults](../tests/faults)), and asks that the property then fails. Codes: [errors.md](errors.md).\n",
        "| | bug | seen in | what holds instead | planted |",
        "|---|---|---|---|---|",
    ]
    for f in FAULTS:
        planted = "killed" if f.plant else "cannot apply yet: refused"
        lines.append(f"| {f.number} | {f.bug} | {f.evidence} | {f.invariant} | {planted} |")
    lines += [
        "\n## Before the first step of every run\n",
        "The self-test looks for the worst of them on rows of the run itself, with the real model: served prompts are the beginnings of trained rows; every turn ends where",
        "generation stops; with its adapter off the model is the base, bit for bit; every trained tensor gets a gradient and no other; rows computed together, by our",
        "kernels, give loss and gradient of rows alone in the model's own modules. What fails refuses the run (`SELFTEST_*`), but for the last: there the plan falls back and",
        "says so. `tunewright doctor --run CONFIG` does this and nothing else; `selftest.json` in the run folder and the report keep what was found.\n",
        "## Stopped and killed\n",
        "A checkpoint is whole or not there: files with checksums, flushed, renamed. The newest sound one is taken, with a warning where a newer one is damaged. Weights,",
        "moments and one integer are all the state; order, rate and dropout are functions of (seed, step). One process writes a run folder; the kernel takes its lock away when it dies.\n",
        "`make torture` kills training (SIGKILL) before and after every call that changes the disk, with files cut short, with a full disk, and at random moments, lets it go on and",
        "compares weights, moments and logged losses with the run that nobody killed, bit for bit:\n",
        "| model | kills | full disks | runs | places on disk | lost | unequal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, t in _result("torture").items():
        model = "SmolLM2-135M" if name == "real" else "tiny, random weights"
        lines.append(
            f"| {model} | {t['kills']} | {t['full']} | {t['runs']} | {t['points']} | {t['lost']} | {t['unequal']} |"
        )
    lines += [
        "\n## Any bytes\n",
        "Wrong files that we thought of stand in [bad_inputs.py](../tests/bad_inputs.py) with their code, place and exit status. For those that we did not think of, `make fuzz` lets",
        "a coverage-guided fuzzer (atheris) change known files for as long as one likes, and asks that each is read or refused by an error of ours within 20 s, with nothing left behind:\n",
        "| reader of | inputs | seconds | places in the code reached |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {READERS[name]} | {f['inputs']:,} | {f['seconds']} | {f['places']} |" for name, f in _result("fuzz").items()
    ]
    return "\n".join(lines) + "\n"


READERS = {
    "rows": "JSONL",
    "table": "CSV",
    "settings": "configs in YAML",
    "weights": "headers of safetensors",
    "model": "config.json of a model",
}


def _result(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")))


PAGES = {
    "docs/config.md": config_page,
    "docs/cli.md": cli_page,
    "docs/errors.md": errors_page,
    "docs/correctness.md": correctness_page,
    **records_page.PAGES,
    "README.md": readme,
}


def main() -> None:
    stale = []
    for name, page in PAGES.items():
        path, text = ROOT / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print("up to date" if not stale else f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join(stale)}")
    sys.exit(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
