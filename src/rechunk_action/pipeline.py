"""The main job, top to bottom: source, previous image, plan, layers, verification, image.

Everything with a side effect is called from here; the plan itself is pure. Nothing is visible in the output before
the merged result was compared with the source.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from rechunk_action.errors import InputError, TooLarge, VerificationFailed
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
from rechunk_action.oci.image import CONFIG, MANIFEST, Image, Json, host_architecture
from rechunk_action.oci.layer import Written, write_layer
from rechunk_action.oci.layout import LayoutWriter
from rechunk_action.oci.merge import Replay
from rechunk_action.oci.table import Blob, Table, read_table
from rechunk_action.plan.compaction import Drop
from rechunk_action.plan.plain import Plan, Published, plan_fresh, plan_update
from rechunk_action.progress import Advance, Progress
from rechunk_action.publish import RegistryWriter
from rechunk_action.registry.image import LOST
from rechunk_action.registry.previous import Decision, find_previous
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Scheme, Template, scheme_of
from rechunk_action.report.compare import Comparison, bytes_by_component, format_size
from rechunk_action.report.compare import compare as compare_layers
from rechunk_action.source import Source
from rechunk_action.source.image import ImageSource
from rechunk_action.source.names import ON_DISK, Name
from rechunk_action.source.places import Places
from rechunk_action.tree.components import components
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.release import os_release
from rechunk_action.tree.scan import Hasher
from rechunk_action.verify import differences
from rechunk_action.workers import Workers, result_of

NEWEST = 253_402_300_799
"""The last second that a timestamp can name: the end of the year 9999."""

LARGEST = 3
"""Components that explain the size of an update."""

REQUESTS = 8
"""Small requests to a registry at once."""

SHOWN = 20
"""Differences that an error lists; their number is always told."""


Writer = LayoutWriter | RegistryWriter


@dataclass(frozen=True)
class BuildOptions:
    """What `build` was asked for.

    `repository` is where published images are, None: where the output is. `tags` move to the new image. `max_overhead`
    is a share, `max_update_size` bytes (None: no limit), `created` in seconds since 1970 (None: from the source), `now`
    the time of the build.
    """

    source: Name
    output: Name
    prev_ref: Name | None
    repository: Reference | None
    tags: Sequence[str]
    fresh: bool
    max_layers: int
    max_overhead: float
    compression: Compression
    labels: Sequence[str]
    version: Template | str | None
    push: bool
    max_update_size: int | None
    config: Path | None
    created: int | None
    now: datetime
    verify: bool
    threads: int
    scratch: Path


@dataclass(frozen=True)
class Previous:
    """The image that the new one updates. `ref` names it by its digest."""

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


@dataclass(frozen=True)
class Built:
    """What a build has come to: the report that `--json` prints, and the image's manifest."""

    report: Json
    manifest: Json


def build(options: BuildOptions, places: Places, progress: Progress) -> Built:
    """Rechunk a source into an output."""
    options = _with_version_tag(options)
    with (
        _open_writer(options, places, progress) as writer,
        places.source(options.source, writer.scratch, progress) as source,
        Workers(1) as beside,
    ):
        config = load_config(options.config) if options.config else source.config
        previous, reason = _previous(options, places, config, progress)
        # Checking the previous blobs takes a processor that the walk leaves idle.
        checked = beside.submit(_keep_all, previous, writer)
        with (
            progress.phase("scan", f"read {options.source}") as advance,
            Hasher(options.threads, advance) as hasher,
        ):
            source.scan(hasher if previous else None)
            owner = components(source.tree, source.read)
            hasher.finish()
        for notice in source.notices:
            progress.notice(notice)
        version = _version(options, source)
        if previous and version:
            _check_order(previous, version, options, progress)
        limit = options.max_update_size if previous else None
        with progress.phase("plan", "plan layers"):
            plan = _plan(source.tree, owner, previous, options)
        if previous and not plan.kept:
            previous, reason = None, "nothing of the previous image can be kept"
        if reason:
            progress.decision(f"fresh layout: {reason}")
        _explain(plan, progress)
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
        size = sum(result.blob.size for result in written)
        if limit is not None and size > limit:
            raise TooLarge(_too_large(size, limit, layers, owner))
        act = "publish to" if options.output.transport == "docker" else "finish"
        with progress.phase("publish", f"{act} {options.output}", size) as advance:
            finished = _finish(writer, layers, config, source, previous, version, options, advance)
    report = _report(finished, previous, reason, plan, layers, owner, sum(merged.dead()), progress)
    return Built(report, finished.manifest)


