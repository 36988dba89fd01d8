"""The main job, top to bottom: source, previous image, layers, image.

Everything with a side effect is called from here or from the engine that makes the layers. Nothing is visible in the
output before the engine has compared the merged result with the source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from rechunk_action.engines.delta import delta
from rechunk_action.engines.hhd import check as check_hhd
from rechunk_action.engines.hhd import hhd
from rechunk_action.errors import CorruptImage, InputError, TooLarge
from rechunk_action.job import BuildOptions, Engine, Format, Job, Made, Previous, Writer
from rechunk_action.oci.config import (
    CHUNKED_LABEL,
    VERSION_LABEL,
    image_config,
    image_labels,
    image_manifest,
    load_config,
)
from rechunk_action.oci.image import CONFIG, MANIFEST, Json, host_architecture
from rechunk_action.oci.layout import LayoutWriter
from rechunk_action.progress import Advance, Progress
from rechunk_action.publish import RegistryWriter
from rechunk_action.registry.previous import Decision, find_previous
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Scheme, Template, scheme_of
from rechunk_action.report.compare import format_size
from rechunk_action.source.names import Name
from rechunk_action.source.places import Places

ENGINES: Mapping[str, Engine] = {"delta": delta, "hhd": hhd}

LARGEST = 3
"""Components that explain the size of an update."""


@dataclass(frozen=True)
class Built:
    """What a build has come to: the report that `--json` prints, the image's manifest, and a changelog, where the
    engine wrote one.
    """

    report: Json
    manifest: Json
    changelog: str | None


def build(options: BuildOptions, places: Places, progress: Progress) -> Built:
    """Rechunk a source into an output."""
    options = _with_version_tag(options)
    if options.engine == "hhd":
        check_hhd(options.hhd, places.environment)
    with (
        _open_writer(options, places, progress) as writer,
        places.source(options.source, writer.scratch, progress) as source,
    ):
        config = load_config(options.config) if options.config else source.config
        previous, reason, format_ = _previous(options, places, config, progress)
        job = Job(options, source, config, previous, reason, format_, writer, places.environment, progress)
        with ENGINES[options.engine](job) as made:
            for notice in source.notices:
                progress.notice(notice)
            _check_size(made, job)
            act = "publish to" if options.output.transport == "docker" else "finish"
            with progress.phase("publish", f"{act} {options.output}", _update_size(made)) as advance:
                finished = _finish(job, made, advance)
    return Built(_report(finished, made, progress), finished.manifest, made.changelog)


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
) -> tuple[Previous | None, str, Format]:
    """The previous image, or the reason for a fresh one, and the format of the new one.

    A fresh image updates none, but it has the format of the one that users have, unless another is asked for.
    """
    if options.fresh and (options.engine != "delta" or options.format != "auto"):
        return None, "requested", _asked(options) or "plain"
    name = options.prev_ref or _newest(options, places, progress)
    if name is None:
        return None, "requested" if options.fresh else "first build", _asked(options) or "plain"
    if options.prev_ref:
        progress.decision(f"previous image: {name}, as asked for")
    architecture = (config or {}).get("architecture") or host_architecture()
    try:
        image = places.image(name, architecture)
    except CorruptImage as error:
        if not options.fresh:
            raise
        raise InputError(
            f"the format of {name} is not known ({error}): say with --format which one the fresh image gets"
        ) from None
    was: Format = "ostree" if CHUNKED_LABEL in image.labels else "plain"
    if options.fresh:
        return None, "requested", was
    if image.architecture != architecture:
        raise InputError(
            f"the previous image {name} is for {image.architecture or 'no architecture'} and the source for "
            f"{architecture}: give --prev-ref an image of the same architecture"
        )
    format_ = _asked(options) or was
    if options.engine == "delta" and format_ != was:
        progress.notice(
            f"the format changes from {was} to {format_}: every user downloads the whole image once (the previous one "
            f"has {format_size(sum(blob.size for blob in image.layers))}), and needs a client that takes it "
            "(docs/formats.md)"
        )
        return None, f"the format changes from {was} to {format_}", format_
    return Previous(name.pinned(image.digest), image), "", format_


def _asked(options: BuildOptions) -> Format | None:
    """The format that was asked for, None where that of the previous image is to stay."""
    return None if options.format == "auto" else options.format


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


@dataclass(frozen=True)
class Finished:
    """An image that is there for all to see."""

    ref: str
    digest: str
    version: str
    manifest: Json


def _finish(job: Job, made: Made, advance: Advance) -> Finished:
    """Upload what is new, store config and manifest, and make the image visible.

    The version is settled last, when all else is there: another run may publish at the same time.
    """
    options, writer = job.options, job.writer
    created = job.created()
    inherited = ((job.config or {}).get("config") or {}).get("Labels") or {}
    blobs = [layer.blob for layer in made.layers]
    tables = writer.upload(blobs, advance)
    while True:
        settled = writer.settle(made.version)
        _check_order(made, settled, job)
        labels = image_labels(
            inherited,
            [made.filled.get(label, label) for label in options.labels],
            version=settled,
            created=created,
            chunks=len(blobs),
            prev_ref=made.previous.ref if made.previous else None,
            engine=options.engine,
            own={**made.labels, **tables},
        )
        document = image_config(
            job.config,
            labels=labels,
            history=[layer.comment for layer in made.layers],
            diff_ids=[blob.diff_id for blob in blobs],
            created=created,
        )
        stored = writer.store_json(document, CONFIG)
        manifest = image_manifest(stored, [(layer.blob, layer.annotations) for layer in made.layers], labels)
        descriptor = writer.store_json(manifest, MANIFEST)
        ref = writer.commit(descriptor, settled)
        if ref is not None:
            return Finished(ref, descriptor["digest"], labels.get(VERSION_LABEL, ""), manifest)


def _check_order(made: Made, version: str | None, job: Job) -> None:
    """Tell a maintainer who publishes two streams of versions in one repository that each takes the other's image."""
    if made.previous is None or version is None:
        return
    newest = made.previous.ref.partition("@")[0].rpartition(":")[2]
    scheme = _scheme(job.options.version)
    was, is_ = scheme.key(newest), scheme.key(version)
    if was and is_ and was > is_:
        job.progress.notice(
            f"version {version} is older than {newest}, which it is an update of: where these are two streams of "
            "versions, give each a repository of its own, or name the previous image"
        )


