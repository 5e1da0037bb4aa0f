"""Files behind URLs, such as s3://, gs:// and https://: listed and read with fsspec, whose drivers are packages of
their own and take their credentials from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunewright.core.errors import MissingExtra, TunewrightError, data_error
from tunewright.core.locations import is_pattern, shown

CHUNK = 1 << 20


def matching(url: str) -> list[str]:
    """The URLs of all files that match a pattern, sorted. A web server has no patterns: ``?`` begins its query."""
    scheme = url.partition("://")[0]
    if not is_pattern(url) or scheme.startswith("http"):
        return [url]
    with _errors(url):
        import fsspec

        store, path = fsspec.core.url_to_fs(url)
        known = store.glob(path, detail=True)
        return [store.unstrip_protocol(name) for name in sorted(known) if known[name]["type"] == "file"]


def chunks(url: str) -> Iterator[bytes]:
    with _errors(url):
        import fsspec

        store, path = fsspec.core.url_to_fs(url)
        file = store.open(path, "rb")
    try:
        while True:
            with _errors(url):
                chunk: bytes = file.read(CHUNK)
            if not chunk:
                return
            yield chunk
    finally:
        file.close()


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Whatever a driver raises, as an error with a code: each has its own exceptions."""
    try:
        yield
    except TunewrightError:
        raise
    except ImportError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = cause.name or "fsspec"
        why = f"reading {url.partition('://')[0]}:// files"
        raise MissingExtra(package, why, f"pip install {package}", where=shown(url)) from None
    except FileNotFoundError:
        raise data_error("DATA_NOT_A_FILE", "there is no such file.", where=shown(url), fix="check the URL.") from None
    except Exception as error:
        detail = (str(error).splitlines() or [""])[0].replace(url, shown(url))[:200]
        raise data_error(
            "DATA_UNREADABLE",
            f"it cannot be read ({type(error).__name__}: {detail}).",
            where=shown(url),
            fix="check the URL, and the credentials in the environment.",
        ) from None
