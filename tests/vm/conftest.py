"""What machines have fetched is shown at the end of a run: the table of docs/clients.md."""

from __future__ import annotations

import pytest

from tests.vm.journey import TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(TABLE, ()):
        terminalreporter.write_line(line)
