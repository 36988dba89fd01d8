"""What the whole test run shares. `pytest --hypothesis-profile=thorough` looks at many more examples, `long` at so many
that a test takes many minutes. With `pytest --long`, tests that try points of a long list try all of them.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest
from hypothesis import settings

from rechunk_action.plan import grouping
from rechunk_action.tree import components
from tests.faulty_proxy import Line
from tests.registries import plain_registry

T = TypeVar("T")

# A shell that starts us in the background has this signal ignored, by us and by all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault
settings.load_profile("unhurried")
settings.register_profile("thorough", max_examples=1000)
settings.register_profile("long", max_examples=10_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try all points, not a sample of them: takes many minutes")


def sample(points: Sequence[T], request: pytest.FixtureRequest, *, most: int = 12) -> Sequence[T]:
    """So many of the points, spread evenly from the first to the last; with `--long`, all of them."""
    if request.config.getoption("--long") or len(points) <= most:
        return points
    return [points[number * (len(points) - 1) // (most - 1)] for number in range(most)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many points each test has tried: what docs/reliability.md tells."""
    if not terminalreporter.config.getoption("--long"):
        return
    for report in terminalreporter.getreports("passed"):
        if tried := dict(report.user_properties).get("tried"):
            terminalreporter.write_line(f"tried {tried:6,} {report.nodeid}")


@pytest.fixture(scope="module")
def small_components() -> Iterator[None]:
    """Sizes from which files and components have layers of their own, scaled down to small trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "LARGE_FILE", 2_000)
        patch.setattr(grouping, "ALONE", 30_000)
        patch.setattr(grouping, "BIN", 60_000)
        yield


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    """The line to a registry."""
    with plain_registry() as registry, Line(registry.host) as proxy:
        yield proxy


@pytest.fixture
def target(line: Line, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    line.forget()
    return f"{line.host}/test/t{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
