"""Limits on size, parameters, `Any` and retired words. `ratchets.json` lists the exceptions, which may only shrink.

python tests/test_limits.py     Lower every ratchet to the current value, and print what exceeds its limit.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tunewright").rglob("*.py"))
RATCHETS = Path(__file__).parent / "ratchets.json"
COMMANDS = ROOT / "tunewright" / "cli"
MAIN = (COMMANDS / "main.py").read_text(encoding="utf-8")
FUNCTION_STATEMENTS = 40
FILE_STATEMENTS = 250
PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "tunewright").with_suffix("").parts)


def statements(node: ast.AST) -> int:
    """The number of statements within a node, whatever their line breaks."""
    return sum(isinstance(n, ast.stmt) for n in ast.walk(node) if n is not node)


def functions(path: Path) -> Iterator[Function]:
    yield from (node for node in ast.walk(parsed(path)) if isinstance(node, Function))


def is_command(function: Function, path: Path) -> bool:
    """Whether this is a command of the command line, whose parameters are its flags."""
    decorated = any(ast.unparse(d).split("(")[0].endswith(".command") for d in function.decorator_list)
    own = path.is_relative_to(COMMANDS) and path.name == f"{function.name}.py"
    added = own and f"app.command()({function.name})" in MAIN
    return decorated or added


def parameters(function: Function) -> int:
    a = function.args
    return sum(p.arg not in ("self", "cls") for p in (*a.posonlyargs, *a.args, *a.kwonlyargs))


# -- retired words


def retired() -> list[tuple[re.Pattern[str], set[str]]]:
    """(pattern, where it counts) of each retired word, from docs/glossary.md."""
    rows = []
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").split("## Retired words")[1].splitlines():
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)][1:-1]
        if len(cells) == 3 and cells[0].startswith("`"):
            for pattern in re.findall(r"`([^`]+)`", cells[0]):
                rows.append((re.compile(rf"\b(?:{pattern})\b(?! for\b)", re.I), set(cells[1].split(", "))))
    return rows


RETIRED = retired()


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name in the code, its parts separated by spaces: ``share_NK`` -> ``share NK``."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " "))


def texts(path: Path) -> Iterator[str]:
    """Strings and comments of a Python file; the text of a document without its code blocks and generated tables."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield re.sub(r"```.*?```|<!-- (\w+): .*?<!-- /\1 -->", "", source, flags=re.S)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def retired_words(path: Path) -> list[str]:
    """Every occurrence of a retired word in a file."""
    names = "\n".join(identifiers(ast.parse(path.read_text(encoding="utf-8")))) if path.suffix == ".py" else ""
    places = {"name": names, "text": "\n".join(texts(path))}
    return [m.group() for pattern, where in RETIRED for place in where for m in pattern.finditer(places[place])]


def written_by_us() -> dict[str, list[Path]]:
    """Ratchet key -> files: one key per file of the package and the documents, one per folder for the rest."""
    generated = {"records.md", "config.md", "cli.md", "errors.md", "correctness.md", "glossary.md"}
    templates = [p for p in (ROOT / "tunewright").rglob("*") if p.suffix in (".j2", ".html")]
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "examples" / "README.md"]
    single = [*FILES, *sorted(templates), *(p for p in sorted(documents) if p.name not in generated)]
    return {str(p.relative_to(ROOT)): [p] for p in single} | {
        f: sorted(p for p in (ROOT / f).rglob("*.py") if p != Path(__file__) and ".venv" not in p.parts)
        for f in ("tests", "benchmarks", "scripts", "examples")
    }


# -- the limits: table of ratchets.json -> current values, and the limit for what the table does not list


def present() -> dict[str, tuple[dict[str, int], int]]:
    by_function = [(f"{module(p)}.{f.name}", f, p) for p in FILES for f in functions(p)]
    any_count: dict[str, int] = {}
    for path in FILES:
        folder = module(path).split(".")[0]
        uses = sum(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(parsed(path)))
        any_count[folder] = any_count.get(folder, 0) + uses
    return {
        "statements of a function": ({name: statements(f) for name, f, _ in by_function}, FUNCTION_STATEMENTS),
        "statements of a file": ({module(p): statements(parsed(p)) for p in FILES}, FILE_STATEMENTS),
        "parameters": ({name: parameters(f) for name, f, p in by_function if not is_command(f, p)}, PARAMETERS),
        "Any in a folder": (any_count, 0),
        "retired words": (
            {key: sum(len(retired_words(p)) for p in files) for key, files in written_by_us().items()},
            0,
        ),
    }


PRESENT = present()


def ratchets() -> dict[str, dict[str, int]]:
    loaded: dict[str, dict[str, int]] = json.loads(RATCHETS.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("limit", PRESENT)
def test_limit(limit: str) -> None:
    values, default = PRESENT[limit]
    allowed = ratchets()[limit]
    over = {k: f"{v}, at most {allowed.get(k, default)}" for k, v in values.items() if v > allowed.get(k, default)}
    assert not over, f"{limit}: {over}"


def test_a_retired_word_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('told = 1  # it goes on\ndef f(share_NK): return "the found file stands for told"\n')
    assert sorted(retired_words(tmp_path / "a.py")) == ["goes on", "share", "told", "told"]


def lower() -> None:
    """Lower every ratchet to the current value; a value above its limit is printed, and that ratchet is kept."""
    kept: dict[str, dict[str, int]] = {}
    for limit, (values, default) in PRESENT.items():
        allowed = ratchets()[limit]
        for key, value in values.items():
            if value > allowed.get(key, default):
                print(f"{limit}: {key} is {value}, at most {allowed.get(key, default)}")  # noqa: T201
        kept[limit] = {k: min(n, values[k]) for k, n in allowed.items() if values.get(k, 0) > default}
    RATCHETS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    lower()
