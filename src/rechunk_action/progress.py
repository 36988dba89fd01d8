"""What a user sees while work goes on, always on standard error: a bar on a terminal, elsewhere a line every few
seconds.

The work knows only `Progress` and the `Meter` of its phase, which it tells of bytes from any thread. A thread of the
phase looks at the meter from time to time: so telling costs next to nothing, a phase in which nothing moves shows that,
and nothing is shown of a phase that is over.

rich is loaded only where there is a terminal to draw on.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, TextIO

from rechunk_action.report.size import format_size

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
"""Is told of bytes as they are done, by any thread."""


class Meter:
    """The bytes of a phase: those that are done, and how many there will be, `total`: None while nobody knows.

    It is an `Advance`.
    """

    def __init__(self, total: int | None = None) -> None:
        self.done = 0
        self.total = total
        self._lock = threading.Lock()

    def __call__(self, done: int) -> None:
        with self._lock:
            self.done += done

    def expect(self, more: int) -> None:
        """So many bytes are still to come, besides those that are expected already."""
        with self._lock:
            self.total = (self.total or 0) + more


UNHEARD = Meter()
"""For work that nobody follows."""


def harmless(text: str) -> str:
    """A text without what a terminal takes for commands, cannot show, or reorders other text by: names in it may come
    from anywhere. Lines stay.
    """
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


class Progress:
    """Reports phases and notices. `level`: -1 silent but for warnings, 0 normal, 1 also what was decided and why.

    Without a terminal there is a line of a phase every `interval` seconds, less often when it takes long.
    """

    def __init__(self, stream: TextIO | None = None, level: int = 0, *, interval: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._level = level
        self._interval = interval
        self._write: Callable[[str], None] = self._write_line
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Meter]:
        """Time a phase as `seconds[name]`, and show how far it is. `total` is in bytes, if it is known yet.

        Phases follow each other: none is in another.
        """
        meter, started = Meter(total), time.monotonic()
        with self._shown(title, _Pace(meter, started)):
            yield meter
        spent = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if self._level >= 0:
            amount = f" ({format_size(meter.done)}, {_rate(meter.done, spent)})" if meter.done else ""
            self._say(f"{title}: {spent:.1f} s{amount}")

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
        self._write(harmless(text))

    def _write_line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    @contextlib.contextmanager
    def _shown(self, title: str, pace: _Pace) -> Iterator[None]:
        """Show a phase while it goes on."""
        if self._level < 0:
            yield
        elif console := _console(self._stream):
            with self._bar(console, title, pace):
                yield
        else:

            def show() -> None:
                now = time.monotonic()
                self._say(f"{title}: {pace.text(now) or _duration(now - pace.started)}")

            with _meanwhile(show, _pauses(self._interval)):
                yield

    @contextlib.contextmanager
    def _bar(self, console: Console, title: str, pace: _Pace) -> Iterator[None]:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415  # as in _console
        from rich.progress import Progress as Bar  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
        )
        # What is said meanwhile has its place above the bar; other streams are none of ours.
        bar = Bar(
            *columns,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        task = bar.add_task(harmless(title), total=pace.meter.total, state="")

        def draw() -> None:
            state = pace.text(time.monotonic())
            bar.update(task, completed=pace.meter.done, total=pace.meter.total, state=state, refresh=True)

        self._write = lambda text: console.out(text, highlight=False)
        try:
            with bar, _meanwhile(draw, repeat(_FRAME)):
                yield
        finally:
            self._write = self._write_line


_FRAME = 0.2
"""Seconds between two pictures of a bar."""

_WINDOW = 10.0
"""Seconds that a rate is taken over: long enough to be read, short enough to tell when nothing moves any more."""


class _Pace:
    """How fast a meter moves, and for how long it will. Times are in seconds of one clock."""

    def __init__(self, meter: Meter, started: float) -> None:
        self.meter = meter
        self.started = started
        self._seen = deque([(started, 0)])

    def text(self, now: float) -> str:
        """Amount, rate and time left, as far as they are known. `""` where nothing is told of bytes."""
        done, total = self.meter.done, self.meter.total
        while len(self._seen) > 1 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        self._seen.append((now, done))
        if total is None:
            return f"{format_size(done)}, {_rate(done - before, now - since)}" if done else ""
        total = max(done, total)  # what is expected of an archive is so to within a few headers
        left = f", {_duration((total - done) * (now - since) / (done - before))} left" if total > done > before else ""
        return f"{format_size(done)} of {format_size(total)}, {_rate(done - before, now - since)}{left}"


def _rate(size: int, seconds: float) -> str:
    return f"{format_size(round(size / seconds) if seconds else 0)}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pauses(interval: float) -> Iterator[float]:
    """The waits before the lines of a phase, so that a long one fills no log: with 5 seconds, these are 15 after a
    minute, and 30 after five.
    """
    yield from repeat(interval, 12)
    yield from repeat(3 * interval, 16)
    yield from repeat(6 * interval)


@contextlib.contextmanager
def _meanwhile(show: Callable[[], None], pauses: Iterable[float]) -> Iterator[None]:
    """Call `show` after each pause, on a thread of its own, until this is left; never after that."""
    over = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the work itself will meet with that
            for pause in pauses:
                if over.wait(pause):
                    return
                show()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    try:
        thread.start()
        yield
    finally:
        over.set()
        if thread.is_alive():  # not so when a request to stop came before it was started
            thread.join()


def _console(stream: TextIO) -> Console | None:
    """A console to draw on, None where there is none."""
    if not stream.isatty():
        return None
    from rich.console import Console  # noqa: PLC0415  # costs 0.1 s that only a terminal repays

    console = Console(file=stream)
    return console if console.is_interactive else None
