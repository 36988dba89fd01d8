"""The one definition of every option: its flag, the variable of the action's input, its default and its help.

The command `build` and the action offer the same options. An input reaches the action as a variable, `INPUT_` and the
option's name; one that may be repeated as a flag is a list with one value a line there. An empty variable counts as not
given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from rechunk_action.engines.layering import MAX_OVERHEAD
from rechunk_action.errors import InputError
from rechunk_action.job import NEWEST
from rechunk_action.oci.compression import Compression, parse_compression
from rechunk_action.oci.config import label_change
from rechunk_action.pipeline import ENGINES
from rechunk_action.registry.reference import Reference, parse_reference, valid_tag
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template
from rechunk_action.source.names import FORMS, Name, parse_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

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
IMAGES = NameType("oci", "docker", bare="docker")
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

    name = "TEXT"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [line.strip() for line in rv.splitlines() if line.strip()]


class _SizeType(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        del param, ctx
        found = _SIZE.fullmatch(str(value).strip())
        if not found:
            raise InputError(f"{value!r} is no size: write it as in 50G or 800M")
        return int(found[1]) * _UNITS[found[2].upper()]


_SIZE = re.compile("([0-9]{1,15})([kKmMgGtT]?)B?")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


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


class _NewFileType(click.ParamType[Path]):
    """A file that is written at the end: that it can be is looked at before anything else is done."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        del param, ctx
        file = Path(value)
        if file.is_dir():
            raise InputError(f"{file} is a directory where a file is wanted: name one in it")
        if not file.parent.is_dir():
            raise InputError(f"{file} cannot be written, since {file.parent} is no directory: make it, or name another")
        return file


class _KeyType(click.ParamType["EllipticCurvePrivateKey"]):
    """A private key by the place where it is: whether it can be used is known before anything else is done."""

    name = "KEY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> EllipticCurvePrivateKey:
        from rechunk_action.sign_key import read_key  # noqa: PLC0415  # costs 0.05 s that only who signs repays

        del param, ctx
        return read_key(value, os.environ)


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
    click.option(
        "--engine",
        type=click.Choice(list(ENGINES)),
        default="delta",
        show_default=True,
        help="What makes the layers: delta keeps the published ones, hhd runs hhd-dev/rechunk's container.",
    ),
    click.option(
        "--format",
        type=click.Choice(["auto", "plain", "ostree"]),
        default="auto",
        show_default=True,
        help="Plain layers, or the chunks of an OSTree commit; auto: as the previous image, plain for a first one.",
    ),
    version,
    tags,
    click.option(
        "--label", "labels", type=_LabelType(), multiple=True, help="Set a label; K- removes it. May be repeated."
    ),
    click.option("--description", help="Text for the label org.opencontainers.image.description."),
    click.option("--revision", help="Commit for the label org.opencontainers.image.revision."),
    click.option(
        "--max-layers",
        type=click.IntRange(3, 400),
        show_default="120; with engine hhd, its own",
        help="Layers that the image may have.",
    ),
    click.option(
        "--max-overhead",
        type=click.FloatRange(0, 100),
        default=MAX_OVERHEAD,
        show_default=True,
        help="Superseded bytes that kept layers may hold, in percent of the image.",
    ),
    click.option(
        "--max-update-size",
        type=click.FloatRange(0),
        help="Megabytes that an update may cost; a larger one fails and is not published. --fresh has no limit.",
    ),
    click.option(
        "--compression",
        type=_CompressionType(),
        default="zstd",
        show_default=True,
        help="How new layers are compressed; without a level, the best one for each kind of layer.",
    ),
    click.option(
        "--strict", is_flag=True, help="Fail when the image breaks a rule for images that boot, instead of telling."
    ),
    drop_bad_xattrs,
    tls_verify,
)
"""What `build` and the action have in common."""

sign_key = click.option(
    "--sign-key",
    type=_KeyType(),
    metavar="env://NAME|FILE",
    help="Sign the image with this private key of cosign, before any tag is put. Its password: COSIGN_PASSWORD.",
)

