from __future__ import annotations

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
    assert isinstance(task.exception(), CancelledError)
    assert waiting.cancelled()


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
