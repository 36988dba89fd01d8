"""A small root tree as an image build leaves it, in successive versions, with a package database that rpm has written.

It holds what is hard for a rechunker: capabilities, setuid programs, extended attributes, hard links, files of many
packages, users and groups, and what the original moves, empties or deletes. Within a process, a version is always the
same tree; in another one, the database has other times.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.oracles import program, run

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""`cap_net_raw+ep`, as the kernel stores it."""

POLKITD = 998

SELINUX = {
    "etc/selinux/config": b"SELINUX=enforcing\nSELINUXTYPE=targeted\n",
    "etc/selinux/targeted/policy/policy.33": b"not read: only its checksum is taken\n",
    "etc/selinux/targeted/contexts/files/file_contexts": (
        b"/.*\tsystem_u:object_r:default_t:s0\n"
        b"/usr/.*\tsystem_u:object_r:usr_t:s0\n"
        b"/usr/bin/.*\tsystem_u:object_r:bin_t:s0\n"
        b"/usr/etc(/.*)?\tsystem_u:object_r:etc_t:s0\n"
        b"/etc(/.*)?\tsystem_u:object_r:etc_t:s0\n"
    ),
}


@dataclass(frozen=True)
class File:
    content: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    files: Mapping[str, File]


def small_tree(directory: Path, version: int, *, selinux: bool = False) -> Path:
    """Make the tree of this version, from 1, where nothing is yet: about 3 MB in 400 files. Returns the directory.

    Needs root's rights, and rpm. With `selinux`, the tree has a policy that labels its files."""
    directory.mkdir(mode=0o755)
    files = {path: file for package in packages(version) for path, file in package.files.items()}
    files |= _unpackaged(version)
    files |= {f"usr/share/rpm/{name}": File(content) for name, content in _database(version).items()}
    if selinux:
        files |= {path: File(content) for path, content in SELINUX.items()}
    for path, file in files.items():
        place = directory / path
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        place.write_bytes(file.content)
        os.chown(place, *file.owner)
        place.chmod(file.mode)
        for name, value in file.xattrs.items():
            os.setxattr(place, name, value)
    _add_links(directory)
    _add_directories(directory)
    return directory


def packages(version: int) -> list[Package]:
    """What is installed: a package changes with every version, the kernel with every third, one comes and one goes."""
    kernel = f"6.{10 + version // 3}.0"
    modules = f"usr/lib/modules/{kernel}"
    bash = {"usr/bin/bash": File(_bytes("bash", 200_000), 0o755), "etc/skel/.bashrc": File(b"# .bashrc\n")}
    found = {
        ("bash", "5.2"): bash,
        ("coreutils", "9.6"): {f"usr/bin/{name}": _program(name, 30_000) for name in ("cat", "ls", "mv", "rm", "true")},
        ("git-core", "2.49"): {"usr/libexec/git-core/git": _program("git", 150_000)},
        ("glibc", "2.41"): {
            "usr/lib64/libc.so.6": _program("libc", 300_000),
            "usr/lib/locale/C": File(_text("C", 90_000)),
        },
        ("google-noto-fonts", "1.0"): {
            f"usr/share/fonts/{n}.ttf": File(_bytes(f"font {n}", 250_000)) for n in range(2)
        },
        ("iputils", "2024"): {"usr/bin/ping": _program("ping", 40_000, xattrs={"security.capability": CAPABILITY})},
        ("kernel-core", kernel): {
            f"{modules}/vmlinuz": File(_bytes(f"vmlinuz {kernel}", 400_000), 0o755),
            **{f"{modules}/kernel/{name}.ko": File(_bytes(f"{name} {kernel}", 20_000)) for name in ("btrfs", "loop")},
            f"{modules}/modules.dep": File(_text(f"dep {kernel}", 5_000)),
        },
        ("news", str(version)): {f"usr/share/news/{version}": File(_text(f"news {version}", 4_000))},
        ("openssl-libs", f"3.2.{version}"): {"usr/lib64/libssl.so.3": _program(f"ssl {version}", 120_000)},
        ("polkit", "126"): {
            "etc/polkit-1/rules.d/50-default.rules": File(b"// none\n", 0o640, (0, POLKITD)),
            "usr/lib/polkit-1/polkit-agent-helper-1": _program("polkit", 20_000, mode=0o4755),
        },
        ("python3", f"3.13.{version // 2}"): {
            f"usr/lib64/python3.13/m{n:03}.py": File(_text(f"python {n} {version if n == 7 else 0}", 2_000))
            for n in range(300)
        },
        ("shadow-utils", "4.17"): {
            "usr/bin/newgidmap": _program("newgidmap", 30_000),
            "usr/bin/newuidmap": _program("newuidmap", 30_000),
        },
        ("sssd-krb5-common", "2.10"): {"usr/libexec/sssd/krb5_child": _program("krb5", 40_000, owner=(0, 996))},
        ("sudo", "1.9"): {"usr/bin/sudo": _program("sudo", 60_000, mode=0o4111), "etc/sudoers": File(b"root\n", 0o440)},
        ("wide-names", "1"): {"usr/share/wide/café au lait": File(b"", 0o600, (3_000_000, 2_100_000))},
    }
    return [Package(name, its_version, files) for (name, its_version), files in found.items()]


