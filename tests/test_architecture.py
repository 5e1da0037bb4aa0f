"""The structure of the package: folders, imports, the public API, settings, commands, error codes, safety."""

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
from tunewright.core.config import DistillConfig, MethodOptions

PACKAGE = Path(tunewright.__file__).parent
# A folder imports only from itself and from those before it; docs/architecture.md lists them in this order.
FOLDERS = [
    "core",
    "data",
    "tokens",
    "system",
    "fan",
    "model",
    "methods",
    "train",
    "judge",
    "export",
    "report",
    "track",
    "runtime",
    "stages",
    "api",
    "server",
    "cli",
]
TORCH_FREE = [
    "core",
    "data",
    "tokens",
    "report",
    "track",
    "api",
    "cli.main",
    "judge.statistics",
    "judge.protocol",
    "judge.arms.families",
]
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_POINTS = {"__init__", "__main__"}  # the package: its public names and `python -m tunewright`


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere outside TYPE_CHECKING blocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    known = {module_name(p) for p in FILES}
    imported: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden or not isinstance(node, ast.ImportFrom):
            continue
        if node.module and node.module.split(".")[0] == "tunewright":
            inner = node.module.removeprefix("tunewright").lstrip(".")
            for alias in node.names:
                full = f"{inner}.{alias.name}".lstrip(".")
                if full in known or inner:  # else a name of the package itself
                    imported.add(full if full in known else inner)
    return imported


def folder(module: str) -> str:
    return module.split(".")[0]


def test_every_file_is_in_a_folder() -> None:
    assert {folder(module_name(p)) for p in FILES} == {*FOLDERS, *ENTRY_POINTS}
    assert all(len(list(d.glob("*.py"))) <= 15 for d in {p.parent for p in FILES}), "a folder of more than 14 modules"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_from_a_later_folder(path: Path) -> None:
    mine = folder(module_name(path))
    for name in imports(path) if mine not in ENTRY_POINTS else []:
        theirs = folder(name)
        assert FOLDERS.index(theirs) <= FOLDERS.index(mine), f"{module_name(path)} imports {name} of a later folder"


