"""Data sets of the Hugging Face Hub, read with the package datasets: hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT].

The revision, main if none is given, is resolved to a commit, which decides the rows and is part of their hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunewright.core.errors import MissingExtra, data_error
from tunewright.core.locations import HUB
from tunewright.data.files import parquet
from tunewright.data.files.rows import FileSettings, Item

if TYPE_CHECKING:
    from datasets import Dataset

_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([^@:]+))?(?:@([^:]+))?(?::(.+))?")
MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    repo: str
    config: str | None
    revision: str
    split: str

    @property
    def place(self) -> str:
        """The name of its rows in messages; of a commit, the first digits."""
        revision = self.revision[:12] if _COMMIT.fullmatch(self.revision) else self.revision
        return self._named("" if revision == MAIN else f"@{revision}")

    @property
    def content(self) -> str:
        """What decides the rows, apart from the commit."""
        return self._named("")

    def _named(self, revision: str) -> str:
        return f"{HUB}{self.repo}{f'/{self.config}' if self.config else ''}{revision}:{self.split}"


@dataclass(frozen=True)
class HubRows:
    """``sha256``: of the data set's name and commit, which decide the rows."""

    items: Iterator[Item]
    sha256: str


def parse(name: str) -> HubName:
    match = _NAME.fullmatch(name)
    if match is None:
        message = "this does not name a data set of the Hub."
        fix = "write hub:owner/name, or hub:owner/name/config@revision:split."
        raise data_error("DATA_NOT_A_FILE", message, where=name, fix=fix)
    repo, config, revision, split = match.groups()
    return HubName(repo, config, revision or MAIN, split or "train")


def read(name: str, how: FileSettings) -> HubRows:
    """The rows of a split. Raises DATA_UNREADABLE with what the Hub answered, MissingExtra without datasets."""
    wanted = parse(name)
    with _errors(name):
        import datasets
    commit = _commit(wanted, name)
    with _errors(name):
        datasets.disable_progress_bars()
        table = datasets.load_dataset(wanted.repo, wanted.config, split=wanted.split, revision=commit)
    digest = hashlib.sha256(f"{wanted.content}@{commit}".encode()).hexdigest()
    return HubRows(_items(table, wanted, commit, how), digest)


def pinned(name: str) -> str:
    """A name with its revision resolved to a commit; any other name unchanged."""
    if not name.startswith(HUB):
        return name
    wanted = parse(name)
    config, split = (f"{mark}{part}" if part else "" for mark, part in (("/", wanted.config), (":", wanted.split)))
    return f"{HUB}{wanted.repo}{config}@{_commit(wanted, name)}{split}"


def _commit(wanted: HubName, name: str) -> str:
    if _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    with _errors(name):
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(wanted.repo, revision=wanted.revision).sha)


def _items(table: Dataset, wanted: HubName, commit: str, how: FileSettings) -> Iterator[Item]:
    pinned = wanted.revision == commit
    yield f"commit {commit}" + ("" if pinned else f" of {wanted.revision}; to keep it, write @{commit} after the name")
    named = {column: names for column, feature in table.features.items() if (names := _label_names(feature))}
    for column, names in named.items():
        yield f"the numbers in {column!r} are read as the names that the data set gives them: {', '.join(names[:10])}"
    batches = table.with_format("arrow").iter(parquet.BATCH)
    arrow = (batch for part in batches for batch in part.to_batches())
    yield from parquet.of_batches(arrow, wanted.place, how, named)


def _label_names(feature: object) -> list[str]:
    """The names of a column of labels, or of lists of labels."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return list(names or [])


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """What the packages raise, as an error with a code."""
    try:
        yield
    except ImportError:
        install = "pip install 'tunewright[datasets]'"
        raise MissingExtra("datasets", "reading data sets of the Hub", install, where=name) from None
    except Exception as error:
        cause = error.__cause__ or error  # datasets wraps what went wrong in a file
        detail = (str(cause).strip().splitlines() or [""])[0][:300]
        raise data_error(
            "DATA_UNREADABLE",
            f"the data set cannot be read ({type(cause).__name__}: {detail.rstrip('.')}).",
            where=name,
            fix="check the name, configuration, revision and split on its page; without network, give the commit of a "
            "copy in the cache after @.",
        ) from None
