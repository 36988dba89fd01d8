"""The measurement of publishing: what it counts, and what it leaves behind."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench import publish, timing
from bench.publish import Publishing, measure, table


@pytest.fixture
def trees(tmp_path: Path) -> list[str]:
    """A system and its update, of which 40 kB are new."""
    found = [tmp_path / f"v{number}" for number in range(2)]
    for number, tree in enumerate(found):
        for name, size in (("same", 20_000_000), (f"new in {number}", 40_000)):
            (tree / "usr/lib" / name).mkdir(parents=True)
            (tree / "usr/lib" / name / "data").write_bytes(hashlib.shake_128(name.encode()).digest(size))
        (tree / "usr/lib/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    return [str(tree) for tree in found]


@pytest.mark.oracle
def test_an_update_sends_what_is_new(trees: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "s"
    short.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    first, update = measure(trees, pairs=1)
    assert (first.name, update.name) == ("v0", "v1")
    assert first.layers > 20_000_000
    assert 40_000 < update.layers < 50_000
    for found in (first, update):
        assert 0 < found.tables < 2_000
        assert 0 < found.rest < 64_000
        assert found.seconds > 0
        assert found.beyond == found.seconds - found.on_disk
        assert found.memory > 10_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "v0", "v1"]
    assert not list(short.iterdir())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_table_shows_what_is_sent_besides() -> None:
    row = table([Publishing("v1", 2.5, 2.0, 0.5, 92_400_000, 1_234_500, 1_200_000, 4_000)]).splitlines()[-1]
    assert row == "| v1 | 2.50 s | 2.00 s | +0.50 s | 1.23 MB | 1.20 MB | 4 kB | 30.5 kB | 92 MB |"


def test_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["publish", str(tmp_path)])
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        publish.main()
    assert ended.value.code == 3


class TestRun:
    def test_tells_seconds_memory_and_output(self) -> None:
        script = "import time; held = b'x' * 100_000_000; time.sleep(0.3); print('done')"
        started = time.perf_counter()
        found = timing.run([sys.executable, "-c", script])
        assert 0.3 < found.seconds < time.perf_counter() - started
        assert found.memory > 100_000_000
        assert found.output == b"done\n"

    def test_failure_is_no_figure(self) -> None:
        with pytest.raises(subprocess.CalledProcessError) as failed:
            timing.run(["sh", "-c", "exit 5"])
        assert failed.value.returncode == 5

    def test_runs_in_the_environment_that_it_is_given(self) -> None:
        assert timing.run(["/bin/sh", "-c", "echo $NAME"], {"NAME": "given"}).output == b"given\n"