def verify(image: Name, source: Name, places: Places, progress: Progress, *, threads: int, scratch: Path) -> Json:
    """Compare an image, merged as clients merge it, with a source. Raises `VerificationFailed` when they differ."""
    with (
        tempfile.TemporaryDirectory(prefix="rechunk-", dir=scratch) as directory,
        places.source(source, Path(directory), progress) as tree,
    ):
        with (
            progress.phase("scan", f"read {source} and {image}") as advance,
            Hasher(threads, advance) as hasher,
        ):
            tree.scan(hasher)
            read = places.image(image, (tree.config or {}).get("architecture"))
            with Workers(threads) as workers:
                tables = list(workers.map(partial(_read_layer, read), read.layers))
            hasher.finish()
        with progress.phase("verify", "compare"):
            found = differences(Replay(tables, tree.tree))
    if found:
        raise VerificationFailed(f"{image} is not {source}. " + _summary(found))
    return {"image": str(image), "digest": read.digest, "source": str(source), "paths": len(tree.tree), "equal": True}


def compare(old: Name, new: Name, places: Places, progress: Progress, *, threads: int, scratch: Path) -> Comparison:
    """What an update from one image to another costs, and what makes it up.

    That is told by component where the new image is on this disk, else by what its history says of each layer, so that
    manifests are all that is read.
    """
    was = places.image(old)
    image = places.image(new, was.architecture)
    known = {blob.digest for blob in was.layers}
    added = [blob for blob in image.layers if blob.digest not in known]
    if new.transport not in ON_DISK:
        return compare_layers(was.layers, image.layers, _bytes_by_history(image, known))
    by_component: dict[str, int] = {}
    if added:
        with (
            tempfile.TemporaryDirectory(prefix="rechunk-", dir=scratch) as directory,
            progress.phase("read", f"read {new}"),
        ):
            source = ImageSource(image, Path(directory), threads=threads, drop_bad_xattrs=True)
            source.scan(None)
            owner = components(source.tree, source.read)
        read = _with_tables(image, added, threads, progress)
        by_component = bytes_by_component([(layer.blob, layer.table) for layer in read], owner)
    return compare_layers(was.layers, image.layers, by_component)


def previous_image(
    repository: Reference, version: Template | str | None, tags: Collection[str], places: Places
) -> Decision:
    """The image that a build of this version for this repository would update, and why."""
    return find_previous(places.repository(repository), _scheme(version), tags)


def _scheme(version: Template | str | None) -> Scheme:
    return scheme_of(version) if isinstance(version, str) else version or Template(DEFAULT_TEMPLATE)


def _with_version_tag(options: BuildOptions) -> BuildOptions:
    """A tag in the name of a published image is its version."""
    if options.output.transport != "docker":
        if options.tags and options.repository is None:
            raise InputError("--tag points a tag of a registry at the image: name an OUTPUT in one, docker://...")
        return options
    reference = options.output.reference
    if reference.digest:
        raise InputError(f"{options.output} names a digest, which is only known once the image is built: leave it out")
    if reference.tag and options.version not in (None, reference.tag):
        raise InputError(f"{options.output} names another version than --version {options.version}: leave one out")
    version = options.version or reference.tag
    if isinstance(version, str):
        scheme_of(version)
    return replace(options, version=version)


def _open_writer(options: BuildOptions, places: Places, progress: Progress) -> Writer:
    if options.output.transport == "oci":
        return LayoutWriter(options.output.path, options.output.tag)
    repository = places.repository(options.output.reference)
    return RegistryWriter(repository, options.tags, push=options.push, scratch=options.scratch, notice=progress.notice)


