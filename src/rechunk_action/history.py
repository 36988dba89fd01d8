"""What the users of an image have been downloading: the versions that a repository or a layout has, one by one.

Any image will do, whoever made it: manifests tell what an update costs. No layer is read for that, and how many
requests there are depends on the versions that are asked for, not on what else is tagged.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rechunk_action.errors import CorruptImage, InputError, NotInRegistry
from rechunk_action.estimates import look_deeper
from rechunk_action.oci.image import INDEXES, Image, Index, host_architecture, parse
from rechunk_action.oci.layout import layout_tags
from rechunk_action.progress import Progress
from rechunk_action.record import facts
from rechunk_action.registry.client import Repository
from rechunk_action.registry.image import published_image
from rechunk_action.registry.versions import Scheme, Stream, Template, scheme_of, streams
from rechunk_action.report import model
from rechunk_action.report.model import Facts, History
from rechunk_action.report.words import shown
from rechunk_action.source.names import Name
from rechunk_action.source.places import Places
from rechunk_action.stored import REQUESTS
from rechunk_action.workers import Workers

Notice = Callable[[str], None]

FEWEST = 2
"""Versions that a history takes."""


def published(
    repository: Repository,
    scheme: Scheme,
    *,
    last: int,
    moving: Collection[str] = (),
    architecture: str,
    notice: Notice,
) -> list[Facts]:
    """The newest versions in a repository, so many (at least 1), the oldest first.

    `moving` are tags that go from version to version, and so are none. Several tags of one image are one version, by
    the newest of them. What is gone meanwhile, is damaged or for another architecture is left out, and `notice` is told
    of it. Raises `RegistryError` when the registry cannot tell.
    """

    def read(tag: str) -> _Version:
        image = published_image(repository, tag, architecture)
        return _Version(facts(image, f"{repository}:{tag}", tag), image)

    tags = scheme.ordered(tag for tag in repository.tags() if tag not in moving)
    return [version.facts for version in _newest(tags, read, last, architecture, notice)]


def history(
    name: Name,
    version: Template | str | None,
    places: Places,
    progress: Progress,
    *,
    last: int,
    deep: bool,
    threads: int,
    scratch: Path,
) -> History:
    """The history of the `last` newest versions in a repository or layout, a name without a tag.

    `version` tells which tags are versions; None: those of the stream that has the most. They are of this machine's
    architecture, or of the one that there is. `deep` is whether layers are read that have no table stored.

    Raises `InputError` when there are no two versions, `RegistryError` when a registry cannot tell.
    """
    if name.tag or (name.transport == "docker" and (name.reference.tag or name.reference.digest)):
        raise InputError(f"{name} names one image, and a history is of all: leave out the tag")
    with progress.phase("versions", f"read the versions of {name}"):
        tags, scheme = _versions(name, version, places, progress)
        wanted = _architecture(_tagged(name, tags[-1]), places)

        def read(tag: str) -> _Version:
            tagged = _tagged(name, tag)
            image = places.image(tagged, wanted)
            return _Version(facts(image, str(tagged).removeprefix("docker://"), tag), image)

        versions = _newest(tags, read, last, None, progress.notice)
    if len(versions) < FEWEST:
        raise InputError(
            f"{name}: of {len(tags):,} versions, {len(versions)} could be read, and a history takes {FEWEST}: "
            "choose others with --version"
        )
    with tempfile.TemporaryDirectory(prefix="rechunk-", dir=scratch) as directory:
        known, estimates = look_deeper(versions, progress, deep=deep, threads=threads, scratch=Path(directory))
    return model.history(str(name).removeprefix("docker://"), known, scheme=scheme, estimates=estimates)


class _Version(NamedTuple):
    """An image that is there, and what is known of it."""

    facts: Facts
    image: Image


def _newest(
    tags: Sequence[str], read: Callable[[str], _Version], last: int, architecture: str | None, notice: Notice
) -> list[_Version]:
    """The newest versions, the oldest first. `tags` are in that order, too; no more of them are read than it takes.

    `architecture` None is that of the newest.
    """

    def attempt(tag: str) -> _Version | str:
        """A version, or what is the matter with it."""
        try:
            return read(tag)
        except (InputError, NotInRegistry) as error:
            return str(error)

    found: dict[str, _Version] = {}
    left = list(tags)
    with Workers(REQUESTS) as workers:
        while left and len(found) < last:
            some = [left.pop() for _ in range(min(len(left), last - len(found)))]
            for tag, version in zip(some, workers.map(attempt, some), strict=True):
                if isinstance(version, str):
                    notice(f"version {shown(tag)} is left out: {version}")
                    continue
                other = version.image.architecture
                architecture = architecture or other
                if other in ("", architecture):
                    found.setdefault(version.image.digest, version)
                else:
                    why = f"it is for {shown(other)}, and not for {shown(architecture)}"
                    notice(f"version {shown(tag)} is left out: {why}")
    return list(found.values())[::-1]


def _versions(name: Name, version: Template | str | None, places: Places, progress: Progress) -> tuple[list[str], str]:
    """The tags that are versions, the oldest first, and what they are like. Raises `InputError` for less than two."""
    layout = name.transport == "oci"
    tags = layout_tags(name.path) if layout else places.repository(name.reference).tags()
    kinds = streams(tags)
    if version is None:
        chosen, others = (kinds[0] if kinds else None), kinds[1:]
    else:
        scheme = scheme_of(version) if isinstance(version, str) else version
        chosen, others = Stream(scheme, scheme.ordered(tags)), []
    if chosen and len(chosen.tags) >= FEWEST:
        more = f"; --version chooses others: {_listed(others)}" if others else ""
        progress.decision(f"versions: {len(chosen.tags):,} tags like {chosen.scheme}{more}")
        return list(chosen.tags), str(chosen.scheme)
    if version is None and layout and len(tags) >= FEWEST:
        progress.decision(f"versions: all {len(tags)} tags")
        return sorted(tags, key=_natural), ""
    if not tags:
        raise InputError(f"{name} has no tags, or is not there: look at the name")
    like = "" if version is None else f" like {version}"
    raise InputError(
        f"{name} has fewer than {FEWEST} versions{like}, and there is nothing to compare: look at the name, "
        f"or choose versions with --version ({_listed(kinds) or 'none of its tags has a number'})"
    )


def _listed(kinds: Sequence[Stream]) -> str:
    """Streams by their newest versions, with the number of their tags."""
    listed = [f"{stream.tags[-1]} ({len(stream.tags):,})" for stream in kinds[:_LISTED]]
    return ", ".join([*listed, f"{len(kinds) - _LISTED:,} more kinds"] if kinds[_LISTED:] else listed)


_LISTED = 5


def _natural(tag: str) -> list[tuple[int, str]]:
    """What to order any tags by: text as text, and numbers, which are every other part, as numbers of any length."""
    return [(index % 2 * len(part), part) for index, part in enumerate(re.split("0*([0-9]+)", tag))]


def _tagged(name: Name, tag: str) -> Name:
    """An image of a repository or layout."""
    return Name("docker", f"{name.reference.name}:{tag}") if name.transport == "docker" else replace(name, tag=tag)


def _architecture(name: Name, places: Places) -> str:
    """That of this machine, unless an index in a registry has no image for it: then the first that has one there."""
    host = host_architecture()
    if name.transport != "docker":
        return host
    try:
        manifest = places.repository(name.reference).manifest(name.reference.tag or "")
        if manifest is None or manifest.media_type not in INDEXES:
            return host
        entries = parse(manifest.data, str(name), Index).get("manifests") or []
    except CorruptImage:  # which is told when it is read as a version
        return host
    offered = {str((entry.get("platform") or {}).get("architecture")) for entry in entries}
    return host if host in offered else min(offered, default=host)
