"""``python -m tunewright`` is the command ``tunewright``."""

from tunewright.cli.main import main

main()