def _previous(
    options: BuildOptions, places: Places, config: Json | None, progress: Progress
) -> tuple[Previous | None, str | None]:
    """The previous image, or the reason for a fresh one."""
    if options.fresh:
        if options.prev_ref:
            progress.notice(f"{options.prev_ref} is not used: a fresh image updates none")
        return None, "requested"
    name = options.prev_ref or _newest(options, places, progress)
    if name is None:
        return None, "first build"
    if options.prev_ref:
        progress.decision(f"previous image: {name}, as asked for")
    architecture = (config or {}).get("architecture") or host_architecture()
    image = places.image(name, architecture)
    if CHUNKED_LABEL in image.labels:
        return None, "previous image is OSTree-chunked"
    if image.architecture != architecture:
        raise InputError(
            f"the previous image {name} is for {image.architecture or 'no architecture'} and the source for "
            f"{architecture}: give --prev-ref an image of the same architecture"
        )
    with progress.phase("previous", f"read {name}"):
        layers = _with_tables(image, image.layers, options.threads, progress)
    return Previous(name.pinned(image.digest), image, layers), None


def _newest(options: BuildOptions, places: Places, progress: Progress) -> Name | None:
    """The newest version that is published, for a build that names no previous image."""
    published = options.output.transport == "docker"
    repository = options.repository or (options.output.reference if published else None)
    if repository is None:
        return None
    decision = previous_image(repository, options.version, options.tags, places)
    if decision.tag is None:
        progress.decision(f"no previous image: {decision.reason}")
        return None
    progress.decision(f"previous image: {repository.name}:{decision.tag}, {decision.reason}")
    return Name("docker", f"{repository.name}:{decision.tag}@{decision.digest}")


def _with_tables(image: Image, layers: Sequence[Blob], threads: int, progress: Progress) -> list[Published]:
    """Some layers of an image with their tables: stored ones where they are there, else read from the blobs."""
    with Workers(max(threads, REQUESTS)) as workers:
        stored = list(workers.map(image.blobs.table, layers))
    missing = [blob for blob, table in zip(layers, stored, strict=True) if table is None]
    lost = sum(table is not None and table.problem == LOST for table in stored)
    if lost:
        progress.notice(f"{image.blobs} has lost {lost} of {len(layers)} layers: what is in them is written again")
    if missing:
        size = format_size(sum(blob.size for blob in missing))
        progress.notice(
            f"{len(missing)} of {len(layers)} layers have no table stored with {image.blobs}: reading {size} for them"
        )
    with Workers(threads) as workers:
        read = workers.map(partial(_read_layer, image), missing)
        return [Published(blob, table or next(read)) for blob, table in zip(layers, stored, strict=True)]


def _read_layer(image: Image, blob: Blob) -> Table:
    with image.open(blob) as file:
        return read_table(file, blob, limit=bomb_limit(blob.size))


def _bytes_by_history(image: Image, known: Collection[str]) -> dict[str, int]:
    """Bytes of the layers that are not known by what the image's history says of them, the largest first."""
    found: Counter[str] = Counter()
    for index, blob in enumerate(image.layers):
        if blob.digest not in known:
            found[history_comment(image, index) or f"layer {index + 1}"] += blob.size
    return dict(found.most_common())


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


def _explain(plan: Plan, progress: Progress) -> None:
    progress.detail(f"{len(plan.kept)} layers kept, {len(plan.new)} new")
    for drop in plan.drops:
        progress.detail(f"layer {drop.index} dropped: {drop.reason} ({drop.live:,} bytes live, {drop.dead:,} dead)")
    for new in plan.new:
        progress.detail(f"new layer: {new.name} ({len(new.paths):,} files, {len(new.whiteouts):,} removals)")


