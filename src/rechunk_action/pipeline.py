"""The main job, top to bottom: source, previous image, layers, image.

Everything with a side effect is called from here or from the engine that makes the layers. Nothing is visible in the
output before the engine has compared the merged result with the source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from rechunk_action.engines.delta import delta
from rechunk_action.engines.hhd import check as check_hhd
from rechunk_action.engines.hhd import hhd
from rechunk_action.errors import Cancelled, CorruptImage, InputError, RegistryError, TooLarge
from rechunk_action.history import published
from rechunk_action.job import BuildOptions, Engine, Format, Job, Made, Previous, Writer
from rechunk_action.oci.config import (
    CHUNKED_LABEL,
    VERSION_LABEL,
    image_config,
    image_labels,
    image_manifest,
    load_config,
    name_of,
    timestamp,
)
from rechunk_action.oci.image import CONFIG, MANIFEST, Image, Json, digest_of, host_architecture
from rechunk_action.oci.layout import LayoutWriter
from rechunk_action.progress import Meter, Progress
from rechunk_action.publish import RegistryWriter
from rechunk_action.record import LABEL, LayerRecord, Record, encode_record, facts
from rechunk_action.registry.image import RegistryBlobs
from rechunk_action.registry.previous import Decision, find_previous
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.tables import NOTHING
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Scheme, Template, scheme_of
from rechunk_action.report import model
from rechunk_action.report.size import format_size
from rechunk_action.report.words import shown
from rechunk_action.source.names import Name
from rechunk_action.source.places import Places

ENGINES: Mapping[str, Engine] = {"delta": delta, "hhd": hhd}

LARGEST = 3
"""Components that explain why an update is too large."""

OLDER = 10
"""Published versions that a report looks back on."""


@dataclass(frozen=True)
class Built:
    """What a build has come to: the report that `--json` prints, and the image's manifest."""

    report: model.Build
    manifest: Json

    def cancelled(self) -> Cancelled:
        """What to raise when a request to stop comes while it is told."""
        what = f"{self.report.ref} is there" if self.report.published else "nothing was published"
        return Cancelled(f"cancelled when the image was complete: {what}")


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
            source.recheck(options.threads)
            for notice in source.notices:
                progress.notice(notice)
            _check_size(made, job)
            older = _older(job, places)
            act = "publish to" if options.output.transport == "docker" and options.push else "finish"
            act = f"sign and {act}" if options.sign_key and options.push else act
            with progress.phase("publish", f"{act} {options.output}") as meter:
                finished = _finish(job, made, meter)
    return Built(_report(finished, made, older, job), finished.manifest)


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
        if options.sign_key:
            raise InputError(f"--sign-key signs what is published in a registry, and {options.output} is in none")
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
        return LayoutWriter(options.output.path, options.output.tag, progress.notice)
    repository = places.repository(options.output.reference)
    return RegistryWriter(
        repository,
        options.tags,
        push=options.push,
        sign_key=options.sign_key,
        scratch=options.scratch,
        notice=progress.notice,
    )


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
    architecture = _architecture(config)
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
    _believe_signed(image, options, progress)
    known = facts(image, name.pinned(image.digest), _version_of(name, image, options))
    return Previous(image, known), "", format_


def _believe_signed(image: Image, options: BuildOptions, progress: Progress) -> None:
    """Give up what is stored beside a previous image that the key of the new one has not signed.

    The layers that are kept are known by that, so a signature would vouch for what anybody has written to the registry.
    """
    key, blobs = options.sign_key, image.blobs
    if key is None or options.engine != "delta" or not isinstance(blobs, RegistryBlobs):
        return
    from rechunk_action.registry.signature import is_signed  # noqa: PLC0415  # takes 0.03 s to load

    if not is_signed(blobs.repository, image.digest, key.public_key()):
        blobs.beside = NOTHING
        progress.notice(
            f"{blobs}@{image.digest} is not signed by this key, so nothing that is stored beside it is believed: its "
            "layers are read"
        )


def _version_of(previous: Name, image: Image, options: BuildOptions) -> str:
    """The version of the previous image: the tag by which it was found, or what the image that was named says."""
    tag = previous.reference.tag if previous.transport == "docker" else None
    return (options.prev_ref and image.labels.get(VERSION_LABEL)) or tag or ""


def _architecture(config: Json | None) -> str:
    """That of the source, this machine's where it tells none."""
    return (config or {}).get("architecture") or host_architecture()


def _asked(options: BuildOptions) -> Format | None:
    """The format that was asked for, None where that of the previous image is to stay."""
    return None if options.format == "auto" else options.format


def _newest(options: BuildOptions, places: Places, progress: Progress) -> Name | None:
    """The newest version that is published, for a build that names no previous image."""
    repository = _repository(options)
    if repository is None:
        return None
    decision = previous_image(repository, options.version, options.tags, places)
    if decision.tag is None:
        progress.decision(f"no previous image: {decision.reason}")
        return None
    progress.decision(f"previous image: {repository.name}:{decision.tag}, {decision.reason}")
    return Name("docker", f"{repository.name}:{decision.tag}@{decision.digest}")


def _repository(options: BuildOptions) -> Reference | None:
    """Where the versions before this one are published."""
    return options.repository or (options.output.reference if options.output.transport == "docker" else None)


