"""What one machine goes through: it is installed, upgraded over the network, rolled back, and meets what can happen.

    v0        installed and booted; its owner changes /etc and /var; in the middle of an upgrade to v1, the power goes
    again     v0 boots again, and the same upgrade goes through
    v1        boots; rolled back
    back      v0 boots; v1 is undeployed; upgrade to an image that is as buildah makes it of v0
    by-hand   boots; upgrade over three versions to v4, rechunked again
    v4        boots; then things are done that a machine should complain of

Every leg begins with a boot, and a look at all that a machine could notice. What is seen is written down, for tests to
judge; only a guest that does not do what it is told ends a journey.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import stores
from tests.faulty_proxy import Line
from tests.oracles import program
from tests.oracles.compare import differences
from tests.vm import run
from tests.vm.disk import install
from tests.vm.machine import COMMAND, HOST, Guest, GuestFailed, boot
from tests.vm.tree import change_by_hand, copy

CLIENTS = {"plain": "/usr/libexec/plain-client", "ostree": "/usr/libexec/chunked-client"}
"""In the guest, by the format that they take."""

LEGS = {"v0": "v0", "again": "v0", "v1": "v1", "back": "v0", "by-hand": "by-hand", "v4": "v4"}
"""And the version that each boots."""

COMPARED = ("v0", "v1", "by-hand", "v4")
"""Of these, what is booted is compared with its source file by file: the first that boots each version."""

LOCAL = {
    "guest.conf": "release = 0\n\n\n\nlast = local\n",  # of the image's files one that changes in v1
    "hostname": "mine\n",  # and one that does not
    "local.conf": "local\n",
}
"""What the machine's owner has in /etc. /etc/issue.net is removed there."""

VAR = "/var/lib/mine/data"

SHOWN = ("bin", "home", "lib", "lib64", "media", "mnt", "opt", "ostree", "root", "sbin", "srv", "usr")
"""What a booted machine shows of a tree as it was deployed. Over the rest, it mounts something."""

TABLE = pytest.StashKey[Sequence[str]]()
"""Where what machines have fetched is kept, as the lines of a table, until a test run is over."""

HEAD = (
    "| format | to | layers | promised, bytes | fetched, bytes | seconds | boots in seconds |",
    "|---|---|--:|--:|--:|--:|--:|",
)

WRONG = (
    ("systemd-run --quiet --unit=broken --service-type=oneshot false || true", COMMAND),
    ("false", COMMAND),
    ("sleep 60", 1.0),
)
"""Commands that leave a failed unit, fail, or do not end in so many seconds."""

DEPLOY = 900.0
"""Seconds for an upgrade to be fetched, merged and deployed."""


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade was said to cost, and what it did. Bytes of blobs are by digest, and in all."""

    promised: int
    added: frozenset[str]
    fetched: dict[str, int]
    bytes: int
    config: str
    output: str
    seconds: float


@dataclass
class Look:
    """What a machine shows: `changed` are differences from the version's tree, `own` those of its /etc."""

    kernel: str
    status: str
    var: str
    local: dict[str, str]
    changed: list[str]
    own: dict[str, str]
    seconds: float
    processor: float


@dataclass
class Journey:
    """What was seen, by leg, and by the version that was upgraded to."""

    looks: dict[str, Look] = field(default_factory=dict)
    upgrades: dict[str, Upgrade] = field(default_factory=dict)
    fsck: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