def test_no_import_cycles() -> None:
    graph = {module_name(p): imports(p) for p in FILES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_torch_at_import() -> None:
    names = [n for n in map(module_name, FILES) for part in TORCH_FREE if n == part or n.startswith(f"{part}.")]
    modules = ", ".join(f"tunewright.{n}" for n in names)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_api() -> None:
    assert tunewright.__all__ == ["Config", "Result", "TunewrightError", "check", "load_run", "run"]
    for name in tunewright.__all__:
        assert getattr(tunewright, name).__doc__
    with pytest.raises(AttributeError):
        tunewright.nothing  # noqa: B018


def test_the_config_fields() -> None:
    """A setting is API: adding or removing one is a decision, recorded here."""
    assert [row[0] for row in config.fields()] == [
        "model",
        "quantise",
        "template",
        "date",
        "seed",
        "threads",
        "track",
        "data.train",
        "data.dev",
        "data.test",
        "data.format",
        "data.answer_schema",
        "data.instruction",
        "data.columns",
        "data.label_names",
        "data.encoding",
        "data.control",
        "data.empty",
        "data.turns",
        "data.invalid",
        "data.duplicates",
        "data.contradictions",
        "data.leaks",
        "data.labels",
        "data.unseen_labels",
        "data.too_long",
        "split.dev",
        "split.test",
        "split.near_duplicate",
        "adapter.kind",
        "adapter.rank",
        "adapter.alpha",
        "adapter.dropout",
        "adapter.targets",
        "adapter.loraplus_lr_ratio",
        "adapter.init",
        "adapter.start",
        "adapter.rank_pattern",
        "adapter.alpha_pattern",
        "adapter.options",
        "train.beta",
        "train.label_smoothing",
        "train.nll_weight",
        "train.gamma_beta_ratio",
        "train.desirable_weight",
        "train.undesirable_weight",
        "train.loss_type",
        "train.num_generations",
        "train.temperature",
        "train.center_rewards_coefficient",
        "train.kl_weight",
        "train.num_iterations",
        "train.method",
        "train.epochs",
        "train.steps",
        "train.batch_size",
        "train.tokens_per_pass",
        "train.max_length",
        "train.lr",
        "train.lr_multiplier",
        "train.schedule",
        "train.warmup",
        "train.weight_decay",
        "train.optimizer",
        "train.max_grad_norm",
        "train.dtype",
        "train.layout",
        "train.kernels",
        "train.gradient_checkpointing",
        "train.fsdp",
        "train.eval_every",
        "train.patience",
        "train.pooling",
        "embed.query_prefix",
        "embed.document_prefix",
        "embed.temperature",
        "reward.grader",
        "reward.check",
        "reward.sampler.url",
        "reward.sampler.api_key_env",
        "distill.teacher",
        "distill.divergence",
        "distill.beta",
        "distill.temperature",
        "distill.on_policy",
        "checkpoint.every",
        "checkpoint.keep",
        "prove.metric",
        "prove.list_order",
        "prove.number_tolerance",
        "prove.evidence",
        "prove.few_shot",
        "prove.prompts",
        "prove.documents",
        "prove.embedder",
        "prove.max_test_rows",
        "prove.max_dev_rows",
        "prove.max_new_tokens",
        "prove.batch_size",
        "prove.decoding",
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
        "experiments.raft",
        "sweep.grid",
        "sweep.halve",
        "sweep.seeds",
        "cost.requests",
        "cost.batch_size",
        "cost.price_per_hour",
        "export.to",
        "export.dtype",
        "export.rows",
        "export.gguf",
        "export.llama_cpp",
    ]
    assert all(meaning for *_, meaning in config.fields())


def settings_read(path: Path) -> set[str]:
    """``section.leaf`` of every setting that a file reads, from a section itself or from a name that refers to one.

    A name refers to a section if it is assigned from one (``asked = config.prove``) or annotated with its type.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    held: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for name, value in pairs:
                    if isinstance(name, ast.Name) and isinstance(value, ast.Attribute):
                        held.setdefault(name.id, set()).add(value.attr)
        if isinstance(node, ast.arg) and node.annotation is not None:
            kind = ast.unparse(node.annotation).split(".")[-1]
            held.setdefault(node.arg, set()).add(kind.removesuffix("Config").lower() if kind != "Config" else "")
    read: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            read.add(f"{node.value.attr}.{node.attr}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read |= {f"{section}.{node.attr}" for section in {node.value.id, *held.get(node.value.id, ())}}
    return read


def test_every_setting_is_read() -> None:
    read = {setting for p in FILES if "config" not in p.parts for setting in settings_read(p)}
    for key, *_ in config.fields():
        setting = ".".join(["config", *key.split(".")][-2:])
        assert setting in read or key in READ_BY_NAME, f"nothing reads {key}"


READ_BY_NAME = {
    *(f"train.{name}" for name in MethodOptions.model_fields),  # into Plan.options
    *(f"distill.{name}" for name in DistillConfig.model_fields),  # into Plan.teacher
}


def test_the_command_line() -> None:
    commands = command_names()
    assert commands[""] == [
        "chat",
        "check",
        "compare",
        "demo",
        "doctor",
        "export",
        "fix",
        "learning-curve",
        "plan",
        "preview",
        "prove",
        "push",
        "report",
        "run",
        "runs",
        "serve",
        "sweep",
        "synthesize",
        "train",
        "verify",
    ]
    assert commands["runs"] == ["diff", "list", "reproduce", "rm", "show"]


def command_names() -> dict[str, list[str]]:
    """Names of the commands, and of those under `runs`."""
    from typer.main import get_command

    from tunewright.cli import main

    top = get_command(main.app).commands  # type: ignore[attr-defined]
    return {"": sorted(top), "runs": sorted(top["runs"].commands)}


def test_every_command_that_is_mentioned_exists() -> None:
    root = PACKAGE.parent
    pages = [
        *root.glob("*.md"),
        *root.glob("docs/*.md"),
        root / "examples" / "README.md",
        root / "scripts" / "make_docs.py",
    ]
    commands = command_names()
    for path in [*FILES, *PACKAGE.rglob("*.j2"), *(p for p in pages if p.name != "CHANGELOG.md")]:
        text = path.read_text(encoding="utf-8")
        for first, second in re.findall(r"(?:`|<code>|\n|bin/)tunewright ([a-z-]+)(?: ([a-z]+)\b)?", text):
            assert first in commands[""], f"{path}: `tunewright {first}`"
            assert first != "runs" or not second or second in commands["runs"], f"{path}: `tunewright runs {second}`"


def test_every_file_that_is_mentioned_exists() -> None:
    root = PACKAGE.parent
    for page in [*root.glob("*.md"), *root.glob("docs/*.md"), root / "examples" / "README.md"]:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:tests|scripts|benchmarks|docs|examples)/[\w./-]*\w)`", text)
        linked = [str((page.parent / link).relative_to(root)) for link in re.findall(r"\]\((?!http|#)([^)#]+)\)", text)]
        for name in [*named, *linked]:
            assert (root / name).resolve().exists(), f"{page.name} mentions {name}"


CODE = re.compile(
    r'"((?:ADAPTER|CONFIG|CONSUMER|DATA|EXPORT|LABELS|LORA|MISSING|MODEL|PATH|PUSH|RANKS|REMOTE|RESUME|REWARD|ROLLOUT|RUN|SELFTEST|SPLIT|TEACHER|TEMPLATE|TOKENIZER|TRAIN)'
    r'_[A-Z_]+)"'
)


def test_every_error_code_is_used_and_listed() -> None:
    used = {"MISSING_PACKAGE"}
    for path in FILES:
        if path.name != "errors.py":
            used |= set(CODE.findall(path.read_text(encoding="utf-8")))
    findings = {
        "LABELS_RARE",
        "LABELS_NEAR_DUPLICATE",
        "PRIVATE_DATA",
        "TEMPLATE_MARKS",
        "CONSUMER_CHECKS",
    }  # the last is a record
    assert used - findings <= set(errors.CODES), used - set(errors.CODES)
    assert set(errors.CODES) <= used, set(errors.CODES) - used


UNPICKLING = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "zipfile"}
NETWORK = {"httpx", "requests", "urllib", "http", "socket", "aiohttp", "fsspec", "datasets"}
# They contact the host that a setting or --at names, or a program that they started on this machine, and no other.
CONTACTS = {
    "openai_endpoint.py",
    "token_sampler.py",
    "openai_server.py",
    "llama_cpp.py",
    "remote.py",
    "vllm.py",
    "hub.py",
    "people_page.py",
    "ranks.py",
}
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


def test_nothing_unpickles_executes_what_it_reads_or_contacts_a_host() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = getattr(node, "module", "") or ""
                own = source.startswith("tunewright")
                names = {source.split(".")[0]} | {a.name.split(".")[0] for a in node.names if not own}
                assert not names & UNPICKLING, path
                assert not names & NETWORK or path.name in CONTACTS, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in RUNNING, path
                assert not called.endswith((".extractall", ".extract")), path
                assert given.get("shell", "False") == "False", path
                if called.endswith(".from_pretrained"):
                    assert given["trust_remote_code"] == "False", (path, called)
                    safe = "Model" not in called or "gguf_file" in given or given["use_safetensors"] == "True"
                    assert safe, (path, called)


def test_no_module_takes_the_name_of_a_public_function() -> None:
    """A folder `run` would replace `tunewright.run` as soon as something imports from it."""
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert not modules & set(tunewright.__all__)
