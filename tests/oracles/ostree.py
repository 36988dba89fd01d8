"""The OSTree client: layers merged by the real `ostree`, the way bootc and rpm-ostree use it.

Their importer commits each layer by itself (`ostree commit --tree=tar= --tar-autocreate-parents`) and then checks the
commits out over each other, lowest first (`ostree checkout --union --whiteouts -H`). The same is done here, as root in
a bare repository, with the ostree of Debian 13 in a container: rules have changed between versions (a directory over a
file needs 2024.5), and the host's may be older, newer or absent.

The importer reads a top-level `etc` as `usr/etc`. So does this oracle, and puts it back afterwards, because it
matters: a layer that lists `/etc` but not `/usr` makes up a `/usr` of its own, and a `.wh.etc` removes nothing. So a
tree that has /etc must have /usr.

Invariants:
- Layers are decoded as the client decodes them: by media type, of gzip the first member only, of zstd every frame.
- A layer that several images of one call share is committed once, as a client fetches it once.

Hard links say nothing here, since all equal files share one inode: compare with `differences(..., hardlinks=False)`.
What the importer does before ostree sees a layer is, but for `etc`, outside this oracle: it refuses xattr values with
a newline and drops what is below /dev and /run. The locale is C, as in a client's service: names that are not ASCII
must be in GNU headers, not in PAX records.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from . import Image, Missing, Refused, program, run, scratch

CONTAINER = "rechunk-oracle-ostree:trixie"

SCRIPT = r"""
cd /work
echo "empty repository" > current
ostree init --repo=repo --mode=bare
ostree --repo=repo config set core.fsync false
ostree --repo=repo config set core.min-free-space-percent 0
for layer in $(ls layers); do
    echo "layer $layer" > current
    ostree commit --repo=repo --branch="layer/$layer" --tree=tar="layers/$layer" --tar-autocreate-parents \
        --tar-pathname-filter='^etc(?=/|$),usr/etc' > log
    if tar -tf "layers/$layer" | grep -qE '^(\.?/)?etc(/|$)'; then : > "with-etc/$layer"; fi
    rm "layers/$layer"
done
for tree in $(ls trees); do
    echo "image $tree" > current
    ostree checkout --repo=repo --union --whiteouts -H --from-file="merges/$tree" "trees/$tree"
done
"""
"""Works on `layers/DIGEST` (a tar each) and `merges/N` (the commits of image N, lowest first), fills `trees/N`, and
leaves `with-etc/DIGEST` for a layer that has a top-level etc, `current` for the one at fault."""

BLOCK = 1 << 20


@contextmanager
def merged(layout: Path, ref: str | None = None) -> Iterator[Path]:
    """The merged tree of one image."""
    with merged_many([(layout, ref)]) as trees:
        yield trees[0]


@contextmanager
def merged_many(images: Sequence[Image]) -> Iterator[list[Path]]:
    """The merged trees of many images, in their order, from one container run."""
    with scratch() as work:
        for name in ("layers", "merges", "trees", "with-etc"):
            (work / name).mkdir(mode=0o755)
        stacks = [_prepare(work, number, *image) for number, image in enumerate(images)]
        _run_script(work)
        trees = [work / "trees" / str(number) for number in range(len(images))]
        for tree, stack in zip(trees, stacks, strict=True):
            if (tree / "usr/etc").exists() and any((work / "with-etc" / name).exists() for name in stack):
                (tree / "usr/etc").rename(tree / "etc")
        yield trees


def _prepare(work: Path, number: int, layout: Path, ref: str | None) -> list[str]:
    """Lay out an image for the script; returns the names of its layers, lowest first."""
    stack: list[str] = []
    for descriptor in _layers(layout, ref):
        name = descriptor["digest"].partition(":")[2]
        tar = work / "layers" / name
        if not tar.exists():
            _unpack(_blob(layout, descriptor), descriptor["mediaType"], tar)
        stack.append(name)
    # Pairs of a revision and a path in it, each ended by a NUL.
    (work / "merges" / str(number)).write_text("".join(f"layer/{name}\0/\0" for name in stack))
    # The importer, too, merges into a directory that exists: layers do not decide about the root.
    (work / "trees" / str(number)).mkdir(mode=0o755)
    return stack


def _layers(layout: Path, ref: str | None) -> list[dict[str, Any]]:
    """The layers' descriptors, lowest first."""
    images = json.loads((layout / "index.json").read_bytes())["manifests"]
    if ref is not None:
        images = [i for i in images if i.get("annotations", {}).get("org.opencontainers.image.ref.name") == ref]
    if len(images) != 1:
        raise Refused(f"{layout} holds {len(images)} images named {ref or 'anything'}, want one")
    layers: list[dict[str, Any]] = json.loads(_blob(layout, images[0]).read_bytes())["layers"]
    return layers


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    return layout.joinpath("blobs", *descriptor["digest"].split(":"))


