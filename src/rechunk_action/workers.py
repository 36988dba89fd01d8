"""Threads that stop when the work they are for has failed or was cancelled.

A thread cannot be interrupted from outside, and leaving a pool waits for its threads: with gigabytes at hand that takes
minutes. So whoever reads in a loop asks `checkpoint` between pieces, and a pool whose owner is on the way out with an
exception lets the question fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import ParamSpec, Self, TypeVar

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")
_Arguments = ParamSpec("_Arguments")

_of_thread = threading.local()

stoppers: list[Callable[[], None]] = []
"""Called when a pool is left with an exception: what ends the waits in which a thread asks nothing."""


class Workers:
    """A pool of threads. A context manager: left with an exception, it drops what waits and stops what runs."""

    def __init__(self, threads: int) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(threads, initializer=self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stopped.set()
            for stop in stoppers:
                stop()
        self._pool.shutdown(cancel_futures=kind is not None)

    def submit(
        self, task: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        return self._pool.submit(task, *args, **kwargs)

    def map(self, task: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results in the order of the items. The first exception of a task is raised."""
        running = [self._pool.submit(task, item) for item in items]
        return map(result_of, running)

    def _start(self) -> None:
        _of_thread.stopped = self._stopped


def result_of(future: Future[_Result]) -> _Result:
    """What a task returns, or raises.

    Waits in short steps, since a signal that arrives just before a wait is not seen until the wait is over.
    """
    while not future.done():
        wait([future], timeout=1)
    return future.result()


def checkpoint() -> None:
    """Raises `CancelledError` in a thread of a pool that was stopped. Costs next to nothing."""
    stopped: threading.Event | None = getattr(_of_thread, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise CancelledError
