"""Engine `delta` with OSTree chunks: the format that images of rpm-ostree and hhd-dev/rechunk have had for years.

The chunks of the previous image stay byte for byte, whoever made them, and new ones hold the objects that changed. The
first layer, with the commit and all directories, is new every time: importers want it whole. What a container build
has put on top of the chunks is part of the tree now, and its layers go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from rechunk_action.engines.layering import (
    Adopted,
    accounted,
    assemble,
    bring,
    explain,
    keep_all,
    plan_layers,
    write_all,
)
from rechunk_action.errors import VerificationFailed
from rechunk_action.job import Job, Layer, Made
from rechunk_action.oci.compression import bomb_limit
from rechunk_action.oci.config import CHUNKED_LABEL, PLAN_LABEL
from rechunk_action.oci.image import Image
from rechunk_action.oci.layer import LayerPlan, Written
from rechunk_action.oci.merge import Replay, merge
from rechunk_action.oci.table import Blob, Table
from rechunk_action.ostree.check import differences
from rechunk_action.ostree.chunk import (
    FORMAT,
    check_tree,
    read_chunk,
    read_commit_layer,
    write_chunk,
    write_commit_layer,
)
from rechunk_action.ostree.chunked import COMMIT_LABEL, last_chunk
from rechunk_action.ostree.commit import Committed, commit, origin, prepare
from rechunk_action.ostree.labels import POLICY, labels
from rechunk_action.plan.plain import Published
from rechunk_action.progress import Advance, Progress
from rechunk_action.source import Source
from rechunk_action.stored import with_tables
from rechunk_action.tree.components import components
from rechunk_action.tree.entry import Entry, Tree
from rechunk_action.tree.lint import Finding
from rechunk_action.tree.packages import installed, read_packages
from rechunk_action.verify import summary
from rechunk_action.workers import Workers

FIRST = "OSTree commit and directories"
"""What the first layer is called, in history and reports."""


@contextmanager
def chunked(job: Job) -> Iterator[Made]:
    """Keep the chunks of the previous image, as far as they are worth it, and write the rest."""
    options, source, writer, progress = job.options, job.source, job.writer, job.progress
    adopted, reason = _adopt(job), job.reason
    with Workers(2) as beside:
        checked = beside.submit(keep_all, adopted, writer)
        committed, claimed, packages, findings, version = _commit(job)
        tree, owner = committed.tree, _owners(committed, source, claimed)
        # It is the same whatever the plan says, and compressed for long.
        first = beside.submit(
            write_commit_layer, committed, writer.scratch / "commit", compression=options.compression, threads=1
        )
        with progress.phase("plan", "plan layers"):
            directories = Table({path: entry for path, entry in tree.items() if entry.is_dir}, format=FORMAT)
            plan = plan_layers(tree, owner, adopted, options, base=directories)
        if adopted:
            _tell_of_drift(adopted, tree, progress)
        if adopted and not plan.kept:
            adopted, reason = None, "nothing of the previous image can be kept"
        explain(plan, reason, progress)
        contents = _Contents(source)
        wanted = [origin(path, source.tree) for new in plan.new for path in new.paths if tree[path].kind == "f"]
        bring(source, wanted, progress)

        def write(new: LayerPlan, path: Path, level: int, threads: int, advance: Advance) -> Written:
            return write_chunk(
                new,
                committed,
                contents,
                path,
                compression=options.compression,
                level=level,
                threads=threads,
                advance=advance,
            )

        written = write_all(plan, tree, write, job, checked, update=adopted is not None)
        base = first.result()
    chunks, tables = assemble(plan, adopted, written)
    held = adopted.previous.image.digests if adopted else set()
    writer.limit({layer.blob.digest for layer in chunks})
    merged = Replay([base.table, *tables], tree)
    if options.verify:
        with progress.phase("verify", "verify the merged image"), base.path.open("rb") as file:
            found = differences(read_commit_layer(file, base.blob, limit=None), merged, committed)
        if found:
            raise VerificationFailed("the image that was written is not the source. " + summary(found))
    writer.adopt(base.path, base.blob.digest)
    writer.store_table(base.blob, base.table)
    first_layer = Layer(base.blob, FIRST, kept=base.blob.digest in held, components={FIRST: base.blob.size})
    yield Made(
        [first_layer, *accounted(chunks, tables, merged.dead()[1:], owner, adopted)],
        adopted.previous if adopted else None,
        reason,
        version,
        packages,
        findings,
        drops=plan.drops,
        labels=_labels(committed, chunks[-1].blob, version),
    )


def _adopt(job: Job) -> Adopted | None:
    """The chunks of the previous image, those of its first layer and of layers on top left out."""
    previous = job.previous
    if previous is None:
        return None
    image, notice = previous.image, job.progress.notice
    last = last_chunk(image)
    if derived := len(image.layers) - 1 - last:
        notice(
            f"{previous.ref} has {derived} layer{'s' if derived > 1 else ''} of a container build on its chunks: what "
            "is in there is written anew"
        )
    if PLAN_LABEL in image.labels:
        notice(
            f"the label {PLAN_LABEL} of {previous.ref} goes, since it tells nothing of new layers: to go back to "
            "hhd-dev/rechunk takes a fresh plan"
        )
    with job.progress.phase("previous", f"read {previous.ref}") as meter:
        reader = _ChunkReader(image, notice)
        layers = with_tables(
            image,
            image.layers[1 : last + 1],
            job.options.threads,
            job.progress,
            meter=meter,
            read=reader.read,
            format_=FORMAT,
        )
    return Adopted(previous, _without_twins(layers), first=1)


def _without_twins(layers: Sequence[Published]) -> list[Published]:
    """The layers, of which none of the same content is fit to be kept but the last.

    Clients find the last chunk by its diff ID, and take the first layer that has it for the last one.
    """
    last = {layer.blob.diff_id: number for number, layer in enumerate(layers)}
    return [
        layer
        if last[layer.blob.diff_id] == number
        else Published(layer.blob, replace(layer.table, problem="a later layer is the same"))
        for number, layer in enumerate(layers)
    ]


class _ChunkReader:
    """Reads chunks that have no stored table. Of empty files, some only tell by the image's commit which they are."""

    def __init__(self, image: Image, notice: Callable[[str], None]) -> None:
        self._image = image
        self._notice = notice
        self._lock = threading.Lock()
        self._paths: Mapping[str, bytes] | None = None

    def read(self, image: Image, blob: Blob) -> Table:
        with image.open(blob) as file:
            return read_chunk(file, blob, limit=bomb_limit(blob.size), empty=self._commit_paths())

    def _commit_paths(self) -> Mapping[str, bytes]:
        with self._lock:
            if self._paths is None:
                first = self._image.layers[0]
                with self._image.open(first) as file:
                    commit_layer = read_commit_layer(file, first, limit=bomb_limit(first.size))
                if self._image.labels.get(COMMIT_LABEL) != commit_layer.checksum.hex():
                    self._notice(
                        f"the label {COMMIT_LABEL} of {self._image.blobs} does not name the commit in it: clients may "
                        "refuse that image; its chunks are kept as far as their objects are sound"
                    )
                self._paths = commit_layer.paths()
            return self._paths


