"""Threads that stop when the work they are for has failed or was cancelled.

A thread cannot be interrupted from outside, and leaving a pool waits for its threads: with gigabytes at hand that takes
minutes. So whoever reads in a loop asks `checkpoint` between pieces, and a pool whose owner is on the way out with an
exception lets the question fail.

A request to stop is an exception that comes wherever the main thread is. What Python's threads wait by (conditions, and
with them futures and queues) would stay locked for good by one that comes between taking its lock and the block in
which that is held, and then all threads wait for each other. So the main thread shares nothing with a thread but a bare
lock, and hands over tasks undisturbed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Generic, ParamSpec, Self, TypeVar

from rechunk_action.signals import undisturbed

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
            self._pool.shutdown(wait=False, cancel_futures=True)  # first, or a thread that stops takes what waits
            self._stopped.set()
            for stop in stoppers:
                stop()
        self._pool.shutdown()

    def submit(
        self, task: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Task[_Result]:
        submitted = Task(lambda: task(*args, **kwargs))
        with undisturbed():
            self._pool.submit(submitted.run)
        return submitted

    def map(self, task: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results in the order of the items. The first exception of a task is raised."""
        running = [self.submit(task, item) for item in items]
        return (submitted.result() for submitted in running)

    def _start(self) -> None:
        _of_thread.stopped = self._stopped


class Task(Generic[_Result]):
    """What a pool was given to do, and what became of it."""

    def __init__(self, work: Callable[[], _Result]) -> None:
        self._work = work
        self._running = threading.Lock()
        self._running.acquire()
        self._results: list[_Result] = []
        self._fault: BaseException | None = None

    def run(self) -> None:
        """Do it, on a thread of the pool."""
        try:
            self._results.append(self._work())
        except BaseException as fault:  # noqa: BLE001  # it is raised where the result is asked for
            self._fault = fault
        finally:
            self._running.release()

    def done(self) -> bool:
        return not self._running.locked()

    def result(self) -> _Result:
        """What it returns, or raises. Not to be asked of a pool that was stopped.

        Waits in short steps, since a signal that arrives just before a wait is not seen until the wait is over.
        """
        while not self._running.acquire(timeout=1):
            pass
        self._running.release()
        if self._fault is not None:
            raise self._fault
        return self._results[0]


def checkpoint() -> None:
    """Raises `CancelledError` in a thread of a pool that was stopped. Costs next to nothing."""
    stopped: threading.Event | None = getattr(_of_thread, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise CancelledError
