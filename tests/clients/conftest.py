"""Tests of clients that have to be built first are for `pytest --long` alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_real_series import place, trees  # noqa: F401 (fixtures)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name.startswith("test_") and not config.getoption("--long") else None


@pytest.fixture(scope="module")
def bootable(trees: list[Path]) -> list[Path]:  # noqa: F811 (the fixture)
    """The versions of a real tree, with what an OSTree commit has to have."""
    for tree in trees:
        (tree / "sysroot").mkdir()
        (tree / "usr/lib/modules/1").mkdir(parents=True)
        (tree / "usr/lib/modules/1/vmlinuz").write_bytes(b"a kernel")
    return trees
