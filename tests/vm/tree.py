"""Trees for guests: a real Debian 13 that boots as an OSTree deployment, its real update, and what may come after.

    for name, tree in versions(home): ...      VERSIONS, each complete when it is handed out

v0 is the release, by-hand what somebody makes of it in a Containerfile. v1 has all of Debian's updates since then (of
the kernel, if there is one), packages that came and went, and changes of types; later ones are small. All are made of
one Debian that apt and dracut work on, in namespaces that end with each command; what is handed out is a copy, shaped
as a bootable container is.

Invariants: a tree keeps every rule for images that boot (`build --strict` takes it), and is not changed once it is
handed out. What the guest needs for the test is in `guest/`, and is there in every version.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.series import NAMESPACES, UPDATED, host_archive, kernel_order, sources_list
from tests.clients import binary
from tests.oracles import program
from tests.stores import CAPABILITY
from tests.vm import run

SUITE = "trixie"

PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "linux-image-cloud-amd64", "dracut", "ostree", "ostree-boot"),
    *("skopeo", "ca-certificates", "jq", "tzdata", "nano"),
)

VERSIONS = ("v0", "v1", "v2", "v3", "v4", "by-hand")

GUEST = Path(__file__).parent / "guest"

TO_VAR = {"home": "home", "mnt": "mnt", "opt": "opt", "root": "roothome", "srv": "srv"}
"""Directories of the root that belong to the machine: links to where they are kept."""

FILLED_BY_THE_SYSTEM = ("boot", "dev", "proc", "run", "sys", "tmp", "var")

UNREAD = ("doc", "info", "locale", "man")
"""Directories of /usr/share that make a third of all files, each of which takes a guest long in software emulation."""

Change = Callable[[Path], None]


def versions(home: Path) -> Iterator[tuple[str, Path]]:
    """Each version's name and tree, made one after the other below `home`."""
    debian = home / "debian"
    _install(debian)
    for number, change in enumerate((_release, _update, _change_a_file, _change_more, _change_back)):
        change(debian)
        tree = copy(debian, home / f"v{number}")
        _shape(tree)
        yield tree.name, tree
    shutil.rmtree(debian)
    changed = copy(home / "v0", home / "by-hand")
    change_by_hand(changed)
    yield changed.name, changed


def copy(tree: Path, place: Path) -> Path:
    run("cp", "--archive", "--reflink=auto", "--no-target-directory", tree, place)
    return place


def change_by_hand(tree: Path) -> None:
    """What somebody's Containerfile does to v0."""
    (tree / "usr/share/guest/goes").unlink()
    _write(tree / "usr/share/guest/by-hand", "by hand\n")
    _write(tree / "etc/by-hand", "by hand\n")


def _install(debian: Path) -> None:
    """The release without its updates, though apt knows of them."""
    host = platform.freedesktop_os_release()
    # The machine's own mirror; without one, mmdebstrap takes Debian's.
    mirrors = sources_list(host_archive(host), SUITE, UPDATED) if host["ID"] == "debian" else []
    debstrap = (program("mmdebstrap", "mmdebstrap debian-archive-keyring"), "--quiet", "--variant=minbase")
    include, pin = f"--include={','.join(PACKAGES)}", f'--aptopt=APT::Default-Release "{SUITE}"'
    lean = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD]
    # Memory, where TMPDIR may be, is often mounted noexec, and a system cannot be installed there.
    environment = ("env", "--unset=TMPDIR", "INITRD=No")
    run(*environment, *NAMESPACES, "--mount-proc", *debstrap, include, pin, *lean, SUITE, debian, *mirrors)


def _release(debian: Path) -> None:
    for place in GUEST.iterdir():
        run("cp", "--recursive", "--no-target-directory", place, debian / place.name)
    for unit in ("agent.service", "systemd-networkd.service"):
        run(program("systemctl", "systemd"), f"--root={debian}", "enable", "--quiet", unit)
    binary("ostree-ext", debian / "usr/bin")
    (debian / "etc/machine-id").write_text("")
    (debian / "etc/hostname").write_text("guest\n")
    (debian / "etc/guest.conf").write_text("release = 0\n\n\n\nlast = line\n")
    (debian / "etc/only-in-v0").write_text("v0\n")
    share = debian / "usr/share/guest"
    for name in ("becomes-a-link", "becomes-a-directory", "goes"):
        _write(share / name, f"{name}, in v0\n")
    _write(share / "becomes-a-file/inside", "v0\n")
    (share / "link-becomes-a-directory").symlink_to("becomes-a-file")
    _write(share / "capable", "v0\n")
    os.setxattr(share / "capable", "security.capability", CAPABILITY)
    os.setxattr(share / "capable", "user.guest", b"v0")
    _add_initramfs(debian)


