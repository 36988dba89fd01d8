"""The SELinux labels of a tree, by the policy in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.ostree import labels as module
from rechunk_action.ostree.commit import prepare
from rechunk_action.ostree.labels import labels
from rechunk_action.ostree.view import commit_path
from rechunk_action.source.directory import DirectorySource
from tests.building import scanned
from tests.oracles import program, run, scratch
from tests.ostree_images import commit_tree
from tests.policies import CONTEXTS, POLICY, USR_ETC, add_policy

KERNEL = "usr/lib/modules/1/vmlinuz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (
        "etc/shadow",
        "etc/shadow.d/a",
        "usr/bin/sh",
        "usr/bin/local",
        "usr/src/a",
        "home/me/é\n",
        "sbin/init",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / KERNEL).parent.mkdir(parents=True)
    (root / KERNEL).touch()
    (root / "usr/bin/bash").symlink_to("sh")
    for name in ("proc", "mnt"):
        (root / name).mkdir()
    return root


def labels_of(root: Path) -> Mapping[str, bytes]:
    source = scanned(DirectorySource(str(root)))
    view, _ = prepare(source.tree)
    place = root.parent / "scratch"
    place.mkdir(exist_ok=True)
    try:
        return labels(source, view, place)
    finally:
        assert not any(place.iterdir())


def of_type(name: str) -> bytes:
    return f"system_u:object_r:{name}:s0".encode() + b"\0"


def test_a_label_is_what_the_policy_says_of_path_and_type(root: Path) -> None:
    found = labels_of(add_policy(root))
    assert found.keys() == {str(path.relative_to(root)) for path in root.rglob("*")} - {"usr/src", "usr/src/a"} | {""}
    wanted = {
        "": "root_t",
        "etc": "etc_t",
        "etc/shadow": "shadow_t",
        "etc/shadow.d": "etc_t",
        "usr": "default_t",
        "usr/bin": "usr_t",
        "usr/bin/sh": "bin_t",
        "usr/bin/bash": "bin_link_t",
        "usr/bin/local": "local_t",
        "home/me/é\n": "user_home_t",
        "sbin/init": "bin_t",
        "proc": "mnt_t",
        "mnt": "mnt_t",
    }
    assert {path: found[path] for path in wanted} == {path: of_type(name) for path, name in wanted.items()}


def test_labels_are_those_of_ostree(root: Path) -> None:
    found = labels_of(add_policy(root))
    with scratch() as place:
        add_policy(place / "policy", USR_ETC)
        (root / "etc").rename(root / "usr/etc")
        (root / "home/me/é\n").rename(root / "home/me/file")  # which can be read from a list
        commit_tree(place / "repo", root, f"--selinux-policy={place}/policy")
        listed = run(program("ostree", "ostree"), f"--repo={place}/repo", "ls", "--recursive", "--xattrs", "main")
    lines = re.findall(r"\(b'security.selinux', b'([^']*)'\).* /(\S*)(?: -> .*)?$", listed, re.MULTILINE)
    real = {path: label.encode() + b"\0" for label, path in lines}
    assert real == {commit_path(path).replace("é\n", "file"): label for path, label in found.items()}


def test_a_policy_in_usr_etc_is_the_same(root: Path) -> None:
    found = labels_of(add_policy(root))
    (root / "etc").rename(root / "usr/etc")
    assert labels_of(root) == found


def test_a_policy_may_be_behind_links_in_the_tree(root: Path) -> None:
    found = labels_of(add_policy(root))
    (root / "etc/selinux/test").rename(root / "usr/share")
    (root / "etc/selinux/test").symlink_to("/usr/share")
    (root / "usr/share/contexts/files/file_contexts").rename(root / "usr/share/contexts/here")
    (root / "usr/share/contexts/files/file_contexts").symlink_to("../../../../../../../../usr/share/contexts/here")
    moved = labels_of(root)
    assert all(moved[path] == label for path, label in found.items() if not path.startswith("etc/selinux/test"))


@pytest.mark.parametrize(
    "config", [None, "", "SELINUX=disabled\nSELINUXTYPE=test\n", "SELINUXTYPE=test\n", "#SELINUX=enforcing\n"]
)
def test_without_a_policy_that_is_in_use_there_are_no_labels(root: Path, config: str | None) -> None:
    add_policy(root)
    if config is None:
        (root / "etc/selinux/config").unlink()
    else:
        (root / "etc/selinux/config").write_text(config)
    assert labels_of(root) == {}


@pytest.mark.parametrize("word", ["permissive", "Enforcing"])
def test_a_policy_need_not_be_enforced(root: Path, word: str) -> None:
    found = labels_of(add_policy(root))
    (root / "etc/selinux/config").write_text(f"SELINUXTYPE=test\nSELINUX={word}\n")
    assert labels_of(root) == found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: (root / CONTEXTS).unlink(), rf"names the SELinux policy 'test', but /{CONTEXTS} is missing"),
        (lambda root: _append(root / "etc/selinux/config", "SELINUXTYPE=other\n"), "policy 'other', but .* is missing"),
        (lambda root: _append(root / "etc/selinux/config", "SELINUXTYPE=\n"), "does not say which policy is in use"),
        (lambda root: _append(root / CONTEXTS, "/usr/(bin system_u:object_r:a_t:s0\n"), r"finds no label for /\w+"),
        (lambda root: _append(root / CONTEXTS, "/usr -q system_u:object_r:a_t:s0\n"), "cannot read its file_contexts"),
        (lambda root: (root / CONTEXTS).write_bytes(b"\0\xff" * 100), "finds no label for / "),
        (lambda root: (root / CONTEXTS).write_bytes(b""), "finds no label for / "),
    ],
)
def test_a_policy_that_cannot_be_used_is_told(root: Path, change: Callable[[Path], object], problem: str) -> None:
    change(add_policy(root))
    with pytest.raises(InputError, match=problem):
        labels_of(root)


def test_a_link_that_leads_out_of_the_tree_leads_nowhere(root: Path) -> None:
    outside = root.parent / "file_contexts"
    outside.write_text(POLICY[CONTEXTS])
    (add_policy(root) / CONTEXTS).unlink()
    (root / CONTEXTS).symlink_to(outside)
    with pytest.raises(InputError, match=f"/{CONTEXTS} is missing"):
        labels_of(root)


def test_a_machine_without_libselinux_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARY", "libnothing.so.1")
    with pytest.raises(EnvironmentLack, match=r"libselinux is not installed, .*: install it"):
        labels_of(add_policy(root))


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)
