from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from rechunk_action.workers import Workers, checkpoint


def test_results_come_in_the_order_of_the_items() -> None:
    with Workers(3) as workers:
        assert list(workers.map(lambda n: n * n, range(20))) == [n * n for n in range(20)]


def test_what_runs_stops_when_the_owner_fails() -> None:
    running = threading.Event()

    def endless() -> None:
        running.set()
        while True:
            checkpoint()

    with pytest.raises(KeyboardInterrupt), Workers(1) as workers:  # noqa: PT012  # leaving the pool is what raises
        task = workers.submit(endless)
        waiting = workers.submit(endless)
        running.wait()
        raise KeyboardInterrupt
    with pytest.raises(CancelledError):
        task.result()
    assert not waiting.done()


def test_what_waits_is_dropped_before_what_runs_is_stopped() -> None:
    """Else a thread that has just stopped takes what waits: now and then, so it is tried often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(1000):
            test_what_runs_stops_when_the_owner_fails()
    finally:
        sys.setswitchinterval(interval)


def test_a_failing_task_stops_the_others() -> None:
    def work(number: int) -> None:
        if number == 0:
            raise OSError
        while True:
            checkpoint()

    with pytest.raises(OSError), Workers(2) as workers:  # noqa: PT011  # any will do
        list(workers.map(work, range(2)))


def test_a_checkpoint_outside_of_a_pool_passes() -> None:
    checkpoint()


INTERRUPTED = """
import concurrent.futures.thread, itertools, signal, sys, threading
from rechunk_action import workers
from rechunk_action.signals import stop_when_asked

FILES = {threading.__file__, concurrent.futures.thread.__file__, concurrent.futures._base.__file__, workers.__file__}

def interrupt(step):
    steps = itertools.count()
    def trace(frame, event, argument):
        if frame.f_code.co_filename in FILES and next(steps) == step:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return trace
    sys.settrace(trace)

for step in itertools.count():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    stop_when_asked()
    try:
        with workers.Workers(2) as pool:
            interrupt(step)
            pool.submit(int).result()
            list(pool.map(int, "12"))
            sys.settrace(None)
    except KeyboardInterrupt:
        pass
    else:
        break
    finally:
        sys.settrace(None)
print(step)
"""


def test_no_moment_is_wrong_for_a_request_to_stop() -> None:
    """At every step of the main thread that could leave a lock taken: all threads end."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