def _check_size(made: Made, job: Job) -> None:
    """Raises `TooLarge` for an update that costs users more than they should pay. A fresh image may, if it was asked
    for: one that merely came out so costs those who have the previous image as much.
    """
    size, limit = _update_size(made), job.options.max_update_size
    if job.previous is None or limit is None or size <= limit:
        return
    if made.previous is None:
        raise TooLarge(
            f"a fresh image ({made.reason}) costs users {format_size(size)}, and {format_size(limit)} are allowed: "
            "build with --fresh once, if that is what it takes, or raise --max-update-size"
        )
    largest = list(made.components.items())[:LARGEST]
    raise TooLarge(
        f"this update costs users {format_size(size)}, and {format_size(limit)} are allowed; the most of it is "
        f"{', '.join(f'{name} ({format_size(part)})' for name, part in largest)}: "
        "raise --max-update-size, or build without that change"
    )


def _update_size(made: Made) -> int:
    """Bytes of the layers that the previous image does not have; of all layers, where there is none."""
    held = made.previous.image.digests if made.previous else set()
    return sum(layer.blob.size for layer in made.layers if layer.blob.digest not in held)


def _report(finished: Finished, made: Made, progress: Progress) -> Json:
    previous, layers = made.previous, made.layers
    image = sum(layer.blob.size for layer in layers)
    kept = [layer for layer in layers if layer.kept]
    return {
        "ref": finished.ref,
        "digest": finished.digest,
        "version": finished.version,
        "prev_ref": previous.ref if previous else None,
        "fresh": previous is None,
        "reason": made.reason,
        "layers": {"total": len(layers), "kept": len(kept), "new": len(layers) - len(kept)},
        "bytes": {
            "image": image,
            "update": _update_size(made),
            "kept": sum(layer.blob.size for layer in kept),
            "live": image - made.dead,
            "dead": made.dead,
        },
        "new": [
            {"name": layer.comment, "digest": layer.blob.digest, "bytes": layer.blob.size}
            for layer in layers
            if not layer.kept
        ],
        "components": made.components,
        "dropped": [
            {"layer": drop.index, "reason": drop.reason, "live": drop.live, "dead": drop.dead} for drop in made.drops
        ],
        "changelog": made.changelog,
        "seconds": {name: round(seconds, 3) for name, seconds in progress.seconds.items()},
        "disk": made.disk,
    }
