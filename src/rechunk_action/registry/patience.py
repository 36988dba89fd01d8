"""How often and how long a registry is asked again, when something went wrong that may pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from rechunk_action.errors import RegistryUnavailable
from rechunk_action.workers import checkpoint


def _sleep(seconds: float) -> None:
    """In short steps, so that a cancel is seen."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        checkpoint()
        time.sleep(min(left, 0.2))


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and how long is waited: `pause` seconds at first, doubled each time, or what the
    registry asks for; `total` in all. `timeouts` are those of connecting and of the silence in a connection.
    """

    tries: int = 6
    pause: float = 1.0
    total: float = 120.0
    timeouts: tuple[float, float] = (10.0, 60.0)
    sleep: Callable[[float], None] = _sleep


class Fault(Exception):
    """Something that may pass. Internal to this package: it never reaches a user."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Waits:
    """The waits of one undertaking."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._faults = 0
        self._waited = 0.0

    def after(self, fault: Fault) -> None:
        """Wait before the next try. Raises `RegistryUnavailable` when there is to be none."""
        backoff = self._patience.pause * 2**self._faults * random.uniform(0.5, 1)  # noqa: S311  # no secret
        pause = max(fault.retry_after, backoff)
        self._faults += 1
        self._waited += pause
        if self._faults >= self._patience.tries or self._waited > self._patience.total:
            asked = f", which asks to wait for {fault.retry_after:.0f} s" if fault.retry_after else ""
            times = "once" if self._faults == 1 else f"{self._faults} times"
            raise RegistryUnavailable(f"{fault} (tried {times}{asked}): see whether the registry is up, and try again")
        self._patience.sleep(pause)

    def renew(self) -> None:
        """Something got on: what comes now is another fault, however many there were."""
        self._faults = 0
        self._waited = 0.0
