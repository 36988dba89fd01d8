"""What a user sees while work goes on: bars on a terminal, one plain line a phase elsewhere, always on standard error.

The work knows only `Progress`; rich is loaded only where there is a terminal to draw on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

Advance = Callable[[int], None]


class Progress:
    """Reports phases and notices. `level`: -1 silent but for warnings, 0 normal, 1 also what was decided and why."""

    def __init__(self, stream: TextIO | None = None, level: int = 0) -> None:
        self._stream = stream or sys.stderr
        self._level = level
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Advance]:
        """Time a phase as `seconds[name]`; `total` is in bytes. Yields what is told of bytes as they are done."""
        started = time.monotonic()
        with self._bar(title, total) as advance:
            yield advance
        spent = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if self._level >= 0:
            self._say(f"{title}: {spent:.1f} s")

    def notice(self, text: str) -> None:
        """Something that the user should know."""
        self._say(f"notice: {text}")

    def decision(self, text: str) -> None:
        """What was decided where it might have been decided otherwise."""
        if self._level >= 0:
            self._say(text)

    def detail(self, text: str) -> None:
        """Something that explains a decision, for those who ask (`-v`)."""
        if self._level > 0:
            self._say(text)

    def output(self, line: str) -> None:
        """A line that another program has printed."""
        self.detail(line)

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    @contextlib.contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Advance]:
        if self._level < 0 or not self._stream.isatty():
            yield lambda _: None
            return
        from rich.console import Console  # noqa: PLC0415  # costs 0.1 s that only a terminal repays
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.progress import Progress as Bars  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            *([DownloadColumn()] if total else []),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=Console(file=self._stream), transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.advance(task, done)
