"""The house holds: floors, no cycles, no torch where it is not wanted, one public face, no pickle, sizes."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tunewright
from tunewright.core import config, errors

PACKAGE = Path(tunewright.__file__).parent
# Every folder imports only from those before it; `docs/architecture.md` is generated from this order.
FOLDERS = ["core", "data", "tokens", "model", "methods", "train", "judge", "export", "report", "run", "stages", "api", "cli"]
TORCH_FREE = ["core", "data", "tokens", "report", "api", "cli.main", "judge.statistics", "judge.protocol", "judge.arms.families"]
FILES = sorted(PACKAGE.rglob("*.py"))
FACES = {"__init__", "__main__"}  # the package itself: its public names and `python -m tunewright`


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    known, found = {module_name(p) for p in FILES}, set[str]()
    for node in ast.walk(tree):
        if id(node) not in hidden and isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tunewright":
            assert node.module
            inner = node.module.removeprefix("tunewright").lstrip(".")
            for alias in node.names:
                whole = f"{inner}.{alias.name}".lstrip(".")
                found.add(whole if whole in known else inner)
    return found


def folder(module: str) -> str:
    return module.split(".")[0]


def test_every_file_lies_in_a_folder() -> None:
    assert {folder(module_name(p)) for p in FILES} == {*FOLDERS, *FACES}
    assert all(len(list(d.glob("*.py"))) <= 15 for d in {p.parent for p in FILES}), "a folder of more than 14 modules"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_goes_up(path: Path) -> None:
    mine = folder(module_name(path))
    for name in imports(path) if mine not in FACES else []:
        theirs = folder(name)
        assert FOLDERS.index(theirs) <= FOLDERS.index(mine), f"{module_name(path)} imports {name} of a later folder"


def test_no_import_goes_in_circles() -> None:
    graph = {module_name(p): imports(p) for p in FILES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"


def test_no_torch_at_import() -> None:
    names = [n for n in map(module_name, FILES) for part in TORCH_FREE if n == part or n.startswith(f"{part}.")]
    code = f"import sys, {', '.join(f'tunewright.{n}' for n in names)}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_face() -> None:
    assert tunewright.__all__ == ["Config", "Result", "TunewrightError", "check", "load_run", "run"]
    for name in tunewright.__all__:
        assert getattr(tunewright, name).__doc__
    with pytest.raises(AttributeError):
        tunewright.nothing  # noqa: B018


def test_the_config_fields() -> None:
    """A field is API: adding or removing one is a decision, written here."""
    assert [row[0] for row in config.fields()] == [
        "model",
        "template",
        "date",
        "seed",
        "threads",
        "data.train",
        "data.dev",
        "data.test",
        "data.format",
        "data.instruction",
        "data.columns",
        "data.too_long",
        "split.dev",
        "split.test",
        "split.near_duplicate",
        "adapter.kind",
        "adapter.rank",
        "adapter.alpha",
        "adapter.dropout",
        "adapter.targets",
        "train.epochs",
        "train.steps",
        "train.batch_size",
        "train.tokens_per_pass",
        "train.max_length",
        "train.lr",
        "train.schedule",
        "train.warmup",
        "train.weight_decay",
        "train.max_grad_norm",
        "train.dtype",
        "train.layout",
        "train.gradient_checkpointing",
        "train.eval_every",
        "train.patience",
        "checkpoint.every",
        "checkpoint.keep",
        "prove.metric",
        "prove.evidence",
        "prove.few_shot",
        "prove.prompts",
        "prove.documents",
        "prove.embedder",
        "prove.max_test_rows",
        "prove.max_dev_rows",
        "prove.max_new_tokens",
        "prove.batch_size",
        "prove.margin",
        "prove.significance",
        "prove.target_accuracy",
        "prove.remote.url",
        "prove.remote.model",
        "prove.remote.api_key_env",
        "prove.remote.concurrency",
        "forget.regression_rows",
        "forget.margin",
        "forget.scales",
        "forget.apply_best_scale",
        "experiments.prompt_distillation",
        "experiments.crossfit",
        "experiments.cleaning",
        "experiments.mitigation",
        "cost.requests",
        "cost.batch_size",
        "cost.price_per_hour",
        "export.merged",
        "export.dtype",
    ]
    assert all(meaning for *_, meaning in config.fields())


def test_every_config_field_is_read_somewhere() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for p in FILES if "config" not in p.parts)
    for key, *_ in config.fields():
        leaf = key.rsplit(".", 1)[-1]
        assert re.search(rf"\.{leaf}\b", code) or f'"{leaf}"' in code, f"nothing reads {key}"


def test_the_command_line() -> None:
    from tunewright.cli import main, runs

    def names(app: object) -> list[str]:
        commands = [c.name or (c.callback.__name__.removeprefix("runs_") if c.callback else "") for c in app.registered_commands]  # type: ignore[attr-defined]
        return sorted(commands)

    assert names(main.app) == [
        "chat",
        "check",
        "curve",
        "demo",
        "doctor",
        "export",
        "plan",
        "prove",
        "report",
        "run",
        "show",
        "train",
    ]
    assert names(runs.runs_app) == ["diff", "list", "reproduce", "rm", "show"]


def test_every_code_is_used_and_listed() -> None:
    used: set[str] = set()
    for path in FILES:
        if path.name != "errors.py":
            used |= set(
                re.findall(
                    r'"((?:ADAPTER|CONFIG|DATA|EXPORT|LABELS|LORA|MISSING|MODEL|PATH|REMOTE|RESUME|RUN|SELFTEST|SPLIT|TEMPLATE|TOKENIZER|TRAIN)_[A-Z_]+)"',
                    path.read_text(encoding="utf-8"),
                )
            )
    used.add("MISSING_PACKAGE")
    findings = {"LABELS_RARE", "LABELS_NEAR_DUPLICATE", "PRIVATE_DATA"}
    assert used - findings <= set(errors.CODES), used - set(errors.CODES)
    assert set(errors.CODES) <= used, set(errors.CODES) - used


UNPICKLING = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "zipfile"}
NETWORK = {"httpx", "requests", "urllib", "http", "socket", "aiohttp"}
RUNNING = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
}


def test_nothing_unpickles_runs_what_it_reads_or_calls_out() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name.split(".")[0] for a in node.names} | {(getattr(node, "module", "") or "").split(".")[0]}
                assert not names & UNPICKLING, path
                assert not names & NETWORK or path.name == "openai_endpoint.py", path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in RUNNING, path
                assert not called.endswith((".extractall", ".extract")), path
                assert given.get("shell", "False") == "False", path
                if called.endswith(".from_pretrained"):
                    assert given["trust_remote_code"] == "False", (path, called)
                    assert "Model" not in called or "gguf_file" in given or given["use_safetensors"] == "True", (path, called)
