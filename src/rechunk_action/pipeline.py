"""The main job, top to bottom: source, previous image, plan, layers, verification, image.

Everything with a side effect is called from here; the plan itself is pure. Nothing is visible in the output before
the merged result was compared with the source.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rechunk_action.errors import InputError, VerificationFailed
from rechunk_action.oci.compression import Compression, bomb_limit
from rechunk_action.oci.config import (
    CHUNKED_LABEL,
    VERSION_LABEL,
    history_comment,
    image_config,
    image_labels,
    image_manifest,
    load_config,
)
from rechunk_action.oci.layer import Written, write_layer
from rechunk_action.oci.layout import (
    CONFIG,
    MANIFEST,
    Image,
    Json,
    LayoutWriter,
    host_architecture,
    load_table,
    read_image,
)
from rechunk_action.oci.merge import Replay
from rechunk_action.oci.table import Blob, Table, read_table
from rechunk_action.plan.compaction import Drop
from rechunk_action.plan.plain import Plan, Published, plan_fresh, plan_update
from rechunk_action.progress import Advance, Progress
from rechunk_action.report.compare import Comparison, bytes_by_component
from rechunk_action.report.compare import compare as compare_layers
from rechunk_action.source import Source
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.image import ImageSource
from rechunk_action.source.names import Name
from rechunk_action.tree.components import components
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import Hasher
from rechunk_action.verify import differences
from rechunk_action.workers import Workers, result_of

NEWEST = 253_402_300_799
"""The last second that a timestamp can name: the end of the year 9999."""

SHOWN = 20
"""Differences that an error lists; their number is always told."""


@dataclass(frozen=True)
class BuildOptions:
    """What `build` was asked for.

    `max_overhead` is a share, `created` in seconds since 1970 (None: from the source).
    """

    source: Name
    output: Name
    prev_ref: Name | None
    fresh: bool
    max_layers: int
    max_overhead: float
    compression: Compression
    labels: Sequence[str]
    version: str | None
    config: Path | None
    created: int | None
    verify: bool
    drop_bad_xattrs: bool
    threads: int


@dataclass(frozen=True)
class Previous:
    """The image that the new one updates."""

    ref: str
    image: Image
    layers: Sequence[Published]


@dataclass(frozen=True)
class Layer:
    """A layer of the new image, kept or written."""

    blob: Blob
    table: Table
    comment: str
    kept: bool


def build(options: BuildOptions, progress: Progress) -> Json:
    """Rechunk a source into an output. Returns the report that `--json` prints."""
    previous, reason = _previous(options, progress)
    with LayoutWriter(options.output.path, options.output.tag) as writer, Workers(1) as beside:
        # Checking the previous blobs takes a processor that the walk leaves idle.
        checked = beside.submit(_keep_all, previous, writer)
        with (
            progress.phase("scan", f"read {options.source}") as advance,
            Hasher(options.threads, advance) as hasher,
        ):
            source = open_source(
                options.source,
                writer.scratch,
                threads=options.threads,
                drop_bad_xattrs=options.drop_bad_xattrs,
                hasher=hasher if previous else None,
            )
            owner = components(source.tree, source.read)
            hasher.finish()
        for notice in source.notices:
            progress.notice(notice)
        config = load_config(options.config) if options.config else source.config
        if previous:
            _check_architecture(previous, config)
        with progress.phase("plan", "plan layers"):
            plan = _plan(source.tree, owner, previous, options)
        if previous and not plan.kept:
            previous, reason = None, "nothing of the previous image can be kept"
        _explain(plan, reason, progress)
        with progress.phase("write", "write layers", sum(new.archive_size(source.tree) for new in plan.new)) as advance:
            written = _write(plan, source, writer, options, update=previous is not None, advance=advance)
            result_of(checked)
            layers = _assemble(plan, previous, written)
            writer.limit({layer.blob.digest for layer in layers})
        merged = Replay([layer.table for layer in layers], source.tree)
        if options.verify:
            with progress.phase("verify", "verify the merged image"):
                found = differences(merged)
            if found:
                raise VerificationFailed("the image that was written is not the source. " + _summary(found))
        with progress.phase("publish", f"finish {options.output}"):
            manifest = _finish(writer, layers, config, source, previous, options)
    return _report(options, previous, reason, plan, layers, manifest, sum(merged.dead()), progress)


def verify(image: Name, source: Name, progress: Progress, *, threads: int, drop_bad_xattrs: bool) -> Json:
    """Compare an image, merged as clients merge it, with a source. Raises `VerificationFailed` when they differ."""
    with tempfile.TemporaryDirectory(prefix="rechunk-") as scratch:
        with (
            progress.phase("scan", f"read {source} and {image}") as advance,
            Hasher(threads, advance) as hasher,
        ):
            tree = open_source(source, Path(scratch), threads=threads, drop_bad_xattrs=drop_bad_xattrs, hasher=hasher)
            read = read_image(image.path, image.tag)
            tables = [layer.table for layer in _read_layers(read, read.layers, threads, stored=False)]
            hasher.finish()
        with progress.phase("verify", "compare"):
            found = differences(Replay(tables, tree.tree))
    if found:
        raise VerificationFailed(f"{image} is not {source}. " + _summary(found))
    return {"image": str(image), "digest": read.digest, "source": str(source), "paths": len(tree.tree), "equal": True}


def compare(old: Name, new: Name, progress: Progress, *, threads: int) -> Comparison:
    """What an update from one image to another costs, and which components make it up."""
    was = read_image(old.path, old.tag)
    image = read_image(new.path, new.tag)
    known = {blob.digest for blob in was.layers}
    added = [blob for blob in image.layers if blob.digest not in known]
    by_component: dict[str, int] = {}
    if added:
        with tempfile.TemporaryDirectory(prefix="rechunk-") as scratch, progress.phase("read", f"read {new}"):
            source = ImageSource(image, Path(scratch), threads=threads, drop_bad_xattrs=True)
            owner = components(source.tree, source.read)
        read = _read_layers(image, added, threads, stored=True)
        by_component = bytes_by_component([(layer.blob, layer.table) for layer in read], owner)
    return compare_layers(was.layers, image.layers, by_component)


def open_source(name: Name, scratch: Path, *, threads: int, drop_bad_xattrs: bool, hasher: Hasher | None) -> Source:
    """A tree by its name. `scratch` is a directory for what cannot be read in place.

    Every file has its digest once `hasher` has finished. Without a hasher, one that costs a read gets its digest when
    it is read for another reason.
    """
    if name.transport == "oci":
        image = read_image(name.path, name.tag)
        return ImageSource(image, scratch, threads=threads, drop_bad_xattrs=drop_bad_xattrs)
    return DirectorySource(str(name.path), hasher=hasher, drop_bad_xattrs=drop_bad_xattrs)


def _previous(options: BuildOptions, progress: Progress) -> tuple[Previous | None, str | None]:
    """The previous image, or the reason for a fresh one."""
    name = options.prev_ref
    if options.fresh or name is None:
        return None, "requested" if options.fresh else "first build"
    image = read_image(name.path, name.tag)
    if CHUNKED_LABEL in image.labels:
        return None, "previous image is OSTree-chunked"
    with progress.phase("previous", f"read {name}"):
        return Previous(
            f"{name}@{image.digest}", image, _read_layers(image, image.layers, options.threads, stored=True)
        ), None


def _check_architecture(previous: Previous, config: Json | None) -> None:
    wanted = (config or {}).get("architecture") or host_architecture()
    if previous.image.architecture != wanted:
        raise InputError(
            f"the previous image {previous.ref} is for {previous.image.architecture or 'no architecture'} and the "
            f"source for {wanted}: give --prev-ref an image of the same architecture"
        )


def _read_layers(image: Image, layers: Sequence[Blob], threads: int, *, stored: bool) -> list[Published]:
    """Some layers of an image with their tables: stored ones where asked for and there, else read from the blobs."""

    def read(blob: Blob) -> Published:
        table = load_table(image, blob) if stored else None
        if table is None:
            with image.open(blob) as file:
                table = read_table(file, blob, limit=bomb_limit(blob.size))
        return Published(blob, table)

    with Workers(threads) as workers:
        return list(workers.map(read, layers))


def _plan(tree: Tree, owner: Mapping[str, str], previous: Previous | None, options: BuildOptions) -> Plan:
    drops: Sequence[Drop] = ()
    if previous:
        plan = plan_update(
            previous.layers,
            tree,
            lambda: owner,
            max_layers=options.max_layers,
            max_overhead=options.max_overhead,
        )
        if plan.kept:
            return plan
        drops = plan.drops
    return replace(plan_fresh(tree, owner, max_layers=options.max_layers), drops=drops)


def _explain(plan: Plan, reason: str | None, progress: Progress) -> None:
    progress.detail(f"fresh layout: {reason}" if reason else f"{len(plan.kept)} layers kept, {len(plan.new)} new")
    for drop in plan.drops:
        progress.detail(f"layer {drop.index} dropped: {drop.reason} ({drop.live:,} bytes live, {drop.dead:,} dead)")
    for new in plan.new:
        progress.detail(f"new layer: {new.name} ({len(new.paths):,} files, {len(new.whiteouts):,} removals)")


def _write(
    plan: Plan, source: Source, writer: LayoutWriter, options: BuildOptions, *, update: bool, advance: Advance
) -> list[Written]:
    """Write the new layers side by side, the largest first, so that no thread is left with one at the end."""
    new = plan.new
    source.prepare([path for layer in new for path in layer.paths if source.tree[path].kind == "f"])
    sizes = [layer.archive_size(source.tree) for layer in new]
    level = options.compression.update_level if update else options.compression.level

    def write(number: int) -> Written:
        written = write_layer(
            new[number],
            source.tree,
            source,
            writer.scratch / f"layer-{number}",
            compression=options.compression,
            level=level,
            threads=options.threads if sizes[number] * options.threads > sum(sizes) else 1,
            newest=options.created,
        )
        writer.adopt(written.path, written.blob.digest)
        writer.store_table(written.blob, written.table)
        advance(sizes[number])
        return written

    order = sorted(range(len(new)), key=lambda number: -sizes[number])
    with Workers(options.threads) as workers:
        finished = dict(zip(order, workers.map(write, order), strict=True))
    return [finished[number] for number in range(len(new))]


def _assemble(plan: Plan, previous: Previous | None, written: Sequence[Written]) -> list[Layer]:
    fresh = iter(zip(plan.new, written, strict=True))
    layers = []
    for item in plan.layers:
        if isinstance(item, int):
            assert previous is not None  # noqa: S101  # for the type checker: only an update keeps layers
            kept = previous.layers[item]
            layers.append(Layer(kept.blob, kept.table, history_comment(previous.image, item), kept=True))
        else:
            new, result = next(fresh)
            layers.append(Layer(result.blob, result.table, new.name, kept=False))
    return layers


def _keep_all(previous: Previous | None, writer: LayoutWriter) -> None:
    """Take over every layer of the previous image, checked. Those that the plan drops go again."""
    if previous:
        for layer in previous.layers:
            writer.keep(previous.image, layer.blob, layer.table)


def _finish(
    writer: LayoutWriter,
    layers: Sequence[Layer],
    config: Json | None,
    source: Source,
    previous: Previous | None,
    options: BuildOptions,
) -> Json:
    """Store config and manifest, and make the image visible. Returns the manifest's descriptor."""
    created = options.created if options.created is not None else _created(config, source)
    inherited = ((config or {}).get("config") or {}).get("Labels") or {}
    labels = image_labels(
        inherited,
        options.labels,
        version=options.version,
        created=created,
        chunks=len(layers),
        prev_ref=previous.ref if previous else None,
        engine="delta",
    )
    document = image_config(
        config,
        labels=labels,
        history=[layer.comment for layer in layers],
        diff_ids=[layer.blob.diff_id for layer in layers],
        created=created,
    )
    stored = writer.store_json(document, CONFIG)
    manifest = writer.store_json(image_manifest(stored, [layer.blob for layer in layers], labels), MANIFEST)
    writer.commit(manifest)
    return manifest | {"labels": labels}