def _unpackaged(version: int) -> dict[str, File]:
    kernel = f"6.{10 + version // 3}.0"
    users = "".join(f"{name}:x:{uid}:{uid}::/:/sbin/nologin\n" for name, uid in _USERS.items())
    groups = "".join(f"{name}:x:{gid}:\n" for name, gid in _GROUPS.items())
    return {
        ".dockerenv": File(),
        "boot/grub2/grub.cfg": File(b"set default=0\n"),
        "etc/.pwd.lock": File(mode=0o600),
        "etc/group": File(f"root:x:0:\nwheel:x:10:admin\n{groups}".encode()),
        "etc/group-": File(b"root:x:0:\n"),
        "etc/gshadow": File(b"root:::\n", 0),
        "etc/hostname": File(b"small\n"),
        "etc/passwd": File(f"root:x:0:0:root:/root:/bin/bash\n{users}".encode()),
        "etc/passwd-": File(b"root:x:0:0::/:/bin/sh\n"),
        "etc/shadow": File(b"root:*::0:99999:7:::\n", 0),
        "etc/ssh/sshd_config": File(b"Port 22\n"),
        f"usr/lib/modules/{kernel}/initramfs.img": File(_bytes(f"initramfs {kernel} {version}", 300_000), 0o600),
        "usr/lib/group": File(b"bin:x:1:\n"),
        "usr/lib/os-release": File(f'ID=small\nVERSION_ID={version}\nPRETTY_NAME="Small {version}"\n'.encode()),
        "usr/lib/passwd": File(b"bin:x:1:1:bin:/bin:/sbin/nologin\n"),
        "usr/local/bin/tool": File(b"#!/bin/sh\n", 0o755, (1000, 1000), {"user.origin": b"by hand\0\xff"}),
        "usr/share/private/key": File(_bytes("key", 64), 0o600, (996, 996)),
        "usr/share/version": File(f"{version}\n".encode()),
        "var/cache/ldconfig/aux-cache": File(_bytes("cache", 1_000), 0o600),
        "var/lib/alternatives/editor": File(b"auto\n/usr/bin/editor\n"),
        "var/lib/games/scores": File(b"0\n", 0o2664, (0, 104)),
        "var/lib/sssd/db/cache": File(_bytes("sssd", 500), 0o600, (996, 996)),
        "var/log/build.log": File(b"built\n"),
    }


_USERS = {"bin": 1, "daemon": 2, "chroot": 900, "polkitd": POLKITD, "sssd": 996}
_GROUPS = {**_USERS, "input": 104, "render": 105, "wheelers": 106}