on_the_command_line = together(
    click.option(
        "--repository", type=RepositoryType(), help="Where the previous image is looked for, if not where OUTPUT is."
    ),
    click.option("--push/--no-push", default=True, help="--no-push: build, verify and report, and publish nothing."),
    sign_key,
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
    click.option("--comment", is_flag=True, help="In a pull request, comment on what merging it costs users."),
    click.option(
        "--release", help="Tag of the GitHub release that gets the changelog; {version} in it is the image's version."
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

SECRETS = ("token", "username", "password", "sign-key", "sign-password")
"""Inputs that are no options: arguments are for all of a machine to see. Of a key, the option names the place."""

of_the_rechunker = together(
    click.option("--rechunk", help="Engine hhd: hhd-dev/rechunk's container image, instead of the one that is pinned."),
    click.option("--pretty", help="Engine hhd: text for <pretty> in labels and changelog."),
    click.option("--changelog", help="Engine hhd: template of the changelog, with hhd-dev/rechunk's variables."),
    click.option(
        "--git",
        type=click.Path(path_type=Path),
        help="Engine hhd: a checkout whose commits the changelog may list (<commits>).",
    ),
    click.option(
        "--formatter",
        "formatters",
        type=_LinesType(),
        metavar="NAME=FORMAT",
        multiple=True,
        help="Engine hhd: how a list in the changelog is written. May be repeated.",
    ),
    click.option("--meta", type=click.Path(path_type=Path), help="Engine hhd: YAML of packages that share layers."),
    click.option(
        "--workspace",
        type=click.Choice(["auto", "btrfs", "none"]),
        default="auto",
        show_default=True,
        help="Engine hhd: scratch space on a BTRFS of its own, in a plain directory (none), or what can be had (auto).",
    ),
    click.option(
        "--workspace-size",
        type=_SizeType(),
        show_default="what the image needs",
        help="Engine hhd: what the scratch space may grow to, as in 50G.",
    ),
)
"""What engine `hhd` alone reads."""

of_hhd_rechunk = together(
    click.option("--clear-plan", type=click.BOOL, help="hhd-dev/rechunk's name for fresh."),
    click.option("--skip_compression", type=click.BOOL, help="hhd-dev/rechunk's name for the fastest compression."),
    *(
        click.option(f"--{name}", help="An input of hhd-dev/rechunk that changes nothing here.")
        for name in ("prev-ref-fail", "keep-ref")
    ),
)
"""Inputs under the names that hhd-dev/rechunk has for them."""


def flags_of_inputs() -> set[str]:
    """The flags that options have which are inputs of the action, too."""
    inputs = together(in_a_workflow, building, sign_key, of_the_rechunker, of_hhd_rechunk)
    command = click.command()(inputs(lambda: None))
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


READ_BY = {
    "hhd": {"rechunk", "pretty", "changelog", "git", "formatters", "meta", "workspace", "workspace_size"},
    "delta": {"compression", "max_overhead", "format"},
}
"""Options that one engine alone reads."""


def unread(context: click.Context, engine: str) -> list[str]:
    """What to tell the user of options that were given and that this engine does not read."""
    return [
        f"{option.opts[0]} has no meaning for engine {engine}: only engine {other} reads it"
        for other, names in READ_BY.items()
        for option in context.command.params
        if other != engine
        and option.name in names
        and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT
    ]


of_a_history = together(
    click.option(
        "--last", type=click.IntRange(2, 1000), default=10, show_default=True, help="How many of the newest versions."
    ),
    click.option(
        "--version",
        type=_VersionType(),
        help="Which tags are versions: one of them, or a template. Without it, those of the kind that has the most.",
    ),
    click.option(
        "--deep", is_flag=True, help="Read layers, to estimate what really changed and what delta layering would cost."
    ),
)
"""What only `history` has."""

html = click.option("--html", type=_NewFileType(), help="Also write the report to this file, as a page for a browser.")

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