def _older(job: Job, places: Places) -> list[model.Facts]:
    """The newest published versions, the oldest first. They are there for the report: that they cannot be read is no
    reason to fail.
    """
    options, progress, reference = job.options, job.progress, _repository(job.options)
    if reference is None:
        return []
    with progress.phase("history", f"read the versions in {reference.name}"):
        try:
            return published(
                places.repository(reference),
                _scheme(options.version),
                last=OLDER,
                moving=options.tags,
                architecture=_architecture(job.config),
                notice=progress.detail,
            )
        except (InputError, RegistryError) as fault:
            progress.notice(f"the report tells nothing of older versions: {fault}")
            return []


@dataclass(frozen=True)
class Finished:
    """An image that is there for all to see."""

    ref: str
    digest: str
    version: str
    created: str
    manifest: Json


def _finish(job: Job, made: Made, meter: Meter) -> Finished:
    """Upload what is new, store config and manifest, and make the image visible.

    The version is settled last, when all else is there: another run may publish at the same time.
    """
    options, writer = job.options, job.writer
    created = job.created()
    blobs = [layer.blob for layer in made.layers]
    record = encode_record(
        Record(packages=made.packages, layers=[LayerRecord(layer.components, layer.dead) for layer in made.layers])
    )
    beside = {**writer.upload(blobs, record, meter), LABEL: digest_of(record)}
    while True:
        settled = writer.settle(made.version)
        _check_order(made, settled, job)
        labels = image_labels(
            job.labels,
            [made.filled.get(label, label) for label in options.labels],
            version=settled,
            created=created,
            chunks=len(blobs),
            prev_ref=made.previous.ref if made.previous else None,
            engine=options.engine,
            own={**made.labels, **beside},
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
            version = labels.get(VERSION_LABEL, "")
            return Finished(ref, descriptor["digest"], version, document["created"], manifest)


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
    limit = job.options.max_update_size
    if job.previous is None or limit is None:
        return
    update = _update(made, _facts(_unmade(job, made), made, job.options.engine))
    size = update.bytes
    if size <= limit:
        return
    if made.previous is None:
        raise TooLarge(
            f"a fresh image ({made.reason}) costs users {format_size(size)}, and {format_size(limit)} are allowed: "
            "build with --fresh once, if that is what it takes, or raise --max-update-size",
            update,
            limit,
        )
    most = [f"{shown(model.label_of(line.name))} ({format_size(line.bytes)})" for line in update.components[:LARGEST]]
    raise TooLarge(
        f"this update costs users {format_size(size)}, and {format_size(limit)} are allowed; the most of it is "
        f"{', '.join(most)}: "
        "raise --max-update-size, or build without that change",
        update,
        limit,
    )


def _unmade(job: Job, made: Made) -> Finished:
    """What an image would have been called."""
    output, version = job.options.output, made.version or ""
    ref = f"{output.reference.name}{version and f':{version}'}" if output.transport == "docker" else str(output)
    return Finished(ref, "", version, timestamp(job.created()), {})


def _report(finished: Finished, made: Made, older: Sequence[model.Facts], job: Job) -> model.Build:
    options, layers = job.options, made.layers
    new, repository = _facts(finished, made, options.engine), _repository(options)
    update = _update(made, new)
    size = sum(layer.blob.size for layer in layers)
    kept = [layer for layer in layers if layer.kept]
    dead = sum(layer.dead for layer in layers)
    return model.Build(
        schema=model.SCHEMA,
        ref=finished.ref,
        digest=finished.digest,
        version=finished.version,
        prev_ref=made.previous.ref if made.previous else None,
        fresh=made.previous is None,
        published=options.push or options.output.transport == "oci",
        reason=made.reason,
        layers=model.Layers(total=len(layers), kept=len(kept), new=len(layers) - len(kept)),
        bytes=model.Bytes(
            image=size,
            update=update.bytes,
            kept=sum(layer.blob.size for layer in kept),
            live=size - dead,
            dead=dead,
        ),
        budget=model.Budget(overhead=options.max_overhead, layers=options.max_layers, update=options.max_update_size),
        update=update,
        history=model.history(repository.name, [*older, new], scheme=str(_scheme(options.version)))
        if repository and older
        else None,
        dropped=[
            model.Dropped(layer=drop.index, reason=drop.reason, live=drop.live, dead=drop.dead) for drop in made.drops
        ],
        findings=made.findings,
        changelog=made.changelog,
        seconds={name: round(seconds, 3) for name, seconds in job.progress.seconds.items()},
        disk=made.disk,
    )


def _update(made: Made, new: model.Facts) -> model.Update:
    return model.update(made.previous.facts if made.previous else None, new)


def _facts(finished: Finished, made: Made, engine: str) -> model.Facts:
    """What is known of the new image, as `record.facts` will know it."""
    return model.Facts(
        ref=finished.ref,
        digest=finished.digest,
        version=finished.version,
        created=finished.created,
        engine=engine,
        layers=[
            model.LayerFacts(
                digest=layer.blob.digest,
                bytes=layer.blob.size,
                name=name_of(layer.annotations, layer.comment),
                components=layer.components,
                dead=layer.dead,
            )
            for layer in made.layers
        ],
        packages=made.packages,
    )
