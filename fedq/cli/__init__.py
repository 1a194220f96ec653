"""The command line: the twin of the Python face, one file per noun."""

from __future__ import annotations

import sys


def main() -> None:
    """``fedq``: run the command that was typed."""
    try:
        from fedq.cli.app import app
        from fedq.cli.call import guarded

        code = guarded(app, sys.argv[1:] or ["--help"])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
