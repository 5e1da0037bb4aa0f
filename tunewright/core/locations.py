"""What a setting that takes files may name: a path, a pattern, a URL or a data set of the Hugging Face Hub; or a list
of these."""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

HUB = "hub:"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # at least two letters: C:/ is a drive


def listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names in a setting: none, one, or those of a list."""
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def is_hub_model(name: str) -> bool:
    """Whether a model is named by its id on the Hub: OWNER/NAME[@REVISION]."""
    path = name.startswith((".", "/", "~")) or name.endswith(".gguf") or Path(name).is_dir()
    return name.count("/") == 1 and not path


def is_local(name: str) -> bool:
    return not is_url(name) and not name.startswith(HUB)


def is_pattern(name: str) -> bool:
    """Whether a name has a wildcard: ``*``, ``**``, ``?`` or ``[...]``."""
    return glob.has_magic(name)


def shown(name: str) -> str:
    """A name as messages and records print it: a URL without its password and query, which may be secrets; a few digits
    of the query's hash distinguish files that differ only in it."""
    if not is_url(name):
        return name
    scheme, _, rest = without_query(name).partition("://")
    host, slash, path = rest.partition("/")
    query = name[len(without_query(name)) :]
    mark = f"?{hashlib.sha256(query.encode()).hexdigest()[:6]}" if query else ""
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{mark}"


def without_query(name: str) -> str:
    """The part of a web address that ends with the name of a file."""
    return re.split("[?#]", name, maxsplit=1)[0] if name.startswith(("http://", "https://")) else name


def title(value: str | Sequence[str] | None) -> str:
    """A short name for the files of a setting: the first one's, without its folder."""
    names = listed(value)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{_last_part(names[0])}{more}" if names else ""


def _last_part(name: str) -> str:
    if name.startswith(HUB):
        return re.sub(r"(@[0-9a-f]{7})[0-9a-f]{33}", r"\1", name)
    return without_query(name).rstrip("/").rpartition("/")[2] or name


def searched_folder(name: str) -> Path | None:
    """The folder whose subfolders a name reads: a folder of documents, or what precedes the wildcards of a pattern."""
    path = Path(name)
    if not is_local(name) or path.is_file():
        return None
    if path.is_dir():
        return path
    parts = list(itertools.takewhile(lambda part: not is_pattern(part), path.parts))
    return Path(*parts) if len(parts) < len(path.parts) - 1 else None


def anchored(name: str, base: Path) -> str:
    """A relative path or pattern, as one that begins with ``base``; ~ as the home folder; anything else unchanged."""
    if not is_local(name):
        return name
    if name.startswith("~/"):
        return str(Path(name).expanduser())
    if is_pattern(name) and not (base / name).exists():
        return str(Path(glob.escape(str(base))) / name)
    return str(base / name)
