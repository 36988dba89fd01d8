"""The one definition of every option: its flag, the variable of the action's input, its default and its help.

The command `build` and the action offer the same options. An input reaches the action as a variable, `INPUT_` and the
option's name; one that may be repeated as a flag is a list with one value a line there. An empty variable counts as not
given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from rechunk_action.errors import InputError
from rechunk_action.oci.compression import Compression, parse_compression
from rechunk_action.oci.config import label_change
from rechunk_action.pipeline import NEWEST
from rechunk_action.registry.reference import Reference, parse_reference, valid_tag
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template
from rechunk_action.source.names import FORMS, Name, parse_name

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]

MEGABYTE = 1_000_000


class NameType(click.ParamType[Name]):
    """An image or tree by its name. `bare` is the transport of names that have none, where those are allowed."""

    name = "NAME"

    def __init__(self, *transports: str, bare: str | None = None) -> None:
        self._transports = transports
        self._bare = bare

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Name:
        del param, ctx
        if isinstance(value, Name):
            return value
        if self._bare and value.partition(":")[0] not in FORMS:
            value = f"{self._bare}:{value}"
        return parse_name(value, allowed=self._transports)


SOURCE = NameType(*FORMS)
READABLE = NameType("oci", "oci-archive", "docker", bare="docker")
COMPARABLE = NameType("oci", "oci-archive", "docker", "containers-storage")
OUTPUT = NameType("oci", "docker")


class RepositoryType(click.ParamType[Reference]):
    """A repository in a registry, with or without `docker://` before it."""

    name = "HOST/REPOSITORY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        del param, ctx
        if isinstance(value, Reference):
            return value
        reference = parse_reference(value.removeprefix("docker://"))
        if reference.tag or reference.digest:
            raise InputError(f"{value!r} names an image where a repository is wanted: leave out the tag")
        return reference


class _LinesType(click.ParamType[str]):
    """A value that may be repeated: in a variable, one a line."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [line.strip() for line in rv.splitlines() if line.strip()]


class _LabelType(_LinesType):
    name = "K=V"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param, ctx
        label_change(value)
        return str(value)


class _TagType(_LinesType):
    name = "TAG"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param, ctx
        if not valid_tag(value):
            raise InputError(f"{value!r} is no valid tag: use letters, digits, and . _ - (128 at the most)")
        return str(value)


class _VersionType(click.ParamType[Template | str]):
    name = "VERSION|TEMPLATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Template | str:
        del param, ctx
        return Template(value) if isinstance(value, str) and "{" in value else value


class _CompressionType(click.ParamType[Compression]):
    name = "zstd|gzip[:LEVEL]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Compression:
        del param, ctx
        return value if isinstance(value, Compression) else parse_compression(value)


def together(*options: Option[Any]) -> Option[Any]:
    """Several options as one decorator, in the order in which help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


version = click.option(
    "--version",
    type=_VersionType(),
    help=f"Version of the image, or how it is made of os-release and the date, as in {DEFAULT_TEMPLATE} (the default).",
)

tags = click.option(
    "--tag",
    "tags",
    type=_TagType(),
    multiple=True,
    help="A tag that moves to the new image, such as latest. May be repeated.",
)

drop_bad_xattrs = click.option(
    "--drop-bad-xattrs",
    is_flag=True,
    help="Leave out extended attributes that image importers cannot read, instead of failing.",
)

tls_verify = click.option(
    "--tls-verify",
    type=click.BOOL,
    default=True,
    show_default=True,
    help="false: plain HTTP, for a registry on loopback.",
)

building = together(
    click.option(
        "--prev-ref",
        type=READABLE,
        help="The previous image; its layers are kept byte for byte. Without it, the newest version in the repository.",
    ),
    click.option("--fresh", is_flag=True, help="Lay the whole image out anew, whatever was published before."),
    version,
    tags,
    click.option(
        "--label", "labels", type=_LabelType(), multiple=True, help="Set a label; K- removes it. May be repeated."
    ),
    click.option(
        "--max-layers",
        type=click.IntRange(3, 400),
        default=120,
        show_default=True,
        help="Layers that the image may have.",
    ),
    click.option(
        "--max-overhead",
        type=click.FloatRange(0, 100),
        default=5,
        show_default=True,
        help="Superseded bytes that kept layers may hold, in percent of the image.",
    ),
    click.option(
        "--max-update-size",
        type=click.FloatRange(0),
        help="Megabytes that an update may cost; a larger one fails and is not published. Fresh images may be larger.",
    ),
    click.option(
        "--compression",
        type=_CompressionType(),
        default="zstd",
        show_default=True,
        help="How new layers are compressed; without a level, the best one for each kind of layer.",
    ),
    drop_bad_xattrs,
    tls_verify,
)
"""What `build` and the action have in common."""

on_the_command_line = together(
    click.option(
        "--repository", type=RepositoryType(), help="Where the previous image is looked for, if not where OUTPUT is."
    ),
    click.option("--push/--no-push", default=True, help="--no-push: build, verify and report, and publish nothing."),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="OCI config, or output of podman or docker inspect, to take entry point, environment, labels ... from.",
    ),
    click.option(
        "--source-date-epoch",
        type=click.IntRange(0, NEWEST),
        envvar="SOURCE_DATE_EPOCH",
        help="Time of the image, in seconds since 1970; no file is younger. Without it: the time of the newest file.",
    ),
    click.option(
        "--verify/--no-verify", default=True, help="Compare the merged image with the source before it appears."
    ),
)
"""What only `build` has."""

in_a_workflow = together(
    click.option("--ref", required=True, help="The image that was built, as podman or docker names it."),
    click.option("--repository", type=RepositoryType(), help="Where images are published, as in ghcr.io/owner/image."),
    click.option(
        "--push/--no-push", default=False, help="Publish the image; without, build and report what it would cost."
    ),
    click.option(
        "--output", type=click.Path(path_type=Path), help="A directory to write the image to, as an OCI layout."
    ),
    click.option("--description", help="Text for the label org.opencontainers.image.description."),
    click.option("--revision", help="Commit for the label org.opencontainers.image.revision."),
    click.option(
        "--engine", type=click.Choice(["delta"]), default="delta", show_default=True, help="What makes the layers."
    ),
    click.option(
        "--timeout",
        type=click.IntRange(1, 360),
        default=60,
        show_default=True,
        help="Minutes after which the action gives up.",
    ),
)
"""What only the action has."""

SECRETS = ("token", "username", "password")
"""Inputs that are no options: arguments are for all of a machine to see."""

of_hhd_rechunk = together(
    click.option("--clear-plan", type=click.BOOL, help="hhd-dev/rechunk's name for fresh."),
    click.option("--skip_compression", type=click.BOOL, help="hhd-dev/rechunk's name for compression zstd:1."),
    *(
        click.option(f"--{name}", help="An input of hhd-dev/rechunk that this engine has no use for.")
        for name in ("prev-ref-fail", "pretty", "keep-ref", "changelog", "git", "formatters", "meta", "rechunk")
    ),
)
"""Inputs under the names that hhd-dev/rechunk has for them."""

threads = click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="all processors",
    help="Threads that hash and compress.",
)

reporting = together(
    threads,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
    click.option("-v", "--verbose", is_flag=True, help="Also say what was decided, and why."),
)
"""Options of every command that a person types."""
