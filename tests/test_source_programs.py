"""Programs that are run, and that end when we do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rechunk_action.errors import EnvironmentLack
from rechunk_action.source import programs
from rechunk_action.source.programs import Account, Program, own_account, run
from tests import stores

ACCOUNT = Account("somebody", {"PATH": os.environ["PATH"]})


def alive(group: Path) -> bool:
    """Whether a process group has a member that is no zombie."""
    number = group.read_text().strip()
    fields = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return any(state != "Z" and its_group == number for state, _, its_group, *_ in fields)


def test_a_program_gives_its_output() -> None:
    assert run(ACCOUNT, "printf", "%s", "\r\n$HOME \xff") == "\r\n$HOME \xff".encode()


def test_a_program_sees_only_the_environment_that_it_is_given() -> None:
    assert run(Account("somebody", {"PATH": os.environ["PATH"], "A": "1"}), "sh", "-c", "echo $A$HOME") == b"1\n"


def test_our_own_account_has_a_name() -> None:
    assert own_account({}).name


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(EnvironmentLack, match="no-such-program is not installed: install it"):
        run(ACCOUNT, "no-such-program")


def test_a_program_that_fails_is_told_with_its_own_words() -> None:
    with pytest.raises(EnvironmentLack, match=r"sh -c 'echo oh >&2; exit 3' failed \(oh\): run it by hand"):
        run(ACCOUNT, "sh", "-c", "echo oh >&2; exit 3")


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [("write /x: No space left on device", "free some space"), ("open /x: Permission denied", "run this as root")],
)
def test_a_program_that_fails_is_told_with_what_to_do(complaint: str, remedy: str) -> None:
    with pytest.raises(EnvironmentLack, match=rf"failed \({complaint}\): {remedy}"):
        run(ACCOUNT, "sh", "-c", f"echo '{complaint}' >&2; exit 3")


def test_a_program_that_fails_in_silence_is_told() -> None:
    with pytest.raises(EnvironmentLack, match=r"false failed \(without a word\)"):
        run(ACCOUNT, "false")


def test_long_complaints_are_shortened() -> None:
    with pytest.raises(EnvironmentLack, match=r"failed \(\.\.\. [x ]+\): run it") as caught:
        run(ACCOUNT, "sh", "-c", "yes x | head -9999 | tr '\\n' ' ' >&2; exit 1")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("script", ["", "trap '' TERM; "])
def test_a_program_ends_with_all_its_children_when_we_are_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(programs, "GRACE", 0.2)
    group = tmp_path / "group"
    with stores.interrupted(group):
        run(ACCOUNT, "sh", "-c", f"{script}sleep 60 & echo $$ > {group}.; mv {group}. {group}; wait; sleep 60")
    assert not alive(group)


def test_a_program_is_left_in_peace_until_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "GRACE", 0.5)
    with Program(ACCOUNT, "sh", "-c", "sleep 0.1; exit 7") as program:
        assert program.end() == 7
    started = time.monotonic()
    with Program(ACCOUNT, "sleep", "60") as program:
        assert program.end() == -9
    assert time.monotonic() - started < 5
