"""A real update series: a root file system v0 and one version for each week of updates, v1 to vN.

The trees are Debian's or Ubuntu's. v0 is the suite as it was released (or last rebuilt as a point release); every
version installs what one week brought, by the dates in the packages' changelogs, with apt itself, so that maintainer
scripts, caches and databases change as they do in life. Then each tree is shaped like a bootable-container image:
caches emptied, the newest kernel and its initramfs in usr/lib/modules, an empty boot, sysroot and the ostree link.

    OUT/v0, OUT/v1, ...   the trees (copies that share blocks where the file system can)
    OUT/series.json       one object for each version from v1: its weeks, source packages and bytes of packages

Invariants: series.json exists only when the trees it names are complete. Nothing stays mounted, however this
ends: every command inside a tree has namespaces of its own for mounts and processes, which end with it.
"""

from __future__ import annotations

import argparse
import email.utils
import glob
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

PACKAGES = (
    *("systemd-sysv", "initramfs-tools", "openssh-server", "git", "python3"),
    *("curl", "openssl", "vim-tiny", "network-manager", "podman"),
)
"""A small server image. The kernel comes on top: its package's name differs."""

KERNELS = {"debian": "linux-image-{arch}", "ubuntu": "linux-image-virtual"}
COMPONENTS = {"debian": "main", "ubuntu": "main universe"}

EMPTIED = ["var/cache", "var/log", "var/lib/apt/lists", "run", "tmp", "dev", "proc", "sys", "boot"]
"""Directories that an image ships empty."""

SCAFFOLD = {
    "etc/apt/apt.conf.d/99series": 'APT::Install-Recommends "false";\nAcquire::Retries "3";\n',
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",  # services must not start
}
"""Files that the work needs and no image has."""

NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""Runs a command so that its mounts and processes end with it, even when it is killed."""


class SeriesError(Exception):
    """The series cannot be built, or not to its end; the message says what to do."""


@dataclass
class Update:
    """What comes together: in one week, or in several that were joined."""

    weeks: list[str]
    sources: list[str] = field(default_factory=list)
    debs: list[str] = field(default_factory=list)
    bytes: int = 0


@dataclass(frozen=True)
class Archive:
    """Where the host's apt finds a distribution: the release, its updates and its security fixes."""

    distribution: str
    release: str
    updates: str
    security: str


def build(out: str, *, suite: str = "", packages: Iterable[str] = PACKAGES, weeks: int = 99, at_least: int = 0) -> None:
    """Build at most `weeks` versions after v0; weeks are joined until they bring `at_least` bytes of packages.

    Raises `SeriesError` when there is nothing to build, or for the first version that apt cannot install; the
    versions before it are complete and listed.
    """
    work, debs = f"{out}/work", f"{out}/debs"
    os.makedirs(out, exist_ok=True)
    if os.listdir(out):
        raise SeriesError(f"{out} is not empty: name a new directory, or remove what an earlier run left there")
    host = _os_release()
    suite = suite or host["VERSION_CODENAME"]
    archive = host_archive(host)
    _say(f"v0: {suite} as released, with {' '.join(packages)}")
    _install_release(work, suite, archive, packages)
    _say("fetching the updates")
    os.mkdir(debs)
    updates = joined(_pending(work, debs), at_least)[:weeks]
    if not updates:
        raise SeriesError(f"{suite} has no updates that v0 lacks: choose another with --suite")
    _publish(work, f"{out}/v0")
    done: list[dict[str, Any]] = []
    try:
        for number, update in enumerate(updates, 1):
            _say(f"v{number}: {' '.join(update.weeks)}: {' '.join(update.sources)} ({update.bytes / 1e6:.1f} MB)")
            try:
                _install(work, debs, update)
            except SeriesError as error:
                raise SeriesError(
                    f"v{number} ({' '.join(update.sources)}) failed, the series ends before it. {error}"
                ) from None
            _publish(work, f"{out}/v{number}")
            done.append({"version": number, **asdict(update)})
    finally:
        shutil.rmtree(work)
        _write(f"{out}/series.json", json.dumps(done, indent=1) + "\n")


def host_archive(host: dict[str, str]) -> Archive:
    """The archive that the host's own apt uses, so that a mirror set up there serves here too."""
    listed = _run("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)").split("\n")
    targets = dict(line.split(" ", 1) for line in reversed(listed) if " " in line)
    codename = host["VERSION_CODENAME"]
    try:
        release = _plain_uri(targets[codename])
    except KeyError:
        raise SeriesError(
            f"apt on this machine has no source for {codename}: add one, then run apt-get update"
        ) from None
    return Archive(
        distribution=host["ID"],
        release=release,
        updates=_plain_uri(targets.get(f"{codename}-updates", release)),
        security=_plain_uri(targets.get(f"{codename}-security", release)),
    )


