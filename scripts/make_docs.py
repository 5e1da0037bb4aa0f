"""Write docs/config.md, docs/cli.md and docs/errors.md from the code. `--check` only says whether they are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from click.testing import CliRunner
from typer.main import get_command

from tunewright import cli, config, errors

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
    command = get_command(cli.app)
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
        "| code | meaning |",
        "|---|---|",
    ]
    lines += [f"| `{code}` | {meaning} |" for code, meaning in errors.CODES.items()]
    return "\n".join(lines) + "\n"


def readme() -> str:
    """The README with its part about speed as the benchmarks' results have it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from tables import readme_table

    files = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("peers", "judging")]
    results = [json.loads(file.read_text(encoding="utf-8")) if file.exists() else {} for file in files]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, rest = text.split(SPEED[0])
    return f"{head}{SPEED[0]}\n{readme_table(*results)}{SPEED[1]}{rest.split(SPEED[1])[1]}"


PAGES = {"docs/config.md": config_page, "docs/cli.md": cli_page, "docs/errors.md": errors_page, "README.md": readme}


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
