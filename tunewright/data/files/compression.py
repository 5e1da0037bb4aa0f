"""Compressed files, recognised by their content: gzip, bzip2, xz and zstd, with several members if need be.

A small file can expand to terabytes, so the output is read in pieces and limited.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator

from tunewright.core.errors import DataError, MissingExtra, data_error

PIECE = 1 << 20
MAX_MEMORY = 1 << 28  # of a decoder: the largest window of `xz -9` and `zstd --ultra -22` is half of it
# No file of rows is compressed to less than a thousandth, however much its rows have in common.
MAX_RATIO = 1000
ALWAYS_ALLOWED = 1 << 26  # bytes that any file may expand to
MAX_EXPANDED = 1 << 32


class _Gzip:
    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max(0, max_length))


class _Zstandard:
    """The decoder of the package zstandard, which cannot limit its output: it gets a few bytes at a time."""

    BYTES = 2048

    def __init__(self) -> None:
        import zstandard

        self._decoder = zstandard.ZstdDecompressor(max_window_size=MAX_MEMORY).decompressobj()
        self._waiting = memoryview(b"")

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data + self._waiting.tobytes()

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        if data:
            self._waiting = memoryview(self._waiting.tobytes() + data)
        out = b""
        while not out and not self.eof and self._waiting:
            piece, self._waiting = self._waiting[: self.BYTES], self._waiting[self.BYTES :]
            out = self._decoder.decompress(piece)
        return out


# The interface is that of bz2, lzma and, since Python 3.14, zstd: a decoder of one member of a file.
Decoder = bz2.BZ2Decompressor | lzma.LZMADecompressor | _Gzip | _Zstandard


def _zstd() -> Decoder:
    try:
        from compression import zstd
    except ImportError:
        try:
            return _Zstandard()
        except ImportError:
            raise MissingExtra("zstandard", "reading zstd", "pip install 'tunewright[zstd]'") from None
    decoder: Decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 28})
    return decoder


def _xz() -> Decoder:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_MEMORY)


# The first bytes of a file -> its name, and a decoder of one member.
KINDS: dict[bytes, tuple[str, Callable[[], Decoder]]] = {
    b"\x1f\x8b": ("gzip", _Gzip),
    b"BZh": ("bzip2", bz2.BZ2Decompressor),
    b"\xfd7zXZ": ("xz", _xz),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    b"\x50\x2a\x4d\x18": ("zstd", _zstd),  # pzstd writes a skippable frame first
}
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


def expanded(head: bytes, chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The content of a file that begins with ``head``, decompressed if it is compressed; ``chunks`` include the head.

    Raises DATA_COMPRESSED if the file is damaged or ends early, DATA_TOO_LARGE if it expands to too much, and
    DATA_NOT_TEXT for an archive of several files.
    """
    if head.startswith(b"PK\x03\x04"):
        raise data_error(
            "DATA_NOT_TEXT",
            "the content is a zip archive or an Excel file.",
            where=name,
            fix="unpack it and give the files in it; save a sheet of Excel as CSV.",
        )
    kind = _kind(head)
    return chunks if kind is None else _limited(chunks, *kind, name)


def check_expanded(head: bytes, name: str) -> None:
    """Raises DATA_NOT_TEXT or DATA_COMPRESSED if what a file expands to, or is, must be unpacked first."""
    if head[257:262] == b"ustar":
        fix = "unpack it and give the files in it."
        raise data_error("DATA_NOT_TEXT", "the content is a tar archive.", where=name, fix=fix)
    if kind := _kind(head):
        message = f"the content is compressed twice (it expands to {kind[0]} data)."
        raise data_error("DATA_COMPRESSED", message, where=name, fix="decompress it once.")


def _kind(head: bytes) -> tuple[str, Callable[[], Decoder]] | None:
    return next((kind for magic, kind in KINDS.items() if head.startswith(magic)), None)


def _limited(chunks: Iterator[bytes], kind: str, new: Callable[[], Decoder], name: str) -> Iterator[bytes]:
    """The members of a file, one after another."""
    decoder, read, made, line = new(), 0, 0, 1
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError, *_zstd_errors(kind))
    try:
        for chunk in chunks:
            read, data = read + len(chunk), chunk
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")  # padding between members
                    decoder = new() if data else decoder
                for piece in _pieces(decoder, data):
                    made, line = made + len(piece), line + piece.count(b"\n")
                    if made > min(MAX_EXPANDED, max(ALWAYS_ALLOWED, MAX_RATIO * read)):
                        raise _bomb(kind, read, made, name)
                    yield piece
                data = decoder.unused_data if data and decoder.eof else b""
    except errors as error:
        raise _damaged(f"the {kind} data is damaged ({error}).", f"{name}:{line}") from None
    if not decoder.eof:
        raise _damaged(f"the {kind} data ends in the middle of the file.", f"{name}:{line}")


def _pieces(decoder: Decoder, data: bytes) -> Iterator[bytes]:
    piece = decoder.decompress(data, PIECE) if data else b""
    while piece:
        for at in range(0, len(piece), PIECE):
            yield piece[at : at + PIECE]
        piece = b"" if decoder.eof else decoder.decompress(b"", PIECE)


def _zstd_errors(kind: str) -> tuple[type[Exception], ...]:
    if kind != "zstd":
        return ()
    try:
        from compression import zstd
    except ImportError:
        import zstandard

        return (zstandard.ZstdError,)
    return (zstd.ZstdError,)


def _damaged(message: str, where: str) -> DataError:
    return data_error("DATA_COMPRESSED", message, where=where, fix="copy or download the file again.")


def _bomb(kind: str, read: int, made: int, name: str) -> DataError:
    message = f"{read:,} bytes of {kind} data expand to more than {made:,} bytes."
    fix = "if these are your rows, decompress the file and give the result."
    return data_error("DATA_TOO_LARGE", message, where=name, fix=fix)