RELEASE, UPDATED = ("release",), ("release", "updates", "security")
"""Pockets of a suite as it was released, and with all that has changed since."""


def sources_list(archive: Archive, suite: str, pockets: Iterable[str]) -> list[str]:
    """Lines for sources.list: `release`, `updates`, `security`."""
    components = COMPONENTS[archive.distribution]
    names = {"release": suite, "updates": f"{suite}-updates", "security": f"{suite}-security"}
    return [f"deb {getattr(archive, pocket)} {names[pocket]} {components}" for pocket in pockets]


def by_week(debs: Iterable[tuple[str, str, date | None, int]]) -> list[Update]:
    """Order packages (file, source, changelog date, bytes) by the weeks in which their sources were finished.

    A source's packages stay together. One without a date comes last: nothing says that it was earlier.
    """
    debs = list(debs)
    dates: dict[str, date] = {}
    for _, source, dated, _ in debs:
        if dated is not None:
            dates[source] = max(dated, dates.get(source, dated))
    last = max(dates.values(), default=date(1970, 1, 1))
    updates: dict[tuple[int, int], Update] = {}
    for file, source, _, size in sorted(debs, key=lambda deb: (dates.get(deb[1], last), deb)):
        year, week, _ = dates.get(source, last).isocalendar()
        update = updates.setdefault((year, week), Update([f"{year}-W{week:02}"]))
        if source not in update.sources:
            update.sources.append(source)
        update.debs.append(file)
        update.bytes += size
    return list(updates.values())


def joined(updates: Iterable[Update], at_least: int) -> list[Update]:
    """Join neighbours until each brings `at_least` bytes of packages; the last may bring less."""
    result: list[Update] = []
    for update in updates:
        if result and result[-1].bytes < at_least:
            last = result[-1]
            last.weeks += update.weeks
            last.sources += [source for source in update.sources if source not in last.sources]
            last.debs += update.debs
            last.bytes += update.bytes
        else:
            result.append(Update([*update.weeks], [*update.sources], [*update.debs], update.bytes))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.series", description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="directory for the series; new or empty")
    parser.add_argument(
        "--suite", default="", help="codename of a release of this host's distribution (default: its own)"
    )
    parser.add_argument(
        "--packages", default=" ".join(PACKAGES), help="packages on top of the minimal system and a kernel"
    )
    parser.add_argument("--weeks", type=int, default=99, help="at most this many versions after v0")
    parser.add_argument("--at-least", type=float, default=0, metavar="MB", help="join weeks that bring less than this")
    options = parser.parse_args()
    require_root()
    with failures_told():
        build(
            options.out,
            suite=options.suite,
            packages=options.packages.split(),
            weeks=options.weeks,
            at_least=int(options.at_least * 1e6),
        )


@contextmanager
def failures_told() -> Iterator[None]:
    """What is expected to fail ends the program with a message instead of a traceback."""
    try:
        yield
    except SeriesError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said why
    except KeyboardInterrupt:
        sys.exit(130)


def require_root() -> None:
    """End with exit code 3 unless run as root: owners, device nodes and chroot need it."""
    if os.geteuid() != 0:
        print("error: root trees are made and read as root: run this with sudo", file=sys.stderr)
        sys.exit(3)


def _install_release(root: str, suite: str, archive: Archive, packages: Iterable[str]) -> None:
    """The suite as released, then the list of sources that knows the updates too."""
    # Given one line, mmdebstrap leaves out the updates that it would otherwise add: v1 and later are made of them.
    release = sources_list(archive, suite, RELEASE)
    _run(
        *NAMESPACES,
        "--mount-proc",
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--include=ca-certificates",
        suite,
        root,
        *release,
    )
    for path, text in SCAFFOLD.items():
        _write(f"{root}/{path}", text, mode=0o755)
    shutil.copy("/etc/resolv.conf", f"{root}/etc/resolv.conf")
    architecture = _run("dpkg", "--print-architecture").strip()
    kernel = KERNELS[archive.distribution].format(arch=architecture)
    _inside(root, "apt-get update && apt-get install -y $* && apt-get clean", kernel, *packages)
    lines = sources_list(archive, suite, UPDATED)
    _write(f"{root}/etc/apt/sources.list", "\n".join(lines) + "\n")


