"""Reads files that people write by hand, such as configs and schemas."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_bytes(path: Path, most: int) -> bytes:
    """At most ``most`` bytes of a file. Raises OSError, also for what is no regular file: a pipe may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(path, "rb") as file:
        return file.read(most)
