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
from tunewright.core.config import Config
from tunewright.core.errors import RunError
from tunewright.core.locations import is_hub_model
from tunewright.core.records import AdapterNote, Receipt, Verdict
from tunewright.core.run_folder import Run

COMMON = ("README.md", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja")
FILES = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "tunewright.json", *COMMON),
    "merged": ("config.json", "generation_config.json", "model*.safetensors*", *COMMON),
    "gguf": ("*.gguf", "README.md", "template", "params", "system"),  # the last three are those of the ollama bundle
}
UNREAD = ("*.safetensors", "*.gguf", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
EMBEDDED_FROM = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model that smollm2-135m was quantised from
PATH = re.compile(r"(?<![\w./:-])/(?:[\w.@+-]+/)+[\w.@+-]+")


@contextmanager
def staged(run: Run, kind: str, base: str | None, license_: str | None) -> Iterator[Path]:
    """A temporary folder with what is pushed. ``base``: its id on the Hub, if the config does not name it. Raises
    RUN_INCOMPLETE and PUSH_BASE."""
    source, receipt = run.path / kind, records.read(run.receipt, Receipt)
    if not source.is_dir():
        fix = f"write it: `tunewright export {run.path} --to {kind}`."
        raise RunError("RUN_INCOMPLETE", f"the run has no {kind} export.", where=str(run.path), fix=fix)
    base = base or _hub_base(receipt.model.name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in (*source.iterdir(), *(run.path / "ollama").glob("[!R]*")):
            if _matches(file, FILES[kind]) and not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())
        if kind == "adapter":
            _name_base(folder, base)
        text = (folder / "README.md").read_text(encoding="utf-8")
        run_folder.write_atomic(folder / "README.md", _card(run, kind, base, license_, text))
        yield folder


def upload(folder: Path, repo: str, kind: str, private: bool) -> str:
    """The URL of the commit. Raises PUSH_FAILED with the Hub's answer."""
    import httpx
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repo, private=private or None, exist_ok=True)
        message = f"{kind} export of tunewright"
        done = HfApi().upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, allow_patterns=list(FILES[kind])
        )
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # all that huggingface_hub raises
        reason, fix = " ".join(str(error).split())[:300], "log in with a token that may write there: `hf auth login`."
        raise RunError("PUSH_FAILED", f"the Hub: {reason}", where=repo, fix=fix) from None
    return str(done.commit_url)


def require_public(folder: Path) -> None:
    """Raises PUSH_PRIVATE, with the kinds of private data in the text files and the paths of this machine."""
    problems = []
    for file in sorted(file for file in folder.iterdir() if not _matches(file, UNREAD)):
        text = file.read_text(encoding="utf-8")
        private = [*sorted(pii.kinds(text)), *filter(_is_local, PATH.findall(text))]
        problems += [f"{file.name}: {what}" for what in private]
    if problems:
        fix = "change it in the run folder, or, if everyone may read it, add --allow-private."
        raise RunError("PUSH_PRIVATE", f"found {', '.join(problems)}.", fix=fix)


def _hub_base(name: str) -> str:
    if name == Config.model_fields["model"].default:
        return EMBEDDED_FROM
    if not is_hub_model(name):
        fix = "name the model on the Hub that it is a copy of: --base OWNER/NAME."
        raise RunError("PUSH_BASE", "the base model is a local one.", where=name, fix=fix)
    return name.partition("@")[0]


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

    card, verdict = ModelCard(text), records.read(run.verdict, Verdict)
    numbers = {"rows": verdict.n, "interval": list(verdict.tuned_arm.interval), "verdict": verdict.verdict}
    result = EvalResult(
        task_type="text-generation",
        dataset_type="held-out-rows",
        dataset_name=f"held-out rows of the run {run.name}",
        metric_type=verdict.metric,
        metric_value=verdict.tuned,
        metric_args={**numbers, "difference": verdict.difference, "comparator": verdict.comparator.name},
    )
    card.data.base_model, card.data.license = base, license_
    card.data.base_model_relation = "adapter" if kind == "adapter" else "finetune"
    card.data.model_name, card.data.eval_results = run.name, [result]
    return str(card)


def _is_local(path: str) -> bool:
    """Whether a path, or what is left of it where a space cut it off, is one of this machine."""
    return Path(path).parent.exists() and Path(path).parent != Path("/")


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)
