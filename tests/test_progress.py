"""What is shown of long work: on a real terminal, in a log, and nowhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import NoReturn, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action import inspection
from rechunk_action.action import ActionProgress
from rechunk_action.oci.stage import RECORDS, TABLES
from rechunk_action.progress import Meter, Progress, _duration, _Pace, _pauses
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.names import parse_name
from rechunk_action.tree.scan import Hasher
from tests.building import build, places
from tests.registries import plain_registry

MB = 1_000_000
SOON = 0.01
"""Seconds between lines, for tests."""


class TestMeter:
    def test_loses_nothing_that_threads_tell(self) -> None:
        class Slow(int):
            """A number that lets other threads run while something is added to it."""

            def __add__(self, other: int) -> Slow:
                result = Slow(int(self) + other)
                time.sleep(0)
                return result

        meter = Meter()
        meter.done = meter.total = Slow(0)

        def hammer() -> None:
            for _ in range(500):
                meter(3)
                meter.expect(5)

        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (meter.done, meter.total) == (8 * 500 * 3, 8 * 500 * 5)

    def test_expects_more_as_more_becomes_known(self) -> None:
        meter = Meter()
        assert meter.total is None
        meter.expect(2)
        meter.expect(3)
        assert meter.total == 5


class TestPace:
    def text(self, total: int | None, *told: tuple[float, int]) -> str:
        """What is said last, when bytes are told of, and looked at, at these times."""
        meter = Meter(total)
        pace, text = _Pace(meter, 100.0), ""
        for at, done in told:
            meter(done)
            text = pace.text(100.0 + at).replace("\N{NO-BREAK SPACE}", " ")
        return text

    def test_tells_amount_rate_and_time_left(self) -> None:
        assert self.text(4600 * MB, (4, 1200 * MB)) == "1.2 GB of 4.6 GB, 300.0 MB/s, 11 s left"

    def test_tells_amount_and_rate_where_the_end_is_not_known(self) -> None:
        assert self.text(None, (4, 1200 * MB)) == "1.2 GB, 300.0 MB/s"

    def test_says_nothing_of_bytes_where_nobody_tells_of_any(self) -> None:
        assert self.text(None, (5, 0)) == ""

    def test_takes_the_rate_of_the_last_seconds(self) -> None:
        told = [(5.0 * line, 500 * MB) for line in range(1, 13)]
        assert (
            self.text(10_000 * MB, *told, (65, 50 * MB), (70, 50 * MB))
            == "6.1 GB of 10.0 GB, 10.0 MB/s, 6 min 30 s left"
        )

    def test_tells_when_nothing_moves_any_more(self) -> None:
        assert self.text(1000 * MB, (5, 500 * MB), (10, 0), (15, 0)) == "500.0 MB of 1.0 GB, 0 bytes/s"

    def test_tells_when_nothing_has_moved_yet(self) -> None:
        assert self.text(1000 * MB, (5, 0)) == "0 bytes of 1.0 GB, 0 bytes/s"

    def test_tells_no_time_left_at_the_end(self) -> None:
        assert self.text(10 * MB, (1, 10 * MB)) == "10.0 MB of 10.0 MB, 10.0 MB/s"

    def test_never_tells_of_more_than_there_is(self) -> None:
        assert self.text(10 * MB, (1, 20 * MB)) == "20.0 MB of 20.0 MB, 20.0 MB/s"

    def test_a_frequent_look_takes_the_rate_of_as_many_seconds(self) -> None:
        fast = [(0.1 * look, 10 * MB) for look in range(1, 101)]  # 100 MB/s for ten seconds
        slow = [(10 + 0.1 * look, MB) for look in range(1, 101)]
        assert self.text(None, *fast, *slow[:50]).endswith(", 55.0 MB/s")
        assert self.text(None, *fast, *slow).endswith(", 10.0 MB/s")

    @given(
        total=st.none() | st.integers(0, 10**13),
        told=st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=50),
    )
    def test_can_be_looked_at_at_any_time(self, total: int | None, told: list[tuple[int, int]]) -> None:
        meter = Meter(total)
        pace = _Pace(meter, 0.0)
        for at, (_, done) in zip(accumulate(wait for wait, _ in told), told, strict=True):
            meter(done)
            text = pace.text(at / 1e6)
            assert bool(text) == bool(meter.done or total is not None)
            assert "-" not in text
            assert " left" not in text or meter.done < (total or 0)

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (125, "2 min 5 s"),
            (3600, "1 h 0 min"),
            (86400, "24 h 0 min"),
        ],
    )
    def test_durations_are_as_people_say_them(self, seconds: float, text: str) -> None:
        assert _duration(seconds) == text


class TestWithoutATerminal:
    def test_a_line_comes_again_and_again_and_one_at_the_end(self) -> None:
        log = io.StringIO()
        with Progress(log, interval=SOON).phase("write", "write layers", 4 * MB) as meter:
            meter(MB)
            wait_for(lambda: log.getvalue().count("\n") >= 3)
        *lines, last = said(log)
        assert len(lines) >= 3
        for line in lines:
            assert re.fullmatch(r"write layers: (0 bytes|1\.0 MB) of 4\.0 MB, .+/s(, .+ left)?", line)
        assert re.fullmatch(r"write layers: \d+\.\d s \(1\.0 MB, .+/s\)", last)

    def test_a_phase_that_tells_nothing_says_how_long_it_takes(self) -> None:
        log = io.StringIO()
        with Progress(log, interval=SOON).phase("chunk", "hhd-dev/rechunk: chunk"):
            wait_for(log.getvalue)
        *lines, last = said(log)
        assert set(lines) == {"hhd-dev/rechunk: chunk: 0 s"}
        assert re.fullmatch(r"hhd-dev/rechunk: chunk: \d+\.\d s", last)

    def test_a_short_phase_says_one_thing(self) -> None:
        log = io.StringIO()
        with Progress(log).phase("plan", "plan layers"):
            pass
        [line] = said(log)
        assert re.fullmatch(r"plan layers: \d\.\d s", line)

    def test_lines_become_rarer(self) -> None:
        at = list(accumulate(islice(_pauses(5.0), 40)))
        assert at[:3] == [5, 10, 15]
        assert [line for line in at if 50 <= line <= 90] == [50, 55, 60, 75, 90]
        assert [line for line in at if 270 <= line <= 360] == [270, 285, 300, 330, 360]

    def test_nothing_is_drawn(self) -> None:
        log = io.StringIO()
        with Progress(log, interval=SOON).phase("write", "write layers", MB) as meter:
            meter(1)
            wait_for(log.getvalue)
        assert "\x1b" not in log.getvalue()
        assert "\r" not in log.getvalue()

    def test_what_draws_is_not_even_loaded(self) -> None:
        script = (
            "import sys, time; from rechunk_action.progress import Progress\n"
            "with Progress(interval=0.01).phase('a', 'a'): time.sleep(0.1)\n"
            "sys.exit('rich' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0

    def test_quiet_means_quiet(self) -> None:
        log = io.StringIO()
        with Progress(log, level=-1, interval=SOON).phase("write", "write layers", MB) as meter:
            assert not followers()
            meter(1)
            time.sleep(5 * SOON)
        assert log.getvalue() == ""

    def test_names_are_no_commands_of_a_terminal(self) -> None:
        log = io.StringIO()
        progress = Progress(log, interval=SOON)
        with progress.phase("scan", "read dir:/\x1b]0;mine\x07\x9b2J"):
            wait_for(log.getvalue)
        progress.notice("a\rb\tc")
        progress.notice("a\u202e\u2066b\u200b\u00adc\udc80 1\N{NO-BREAK SPACE}kB\nd")
        assert not re.search("[\x07\x1b\x9b\r]", log.getvalue())
        assert "notice: a\N{REPLACEMENT CHARACTER}b\tc\n" in log.getvalue()
        said = log.getvalue().replace("\N{REPLACEMENT CHARACTER}", "?")
        assert "notice: a??b??c? 1\N{NO-BREAK SPACE}kB\nd\n" in said

    def test_a_reader_that_goes_away_stops_nothing(self) -> None:
        out, into = os.pipe()
        stream = os.fdopen(into, "w")
        with contextlib.suppress(BrokenPipeError), Progress(stream, interval=SOON).phase("write", "write layers"):
            os.close(out)
            wait_for(lambda: not followers())
            worked = True
        assert worked
        with contextlib.suppress(BrokenPipeError):
            stream.close()


class TestNothingFollowsTheEnd:
    """Of a phase, on every way out."""

    def test_when_all_is_done(self) -> None:
        def done(log: io.StringIO, progress: Progress) -> None:
            with progress.phase("write", "write layers"):
                wait_for(log.getvalue)

        self.check(done)

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
    def test_when_it_fails(self, kind: type[BaseException]) -> None:
        def fail(log: io.StringIO, progress: Progress) -> None:
            with contextlib.suppress(kind), progress.phase("write", "write layers"):
                wait_for(log.getvalue)
                raise kind

        self.check(fail)

    def test_when_a_signal_ends_it(self) -> None:
        def overdue(*_: object) -> NoReturn:
            raise TimeoutError

        def wait(log: io.StringIO, progress: Progress) -> None:
            with contextlib.suppress(TimeoutError), progress.phase("write", "write layers"):
                signal.setitimer(signal.ITIMER_REAL, 10 * SOON)
                threading.Event().wait(60)
            assert log.getvalue()
            assert not progress.seconds  # it has not come to its end

        before = signal.signal(signal.SIGALRM, overdue)
        try:
            self.check(wait)
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_when_the_thread_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: threading.Thread) -> NoReturn:
            raise MemoryError

        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(MemoryError), Progress(io.StringIO()).phase("write", "write layers"):
            pass

    def check(self, run: Callable[[io.StringIO, Progress], None]) -> None:
        log = io.StringIO()
        run(log, Progress(log, interval=SOON))
        assert not followers()
        ended = log.getvalue()
        time.sleep(5 * SOON)
        assert log.getvalue() == ended


class TestInTheLogOfAnAction:
    def test_lines_are_in_the_group_and_no_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        progress = ActionProgress(verbose=False)
        progress._interval = SOON
        with progress.phase("scan", "::error::x") as meter:
            meter(MB)
            time.sleep(10 * SOON)
        first, *lines, last = capsys.readouterr().out.splitlines()
        assert first.startswith("::group::")
        assert last == "::endgroup::"
        assert len(lines) >= 2
        assert not any(line.startswith("::") for line in lines)
        assert all(": :error::x: " in line for line in lines)


class TestOnATerminal:
    def test_a_bar_shows_amount_rate_and_time_left(self) -> None:
        with terminal() as (stream, shown):
            progress = Progress(stream)
            with progress.phase("write", "write [bold]layers[/nonsense]", 4 * MB) as meter:
                meter(MB)
                wait_for(lambda: " left" in text_of(shown()))
        text = text_of(shown())
        assert re.search(r"write \[bold\]l.*1\.0 MB of 4\.0 MB, .+/s, .+ left 0:00:0\d", text)
        assert text.splitlines()[-1].startswith("write [bold]layers[/nonsense]: 0.")

    def test_a_total_that_becomes_known_is_shown(self) -> None:
        with terminal() as (stream, shown), Progress(stream).phase("scan", "read a tree") as meter:
            meter(MB)
            wait_for(lambda: "1.0 MB," in text_of(shown()))
            assert "╸" not in shown()  # there is no half of what nobody knows
            meter.expect(4 * MB)
            wait_for(lambda: "╸ 1.0 MB of 4.0 MB," in text_of(shown()).replace("━", "").replace("╺", "╸"))

    def test_what_is_said_meanwhile_has_lines_of_its_own(self) -> None:
        with terminal() as (stream, shown):
            progress = Progress(stream)
            with progress.phase("scan", "read a tree"):
                wait_for(lambda: "read a tree" in shown())
                progress.notice("[red]this[/x] " + 30 * "is long ")
                wait_for(lambda: shown().count("read a tree") > 2)
            lines = text_of(shown()).splitlines()
        assert "notice: [red]this[/x] " + 30 * "is long " in lines

    def test_names_are_no_commands(self) -> None:
        with terminal() as (stream, shown):
            progress = Progress(stream)
            with progress.phase("scan", "read \x1b]0;mine\x07"):
                wait_for(lambda: "mine" in shown())
                progress.notice("\x1b]0;mine\x07")
        assert "\x1b]" not in shown()

    def test_the_cursor_is_there_again_after_a_failure(self) -> None:
        with terminal() as (stream, shown):
            progress = Progress(stream)
            with contextlib.suppress(KeyboardInterrupt), progress.phase("scan", "read a tree"):
                wait_for(lambda: "read a tree" in shown())
                raise KeyboardInterrupt
            progress.notice("cancelled")
            wait_for(lambda: "cancelled" in shown())
        assert shown().rindex("\x1b[?25h") > shown().rindex("\x1b[?25l")
        assert not followers()

    def test_one_that_cannot_draw_gets_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        with terminal() as (stream, shown), Progress(stream, interval=SOON).phase("scan", "read a tree"):
            wait_for(lambda: shown().count("read a tree: 0 s") > 2)
        assert "\x1b" not in shown()


class Followed(Progress):
    """Keeps the meters of its phases."""

    def __init__(self) -> None:
        super().__init__(level=-1)
        self.meters: dict[str, Meter] = {}

    @contextlib.contextmanager
    def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Meter]:
        with super().phase(name, title, total) as self.meters[name]:
            yield self.meters[name]

    def amounts(self, *names: str) -> list[int]:
        """Bytes that were told of in these phases, which have to be those that were expected."""
        for name in names:
            assert self.meters[name].done == self.meters[name].total, name
        return [self.meters[name].done for name in names]


class TestLongWork:
    """Tells of as many bytes as it expects."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        tree = tmp_path / "tree"
        (tree / "usr").mkdir(parents=True)
        (tree / "usr/large").write_bytes(os.urandom(3 << 20))
        (tree / "usr/small").write_bytes(b"small")
        (tree / "usr/link").hardlink_to(tree / "usr/large")
        return tree

    def test_reading_a_tree(self, tree: Path) -> None:
        meter = Meter()
        with Hasher(2, meter) as hasher:
            DirectorySource(str(tree)).scan(hasher, meter)
            hasher.finish()
        assert meter.done == meter.total == (3 << 20) + 5

    def test_a_build_and_its_update(self, tree: Path, tmp_path: Path) -> None:
        first = Followed()
        build(tree, tmp_path / "image", progress=first)
        written = first.meters["write"]
        assert 3 << 20 < written.done == written.total
        (tree / "usr/small").write_bytes(b"other")
        second = Followed()
        build(tree, tmp_path / "second", prev_ref=f"oci:{tmp_path}/image", progress=second)
        assert second.amounts("scan", "write") == [(3 << 20) + 5, second.meters["write"].done]

    def test_a_build_from_an_image(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image")
        size = sum(path.stat().st_size for path in layers_of(tmp_path / "image"))
        progress = Followed()
        build(f"oci:{tmp_path}/image", tmp_path / "second", progress=progress)
        read, prepared = progress.amounts("scan", "prepare")
        assert read == prepared == size

    def test_tables_that_are_not_stored(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image")
        size = sum(path.stat().st_size for path in layers_of(tmp_path / "image"))
        for table in (tmp_path / "image" / TABLES).rglob("*"):
            if table.is_file():
                table.unlink()
        progress = Followed()
        build(tree, tmp_path / "second", prev_ref=f"oci:{tmp_path}/image", progress=progress)
        assert progress.amounts("previous") == [size]

    def test_publishing_and_downloading(self, tree: Path, tmp_path: Path) -> None:
        with plain_registry() as registry:
            name = f"docker://{registry.host}/some/image"
            progress = Followed()
            build(tree, f"{name}:1", progress=progress)
            [sent] = progress.amounts("publish")
            assert sent > 3 << 20
            build(tree, f"{name}:2", fresh=True, progress=progress)
            assert progress.amounts("publish") == [0]  # the registry has all of it
            build(f"{name}:1", tmp_path / "image", progress=progress)
            assert progress.amounts("source") == [sent]

    def test_comparing(self, tree: Path, tmp_path: Path) -> None:
        """Layers that both images have are read once, as all others are."""
        build(tree, f"oci:{tmp_path}/image:1")
        for tag in ("2", "3"):
            (tree / "usr/small").write_bytes(tag.encode())
            build(tree, f"oci:{tmp_path}/image:{tag}", prev_ref=f"oci:{tmp_path}/image:1")
        shutil.rmtree(tmp_path / "image" / RECORDS)
        progress = Followed()
        with places() as opened:
            old, new = (parse_name(f"oci:{tmp_path}/image:{tag}") for tag in ("2", "3"))
            inspection.compare(old, new, opened, progress, threads=2, scratch=tmp_path)
        assert progress.amounts("read") == [sum(path.stat().st_size for path in layers_of(tmp_path / "image"))]

    def test_verifying(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image")
        size = sum(path.stat().st_size for path in layers_of(tmp_path / "image"))
        progress = Followed()
        image, source = parse_name(f"oci:{tmp_path}/image"), parse_name(f"dir:{tree}")
        with places() as opened:
            inspection.verify(image, source, opened, progress, threads=2, scratch=tmp_path)
        assert progress.amounts("scan") == [size + (3 << 20) + 5]


def layers_of(layout: Path) -> list[Path]:
    """The blobs of an image that are no documents."""
    return [path for path in (layout / "blobs/sha256").iterdir() if not path.read_bytes().startswith(b"{")]


def said(log: io.StringIO) -> list[str]:
    return log.getvalue().replace("\N{NO-BREAK SPACE}", " ").splitlines()


def followers() -> list[threading.Thread]:
    """Threads that look at a meter."""
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(SOON)


@contextlib.contextmanager
def terminal() -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A terminal to write to, and what tells all that has been written."""
    master, slave = pty.openpty()
    os.environ.setdefault("TERM", "xterm")
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # so it ends
            while data := os.read(master, 1 << 16):
                written.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(slave, "w") as stream:
            yield stream, lambda: b"".join(written).decode(errors="replace")
    finally:
        reader.join()
        os.close(master)


def text_of(shown: str) -> str:
    """What was written to a terminal, without its commands."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\N{NO-BREAK SPACE}", " ").rstrip("\n")