@dataclass
class Traveller:
    """A machine with clients of one format. It reaches the registry over a line that counts what it fetches.

    Of `trees`, by version, some may still be in the making.
    """

    format: str
    registry: str
    line: Line
    trees: Mapping[str, Future[Path]]
    home: Path
    journey: Journey = field(default_factory=Journey)

    @property
    def repository(self) -> str:
        return f"{self.registry}/me/{self.format}"

    def tree(self, version: str) -> Path:
        """A version's tree, once it is made."""
        return self.trees[version].result()

    def table(self) -> list[str]:
        """A line for each upgrade. Booting is told in seconds of a clock, and of processors."""
        lines = []
        for version, upgrade in self.journey.upgrades.items():
            look = self.journey.looks[version]
            cost = f"{len(upgrade.added)} | {upgrade.promised:,} | {upgrade.bytes:,} | {upgrade.seconds:.0f}"
            lines.append(f"| `{self.format}` | {version} | {cost} | {look.seconds:.0f}, {look.processor:.0f} |")
        return lines

    def travel(self) -> None:
        """The whole way. Every version is published once the machine is there, as an update of the one before."""
        client = CLIENTS[self.format]
        disk = self.home / "disk"
        self._build("v0")
        install(disk, self.tree("v0"), client, f"{self.repository}:v0")
        with self.leg("v0") as guest:
            self._change_etc_and_var(guest)
            self.journey.looks["v0"].own = self._own(guest, "v0")
            self._build("v1", since="v0")
            self.line.forget()
            deploying = "ls -d /ostree/deploy/debian/deploy/*/usr 2>/dev/null | wc -l"
            guest.run(
                f"{self._deploy('v1')} >/run/output 2>&1 & "
                f'until [ "$({deploying})" = 2 ]; do kill -0 $! || {{ cat /run/output; exit 1; }}; sleep 0.1; done',
                timeout=DEPLOY,
            )
            guest.cut_power()
        with self.leg("again") as guest:
            self.journey.fsck["again"] = guest.run("ostree fsck", timeout=DEPLOY)
            self._upgrade(guest, "v1", since="v0", whole=False)
            guest.reboot()
        with self.leg("v1") as guest:
            guest.run("ostree admin set-default 1")
            guest.reboot()
        with self.leg("back") as guest:
            guest.run(f"ostree admin undeploy 1 && {_writable(f'{client} prune /')}", timeout=DEPLOY)
            self._build_by_hand()
            self._upgrade(guest, "by-hand", since="v0")
            guest.reboot()
        with self.leg("by-hand") as guest:
            for old, new in pairwise(("v1", "v2", "v3", "v4")):
                self._build(new, since=old)
            # The machine keeps v0, to go back to: of its layers, none is fetched again.
            self._upgrade(guest, "v4", since="v0")
            guest.reboot()
        with self.leg("v4") as guest:
            self.journey.fsck["v4"] = guest.run("ostree fsck", timeout=DEPLOY)
            self.journey.complaints = [_complaint(guest, *wrong) for wrong in WRONG]

    @contextmanager
    def leg(self, name: str) -> Iterator[Guest]:
        began = time.monotonic()
        with boot(self.home / "disk", self.home) as guest:
            guest.check_health()
            seconds, processor = time.monotonic() - began, guest.processor_time()
            self.journey.looks[name] = Look(
                kernel=guest.run("uname --kernel-release").strip(),
                status=guest.run("ostree admin status"),
                var=guest.run(f"cat {VAR} 2>&1 || true"),
                local={path: guest.run(f"cat /etc/{path} 2>&1 || true") for path in (*LOCAL, "issue.net")},
                changed=self._changed(guest, LEGS[name]) if name in COMPARED else [],
                own=self._own(guest, LEGS[name]),
                seconds=seconds,
                processor=processor,
            )
            yield guest

    def _change_etc_and_var(self, guest: Guest) -> None:
        for path, text in LOCAL.items():
            guest.run(f"printf %b {shlex.quote(text.encode('unicode_escape').decode())} >/etc/{path}")
        guest.run("rm /etc/issue.net")
        guest.run(f"mkdir {os.path.dirname(VAR)} && echo mine >{VAR} && sync")

    def _changed(self, guest: Guest, version: str) -> list[str]:
        """How what the guest shows differs from the version's tree. /usr/etc is its /etc, untouched."""
        tree = self.tree(version)
        with stores.work() as place:
            shown = guest.fetch(*SHOWN, place=place / "shown")
            (shown / "usr/etc").rename(shown / "etc")
            elsewhere = {path.name for path in tree.iterdir()} - {*SHOWN, "etc"}
            return differences(tree, shown, hardlinks=False, ignore=elsewhere)

    def _own(self, guest: Guest, version: str) -> dict[str, str]:
        """The differences between the guest's /etc and that of the version's tree, by path."""
        with stores.work() as place:
            shown = guest.fetch("etc", place=place / "shown")
            found = differences(self.tree(version) / "etc", shown / "etc", hardlinks=False)
            return {line.rpartition(": ")[0]: line for line in found}

    def _upgrade(self, guest: Guest, version: str, *, since: str, whole: bool = True) -> None:
        """Upgrade to a version. `since` is what the machine has; unless it is `whole`, some was fetched before."""
        update = self._rechunk("compare", *(f"docker://{self.repository}:{name}" for name in (since, version)))
        if whole:
            self.line.forget()
        began = time.monotonic()
        output = guest.run(self._deploy(version), timeout=DEPLOY)
        seconds = time.monotonic() - began
        asked = [each for each in self.line.asked("GET", "/blobs/") if each.status == 200]
        manifests = [self._manifest(name) for name in (since, version)]
        old, new = ({layer["digest"] for layer in manifest["layers"]} for manifest in manifests)
        fetched: dict[str, int] = {}
        for each in asked:
            digest = each.path.rpartition("/")[2]
            fetched[digest] = fetched.get(digest, 0) + each.sent
        self.journey.upgrades[version] = Upgrade(
            promised=update["update"]["added"]["bytes"],
            added=frozenset(new - old),
            fetched=fetched,
            config=manifests[1]["config"]["digest"],
            bytes=sum(size for digest, size in fetched.items() if digest != manifests[1]["config"]["digest"]),
            output=output,
            seconds=seconds,
        )

    def _deploy(self, version: str) -> str:
        port = self.line.host.rpartition(":")[2]
        return _writable(f"{CLIENTS[self.format]} deploy / {HOST}:{port}/me/{self.format}:{version}")

    def _manifest(self, version: str) -> Any:
        image = f"docker://{self.repository}:{version}"
        return json.loads(run(program("skopeo", "skopeo"), "inspect", "--tls-verify=false", "--raw", image))

    def _build(self, version: str, *, since: str = "") -> None:
        source, output = f"dir:{self.tree(version)}", f"docker://{self.repository}"
        options = ("--version", version, "--format", self.format, "--strict", "--label", "containers.bootc=1")
        previous = ("--prev-ref", f"{output}:{since}") if since else ()
        self._rechunk("build", source, output, *options, *previous)

    def _rechunk(self, command: str, *arguments: str) -> Any:
        tool = (sys.executable, "-m", "rechunk_action", command, *arguments, "--tls-verify=false", "--json", "--quiet")
        return json.loads(run(*tool))

    def _build_by_hand(self) -> None:
        """Plain: of the whole tree, in a single layer. OSTree-chunked: on top of v0, or clients would not take it."""
        base = f"docker://{self.repository}:v0" if self.format == "ostree" else "scratch"
        buildah = program("buildah", "buildah")
        with stores.work() as place:
            environment = os.environ | stores.root_storage(place / "storage")

            def call(*command: str | Path) -> str:
                return run(buildah, *command, environment=environment).strip()

            container = call("from", "--tls-verify=false", base)
            mounted = Path(call("mount", container))
            if base == "scratch":
                copy(self.tree("by-hand"), mounted)
            else:
                change_by_hand(mounted)
            call("umount", container)
            call("config", "--label=containers.bootc=1", container)
            image = f"docker://{self.repository}:by-hand"
            call("commit", "--quiet", "--tls-verify=false", "--format=oci", container, image)


def _complaint(guest: Guest, command: str, timeout: float) -> str:
    """What is said of a command, and of the machine's health after it."""
    try:
        guest.run(command, timeout=timeout)
        guest.check_health()
    except GuestFailed as failure:
        return str(failure)
    return ""


def _writable(command: str) -> str:
    """A booted system's repository is read-only to all but those who say otherwise, in a namespace of their own."""
    return f"unshare --mount sh -euc 'mount --options remount,rw /sysroot; exec {command}'"
