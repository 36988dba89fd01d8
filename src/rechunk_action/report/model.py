"""What an update costs and what makes it up, for one update and for all versions of an image: the one model that every
view shows, and that `--json` prints.

`Facts` go in: what a manifest says of an image, and what was kept beside it when it was built. Pure; nothing is read
here. What is not known is None, never 0. Sizes are bytes as they are downloaded, compressed.

A client knows a layer by its digest, and downloads those that it does not have. So a version costs whoever comes from
an older one the layers that the older one lacks, whatever lies between the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from rechunk_action.plan.grouping import UNCLAIMED
from rechunk_action.tree.lint import Finding

SCHEMA = 1
"""Version of the documents. It changes when a field goes or changes its meaning; new fields do not change it."""

LARGEST = 5
"""Components that explain a version in a history."""

KINDS = ("rpm", "dpkg", "alpm", "xattr", "file", "meta")
"""What a component can be named after; the first three are packages."""


class LayerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of an image.

    `name` says what is in it, for people. `components` are its bytes by what they belong to, empty where that is not
    known; `dead` are those that no client sees any more.
    """

    digest: str
    bytes: int
    name: str = ""
    components: Mapping[str, int] = {}
    dead: int | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image. `created` is RFC 3339, `""` where the image does not say. `engine` is the one of ours
    that made it, `""` for any other tool.

    `packages` are versions by component (`rpm:bash.x86_64`), several of one package joined with commas.
    """

    ref: str
    digest: str
    version: str = ""
    created: str = ""
    engine: str = ""
    layers: Sequence[LayerFacts] = ()
    packages: Mapping[str, str] | None = None


class Sum(msgspec.Struct, frozen=True):
    """Some layers together."""

    layers: int
    bytes: int


class ImageLine(msgspec.Struct, frozen=True, kw_only=True):
    """An image in short. `dead` is None where no layer tells."""

    ref: str
    digest: str
    version: str
    created: str
    engine: str
    layers: int
    bytes: int
    dead: int | None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.version or self.ref


class ComponentLine(msgspec.Struct, frozen=True, kw_only=True):
    """What of an update belongs to one component. `old` and `new` are versions of a package; None where there is none,
    or none is known.
    """

    name: str
    bytes: int
    old: str | None = None
    new: str | None = None


class PackageLine(msgspec.Struct, frozen=True, kw_only=True):
    """A package that is another, new (`old` is None) or gone (`new` is None)."""

    name: str
    old: str | None
    new: str | None


class LayerLine(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of an update. Removed ones are the old image's; the others are in the new image's order."""

    state: Literal["kept", "new", "removed"]
    digest: str
    bytes: int
    name: str
    dead: int | None