def _created(config: Json | None, source: Source) -> int:
    """When the built image says it was made, else its newest file: properties of the input, so that the same input
    gives the same image.
    """
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return int(datetime.fromisoformat((config or {})["created"]).timestamp())
    return min(NEWEST, max(0, *(entry.mtime for entry in source.tree.values())))


def _report(
    options: BuildOptions,
    previous: Previous | None,
    reason: str | None,
    plan: Plan,
    layers: Sequence[Layer],
    manifest: Json,
    dead: int,
    progress: Progress,
) -> Json:
    held = {blob.digest for blob in previous.image.layers} if previous else set()
    return {
        "ref": str(options.output),
        "digest": manifest["digest"],
        "version": manifest["labels"].get(VERSION_LABEL, ""),
        "prev_ref": previous.ref if previous else None,
        "fresh": previous is None,
        "reason": reason or "",
        "layers": {"total": len(layers), "kept": len(plan.kept), "new": len(plan.new)},
        "bytes": {
            "image": sum(layer.blob.size for layer in layers),
            "update": sum(layer.blob.size for layer in layers if layer.blob.digest not in held),
            "kept": sum(layer.blob.size for layer in layers if layer.kept),
            "live": sum(layer.blob.size for layer in layers) - dead,
            "dead": dead,
        },
        "new": [
            {"name": layer.comment, "digest": layer.blob.digest, "bytes": layer.blob.size}
            for layer in layers
            if not layer.kept
        ],
        "dropped": [
            {"layer": drop.index, "reason": drop.reason, "live": drop.live, "dead": drop.dead} for drop in plan.drops
        ],
        "seconds": {name: round(seconds, 3) for name, seconds in progress.seconds.items()},
    }


def _summary(found: Sequence[str]) -> str:
    more = f"\n  ... and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    lines = "".join(f"\n  {text}" for text in found[:SHOWN])
    return f"{len(found):,} difference{'s' if len(found) > 1 else ''}:{lines}{more}"