def _unpack(blob: Path, media_type: str, into: Path) -> None:
    with blob.open("rb") as packed, into.open("wb") as tar:
        try:
            if media_type.endswith("gzip"):
                _unpack_first_member(packed, tar)
            elif media_type.endswith("zstd"):
                decoder = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
                shutil.copyfileobj(decoder, tar, BLOCK)
            elif media_type.endswith("tar"):
                shutil.copyfileobj(packed, tar, BLOCK)
            else:
                raise Refused(f"layer {blob.name}: unhandled layer type {media_type}")
        except (zlib.error, zstandard.ZstdError) as error:
            raise Refused(f"layer {blob.name}: {error}") from error


def _unpack_first_member(packed: BinaryIO, tar: BinaryIO) -> None:
    decoder = zlib.decompressobj(wbits=31)
    while not decoder.eof:
        if not (block := packed.read(BLOCK)):
            raise zlib.error("the gzip stream is cut short")
        tar.write(decoder.decompress(block))


def _run_script(work: Path) -> None:
    docker = program("docker", "docker.io")
    _make_container(docker, work)
    volume = f"--volume={work}:/work"
    try:
        run(docker, "run", "--rm", "--name", work.name, "--network=none", volume, CONTAINER, "sh", "-euc", SCRIPT)
    except BaseException as error:
        # An interrupted client leaves the container running, and it would go on writing into the scratch directory.
        subprocess.run([docker, "rm", "--force", work.name], check=False, capture_output=True)
        if not isinstance(error, subprocess.CalledProcessError):
            raise
        if error.returncode >= 125:  # docker's own failures; those of the script are smaller
            raise Missing(f"docker cannot run {CONTAINER}: {error.stderr}") from error
        raise Refused(f"ostree, {(work / 'current').read_text().strip()}: {error.stderr}") from error


def _make_container(docker: str, work: Path) -> None:
    """Make the container image from Debian's packages, once."""
    try:
        run(docker, "version")
    except subprocess.CalledProcessError as error:
        raise Missing(f"the docker daemon does not answer, start it: {error.stderr}") from error
    if run(docker, "images", "--quiet", CONTAINER):
        return
    root = work / "container.tar"
    # The machine's own mirror; without one, mmdebstrap takes Debian's.
    uris = run(program("apt-get", "apt"), "indextargets", "--format", "$(REPO_URI)").split()
    mirrors = [uri for uri in uris if uri.rstrip("/").endswith("/debian")][:1]
    debstrap = program("mmdebstrap", "mmdebstrap debian-archive-keyring")
    try:
        # Memory, where TMPDIR may be, is often mounted noexec, and a system cannot be installed there.
        on_disk = ("env", "--unset=TMPDIR")
        run(*on_disk, debstrap, "--quiet", "--variant=minbase", "--include=ostree", "trixie", root, *mirrors)
        run(docker, "import", root, CONTAINER)
    except subprocess.CalledProcessError as error:
        raise Missing(f"cannot make the container image {CONTAINER}: {error.stderr}") from error
    root.unlink()