class Skip(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest version costs those who have this one. `behind` counts versions."""

    version: str
    behind: int
    bytes: int


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """An update from one image to another; `old` is None for who has none, or for an image that updates none.

    `bytes` is what it costs. `total`, `removed` and `added` are as clients count them: layers by digest, each once,
    but the total size has a repeated one again. `components` are those of the added layers, the largest first, by the
    layers' names where nothing better is known; their bytes add up to `bytes`. `packages` is None where those of one of
    the images are not known.
    """

    old: ImageLine | None
    new: ImageLine
    bytes: int
    total: Sum
    removed: Sum
    added: Sum
    components: Sequence[ComponentLine]
    packages: Sequence[PackageLine] | None
    layers: Sequence[LayerLine]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What can be told of a version whose files are known. `changed` are the bytes of contents that the version before
    lacks, each once; `delta` is what delta layering would have cost, `delta_image` the size of its image.
    """

    changed: int
    delta: int
    delta_image: int


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A version in a history. `update` is what it costs those who have the version before it, None for the first;
    `kept` and `new` count layers. `largest` says what the most of it is.
    """

    image: ImageLine
    update: int | None
    kept: int
    new: int
    largest: Sequence[ComponentLine]
    estimate: Estimate | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """All updates of a history together: what they cost who takes each of them, and what whole images would have.

    `changed` and `delta` are None unless they are known of each update.
    """

    updates: int
    bytes: int
    images: int
    changed: int | None
    delta: int | None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The versions of an image, the oldest first. `scheme` says which tags were taken for versions, `""` where nothing
    had to be chosen. `skips` leads from each older version to the newest, the newest of them first. `last` is the last
    update.
    """

    name: str
    scheme: str
    versions: Sequence[VersionLine]
    skips: Sequence[Skip]
    totals: Totals
    last: Update

    @property
    def layered(self) -> bool:
        """Whether delta layering made all updates: an estimate of what it would have cost tells nothing new."""
        return all(line.image.engine == "delta" and line.kept for line in self.versions[1:])


class Layers(msgspec.Struct, frozen=True):
    """Layers of an image that was built."""

    total: int
    kept: int
    new: int


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Of an image that was built: all layers, those that the previous image lacks, those that were kept, and what of
    all clients see (`live`) and do not see any more (`dead`).
    """

    image: int
    update: int
    kept: int
    live: int
    dead: int


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What an image may hold: superseded bytes as a share of the live ones, and layers (None: what the engine takes).
    `update` is what an update may cost, in bytes, None for no limit.
    """

    overhead: float
    layers: int | None
    update: int | None


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of the previous image, by its index there, that was not kept."""

    layer: int
    reason: str
    live: int
    dead: int


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """A build: the image that it made, and what that costs.

    `published` is whether the image is there for all to see; without, `ref` is what it would have been called. `reason`
    is that for a fresh image. `history` has the versions before it, None where there are none to be found. `seconds`
    are those of each phase, `disk` the bytes that each took of the disk at its peak, where that was looked at.
    `findings` are what may keep systems from booting the image. `changelog` is a text of the engine's.
    """

    schema: int
    ref: str
    digest: str
    version: str
    prev_ref: str | None
    fresh: bool
    published: bool
    reason: str
    layers: Layers
    bytes: Bytes
    budget: Budget
    update: Update
    history: History | None
    dropped: Sequence[Dropped]
    findings: Sequence[Finding]
    changelog: str | None
    seconds: Mapping[str, float]
    disk: Mapping[str, int]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What `compare --json` prints."""

    schema: int
    update: Update


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What `history --json` prints."""

    schema: int
    history: History


def update(old: Facts | None, new: Facts) -> Update:
    """What an update costs. Without an old image: what a first installation does."""
    added = _lacking(old, new)
    removed = [] if old is None else _lacking(new, old)
    lacking = {layer.digest for layer in added}
    return Update(
        old=None if old is None else _line(old),
        new=_line(new),
        bytes=_size(added),
        total=Sum(len({layer.digest for layer in new.layers}), _size(new.layers)),
        removed=Sum(len(removed), _size(removed)),
        added=Sum(len(added), _size(added)),
        components=_components(added, old, new),
        packages=None if old is None else _packages(old.packages, new.packages),
        layers=[
            *(_layer("new" if layer.digest in lacking else "kept", layer) for layer in new.layers),
            *(_layer("removed", layer) for layer in removed),
        ],
    )


def history(
    name: str, versions: Sequence[Facts], *, scheme: str = "", estimates: Mapping[str, Estimate] | None = None
) -> History:
    """The history of at least one version, the oldest first. `estimates` are by the images' digests."""
    newest = versions[-1]
    before: list[Facts | None] = [None, *versions[:-1]]
    updates = [update(old, new) for old, new in zip(before, versions, strict=True)]
    lines = [_version(step, (estimates or {}).get(step.new.digest)) for step in updates]
    return History(
        name=name,
        scheme=scheme,
        versions=lines,
        skips=[
            Skip(version=old.version or old.ref, behind=behind, bytes=_size(_lacking(old, newest)))
            for behind, old in enumerate(reversed(versions[:-1]), 1)
        ],
        totals=_totals(lines),
        last=updates[-1],
    )


def past(build: Build) -> History:
    """The history that a build tells of: where it has none, that of its own update.

    Its last update is the build's, which need not be one of the newest version.
    """
    if build.history:
        return msgspec.structs.replace(build.history, last=build.update)
    step, old = build.update, build.update.old
    before = [VersionLine(image=old, update=None, kept=0, new=old.layers, largest=())] if old else []
    lines = [*before, _version(step)]
    return History(
        name=build.ref,
        scheme="",
        versions=lines,
        skips=[Skip(version=old.name, behind=1, bytes=step.bytes)] if old else [],
        totals=_totals(lines),
        last=step,
    )


def kind_of(component: str) -> str:
    """What a component is named after, `""` for one that is no more than a name."""
    kind, colon, _ = component.partition(":")
    return kind if colon and kind in KINDS else ""


def label_of(component: str) -> str:
    """A component as people call it."""
    kind = kind_of(component)
    if kind == "file":
        return "/" + component.removeprefix("file:")
    if component == UNCLAIMED:
        return "files of no package"
    return component.removeprefix(f"{kind}:") if kind else component


def _version(step: Update, estimate: Estimate | None = None) -> VersionLine:
    return VersionLine(
        image=step.new,
        update=None if step.old is None else step.bytes,
        kept=sum(layer.state == "kept" for layer in step.layers),
        new=sum(layer.state == "new" for layer in step.layers),
        largest=step.components[:LARGEST],
        estimate=estimate,
    )


def _lacking(old: Facts | None, new: Facts) -> list[LayerFacts]:
    """The layers of an image that another one does not have, each once."""
    held = {layer.digest for layer in old.layers} if old else set()
    return list({layer.digest: layer for layer in new.layers if layer.digest not in held}.values())


def _line(facts: Facts) -> ImageLine:
    told = [layer.dead for layer in facts.layers if layer.dead is not None]
    return ImageLine(
        ref=facts.ref,
        digest=facts.digest,
        version=facts.version,
        created=facts.created,
        engine=facts.engine,
        layers=len(facts.layers),
        bytes=_size(facts.layers),
        dead=sum(told) if told else None,
    )


def _layer(state: Literal["kept", "new", "removed"], layer: LayerFacts) -> LayerLine:
    return LayerLine(state=state, digest=layer.digest, bytes=layer.bytes, name=layer.name, dead=layer.dead)


def _components(added: Iterable[LayerFacts], old: Facts | None, new: Facts) -> list[ComponentLine]:
    sizes: Counter[str] = Counter()
    for layer in added:
        sizes.update(layer.components or {layer.name or layer.digest: layer.bytes})
    was, is_ = (old.packages if old else None) or {}, new.packages or {}
    return [
        ComponentLine(name=name, bytes=size, old=was.get(name), new=is_.get(name))
        for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        if size
    ]


def _packages(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> list[PackageLine] | None:
    """What became of packages, by name. None where those of one image are not known."""
    if old is None or new is None:
        return None
    return [
        PackageLine(name=name, old=old.get(name), new=new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _totals(lines: Sequence[VersionLine]) -> Totals:
    later = [line for line in lines if line.update is not None]
    estimates = [line.estimate for line in later if line.estimate is not None]
    known = len(estimates) == len(later) > 0
    return Totals(
        updates=len(later),
        bytes=sum(line.update or 0 for line in later),
        images=sum(line.image.bytes for line in later),
        changed=sum(estimate.changed for estimate in estimates) if known else None,
        delta=sum(estimate.delta for estimate in estimates) if known else None,
    )


def _size(layers: Iterable[LayerFacts]) -> int:
    return sum(layer.bytes for layer in layers)
