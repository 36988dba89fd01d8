"""Scratch space: gone with its owner, and never before."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rechunk_action.scratch import Scratch, clear
from tests.support import NOBODY, as_nobody

PREFIX = "test-"


def cleared(parent: Path) -> list[str]:
    """What clearing tells."""
    notices: list[str] = []
    clear(parent, PREFIX, notices.append)
    return notices


def left(parent: Path) -> Path:
    """What a program has left that was killed."""
    program = (
        "import os, pathlib, signal, sys; from rechunk_action.scratch import Scratch;"
        f"scratch = Scratch(pathlib.Path(sys.argv[1]), {PREFIX!r}); (scratch.path / 'file').touch();"
        "print(scratch.path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, parent], check=False, text=True, capture_output=True)
    return Path(done.stdout.strip())


class TestScratch:
    def test_is_gone_when_it_is_removed(self, tmp_path: Path) -> None:
        scratch = Scratch(tmp_path, PREFIX)
        (scratch.path / "file").touch()
        assert scratch.path.name.startswith(PREFIX)
        scratch.remove()
        assert os.listdir(tmp_path) == []
        scratch.remove()

    def test_is_gone_when_its_owner_is(self, tmp_path: Path) -> None:
        Scratch(tmp_path, PREFIX)
        gc.collect()
        assert os.listdir(tmp_path) == []

    def test_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        scratch = Scratch(tmp_path, PREFIX)
        assert scratch.path.stat().st_mode & 0o777 == 0o700

    def test_needs_no_right_to_what_is_above(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "above/here").mkdir(parents=True)
        (tmp_path / "above").chmod(0o700)
        os.chown(tmp_path / "above/here", NOBODY, -1)
        monkeypatch.chdir(tmp_path / "above/here")
        with as_nobody():
            scratch = Scratch(Path(), PREFIX)
            assert os.listdir() == [scratch.path.name]
            scratch.remove()
        assert os.listdir() == []

    def test_is_there_where_there_are_no_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refused)
        scratch = Scratch(tmp_path, PREFIX)
        assert cleared(tmp_path) == []
        assert scratch.path.exists()

    def test_that_cannot_be_locked_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(fcntl, "flock", broken)
        with pytest.raises(OSError, match="Input/output error"):
            Scratch(tmp_path, PREFIX)
        assert os.listdir(tmp_path) == []


class TestClearing:
    def test_removes_what_a_killed_program_has_left(self, tmp_path: Path) -> None:
        path = left(tmp_path)
        assert (path / "file").exists()
        assert cleared(tmp_path) == [f"removed {path}, which a run that was killed had left behind"]
        assert os.listdir(tmp_path) == []

    def test_does_not_touch_what_has_an_owner(self, tmp_path: Path) -> None:
        scratch = Scratch(tmp_path, PREFIX)
        assert cleared(tmp_path) == []
        assert scratch.path.exists()

    def test_does_not_touch_what_is_called_otherwise(self, tmp_path: Path) -> None:
        for name in ("other", "tes", "a-test-"):
            (tmp_path / name).mkdir()
        assert cleared(tmp_path) == []
        assert len(os.listdir(tmp_path)) == 3

    def test_does_not_touch_what_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / f"{PREFIX}link").symlink_to("there")
        (tmp_path / f"{PREFIX}file").touch()
        assert cleared(tmp_path) == []
        assert len(os.listdir(tmp_path)) == 3

    def test_does_not_touch_what_belongs_to_somebody_else(self, tmp_path: Path) -> None:
        path = left(tmp_path)
        os.chown(path, NOBODY, NOBODY)
        assert cleared(tmp_path) == []
        assert path.exists()

    def test_goes_on_after_what_it_cannot_look_at(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second = sorted([left(tmp_path), left(tmp_path)])
        opened = os.open

        def refusing(path: Path, flags: int, **options: Any) -> int:
            if path == first:
                raise PermissionError
            return opened(path, flags, **options)

        monkeypatch.setattr(os, "open", refusing)
        notices = cleared(tmp_path)
        monkeypatch.undo()
        assert len(notices) == 1
        assert not second.exists()
        assert first.exists()

    def test_of_a_directory_that_is_not_there_does_nothing(self, tmp_path: Path) -> None:
        assert cleared(tmp_path / "missing") == []
