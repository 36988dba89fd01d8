"""A real Debian or Ubuntu tree, its real updates and some rude changes, through the command line and real clients."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.series import RELEASE, UPDATED, host_archive, sources_list
from tests.oracles import ostree, overlay
from tests.oracles.compare import differences

pytestmark = pytest.mark.oracle

ROOM = 6 << 30

PACKAGES = ("openssh-server", "curl", "vim-tiny")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for some gigabytes, in memory where there is room: half a million small files wear out a disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ROOM:
        with (
            tempfile.TemporaryDirectory(prefix="series-", dir=memory) as directory,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("TMPDIR", directory)
            yield Path(directory)
    else:
        yield tmp_path_factory.mktemp("series")


@pytest.fixture(scope="module")
def trees(place: Path) -> list[Path]:
    """A release, the same with all its updates, and a version changed by hand where layers are easily wrong."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    archive = host_archive(platform.freedesktop_os_release())
    versions = [place / f"v{number}" for number in range(3)]
    for tree, pockets in zip(versions, (RELEASE, UPDATED), strict=False):
        sources = sources_list(archive, suite, pockets)
        include = f"--include={','.join(PACKAGES)}"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", include, suite, tree, *sources], check=True)
    subprocess.run(["cp", "-a", versions[1], versions[2]], check=True)
    change_rudely(versions[2])
    return versions


def change_rudely(tree: Path) -> None:
    usr = tree / "usr"
    (usr / "share").chmod(0o700)
    os.chown(usr / "lib", 3, 4)
    shutil.rmtree(usr / "share/doc")
    (usr / "share/doc").symlink_to("nowhere")
    os.remove(usr / "bin/curl")
    (usr / "bin/curl").mkdir(mode=0o711)
    (usr / "bin/curl/line\nbreak é").write_text("x")
    shutil.rmtree(usr / "share/bash-completion", ignore_errors=True)
    os.link(usr / "bin/perl", usr / "bin/-perl")
    os.setxattr(usr / "bin/perl", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    (usr / "bin/find").chmod(0o4711)
    (tree / "srv/empty").mkdir(mode=0o1777)


@pytest.fixture(scope="module")
def layout(trees: list[Path]) -> Path:
    """All versions in one layout: the first fresh, each other an update of the one before."""
    layout = trees[0].parent / "image"
    for number, tree in enumerate(trees):
        options = ["--prev-ref", f"oci:{layout}:v{number - 1}"] if number else []
        report = rechunk("build", f"dir:{tree}", f"oci:{layout}:v{number}", "--max-layers", "30", *options)
        assert report["fresh"] == (number == 0)
    return layout


def rechunk(*arguments: str) -> Any:
    command = [sys.executable, "-m", "rechunk_action", *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_every_version_verifies(trees: list[Path], layout: Path) -> None:
    for number, tree in enumerate(trees):
        assert rechunk("verify", f"oci:{layout}:v{number}", f"dir:{tree}")["equal"]


def test_an_image_as_the_source_gives_the_same_layers_as_its_tree(layout: Path) -> None:
    again = layout.parent / "again"
    rechunk("build", f"oci:{layout}:v0", f"oci:{again}", "--max-layers", "30")
    assert layers(again, 0) == layers(layout, 0)


def test_ostree_clients_get_exactly_the_tree(trees: list[Path], layout: Path) -> None:
    images = [(layout, f"v{number}") for number in range(len(trees))]
    with ostree.merged_many(images) as merged:
        for tree, result in zip(trees, merged, strict=True):
            assert differences(tree, result, hardlinks=False) == []


def test_overlay_clients_get_exactly_the_tree(trees: list[Path], layout: Path) -> None:
    images = [(layout, f"v{number}") for number in range(len(trees))]
    with overlay.merged_many(images) as merged:
        for tree, result in zip(trees, merged, strict=True):
            assert differences(tree, result) == []


def layers(layout: Path, image: int) -> list[str]:
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((layout / "blobs/sha256" / index["manifests"][image]["digest"][7:]).read_bytes())
    return [layer["digest"] for layer in manifest["layers"]]
