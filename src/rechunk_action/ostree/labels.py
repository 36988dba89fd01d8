"""The SELinux label of every path of a tree, by the policy that the tree holds.

A label depends on the path and on the type of what is there, and on nothing else. libselinux tells it; libostree asks
for nothing more when it commits (`ostree commit --selinux-policy`), so its labels are these, and nothing has to be
written to get them. `etc` goes by this name, since the policy knows `/etc` and not the `/usr/etc` of a commit
(`--selinux-labeling-epoch=1`).

The policy is read as text. Next to it, policies have it compiled, which says the same, but only to the version of
libselinux that it was made for. Links are followed inside of the tree alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.ostree.commit import origin
from rechunk_action.source import Source
from rechunk_action.tree.entry import ROOT, Kind, Tree
from rechunk_action.tree.packages.links import Links

POLICY = "etc/selinux/config"
"""Says which policy a tree has. One without this file has none."""


def labels(source: Source, tree: Tree, scratch: Path) -> Mapping[str, bytes]:
    """The label of each path that has one, as an attribute's value, with the zero byte behind it that libostree writes.

    `tree` is that of the source as `prepare` returns it, `scratch` a directory that the policy is copied to. Without a
    policy, or with one that is disabled, there are no labels.

    Raises `InputError` for a policy that libselinux cannot use, `EnvironmentLack` when there is no libselinux.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        contexts = _unpack(source, tree, Path(directory))
        if contexts is None:
            return {}
        with _lookup(contexts) as label:
            found = {path: label(path, entry.kind) for path, entry in tree.items()}
    return {path: value for path, value in found.items() if value is not None}


_SUFFIXES = ("", ".homedirs", ".local", ".subs", ".subs_dist")
"""What belongs to a policy's `file_contexts`: more of them, and paths that are labelled like others."""


def _unpack(source: Source, tree: Tree, directory: Path) -> Path | None:
    """A copy of the tree's file contexts; None when it has no policy."""
    links = Links(tree)

    def read(path: str) -> bytes | None:
        place = links.file(path)
        return None if place is None else source.read(origin(place, source.tree))

    config = read(POLICY)
    policy = _policy((config or b"").decode(errors="replace"))
    if policy is None:
        return None
    place = f"etc/selinux/{policy}/contexts/files/file_contexts"
    for suffix in _SUFFIXES:
        content = read(place + suffix)
        if content is not None:
            (directory / f"file_contexts{suffix}").write_bytes(content)
        elif not suffix:
            raise InputError(
                f"/{POLICY} names the SELinux policy {policy!r}, but /{place} is missing: install the policy in the "
                "image, or set SELINUX=disabled there"
            )
    return directory / "file_contexts"


def _policy(config: str) -> str | None:
    """The name of the policy that is in use, found as libostree finds it."""
    enabled, policy = False, ""
    for line in config.splitlines():
        key, _, value = line.partition("=")
        if key == "SELINUXTYPE":
            policy = value.strip()
        elif key == "SELINUX" and value.lower().startswith(("enforcing", "permissive")):
            enabled = True
    if enabled and not policy:
        raise InputError(f"/{POLICY} enables SELinux, but does not say which policy is in use: set SELINUXTYPE there")
    return policy if enabled else None


_LIBRARY = "libselinux.so.1"

_FILE_CONTEXTS = 0  # SELABEL_CTX_FILE
_PATH = 3  # SELABEL_OPT_PATH

_TYPES: Mapping[Kind, int] = {"d": stat.S_IFDIR, "f": stat.S_IFREG, "l": stat.S_IFLNK}


class _Option(ctypes.Structure):
    """`struct selinux_opt`."""

    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_char_p))


class _Lookup:
    """Looks up labels by a policy that is open."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library = library
        self._handle = ctypes.c_void_p(handle)
        self._context = ctypes.c_void_p()
        self._pointer = ctypes.byref(self._context)

    def __call__(self, path: str, kind: Kind) -> bytes | None:
        # Policies give no label to /proc, which is always mounted over. libostree labels the directory like /mnt.
        name = "mnt" if path == "proc" else path
        ctypes.set_errno(0)
        if self._library.selabel_lookup_raw(self._handle, self._pointer, f"/{name}".encode(), _TYPES[kind]) != 0:
            # Every policy has a label for the root directory, or else it is none (or damaged).
            if ctypes.get_errno() == errno.ENOENT and path != ROOT:
                return None
            raise _unusable(f"finds no label for /{path}")
        label = ctypes.string_at(self._context.value or 0)
        self._library.freecon(self._context)
        return label + b"\0"


@contextmanager
def _lookup(contexts: Path) -> Iterator[_Lookup]:
    """The policy with these file contexts. What libselinux complains of, it writes to standard error."""
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise EnvironmentLack(
            "libselinux is not installed, and SELinux labels take it: install it (apt-get install libselinux1)"
        ) from None
    library.selabel_open.restype = ctypes.c_void_p
    handle = library.selabel_open(_FILE_CONTEXTS, ctypes.byref(_Option(_PATH, os.fsencode(contexts))), 1)
    if not handle:
        raise _unusable("cannot read its file_contexts")
    lookup = _Lookup(library, handle)
    try:
        yield lookup
    finally:
        library.selabel_close(ctypes.c_void_p(handle))


def _unusable(what: str) -> InputError:
    return InputError(
        f"the image's SELinux policy cannot be used: libselinux {what} (on standard error it says why); build the "
        "policy again (semodule --build), or repair what is named there"
    )
