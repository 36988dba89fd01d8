"""The program: `rechunk-action`, and `python -m rechunk_action`.

A request to stop may come while everything else is still loaded, and is heeded from here on.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from rechunk_action.signals import stop_when_asked

CANCELLED = 130


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    stop_when_asked()
    try:
        from rechunk_action.cli import main as run  # noqa: PLC0415  # takes a while
    except KeyboardInterrupt:
        sys.stderr.write("rechunk-action: cancelled; nothing was left behind\n")
        sys.exit(CANCELLED)
    run()


if __name__ == "__main__":
    main()
