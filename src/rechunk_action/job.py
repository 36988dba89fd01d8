"""A build: what it was asked for, what an engine is given to work with, and what it makes of that.

An engine makes the layers of the new image. Everything around it (source, previous image, publishing, reports) is the
same for all engines, so these are the words in which the main job and an engine talk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rechunk_action.errors import InputError
from rechunk_action.oci.compression import Compression
from rechunk_action.oci.image import Image, Json
from rechunk_action.oci.layout import LayoutWriter
from rechunk_action.oci.table import Blob
from rechunk_action.plan.compaction import Drop
from rechunk_action.progress import Progress
from rechunk_action.publish import RegistryWriter
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template
from rechunk_action.report.model import Facts
from rechunk_action.report.words import count, shown
from rechunk_action.source import Source
from rechunk_action.source.names import Name
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.lint import Finding, lint
from rechunk_action.tree.release import os_release

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

Writer = LayoutWriter | RegistryWriter

Format = Literal["plain", "ostree"]
"""Plain layers, as every container build makes them, or the chunks of an OSTree commit."""

OLDEST, NEWEST = -62_135_596_800, 253_402_300_799
"""The first and last second that a timestamp can name: those of the years 1 and 9999."""


@dataclass(frozen=True)
class HhdOptions:
    """What only engine `hhd` reads. Texts are templates of hhd-dev/rechunk, `""` where none was given.

    `image` is the rechunker's container image (None: the one that we pin), `git` a checkout for the list of commits,
    `meta` a file, `workspace_size` in bytes (None: what the tree needs).
    """

    image: str | None = None
    pretty: str = ""
    changelog: str = ""
    revision: str = ""
    formatters: Sequence[str] = ()
    git: Path | None = None
    meta: Path | None = None
    skip_compression: bool = False
    workspace: Literal["auto", "btrfs", "none"] = "auto"
    workspace_size: int | None = None


@dataclass(frozen=True)
class BuildOptions:
    """What `build` was asked for.

    `format` is that of engine `delta`; auto: that of the previous image. `repository` is where published images are,
    None: where the output is. `tags` move to the new image. `max_layers` is None where the engine decides,
    `max_overhead` a share, `sign_key` None where the image stays unsigned, `max_update_size` bytes (None: no limit),
    `created` in seconds since 1970 (None: from the source), `now` the time of the build. `strict` allows no finding of
    `Job.lint`.
    """

    source: Name
    output: Name
    prev_ref: Name | None
    repository: Reference | None
    tags: Sequence[str]
    fresh: bool
    engine: Literal["delta", "hhd"]
    format: Literal["auto"] | Format
    max_layers: int | None
    max_overhead: float
    compression: Compression
    labels: Sequence[str]
    version: Template | str | None
    push: bool
    sign_key: EllipticCurvePrivateKey | None
    max_update_size: int | None
    config: Path | None
    created: int | None
    now: datetime
    verify: bool
    strict: bool
    threads: int
    scratch: Path
    hhd: HhdOptions


@dataclass(frozen=True)
class Previous:
    """The image that the new one updates, and what is known of it."""

    image: Image
    facts: Facts

    @property
    def ref(self) -> str:
        """Its name, with its digest."""
        return self.facts.ref


@dataclass(frozen=True)
class Job:
    """What an engine works with. `previous` is None for a fresh image, which `reason` gives the reason for.

    `format` is the one that engine `delta` gives the image. `config` is the OCI config of the built image, None where
    it has none; `environment` that of the process.
    """

    options: BuildOptions
    source: Source
    config: Json | None
    previous: Previous | None
    reason: str
    format: Format
    writer: Writer
    environment: Mapping[str, str]
    progress: Progress

    @property
    def labels(self) -> Mapping[str, str]:
        """Those of the built image."""
        return ((self.config or {}).get("config") or {}).get("Labels") or {}

    def lint(self, tree: Tree, read: Callable[[str], bytes]) -> list[Finding]:
        """What may keep systems from booting an image of this tree, told to the user. Engines have it looked at before
        they make any layer. `read` gives a file's content.

        Raises `InputError` where nothing of that kind is allowed.
        """
        findings = lint(tree, read, self.labels)
        texts = [f"{shown(finding.text)} (rule {finding.rule})" for finding in findings]
        if texts and self.options.strict:
            broken = f"the image breaks {count(len(texts), 'rule')} for images that boot, which --strict does not allow"
            raise InputError("\n- ".join([f"{broken}: correct the build, or leave out --strict", *texts]))
        for text in texts:
            self.progress.notice(text)
        return findings

    def version(self) -> str | None:
        """The version that the image is to have, if it is free. The source has to have been scanned."""
        version = self.options.version
        if version is None and self.options.output.transport == "docker":
            version = Template(DEFAULT_TEMPLATE)
        if isinstance(version, Template):
            version = version.render(os_release(self.source.tree, self.source.read), self.options.now)
        return version

    def created(self) -> int:
        """When the image was made, in seconds since 1970: when the built image says it was, else when its newest file
        was. Properties of the input, so that the same input gives the same image.
        """
        if self.options.created is not None:
            return self.options.created
        with contextlib.suppress(KeyError, TypeError, ValueError):
            created = int(datetime.fromisoformat((self.config or {})["created"]).timestamp())
            return min(NEWEST, max(OLDEST, created))
        return min(NEWEST, max(0, *(entry.mtime for entry in self.source.tree.values())))


@dataclass(frozen=True)
class Layer:
    """A layer of the new image; the writer has its blob.

    `comment` says what is in it, for the image's history. `components` are its bytes by what they belong to, and add up
    to its size; `dead` are those that no client sees any more.
    """

    blob: Blob
    comment: str
    kept: bool
    annotations: Mapping[str, str] = field(default_factory=dict)
    components: Mapping[str, int] = field(default_factory=dict)
    dead: int = 0


@dataclass(frozen=True)
class Made:
    """What an engine has made: layers, in order, verified.

    `previous` is None when the image came out fresh, for this `reason`. `version` is the one that it was made for,
    `packages` are the versions of the source's packages, by name, `findings` those of `Job.lint`. `labels` are those
    that the format of the image or the engine wants, `filled` the user's labels whose texts the engine has filled in,
    by what they were given as (`K=V`). `disk` has the bytes that each phase took of the disk at its peak.
    """

    layers: Sequence[Layer]
    previous: Previous | None
    reason: str
    version: str | None
    packages: Mapping[str, str]
    findings: Sequence[Finding]
    drops: Sequence[Drop] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    filled: Mapping[str, str] = field(default_factory=dict)
    changelog: str | None = None
    disk: Mapping[str, int] = field(default_factory=dict)


Engine = Callable[[Job], AbstractContextManager[Made]]
"""Makes the layers. What it works in is there until it is left: blobs may lie in there while they are uploaded."""