def _write(
    plan: Plan, source: Source, writer: Writer, options: BuildOptions, *, update: bool, advance: Advance
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


def _keep_all(previous: Previous | None, writer: Writer) -> None:
    """Take over every layer of the previous image, checked. Those that the plan drops go again."""
    if previous:
        for layer in previous.layers:
            writer.keep(previous.image, layer.blob, layer.table)


@dataclass(frozen=True)
class Finished:
    """An image that is there for all to see."""

    ref: str
    digest: str
    version: str
    manifest: Json


def _finish(
    writer: Writer,
    layers: Sequence[Layer],
    config: Json | None,
    source: Source,
    previous: Previous | None,
    version: str | None,
    options: BuildOptions,
    advance: Advance,
) -> Finished:
    """Upload what is new, store config and manifest, and make the image visible.

    The version is settled last, when all else is there: another run may publish at the same time.
    """
    created = options.created if options.created is not None else _created(config, source)
    inherited = ((config or {}).get("config") or {}).get("Labels") or {}
    blobs = [layer.blob for layer in layers]
    tables = writer.upload(blobs, advance)
    while True:
        settled = writer.settle(version)
        labels = image_labels(
            inherited,
            options.labels,
            version=settled,
            created=created,
            chunks=len(layers),
            prev_ref=previous.ref if previous else None,
            engine="delta",
            tables=tables,
        )
        document = image_config(
            config,
            labels=labels,
            history=[layer.comment for layer in layers],
            diff_ids=[blob.diff_id for blob in blobs],
            created=created,
        )
        stored = writer.store_json(document, CONFIG)
        manifest = image_manifest(stored, blobs, labels)
        descriptor = writer.store_json(manifest, MANIFEST)
        ref = writer.commit(descriptor, settled)
        if ref is not None:
            return Finished(ref, descriptor["digest"], labels.get(VERSION_LABEL, ""), manifest)


def _check_order(previous: Previous, version: str, options: BuildOptions, progress: Progress) -> None:
    """Tell a maintainer who publishes two streams of versions in one repository that each takes the other's image."""
    newest = previous.ref.partition("@")[0].rpartition(":")[2]
    scheme = _scheme(options.version)
    was, is_ = scheme.key(newest), scheme.key(version)
    if was and is_ and was > is_:
        progress.notice(
            f"version {version} is older than {newest}, which it is an update of: where these are two streams of "
            "versions, give each a repository of its own, or name the previous image"
        )


def _version(options: BuildOptions, source: Source) -> str | None:
    """The version that the image is to have, if it is free."""
    version = options.version
    if version is None and options.output.transport == "docker":
        version = Template(DEFAULT_TEMPLATE)
    if isinstance(version, Template):
        version = version.render(os_release(source.tree, source.read), options.now)
    return version


def _created(config: Json | None, source: Source) -> int:
    """When the built image says it was made, else its newest file: properties of the input, so that the same input
    gives the same image.
    """
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return int(datetime.fromisoformat((config or {})["created"]).timestamp())
    return min(NEWEST, max(0, *(entry.mtime for entry in source.tree.values())))


def _report(
    finished: Finished,
    previous: Previous | None,
    reason: str | None,
    plan: Plan,
    layers: Sequence[Layer],
    owner: Mapping[str, str],
    dead: int,
    progress: Progress,
) -> Json:
    held = {blob.digest for blob in previous.image.layers} if previous else set()
    return {
        "ref": finished.ref,
        "digest": finished.digest,
        "version": finished.version,
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
        "components": bytes_by_component(((layer.blob, layer.table) for layer in layers if not layer.kept), owner),
        "dropped": [
            {"layer": drop.index, "reason": drop.reason, "live": drop.live, "dead": drop.dead} for drop in plan.drops
        ],
        "seconds": {name: round(seconds, 3) for name, seconds in progress.seconds.items()},
    }


def _too_large(size: int, limit: int, layers: Sequence[Layer], owner: Mapping[str, str]) -> str:
    new = [(layer.blob, layer.table) for layer in layers if not layer.kept]
    largest = list(bytes_by_component(new, owner).items())[:LARGEST]
    return (
        f"this update costs users {format_size(size)}, and {format_size(limit)} are allowed; the most of it is "
        f"{', '.join(f'{name} ({format_size(part)})' for name, part in largest)}: "
        "raise --max-update-size, or build without that change"
    )


def _summary(found: Sequence[str]) -> str:
    more = f"\n  ... and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    lines = "".join(f"\n  {text}" for text in found[:SHOWN])
    return f"{len(found):,} difference{'s' if len(found) > 1 else ''}:{lines}{more}"