def _commit(job: Job) -> tuple[Committed, Mapping[str, str], Mapping[str, str], list[Finding], str | None]:
    """The OSTree commit of the source, the component of each path of the source that has one, the versions of its
    packages, what may keep it from booting, and the version that the commit tells.
    """
    options, source, progress = job.options, job.source, job.progress
    with progress.phase("scan", f"read {options.source}") as meter:
        source.scan(None, meter)
        packages = read_packages(source.tree, source.read)
        claimed = components(source.tree, packages)
        tree, notices = prepare(source.tree)
        check_tree(tree)
    for notice in notices:
        progress.notice(notice)
    findings = job.lint(tree, lambda path: source.read(origin(path, source.tree)))
    version = job.writer.settle(job.version())
    with progress.phase("commit", "make the OSTree commit", sum(entry.size for entry in tree.values())) as advance:
        labelled = labels(source, tree, job.writer.scratch)
        if not labelled and POLICY in tree:
            progress.notice(f"SELinux is disabled in /{POLICY}: no path gets a label")
        committed = commit(
            source, tree, labelled, version=version, created=job.created(), threads=options.threads, advance=advance
        )
    return committed, claimed, installed(packages), findings, version


def _owners(committed: Committed, source: Source, claimed: Mapping[str, str]) -> Mapping[str, str]:
    """The component of each path that has one. Paths of one object have the same, so that a layout has it once."""
    files = {path: entry.digest for path, entry in committed.tree.items() if not entry.is_dir}
    owners: dict[bytes, str] = {}
    for path in sorted(files):
        place = origin(path, source.tree)
        if place in claimed:
            owners.setdefault(files[path], claimed[place])
    return {path: owners[checksum] for path, checksum in files.items() if checksum in owners}


def _labels(committed: Committed, last: Blob, version: str | None) -> dict[str, str]:
    """Labels by which clients know the format, and those that `ostree container encapsulate` makes of a commit."""
    return {
        COMMIT_LABEL: committed.checksum.hex(),
        CHUNKED_LABEL: last.diff_id,
        "ostree.bootable": "true",
        "containers.bootc": "1",
        "ostree.linux": committed.linux,
        **({"version": version} if version else {}),
    }


class _Contents:
    """Contents of the source by the paths that containers see."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        return self._source.pieces(origin(path, self._source.tree), size)


def _tell_of_drift(adopted: Adopted, tree: Tree, progress: Progress) -> None:
    """Tell of files that changed in nothing but owner, mode or attributes, as far as their size tells."""
    was = {path: entry for path, (_, entry) in merge([layer.table for layer in adopted.layers], "last").items()}
    found: dict[str, list[str]] = {}
    for path, entry in tree.items():
        old = was.get(path)
        if entry.kind != "f" or old is None or not old.digest or old.same_as(entry):
            continue
        if (old.kind, old.size) != ("f", entry.size):
            continue
        for what, before, after in (
            ("owner", f"{old.uid}:{old.gid}", f"{entry.uid}:{entry.gid}"),
            ("mode", f"{old.mode:04o}", f"{entry.mode:04o}"),
            ("attributes", _shown(old, entry), _shown(entry, old)),
        ):
            if before != after:
                found.setdefault(what, []).append(f"/{path} ({before}, now {after})")
    for what, changes in found.items():
        progress.notice(
            f"other {what} than in the previous image, at the same size: {len(changes):,} "
            f"file{'s' if len(changes) > 1 else ''}, such as {changes[0]}; users download them again: see whether the "
            "build means that"
        )


def _shown(entry: Entry, other: Entry) -> str:
    """The attributes that another entry does not have."""
    return (
        " ".join(f"{name}={_text(value)}" for name, value in entry.xattrs if (name, value) not in other.xattrs)
        or "none"
    )


def _text(value: bytes) -> str:
    """An attribute's value for people: a text, which may end with a zero byte, or hexadecimal digits."""
    text = value.removesuffix(b"\0").decode(errors="replace")
    return (text if text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text else f"0x{value.hex()}")[:_LONGEST]


_LONGEST = 80
