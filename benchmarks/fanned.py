"""A tunewright command as a job of the fan-out: ``python -m fanned FOLDER WORD... [--parent PID]``, run in FOLDER."""

from __future__ import annotations

import os
import sys

from tunewright.cli import main
from tunewright.stages.worker import end_with

if __name__ == "__main__":
    folder, *words = sys.argv[1:]
    if words[-2] == "--parent":
        end_with(int(words.pop()))
        words.pop()
    os.chdir(folder)
    sys.argv = ["tunewright", *words]
    main.main()
