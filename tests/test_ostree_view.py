"""What containers show of an OSTree-chunked image, against the commit in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rechunk_action.oci.layout import read_image
from rechunk_action.ostree.chunked import read_chunked
from rechunk_action.ostree.view import view_differences
from rechunk_action.tree.entry import new_digest
from tests.oracles import scratch
from tests.ostree_images import chunked_layers, commit_tree, write_image
from tests.support import Item, directory, file, hardlink

Layers = list[list[Item]]


@pytest.fixture(scope="module")
def repo() -> Iterator[SimpleNamespace]:
    with scratch() as place:
        tree = place / "tree"
        (tree / "usr/bin").mkdir(parents=True)
        (tree / "usr/etc").mkdir()
        (tree / "usr/etcetera").write_bytes(b"1")
        (tree / "usr/etc/passwd").write_bytes(b"root")
        (tree / "usr/bin/sh").write_bytes(b"program")
        (tree / "usr/bin/bash").symlink_to("sh")
        (tree / "usr/empty").touch(0o600)
        os.setxattr(tree / "usr/empty", "user.a", b"1")
        os.setxattr(tree / "usr/bin/sh", "user.a", b"1")
        yield SimpleNamespace(repo=place / "repo", commit=commit_tree(place / "repo", tree))


@pytest.mark.parametrize("own_xattrs", [False, True])
@pytest.mark.parametrize("parents", [False, True])
def test_the_view_of_an_image_is_its_commit(
    repo: SimpleNamespace, tmp_path: Path, *, parents: bool, own_xattrs: bool
) -> None:
    layers = list(chunked_layers(repo.repo, repo.commit, parents=parents, own_xattrs=own_xattrs))
    assert "etc/passwd" in _names(layers)
    assert "usr/etc/passwd" not in _names(layers)
    assert _differences(repo, tmp_path, layers) == []


def test_a_path_that_is_missing_is_told(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _without(_layers(repo), "etc/passwd")
    assert _differences(repo, tmp_path, layers) == ["/usr/etc/passwd: missing (in containers)"]


def test_a_path_that_leads_to_another_object_is_told(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    number = next(number for number, members in enumerate(layers) if "usr/bin/sh" in _names([members]))
    target = next(item.info.linkname for item in layers[number] if item.info.name == "usr/bin/sh")
    layers[number].append(hardlink("usr/etcetera", target))
    layers[number + 1 :] = _without(layers[number + 1 :], "usr/etcetera")
    shown, wanted = (new_digest(content).hexdigest()[:12] for content in (b"program", b"1"))
    assert _differences(repo, tmp_path, layers) == [
        f"/usr/etcetera: size 0o7, should be 0o1; content '{shown}', should be '{wanted}' (in containers)"
    ]


def test_a_path_that_the_commit_does_not_have_is_told(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = [*_layers(repo), [directory("usr"), file("usr/gone", b"1")]]
    assert _differences(repo, tmp_path, layers) == ["/usr/gone: should not be there (in containers)"]


def test_a_removal_is_seen(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers.insert(1, [directory("usr"), file("usr/gone", b"1")])
    layers.append([directory("usr"), file("usr/.wh.gone")])
    assert _differences(repo, tmp_path, layers) == []


def test_a_hard_link_into_another_layer_is_told(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    link = next(item for members in layers for item in members if item.info.name == "etc/passwd")
    layers = [*_without(layers, "etc/passwd"), [link]]
    assert _differences(repo, tmp_path, layers) == [
        f"layer {len(layers)}: 'etc/passwd' is a hard link to '{link.info.linkname}' of another layer"
    ]


def _layers(repo: SimpleNamespace) -> Layers:
    return list(chunked_layers(repo.repo, repo.commit))


def _names(layers: Layers) -> set[str]:
    return {item.info.name for members in layers for item in members}


def _without(layers: Layers, name: str) -> Layers:
    return [[item for item in members if item.info.name != name] for members in layers]


def _differences(repo: SimpleNamespace, tmp_path: Path, layers: Layers) -> list[str]:
    image = read_image(write_image(tmp_path / "image", layers, repo.commit), "latest")
    return view_differences(image, read_chunked(image, threads=2).tree(), threads=2)
