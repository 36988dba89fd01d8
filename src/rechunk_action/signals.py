"""Requests to stop: Ctrl-C, a runner that cancels, a terminal that is closed.

The first one raises `KeyboardInterrupt` wherever the main thread is, so that everything is cleaned up on the way out;
those that follow change nothing. What must not be cut in two, such as taking back a mount, is done undisturbed: a
request waits until it is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_when_asked() -> None:
    """Have the main thread stop when it is asked to. One that is started with a signal ignored (nohup) ignores it."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN or number is not signal.SIGHUP:
            signal.signal(number, _stop)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let requests to stop, and deadlines, wait until this is over. It has to be short."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread
        return
    asked: list[int] = []
    # Not by a mask: another thread would take the signal, and the main thread would handle it nevertheless.
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in _WAITING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if asked:
            os.kill(os.getpid(), asked[0])


_WAITING = (*STOPPING, signal.SIGALRM)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    del signum, frame
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