def _pending(root: str, debs: str) -> list[Update]:
    """Fetch all pending updates into `debs`."""
    _inside(root, "apt-get update && apt-get dist-upgrade -y --download-only")
    for deb in glob.glob(f"{root}/var/cache/apt/archives/*.deb"):
        shutil.move(deb, debs)
    files = sorted(glob.glob(f"{debs}/*.deb"))
    return by_week((os.path.basename(deb), _source(deb), _changelog_date(deb), os.path.getsize(deb)) for deb in files)


def _install(root: str, debs: str, update: Update) -> None:
    os.mkdir(f"{root}/update")
    for deb in update.debs:
        shutil.copy(f"{debs}/{deb}", f"{root}/update")
    _inside(root, "apt-get install -y /update/*.deb && apt-get clean")
    shutil.rmtree(f"{root}/update")


def _source(deb: str) -> str:
    """Name of the source package; the field is there only when it differs from the package's, maybe with a version."""
    fields = _run("dpkg-deb", "--field", deb, "Package", "Source")
    names = dict(line.split(": ", 1) for line in fields.splitlines())
    return names.get("Source", names["Package"]).split()[0]


def _changelog_date(deb: str) -> date | None:
    """Date of the newest entry of the changelog that a package carries."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as dpkg:
        try:
            with tarfile.open(fileobj=dpkg.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isreg() and re.search(
                        r"usr/share/doc/[^/]+/changelog(\.Debian(\..*)?)?\.gz$", member.name
                    ):
                        content = archive.extractfile(member)
                        return (
                            newest_entry(gzip.decompress(content.read()).decode(errors="replace")) if content else None
                        )
        finally:
            dpkg.kill()  # the rest of a large package is not needed
    return None


def newest_entry(changelog: str) -> date | None:
    """Date of the first signature line (` -- Name <address>  Date`), which is the newest."""
    match = re.search(r"^ -- .*?>  (.*)$", changelog, re.MULTILINE)
    try:
        return email.utils.parsedate_to_datetime(match[1]).date() if match else None
    except ValueError:
        return None


def _publish(work: str, version: str) -> None:
    """Copy the tree and shape the copy as an image."""
    _run("cp", "--archive", "--reflink=auto", work, version)
    _move_kernel(version)
    for name in EMPTIED:
        if os.path.isdir(f"{version}/{name}"):
            _run("find", f"{version}/{name}", "-mindepth", "1", "-delete")
    for path in (*SCAFFOLD, "etc/resolv.conf"):
        os.unlink(f"{version}/{path}")
    os.mkdir(f"{version}/sysroot")
    os.symlink("sysroot/ostree", f"{version}/ostree")


def _move_kernel(root: str) -> None:
    """Keep the newest kernel alone, with its files where bootable containers have them."""
    modules = f"{root}/usr/lib/modules"
    kernels = sorted(os.listdir(modules), key=kernel_order) if os.path.isdir(modules) else []
    for old in kernels[:-1]:
        shutil.rmtree(f"{modules}/{old}")
    for newest in kernels[-1:]:
        shutil.move(f"{root}/boot/vmlinuz-{newest}", f"{modules}/{newest}/vmlinuz")
        shutil.move(f"{root}/boot/initrd.img-{newest}", f"{modules}/{newest}/initramfs.img")
    for link in glob.glob(f"{root}/vmlinuz*") + glob.glob(f"{root}/initrd.img*"):
        os.unlink(link)


def kernel_order(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _inside(root: str, script: str, *arguments: str) -> None:
    """Run a shell script in a tree, as the first process of a namespace of its own; its output shows on failure."""
    _run(
        *(*NAMESPACES, f"--root={root}", "--mount-proc"),
        *("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
        *("sh", "-euc", script, "sh", *arguments),
    )


def _run(*command: str) -> str:
    try:
        result = subprocess.run(command, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        raise SeriesError(f"{command[0]} is not installed: scripts/system-packages {command[0]}") from None
    if result.returncode:
        raise SeriesError(
            f"{' '.join(command)} ended with {result.returncode}:\n{(result.stdout + result.stderr)[-3000:]}"
        )
    return result.stdout


def _os_release() -> dict[str, str]:
    with open("/etc/os-release", encoding="utf-8") as file:
        values = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    host = {key: value.strip('"') for key, value in values.items()}
    if host.get("ID") not in COMPONENTS:
        raise SeriesError("this needs a Debian or Ubuntu host, whose mirror and keys it uses")
    return host


def _plain_uri(uri: str) -> str:
    """The first mirror, where apt is given a list of them: a chroot does not have the host's list."""
    if uri.startswith("mirror+file:"):
        with open(uri.removeprefix("mirror+file:").rstrip("/"), encoding="utf-8") as file:
            uri = file.read().split()[0]
    return uri.rstrip("/")


def _write(path: str, text: str, mode: int = 0o644) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
