"""What a system needs to boot from an image, which no container build looks at.

An image that lacks some of it is published, pulled and merged like any other. It fails on its users' machines: when it
is deployed, at boot, or later, without a word. The rules are those of clients: of libostree (rpm-ostree, bootc) and of
`bootc container lint`. What distributions agree on besides, such as where /home leads, is no rule of theirs. Two of
their rules are kept elsewhere: names that are no UTF-8 are refused, and no image of ours has anything in /run or /tmp.

Invariants:
- An image that is not meant to boot breaks no rule. What is meant to boot says so: by a label that clients ask for, or
  by /sysroot, /ostree or a directory of kernel modules, which no application has.
- A rule is broken once, whatever breaks it how often: there are at most as many findings as rules.
- Pure: only files below `READ` are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from rechunk_action.tree.entry import Tree, parent_of
from rechunk_action.tree.packages.links import Links
from rechunk_action.tree.release import os_release

MODULES = "usr/lib/modules"

READ = ("usr/lib/bootc/kargs.d/", "etc/ostree/", "usr/etc/ostree/", "usr/lib/ostree/")
"""Where the files are that `lint` reads, by prefix, besides os-release."""

Read = Callable[[str], bytes]
"""Gives the content of a file of the tree."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A rule for images that boot, and how one breaks it: `path` is what breaks it, `text` says what that does to whom,
    and what to do.
    """

    rule: str
    path: str
    text: str


def lint(tree: Tree, read: Read, labels: Collection[str] = ()) -> list[Finding]:
    """The rules that an image of this tree breaks, sorted by name. `labels` names the labels of the built image."""
    if not _is_meant_to_boot(tree, labels):
        return []
    found = {rule: check(tree, read) for rule, check in sorted(RULES.items())}
    return [Finding(rule=rule, path=f"/{broken[0]}", text=broken[1]) for rule, broken in found.items() if broken]


def kernels(tree: Tree) -> list[str]:
    """The versions of the kernels that a system can boot, which are where libostree looks for them."""
    directories = (parent_of(path) for path, entry in tree.items() if path.endswith("/vmlinuz") and not entry.is_dir)
    return sorted(path.removeprefix(f"{MODULES}/") for path in directories if parent_of(path) == MODULES)


_LABELS = {"containers.bootc", "ostree.bootable"}
"""Clients boot no image without one of them, whatever it says (ostree-ext, container/store.rs)."""

_MOUNTED = ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var")
"""Directories over which a booting system mounts something, and which it cannot make."""

_LINK = "sysroot/ostree"

_ARGUMENTS = "usr/lib/bootc/kargs.d"

_PREPARE_ROOT = ("etc/ostree/prepare-root.conf", "usr/etc/ostree/prepare-root.conf", "usr/lib/ostree/prepare-root.conf")
"""Of these, the first that is there counts."""

_ON = {"yes", "true", "1", "maybe", "signed", "verity"}

Broken = tuple[str, str] | None
"""The path that breaks a rule, and the text of the finding; None where nothing does."""


def _is_meant_to_boot(tree: Tree, labels: Collection[str]) -> bool:
    if not _LABELS.isdisjoint(labels) or "sysroot" in tree or "ostree" in tree:
        return True
    return any(entry.is_dir and parent_of(path) == MODULES for path, entry in tree.items())


def _kernel(tree: Tree, _: Read) -> Broken:
    found = kernels(tree)
    if len(found) > 1:
        return MODULES, (
            f"{len(found):,} kernels, {_listed(found)}: bootc refuses such an image, and rpm-ostree boots any of them: "
            "remove all but one"
        )
    if found or _has_unified_kernel(tree):
        return None
    return MODULES, (
        f"no kernel: bootc and rpm-ostree boot /{MODULES}/VERSION/vmlinuz, and cannot deploy an image without: put it "
        "there, and not into /boot"
    )


def _initramfs(tree: Tree, _: Read) -> Broken:
    for version in kernels(tree):
        home = f"{MODULES}/{version}"
        if not any(f"{home}/{name}" in tree for name in ("initramfs.img", "initramfs")):
            return home, (
                f"no initramfs.img beside the kernel {version}: bootc and rpm-ostree boot it without one, and then "
                "nothing mounts the system: make it in the build, with dracut"
            )
    return None


def _boot(tree: Tree, _: Read) -> Broken:
    found = [path for path in _files_below("boot", tree) if not path.startswith(_UNIFIED)]
    if not found:
        return None
    return found[0], (
        f"{_count(found)} in /boot: a booted system does not show them, and bootc and rpm-ostree take kernels from "
        f"/{MODULES}: empty it in the build"
    )


def _etc(tree: Tree, _: Read) -> Broken:
    there = [path for path in ("etc", "usr/etc") if path in tree]
    if len(there) == 1:
        return None
    if not there:
        return "etc", "no /etc: bootc and rpm-ostree make a system's configuration of it: name a whole root file system"
    return "usr/etc", (
        "both /etc and /usr/etc: bootc and rpm-ostree make one of them, and whose files win depends on layers: move "
        "what is in /usr/etc to /etc"
    )


def _directories(tree: Tree, _: Read) -> Broken:
    missing = [path for path in _MOUNTED if not (path in tree and tree[path].is_dir)]
    if not missing:
        return None
    return missing[0], (
        f"no directory {_listed([f'/{path}' for path in missing])}: systems of bootc and rpm-ostree mount something "
        "there, and cannot make it, since / is read-only: make it in the build"
    )


def _ostree(tree: Tree, _: Read) -> Broken:
    link = tree.get("ostree")
    if link is not None and (link.kind, link.target) == ("l", _LINK):
        return None
    return "ostree", (
        f"/ostree is no link to {_LINK}: by it ostree knows a system's repository, and bootc's lint fails without it: "
        f"make it one, with ln -s {_LINK} /ostree"
    )


def _composefs(tree: Tree, read: Read) -> Broken:
    links = Links(tree)
    places = [place for path in _PREPARE_ROOT if (place := links.file(path)) is not None]
    settings = _key_file(read(places[0])) if places else {}
    if settings.get("composefs.enabled") in _ON or settings.get("root.transient") in ("true", "1"):
        return None
    return _PREPARE_ROOT[-1], (
        "composefs is not enabled: bootc takes it to be, and without it only /usr is read-only: put 'enabled = true' "
        "under [composefs], before the initramfs is made"
    )


def _var(tree: Tree, _: Read) -> Broken:
    found = [path for path in _files_below("var", tree) if tree[path].kind == "f"]
    if not found:
        return None
    size = sum(tree[path].size for path in found)
    return found[0], (
        f"{_count(found)} ({size:,} bytes) in /var: systems take them when they are installed, and never again: "
        "ship them in /usr, and have systemd-tmpfiles put into /var what has to be there"
    )


def _var_run(tree: Tree, _: Read) -> Broken:
    if "var/run" not in tree or tree["var/run"].kind == "l":
        return None
    return "var/run", (
        "/var/run is no link to /run: it outlives reboots, and services do not find each other: make it one, with "
        "ln -s ../run /var/run"
    )


class _Arguments(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """A file of kernel arguments, as bootc reads it."""

    kargs: Sequence[str]
    match_architectures: Sequence[str] | None = None


def _kernel_arguments(tree: Tree, read: Read) -> Broken:
    home = tree.get(_ARGUMENTS)
    if home is not None and not home.is_dir:
        return (
            _ARGUMENTS,
            f"/{_ARGUMENTS} is no directory: bootc reads kernel arguments from files in it, and fails: make it one",
        )
    links = Links(tree)
    for path in sorted(tree):
        if parent_of(path) != _ARGUMENTS or not path.endswith(".toml") or (place := links.file(path)) is None:
            continue
        try:
            msgspec.toml.decode(read(place), type=_Arguments)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            return path, (
                f'/{path} is not like kargs = ["quiet"], and bootc refuses such an image: correct it ({fault})'
            )
    return None


def _os_release(tree: Tree, read: Read) -> Broken:
    fields = os_release(tree, read)
    if fields.get("PRETTY_NAME") or fields.get("ID"):
        return None
    return "usr/lib/os-release", (
        "neither PRETTY_NAME nor ID in /usr/lib/os-release: bootc and rpm-ostree call a system by it in the boot menu, "
        "and deploy none without: name it there"
    )


RULES: Mapping[str, Callable[[Tree, Read], Broken]] = {
    "boot": _boot,
    "composefs": _composefs,
    "directories": _directories,
    "etc": _etc,
    "initramfs": _initramfs,
    "kernel": _kernel,
    "kernel-arguments": _kernel_arguments,
    "os-release": _os_release,
    "ostree": _ostree,
    "var": _var,
    "var-run": _var_run,
}
"""All rules, by their names."""

_UNIFIED = "boot/EFI/"


def _has_unified_kernel(tree: Tree) -> bool:
    """Whether there is a kernel with its initramfs in one file, which bootc boots as well."""
    return any(parent_of(path) == "boot/EFI/Linux" and path.endswith(".efi") for path in tree)


def _files_below(directory: str, tree: Tree) -> list[str]:
    return sorted(path for path, entry in tree.items() if path.startswith(f"{directory}/") and not entry.is_dir)


def _key_file(content: bytes) -> dict[str, str]:
    """The settings of a file of GLib's kind, by section and key (`composefs.enabled`)."""
    found, section = {}, ""
    for line in map(str.strip, content.decode(errors="replace").splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif not line.startswith("#"):
            key, _, value = line.partition("=")
            found[f"{section}.{key.strip()}"] = value.strip()
    return found


def _count(found: Sequence[str]) -> str:
    return f"{len(found):,} file{'' if len(found) == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


_NAMED = 3
