"""Stores of images for tests, real ones: podman's for root and for a user of its own, and docker.

Podman's are private to a test, and the user is made for it; in docker, the images are removed again. Nothing stays
mounted and no process stays behind, whatever happens.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from rechunk_action.oci.image import Json, host_architecture
from rechunk_action.source import Source
from rechunk_action.tree.entry import Entry
from rechunk_action.tree.scan import Hasher
from tests.oracles import Missing, program, run
from tests.support import Packed, archive, directory, file, hardlink, pack, symlink, write_layout

Result = TypeVar("Result")

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
LONG = "a-name-that-does-not-fit-into-the-field-of-a-header/" * 3 + "ő" * 60
SU = os.urandom(50_000)

CONFIG: Json = {
    "architecture": host_architecture(),
    "os": "linux",
    "created": "2026-11-20T10:00:00Z",
    "author": "somebody",
    "config": {
        "User": "operator",
        "Env": ["PATH=/usr/bin", "GREETING=szép napot"],
        "Entrypoint": ["/sbin/init"],
        "Cmd": ["--verbose"],
        "WorkingDir": "/var",
        "ExposedPorts": {"22/tcp": {}},
        "Volumes": {"/var/data": {}},
        "StopSignal": "SIGRTMIN+3",
        "Labels": {"containers.bootc": "1", "org.opencontainers.image.version": "42.1"},
    },
}

LAYERS = (
    (
        directory("./"),
        directory("etc"),
        file("etc/shadow", b"secret", mode=0o600, mtime=9),
        directory("tmp", mode=0o1777),
        directory("usr"),
        directory("usr/bin"),
        directory("usr/lib", xattrs={"user.component": b"base"}),
        file("usr/bin/su", SU, mode=0o4755, uid=7, gid=3000, mtime=5),
        hardlink("usr/bin/also su", "usr/bin/su", mode=0o4755, uid=7, gid=3000, mtime=5),
        hardlink("usr/lib/su", "usr/bin/su", mode=0o4755, uid=7, gid=3000, mtime=5),
        file("usr/bin/ping", b"ping", mode=0o755, mtime=6, xattrs={"security.capability": CAPABILITY}),
        symlink("usr/bin/vi", "vim", mtime=7),
        file("usr/bin/empty", mtime=8),
        directory("usr/share"),
        *[directory(f"usr/share/{'deep/' * depth}") for depth in range(1, 6)],
        file("usr/share/deep/deep/old", b"old"),
        file("usr/share/deep/deep/deep/deep/deep/old", b"old"),
        directory("opaque"),
        directory("opaque/inner"),
        file("opaque/inner/hidden", b"hidden"),
    ),
    (
        directory("opaque", uid=61_234, gid=61_234),
        file("opaque/.wh..wh..opq"),
        file("opaque/new", b"new", uid=61_234, xattrs={"user.binary": b"\0=\xff"}),
        directory("usr"),
        directory("usr/share"),
        file("usr/share/.wh.deep"),
        *[directory(str(path)) for path in reversed(Path(LONG).parents[:-1])],
        file(LONG, b"long", mtime=10),
    ),
    (
        directory("usr"),
        directory("usr/bin"),
        file("usr/bin/.wh.vi"),
        file("usr/bin/also su", b"other", mode=0o2755, mtime=11),
        directory("usr/share"),
        directory("usr/share/deep"),
        directory("usr/share/deep/deep", mode=0o700),
        file("usr/share/deep/deep/again", b"again", mtime=12),
    ),
    (directory("etc"), file("etc/last", b"last", mtime=13)),
)
"""What an image can hold that is easily lost: special modes, owners without names, attributes, hard links across
directories, names, and what upper layers do to lower ones.
"""


@dataclass(frozen=True)
class User:
    """Somebody who may run podman."""

    account: pwd.struct_passwd

    @property
    def environment(self) -> dict[str, str]:
        """What a program finds when this user runs it by sudo."""
        return {"PATH": os.environ["PATH"], "SUDO_UID": str(self.account.pw_uid), "SUDO_USER": self.account.pw_name}

    def run(self, *command: str | Path) -> str:
        return _run(command, cwd="/", env=self.login, **self._switch)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """A function's result when this user calls it."""
        with ProcessPoolExecutor(1, get_context("fork"), _become, (self.account,)) as pool:
            return pool.submit(function, *arguments).result()

    @property
    def login(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": self.account.pw_dir, "XDG_RUNTIME_DIR": str(self.runtime)}

    @property
    def _switch(self) -> dict[str, Any]:
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    @property
    def runtime(self) -> Path:
        return Path("/run/user", str(self.account.pw_uid))


def write_image(layout: Path, compression: str = "gzip", **config: Any) -> Path:
    """The image, in a layout that everyone may read."""
    return write_layout(layout, layers(compression), config=CONFIG | config)


def layers(compression: str = "gzip") -> list[Packed]:
    return [pack(archive(*items), compression) for items in LAYERS]


@contextmanager
def work() -> Iterator[Path]:
    """A directory that every user may enter, on disk and with a short name, as podman wants it."""
    if os.geteuid() != 0:
        raise Missing("root is needed to keep images for several users: run these tests with sudo")
    with tempfile.TemporaryDirectory(prefix="st-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        try:
            yield directory
        finally:
            _unmount_below(directory)


def root_storage(directory: Path) -> dict[str, str]:
    """The environment in which podman keeps root's images in a directory."""
    program("podman", "podman")
    program("skopeo", "skopeo")
    directory.mkdir()
    config = directory / "storage.conf"
    config.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/images"\nrunroot = "{directory}/run"\n')
    return {"PATH": os.environ["PATH"], "CONTAINERS_STORAGE_CONF": str(config)}


@contextmanager
def user(directory: Path, driver: str) -> Iterator[User]:
    """A user with a home in a directory, who keeps images with a storage driver."""
    for needed, package in (("podman", "podman"), ("skopeo", "skopeo"), ("newuidmap", "uidmap")):
        program(needed, package)
    name = f"rechunk-{os.getpid()}"
    run("useradd", "--create-home", "--home-dir", directory / "home", name)
    try:
        made = User(pwd.getpwnam(name))
        made.runtime.mkdir(parents=True, mode=0o700)
        os.chown(made.runtime, made.account.pw_uid, made.account.pw_gid)
        config = Path(made.account.pw_dir, ".config/containers/storage.conf")
        made.run("mkdir", "--parents", config.parent)
        config.write_text(f'[storage]\ndriver = "{driver}"\n')
        try:
            yield made
        finally:
            made.run("podman", "system", "migrate")  # ends the process that keeps the user's namespace
            shutil.rmtree(made.runtime)
    finally:
        run("userdel", "--force", name)


def store(layout: Path, name: str, owner: User | Mapping[str, str]) -> None:
    """Put the image of a layout into the podman storage of a user, or of root in an environment."""
    copy = ("skopeo", "copy", "--quiet", "--insecure-policy", f"oci:{layout}", f"containers-storage:{name}")
    if isinstance(owner, User):
        owner.run(*copy)
    else:
        _run(copy, env=owner)


def podman(environment: Mapping[str, str], *command: str | Path) -> str:
    """Run podman as root."""
    return _run(("podman", *command), env=environment)


@contextmanager
def in_docker(layout: Path, name: str, tag: str = "") -> Iterator[str]:
    """The image of a layout, loaded into docker under a name. Its ID."""
    docker, skopeo = program("docker", "docker.io"), program("skopeo", "skopeo")
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory, "image.tar")
        source = f"oci:{layout}:{tag}" if tag else f"oci:{layout}"
        run(skopeo, "copy", "--insecure-policy", source, f"docker-archive:{saved}:{name}")
        run(docker, "load", "--input", saved)
    try:
        yield run(docker, "image", "inspect", "--format", "{{.Id}}", name).strip()
    finally:
        run(docker, "image", "rm", "--force", name)


@contextmanager
def interrupted(mark: Path) -> Iterator[None]:
    """As if the user pressed Ctrl-C as soon as a file is there; the interrupt is expected to come through."""

    def press() -> None:
        while not mark.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    try:
        yield
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("nothing was interrupted")
    finally:
        mark.touch()
        finger.join()


def tree_of(source: Source) -> dict[str, tuple[object, ...]]:
    """Everything that a source knows of its tree."""
    with Hasher(2, lambda _: None) as hasher:
        source.scan(hasher)
        hasher.finish()
    return {path: _whole(entry) for path, entry in source.tree.items()}


def content(source: Source, path: str) -> bytes:
    source.prepare([path])
    return b"".join(source.pieces(path, source.tree[path].size))


def _run(command: Sequence[str | Path], **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, check=False, text=True, capture_output=True, **options
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _whole(entry: Entry) -> tuple[object, ...]:
    return (
        entry.kind,
        f"{entry.mode:04o}",
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.size,
        entry.digest.hex(),
        entry.target,
        entry.xattrs,
        entry.group,
    )


def _become(account: pwd.struct_passwd) -> None:
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _unmount_below(directory: Path) -> None:
    """podman mounts its storage on itself."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in reversed([place for place in places if place.startswith(f"{directory}/")]):
        run("umount", "--lazy", place)
