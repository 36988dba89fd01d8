"""Scratch space: a directory that goes with its owner, however that ends.

It is removed when its owner is done or is gone, at the latest when the program ends. What a killed program has left,
the next one removes: a directory is locked (flock) for as long as its owner lives, so one that can be locked has none.
Where a file system knows no such locks, nothing is taken for left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from rechunk_action.signals import undisturbed

PREFIX = "rechunk-scratch-"
"""What scratch space in a directory for temporary files is called."""


class Scratch:
    """A new directory in `parent`, its name with a prefix that nothing else there has. Raises `OSError`."""

    def __init__(self, parent: Path, prefix: str) -> None:
        with undisturbed():
            self.path, lock = _claim_anyway(parent, prefix)
            # What comes between here and the block that uses it is made up for by the end of its owner.
            self._removed = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """Remove it with all that is in it. Once is enough."""
        with undisturbed():
            self._removed()


def clear(parent: Path, prefix: str, notice: Callable[[str], None]) -> None:
    """Remove the directories that programs of this user have left because they were killed, and tell.

    What cannot be removed stays: whoever is about to make a directory there meets with the reason.
    """
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            if name.startswith(prefix) and _clear(parent / name):
                notice(f"removed {parent / name}, which a run that was killed had left behind")


def claim(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory, and its lock: an open file, which whoever removes the directory closes.

    Raises `OSError`, also where there are no locks; then there is no directory.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = _lock(path)
        except OSError:
            path.rmdir()
            raise
        if lock is not None:
            return path, lock
        # Another run has taken it for a stale one, in the moment before it was locked, and removes it.


def lock_stale(path: Path) -> int | None:
    """The lock of a directory that a program of this user has left. None when its owner lives, when it is gone, or not
    ours to touch. Raises `OSError` where there are no locks.
    """
    try:
        return _lock(path) if path.lstat().st_uid == os.geteuid() else None
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _clear(path: Path) -> bool:
    with undisturbed():
        lock = lock_stale(path)
        if lock is None:
            return False
        _remove(path, lock)
    return not path.exists()


_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that know no locks on directories."""


def _claim_anyway(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """As `claim`, but without a lock where there are none."""
    try:
        return claim(parent, prefix)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), None


def _lock(path: Path) -> int | None:
    """Lock a directory. None when another program has it locked, or has just removed it."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Until it was locked, its owner could remove it.
        if os.path.samestat(os.fstat(lock), path.lstat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _remove(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)