_LINKS = {
    "bin": "usr/bin",
    "etc/alternatives/editor": "/usr/bin/bash",
    "etc/os-release": "../usr/lib/os-release",
    "lib64": "usr/lib64",
    "ostree": "sysroot/ostree",
    "usr/bin/sh": "bash",
    "usr/lib/.build-id/ab/cdef": "../../../../usr/bin/bash",
    "usr/share/dangling": "nowhere/at all",
    "var/run": "../run",
}

_HARD_LINKS = {"usr/bin/[": "usr/bin/true", "usr/libexec/git-core/git-log": "usr/libexec/git-core/git"}


_DIRECTORIES = {
    **dict.fromkeys(("dev", "proc", "run/lock", "sys", "sysroot/ostree", "usr/share/empty"), (0o755, (0, 0))),
    **dict.fromkeys(("tmp", "var/tmp"), (0o1777, (0, 0))),
    "etc/polkit-1/rules.d": (0o750, (POLKITD, 0)),
    "usr/share/news": (0o2775, (0, 0)),
    "usr/share/private": (0o700, (996, 996)),
    "var/lib/sssd/db": (0o700, (996, 996)),
}


def _add_links(directory: Path) -> None:
    for path, target in _LINKS.items():
        (directory / path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (directory / path).symlink_to(target)
    for path, first in _HARD_LINKS.items():
        (directory / path).hardlink_to(directory / first)


def _add_directories(directory: Path) -> None:
    for path, (mode, owner) in _DIRECTORIES.items():
        place = directory / path
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.chown(place, *owner)
        place.chmod(mode)
    os.setxattr(directory / "usr/share/news", "user.kept", b"1")


def _program(name: str, size: int, *, mode: int = 0o755, **rest: object) -> File:
    return File(_bytes(name, size), mode, **rest)  # type: ignore[arg-type]


def _bytes(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


def _text(seed: str, size: int) -> bytes:
    return (f"{seed}\n" * (1 + size // (len(seed) + 1))).encode()[:size]


_SPEC = """\
Name: small
Version: 1
Release: 1.fc42
Summary: A test
AutoReqProv: no
License: MIT
BuildArch: noarch
%description
%changelog
* Wed Jan 01 2025 Someone <someone@example.com>
- first
%install
cp -r "%{_topdir}/root/." "%{buildroot}"
"""

_PACKAGE = """\
%package -n {name}
Version: {version}
Summary: A test
AutoReqProv: no
%description -n {name}
%files -n {name}
{files}
"""


@cache
def _database(version: int) -> Mapping[str, bytes]:
    """The files of rpm's database for this version."""
    with tempfile.TemporaryDirectory(prefix="rpm-", dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        spec = Path(scratch, "small.spec")
        spec.write_text(_spec(version))
        for path in (path for package in packages(version) for path in package.files):
            place = Path(scratch, "root", path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        defines = {
            "_topdir": scratch,
            "_rpmdir": scratch,
            "_build_name_fmt": "%%{NAME}.rpm",
            "__os_install_post": "%{nil}",
        }
        options = [option for name, value in defines.items() for option in ("--define", f"{name} {value}")]
        run(program("rpmbuild", "rpm"), "-bb", "--quiet", *options, spec)
        rpm = program("rpm", "rpm")
        # Debian's rpm installs nothing without this option, which the others do not have.
        debian = subprocess.run([rpm, "--force-debian", "--version"], capture_output=True, check=False).returncode == 0
        database = Path(scratch, "database")
        force = ["--justdb", "--nodeps", "--noscripts", "--nosignature", "--ignorearch", "--ignoreos", "--force"]
        run(rpm, "--dbpath", database, "-i", *force, *["--force-debian"] * debian, *Path(scratch).glob("*.rpm"))
        return {file.name: file.read_bytes() for file in database.iterdir() if file.name.startswith("rpmdb")}


def _spec(version: int) -> str:
    return _SPEC + "".join(
        _PACKAGE.format(name=p.name, version=p.version, files="\n".join(f'"/{path}"' for path in p.files))
        for p in packages(version)
    )
