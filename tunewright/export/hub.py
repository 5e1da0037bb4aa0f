"""Pushes an export to the Hugging Face Hub: the files that belong to it and no others, with a card that the Hub reads,
after a search for private data and for paths of this machine."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tunewright.core import pii, records, run_folder
from tunewright.core.errors import RunError
from tunewright.core.records import AdapterNote, Receipt, Verdict
from tunewright.core.run_folder import Run

COMMON = ("README.md", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
FILES = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "tunewright.json", "chat_template.jinja", *COMMON),
    "merged": ("config.json", "generation_config.json", "model*.safetensors*", "chat_template.jinja", *COMMON),
    "gguf": ("*.gguf", "README.md"),
}
OF_OLLAMA = ("template", "params", "system")  # what `ollama run hf.co/...` reads beside a GGUF
# To the base of the run, of which a GGUF is no mere quantisation.
RELATION = {"adapter": "adapter", "merged": "finetune", "gguf": "finetune"}
UNREAD = ("*.safetensors", "*.gguf", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
EMBEDDED_FROM = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model that smollm2-135m was quantised from
PATH = re.compile(r"(?<![\w./:-])/(?:[\w.@+-]+/)+[\w.@+-]+")


@dataclass(frozen=True)
class Push:
    """``repo``: OWNER/NAME. ``base``: id of the base on the Hub; None: as the config names it. ``license``: of the
    pushed weights; None: left out of the card. ``allow_private``: even if private data is detected."""

    repo: str
    kind: str
    base: str | None = None
    license: str | None = None
    private: bool = False
    allow_private: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Patterns of the names of files that are pushed."""
        return (*FILES[self.kind], *(OF_OLLAMA if self.kind == "gguf" else ()))


@contextmanager
def staged(run: Run, push: Push) -> Iterator[Path]:
    """A temporary folder with what would be pushed. Raises RUN_INCOMPLETE, PUSH_BASE and PUSH_PRIVATE."""
    source, receipt = run.path / push.kind, records.read(run.receipt, Receipt)
    if not source.is_dir():
        fix = f"write it: `tunewright export {run.path} export.to='[{push.kind}]'`."
        raise RunError("RUN_INCOMPLETE", f"the run has no {push.kind} export.", where=str(run.path), fix=fix)
    base = push.base or _hub_base(receipt)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        more = [run.path / "ollama" / file for file in OF_OLLAMA] if push.kind == "gguf" else []
        for file in [*source.iterdir(), *more]:
            if file.is_file() and _matches(file, push.files):
                if _matches(file, UNREAD):
                    (folder / file.name).symlink_to(file.resolve())
                else:
                    shutil.copyfile(file, folder / file.name)
        _name_base(folder, base)
        card = folder / "README.md"
        places = {str(source): push.repo, str(source.resolve()): push.repo, receipt.model.path: base}
        card.write_text(_card(run, push, base, _without(card.read_text("utf-8"), places)), encoding="utf-8")
        _require_public(folder, push)
        yield folder


def push(run: Run, push: Push) -> str:
    """The URL of the commit. Also raises PUSH_FAILED with the Hub's answer."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    refusals = (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx.HTTPError)
    with staged(run, push) as folder:
        message = f"{push.kind} of the run {run.name}, trained with tunewright"
        try:
            HfApi().create_repo(push.repo, private=push.private or None, exist_ok=True)
            done = HfApi().upload_folder(
                repo_id=push.repo, folder_path=folder, commit_message=message, allow_patterns=list(push.files)
            )
        except (*refusals, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            fix = "log in with a token that may write there: `hf auth login`."
            raise RunError("PUSH_FAILED", f"the Hub: {reason}", where=push.repo, fix=fix) from None
    return str(done.commit_url)


def _hub_base(receipt: Receipt) -> str:
    from tunewright.model import loading

    name = receipt.model.name
    base = EMBEDDED_FROM if name == loading.EMBEDDED else (loading.hub_id(name) or "").partition("@")[0]
    if not base:
        fix = "name the model on the Hub that it is a copy of: --base OWNER/NAME."
        raise RunError("PUSH_BASE", "the base model is a local one.", where=name, fix=fix)
    return base


def _name_base(folder: Path, base: str) -> None:
    """Name the base by its id on the Hub in the files of an adapter."""
    config, note = folder / "adapter_config.json", folder / "tunewright.json"
    if config.exists():
        written = run_folder.read_json(config)
        run_folder.write_json(config, {**written, "base_model_name_or_path": base})
        before = records.read(note, AdapterNote)
        files = {**before.files, config.name: run_folder.sha256(config)}
        records.write(note, before.model_copy(update={"base": base, "files": files}))


def _without(text: str, places: dict[str, str]) -> str:
    """The text, with names in place of paths of this machine."""
    for path, name in places.items():
        text = text.replace(path, name)
    for path in _local_paths(text):
        text = text.replace(path, Path(path).name)
    return text


def _local_paths(text: str) -> list[str]:
    return [p for p in PATH.findall(text) if Path(p).parent.exists() and Path(p).parent != Path("/")]


def _card(run: Run, push: Push, base: str, text: str) -> str:
    """The card, with the metadata that the Hub indexes. Nothing is invented: without a license there is none."""
    from huggingface_hub import EvalResult, ModelCard

    card, verdict = ModelCard(text), records.read(run.verdict, Verdict)
    rows = {"dataset_type": "held-out-rows", "dataset_name": f"held-out rows of the run {run.name}"}
    result = EvalResult(
        task_type="text-generation",
        metric_type=verdict.metric,
        metric_value=verdict.tuned,
        metric_args={
            "rows": verdict.n,
            "interval": list(verdict.tuned_arm.interval),
            "verdict": verdict.verdict,
            "comparator": verdict.comparator.name,
            "difference": verdict.difference,
            "difference_interval": list(verdict.interval),
        },
        **rows,
    )
    card.data.base_model, card.data.base_model_relation = base, RELATION[push.kind]
    card.data.license, card.data.model_name, card.data.eval_results = push.license, run.name, [result]
    return str(card)


def _require_public(folder: Path, push: Push) -> None:
    """Raises PUSH_PRIVATE, with the kinds of private data in each text file and the paths of this machine."""
    problems = []
    for file in sorted(file for file in folder.iterdir() if not _matches(file, UNREAD)):
        text = file.read_text(encoding="utf-8")
        kinds = [*sorted(pii.kinds(text)), *(f"the path {p}" for p in _local_paths(text))]
        problems += [f"{file.name}: {what}" for what in kinds]
    if problems and not push.allow_private:
        fix = f"change it in the run's folder {push.kind}, or, if everyone may read it, --allow-private."
        raise RunError("PUSH_PRIVATE", f"{', '.join(problems)}.", where=push.kind, fix=fix)


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)
