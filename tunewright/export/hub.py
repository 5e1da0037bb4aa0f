"""Pushes an export to the Hugging Face Hub: the files that belong to it and no others, with a card that the Hub reads,
after a search for private data and for paths of this machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from tunewright.core import pii, records, run_folder
from tunewright.core.config import Config, Plan, load
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.locations import is_hub_model
from tunewright.core.records import EXPORTS, AdapterNote, Receipt, Verdict
from tunewright.core.run_folder import Run
from tunewright.export import card

COMMON = (
    *("README.md", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    "generation_config.json",
)
# Of sentence-transformers: its files, and the folders of its modules.
MODULES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "[0-9]_*")
FILES = {  # also those that export.json lists
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "tunewright.json", *COMMON),
    "merged": ("config.json", "model*.safetensors*", "vocab.txt", *MODULES, *COMMON),
    "gguf": ("README.md",),
}
OLLAMA = ("template", "params", "system")  # of that bundle, for `ollama run hf.co/OWNER/NAME`
UNREAD = ("*.safetensors", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
EMBEDDED_FROM = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model that smollm2-135m was quantised from
PATH = re.compile(r"(?<![\w./:-])/(?:[\w.@+-]+/)+[\w.@+-]+")


@contextmanager
def staged(run: Run, kind: str, repo: str, base: str | None, license_: str | None) -> Iterator[Path]:
    """A temporary folder with what is pushed: files of the exports in export.json, and of no older ones. ``base``: its
    id on the Hub, if the config does not name it. Raises RUN_INCOMPLETE and PUSH_BASE."""
    source, receipt = run.path / kind, records.read(run.receipt, Receipt)
    checks = [check for check in records.existing(run.export, EXPORTS) or () if check.kind == kind]
    listed = [run.path / check.relative_path for check in checks]
    if not checks or not all(path.exists() for path in (*listed, source / "README.md")):
        fix = f"write it: `tunewright export {run.path} --to {kind}`."
        raise RunError("RUN_INCOMPLETE", f"the run has no {kind} export.", where=str(run.path), fix=fix)
    base = base or _hub_base(receipt.model.name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [file for file in source.iterdir() if file in listed or _matches(file, FILES[kind])]
        if kind == "gguf" and "ollama" in load(run.config).export.to:
            files += filter(Path.is_file, (run.path / "ollama" / file for file in OLLAMA))
        for file in files:
            for inner in sorted(file.iterdir()) if file.is_dir() else [file]:
                place = folder / inner.relative_to(file.parent)
                place.parent.mkdir(exist_ok=True)
                place.symlink_to(inner.resolve())
        if kind == "adapter":
            _name_base(folder, base.partition("@")[0])
        text = card.for_hub(run, checks, (source / "README.md").read_text(encoding="utf-8"), base, repo)
        run_folder.write_atomic(folder / "README.md", _card(run, kind, base.partition("@")[0], license_, text))
        yield folder


def require_name(repo: str) -> None:
    """Raises CONFIG_RANGE unless the name is OWNER/NAME."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        valid = "/" in repo
    except HFValidationError:
        valid = False
    if not valid:
        fix = "write OWNER/NAME, with letters, digits, - _ and . in both."
        raise ConfigError("CONFIG_RANGE", f"{repo!r} is not the name of a repository.", where="REPO", fix=fix)


def upload(folder: Path, repo: str, kind: str, private: bool) -> str:
    """The URL of the commit. Raises PUSH_FAILED with the Hub's answer, or if a private push would be public."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # that of its HTTP client

    hub = HfApi()
    try:
        hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:  # one that exists keeps its visibility
            fix = "choose another name, make it private in its settings on the Hub, or leave out --private."
            raise RunError("PUSH_FAILED", "the repository exists and is public.", where=repo, fix=fix)
        done = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{kind} export of tunewright")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # all that huggingface_hub raises
        fix = "check the network and the name OWNER/NAME, then push again."
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            fix = "log in with a token that may write there: `hf auth login`."
        reason = " ".join(str(error).split())[:300]
        raise RunError("PUSH_FAILED", f"the Hub: {reason}", where=repo, fix=fix) from None
    return str(done.commit_url)


def require_public(folder: Path) -> None:
    """Raises PUSH_PRIVATE, with the kinds of private data in the texts and the paths of this machine."""
    problems = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and not _matches(file, UNREAD)):
        text = _text(file)
        private = [*sorted(pii.kinds(text)), *filter(_is_local, PATH.findall(text))]
        problems += [f"{file.name}: {what}" for what in private]
    if problems:
        fix = "change it in the run folder, or, if everyone may read it, add --allow-private."
        raise RunError("PUSH_PRIVATE", f"found {', '.join(problems)}.", fix=fix)


def _text(file: Path) -> str:
    """The text of a file; of a GGUF file, its own, such as the chat template, without the vocabulary."""
    if file.suffix != ".gguf":
        return file.read_text(encoding="utf-8")
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    return "\n".join(value for value in metadata.values() if isinstance(value, str))


def _hub_base(name: str) -> str:
    """The model's id on the Hub, with the revision that the config names."""
    if name == Config.model_fields["model"].default:
        return EMBEDDED_FROM
    if not is_hub_model(name):
        fix = "name the model on the Hub that it is a copy of: --base OWNER/NAME."
        raise RunError("PUSH_BASE", "the base model is a local one.", where=name, fix=fix)
    return name


def _name_base(folder: Path, base: str) -> None:
    """Name the base by its id on the Hub in the files of an adapter."""
    config, note = folder / "adapter_config.json", folder / "tunewright.json"
    run_folder.write_json(config, {**run_folder.read_json(config), "base_model_name_or_path": base})
    before = records.read(note, AdapterNote)
    files = {**before.files, config.name: run_folder.sha256(config)}
    records.write(note, before.model_copy(update={"base": base, "files": files}))


def _card(run: Run, kind: str, base: str, license_: str | None, text: str) -> str:
    """The card, with the metadata that the Hub indexes. Nothing is invented: without a license, there is none."""
    from huggingface_hub import EvalResult, ModelCard

    model_card, verdict = ModelCard(text), records.read(run.verdict, Verdict)
    numbers = {"rows": verdict.n, "interval": list(verdict.tuned_arm.interval), "verdict": verdict.verdict}
    result = EvalResult(
        task_type="text-classification"
        if (plan := records.read(run.plan, Plan)).labels
        else "sentence-similarity"
        if plan.embed
        else "text-generation",
        dataset_type="held-out-rows",
        dataset_name=f"held-out rows of the run {run.name}",
        metric_type=verdict.metric,
        metric_value=verdict.tuned,
        metric_args={**numbers, "difference": verdict.difference, "comparator": verdict.comparator.name},
    )
    model_card.data.base_model, model_card.data.license = base, license_
    model_card.data.base_model_relation = "adapter" if kind == "adapter" else "finetune"
    model_card.data.model_name, model_card.data.eval_results = run.name, [result]
    return str(model_card)


def _is_local(path: str) -> bool:
    """Whether a path, or what is left of it where a space cut it off, is one of this machine."""
    return Path(path).parent.exists() and Path(path).parent != Path("/")


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)