def _update(debian: Path) -> None:
    """All that Debian has updated since the release, a package more, one less, and changes of types."""
    (debian / "etc/apt/apt.conf.d/99mmdebstrap").unlink()
    (debian / "etc/apt/apt.conf.d/recommends").write_text('APT::Install-Recommends "false";\n')
    _inside(debian, "apt-get update && apt-get dist-upgrade --yes && apt-get install --yes less nano- && apt-get clean")
    (debian / "etc/guest.conf").write_text("release = 1\n\n\n\nlast = line\n")
    (debian / "etc/only-in-v0").unlink()
    (debian / "etc/new-in-v1").write_text("v1\n")
    share = debian / "usr/share/guest"
    (share / "becomes-a-link").unlink()
    (share / "becomes-a-link").symlink_to("capable")
    (share / "becomes-a-directory").unlink()
    _write(share / "becomes-a-directory/inside", "v1\n")
    shutil.rmtree(share / "becomes-a-file")
    _write(share / "becomes-a-file", "v1\n")
    (share / "link-becomes-a-directory").unlink()
    _write(share / "link-becomes-a-directory/inside", "v1\n")
    (share / "goes").unlink()
    (share / "capable").chmod(0o4711)
    os.chown(share, 7, 8)
    _add_initramfs(debian)


def _change_a_file(debian: Path) -> None:
    _write(debian / "usr/share/guest/goes", "it is back, in v2\n")


def _change_more(debian: Path) -> None:
    shutil.rmtree(debian / "usr/share/guest/link-becomes-a-directory")
    shutil.rmtree(debian / "usr/share/zoneinfo")
    (debian / "usr/share/guest/goes").unlink()
    _write(debian / "usr/share/guest/new-in-v3", "v3\n")
    (debian / "usr/share/guest").chmod(0o711)


def _change_back(debian: Path) -> None:
    _write(debian / "usr/share/guest/goes", "it is back again, in v4\n")
    (debian / "usr/share/guest").chmod(0o755)
    (debian / "etc/guest.conf").write_text("release = 4\n\n\n\nlast = line\n")


def _add_initramfs(debian: Path) -> None:
    """Leave the newest kernel alone, with its files where bootable containers have them."""
    kernel = max((debian / "boot").glob("vmlinuz-*"), key=lambda place: kernel_order(place.name))
    version = kernel.name.removeprefix("vmlinuz-")
    for modules in (debian / "usr/lib/modules").iterdir():
        if modules.name != version:
            shutil.rmtree(modules)
    home = Path("usr/lib/modules", version)
    shutil.copy(kernel, debian / home / "vmlinuz")
    _inside(debian, f"depmod {version} && dracut --quiet --force --reproducible /{home}/initramfs.img {version}")


def _inside(debian: Path, script: str) -> None:
    """Run a shell script in the tree, as the first process of a namespace of its own, with the machine's resolver."""
    mount = 'mount --bind "$(realpath /etc/resolv.conf)" "$0/etc/resolv.conf"'
    variables = (
        "--unset=TMPDIR",
        "INITRD=No",
        "DEBIAN_FRONTEND=noninteractive",
        "LC_ALL=C.UTF-8",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    )
    inside = f'{mount} && exec chroot "$0" sh -euc "$1"'
    run(*NAMESPACES, "--mount-proc", "env", *variables, "sh", "-euc", inside, debian, script)


def _shape(tree: Path) -> None:
    (tree / "usr/lib/sysimage").mkdir()
    (tree / "var/lib/dpkg").rename(tree / "usr/lib/sysimage/dpkg")
    for name, place in TO_VAR.items():
        shutil.rmtree(tree / name)
        (tree / name).symlink_to(f"var/{place}")
    for name in FILLED_BY_THE_SYSTEM:
        run("find", tree / name, "-mindepth", "1", "-delete")
    for link in (*tree.glob("vmlinuz*"), *tree.glob("initrd.img*")):
        link.unlink()
    (tree / "sysroot").mkdir()
    (tree / "ostree").symlink_to("sysroot/ostree")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)


def _write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
