"""Machines notice nothing: they install images of ours, upgrade over the network, go back, and go on.

What a machine goes through is in `journey`; each test looks at a part of it. Where a machine does not do what it is
told, all of them show why, with the last lines of its console.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path

import pytest

from tests.faulty_proxy import Line
from tests.registries import plain_registry
from tests.vm import run
from tests.vm.disk import Entry, parse_entry
from tests.vm.journey import CLIENTS, COMPARED, HEAD, LEGS, LOCAL, TABLE, Journey, Traveller
from tests.vm.machine import BOOT, GuestFailed, boot
from tests.vm.tree import VERSIONS, versions

pytestmark = pytest.mark.vm

ROOM = 10 << 30


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory for some gigabytes, in memory where there is room."""
    memory = Path("/dev/shm")
    home = memory if memory.is_dir() and shutil.disk_usage(memory).free > ROOM else None
    with (
        tempfile.TemporaryDirectory(prefix="vm-", dir=home or "/var/tmp") as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", directory)
        yield Path(directory)


Trees = Mapping[str, Future[Path]]


@pytest.fixture(scope="module")
def trees(place: Path) -> Iterator[Trees]:
    """The trees of all versions. Machines are on their way while later ones are made."""
    made: Trees = {name: Future() for name in VERSIONS}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(make, place, made)
        yield made


def make(place: Path, made: Trees) -> None:
    try:
        for name, tree in versions(place):
            made[name].set_result(tree)
    except BaseException as error:
        for each in made.values():
            if not each.done():
                each.set_exception(error)
        raise


@pytest.fixture(scope="module")
def journeys(place: Path, trees: Trees, pytestconfig: pytest.Config) -> Iterator[dict[str, Future[Traveller]]]:
    """Of a machine for each format, both on their way at the same time. Their figures are shown in the end."""
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        found = {format_: pool.submit(travelled, format_, place, trees) for format_ in CLIENTS}
        try:
            yield found
        finally:  # a journey that nobody waits for any more ends with its machine
            while wait(found.values(), timeout=1).not_done:
                subprocess.run(["pkill", "--parent", str(os.getpid()), "qemu"], check=False)
    lines = [line for each in found.values() if not each.exception() for line in each.result().table()]
    pytestconfig.stash[TABLE] = [*HEAD, *lines] if lines else []


def travelled(format_: str, place: Path, trees: Trees) -> Traveller:
    home = place / format_
    home.mkdir()
    with plain_registry() as registry, Line(registry.host) as line:
        traveller = Traveller(format_, registry.host, line, trees, home)
        traveller.travel()
    return traveller


@pytest.fixture(scope="module", params=CLIENTS)
def traveller(request: pytest.FixtureRequest, journeys: dict[str, Future[Traveller]]) -> Traveller:
    try:
        return journeys[request.param].result()
    except GuestFailed as failure:
        pytest.fail(str(failure), pytrace=False)


@pytest.fixture(scope="module")
def journey(traveller: Traveller) -> Journey:
    return traveller.journey


@pytest.fixture(scope="module")
def home(journeys: dict[str, Future[Traveller]]) -> Path:
    """Where the first machine is that has gone its way: these tests take it while another is still on its own."""
    return next(as_completed(journeys.values())).result().home


class TestAGuest:
    """That does not do what it should is told apart, with the last lines of its console."""

    def test_that_panics_is_seen(self, home: Path) -> None:
        panic = r"(?s)the machine has ended.*Kernel panic"
        with pytest.raises(GuestFailed, match=panic), boot(home / "disk", home, arguments="rdinit=/nothing"):
            pass

    def test_ends_with_the_process_that_has_booted_it(self, home: Path) -> None:
        (home / "console").unlink()
        code = "from tests.vm.machine import boot, Path; home = Path.cwd(); boot(home / 'disk', home).__enter__()"
        paths = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen([sys.executable, "-c", code], cwd=home, env=paths) as owner:
            until = time.monotonic() + BOOT
            while time.monotonic() < until and not ((home / "console").exists() and (home / "console").read_bytes()):
                time.sleep(0.1)
            [machine] = run("pgrep", "--parent", str(owner.pid)).split()
            owner.kill()
        while time.monotonic() < until and Path("/proc", machine).exists():
            time.sleep(0.1)
        assert not Path("/proc", machine).exists()


class TestAMachine:
    @pytest.mark.parametrize("leg", COMPARED)
    def test_shows_the_tree_file_by_file(self, journey: Journey, leg: str) -> None:
        assert journey.looks[leg].changed == []

    @pytest.mark.parametrize("leg", LEGS)
    def test_boots_the_kernel_of_the_version(self, journey: Journey, trees: Trees, leg: str) -> None:
        [kernel] = (trees[LEGS[leg]].result() / "usr/lib/modules").iterdir()
        assert journey.looks[leg].kernel == kernel.name

    @pytest.mark.parametrize("version", ["v1", "by-hand", "v4"])
    def test_fetches_what_compare_promised_to_the_byte(self, journey: Journey, version: str) -> None:
        upgrade = journey.upgrades[version]
        assert upgrade.bytes == upgrade.promised
        assert upgrade.fetched.keys() == upgrade.added | {upgrade.config}

    def test_keeps_local_changes_of_etc(self, journey: Journey) -> None:
        gone = "cat: /etc/issue.net: No such file or directory\n"
        for leg in list(LEGS)[1:]:
            assert journey.looks[leg].local == LOCAL | {"issue.net": gone}

    @pytest.mark.parametrize("leg", list(LEGS)[1:])
    def test_takes_all_other_changes_of_etc(self, journey: Journey, leg: str) -> None:
        assert journey.looks[leg].own.keys() <= journey.looks["v0"].own.keys()

    def test_keeps_var(self, journey: Journey) -> None:
        assert [journey.looks[leg].var for leg in list(LEGS)[1:]] == ["mine\n"] * (len(LEGS) - 1)

    def test_has_one_version_still_when_the_power_goes_in_the_middle_of_a_deployment(self, journey: Journey) -> None:
        assert journey.looks["again"].status == journey.looks["v0"].status

    def test_goes_back_to_what_it_was(self, journey: Journey) -> None:
        first, back = (journey.looks[leg].status.splitlines() for leg in ("v0", "back"))
        assert back[0] == first[0]
        assert "(rollback)" in journey.looks["v1"].status

    @pytest.mark.parametrize("leg", ["again", "v4"])
    def test_has_a_sound_repository(self, journey: Journey, leg: str) -> None:
        assert "no errors found" in journey.fsck[leg]

    def test_is_warned_of_nothing(self, journey: Journey) -> None:
        said = "".join(upgrade.output for upgrade in journey.upgrades.values())
        assert "warn" not in said.lower()

    def test_whose_unit_or_command_fails_or_does_not_end_is_told_apart(self, journey: Journey) -> None:
        unit, command, endless = journey.complaints
        assert re.search(r"(?s)is degraded; failed units:\nbroken.service.*console", unit)
        assert "'false' ended with 1" in command
        assert "'sleep 60' in the guest takes more than 1 seconds" in endless


class TestABootLoaderEntry:
    def test_is_read_field_by_field(self) -> None:
        text = "title Debian GNU/Linux 13\nversion 2\noptions root=/dev/vda rw\nlinux /boot/a\ninitrd /boot/b\n"
        assert parse_entry(text) == Entry(2, "/boot/a", "/boot/b", "root=/dev/vda rw")
