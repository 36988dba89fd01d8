"""The command line: the one definition of every option.

Results go to standard output (text, or one JSON document with `--json`), everything else to standard error. An
expected failure prints one message and ends with the exit code of its error; only a bug of ours shows a traceback.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from rechunk_action import __version__
from rechunk_action.errors import EnvironmentLack, InputError, RechunkError
from rechunk_action.oci.compression import Compression, parse_compression
from rechunk_action.oci.config import label_change
from rechunk_action.pipeline import NEWEST, BuildOptions, previous_image
from rechunk_action.pipeline import build as run_build
from rechunk_action.pipeline import compare as run_compare
from rechunk_action.pipeline import verify as run_verify
from rechunk_action.progress import Progress
from rechunk_action.registry.credentials import Credentials
from rechunk_action.registry.reference import Reference, parse_reference, valid_tag
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template, scheme_of
from rechunk_action.report.compare import format_size, lines
from rechunk_action.source.names import Name, parse_name
from rechunk_action.source.places import Places

CANCELLED = 130

_Command = TypeVar("_Command", bound=Callable[..., Any])


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _cancel)
    gc.disable()  # a tenth of the time, to look through tables that live until the end
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(InputError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("cancelled; nothing was left behind", CANCELLED)
    except RechunkError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f" for {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk is full{where}: free some space, or put the output on another disk"
        else:
            text = f"the system reports {error.strerror!r}{where}: check the disk and your rights, and run it again"
        _fail(text, EnvironmentLack.exit_code)
    sys.exit(0)


class _NameType(click.ParamType[Name]):
    """An image or tree by its name."""

    def __init__(self, *transports: str) -> None:
        self.name = "NAME"
        self._transports = transports

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Name:
        del param, ctx
        return value if isinstance(value, Name) else parse_name(value, allowed=self._transports)


class _CompressionType(click.ParamType[Compression]):
    name = "zstd|gzip[:LEVEL]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Compression:
        del param, ctx
        return value if isinstance(value, Compression) else parse_compression(value)


class _LabelType(click.ParamType[str]):
    name = "K=V"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param, ctx
        label_change(value)
        return str(value)


class _RepositoryType(click.ParamType[Reference]):
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


class _TagType(click.ParamType[str]):
    name = "TAG"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param, ctx
        if not valid_tag(value):
            raise InputError(f"{value!r} is no valid tag: use letters, digits, and . _ - (128 at the most)")
        return str(value)


class _TemplateType(click.ParamType[Template]):
    name = "TEMPLATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Template:
        del param, ctx
        return value if isinstance(value, Template) else Template(value)


_SOURCE = _NameType("dir", "oci", "oci-archive", "docker", "containers-storage", "docker-daemon", "")
_READABLE = _NameType("oci", "oci-archive", "docker")
_COMPARABLE = _NameType("oci", "oci-archive", "docker", "containers-storage")
_OUTPUT = _NameType("oci", "docker")

_FORMS = """
\b
dir:PATH                            a root file system, mounted or unpacked
oci:DIR[:TAG]                       an image in an OCI layout
oci-archive:FILE[:TAG]              the same in a tar file
containers-storage:IMAGE            an image of podman, buildah or skopeo
docker-daemon:IMAGE                 an image of docker
docker://HOST/REPOSITORY[:TAG]      an image in a registry
IMAGE                               an image's name alone: looked for in podman's storage, then in docker's
"""

_CREDENTIALS = """
For a registry that wants a login: RECHUNK_TOKEN, or RECHUNK_USERNAME and RECHUNK_PASSWORD, in the environment;
else what `podman login` and `docker login` have stored.
"""


def _registry(command: _Command) -> _Command:
    """Options of every command that may talk to a registry."""
    return click.option(
        "--tls-verify",
        type=click.BOOL,
        default=True,
        show_default=True,
        help="false: plain HTTP, for a registry on loopback.",
    )(command)


def _versions(command: _Command) -> _Command:
    """Options that tell which tags are versions."""
    for option in (
        click.option(
            "--tag", "tags", type=_TagType(), multiple=True, help="A tag that moves to the new image. May be repeated."
        ),
        click.option(
            "--version-template",
            type=_TemplateType(),
            default=DEFAULT_TEMPLATE,
            show_default=True,
            help="How versions are made: fields of os-release in lower case, and the date (UTC).",
        ),
        click.option("--version", help="Version of the image. Without it, one is made of the template."),
    ):
        command = option(command)
    return command


def _common(command: _Command) -> _Command:
    """Options of every command."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Also say what was decided, and why."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output."),
        click.option(
            "--threads",
            type=click.IntRange(1, 64),
            default=lambda: len(os.sched_getaffinity(0)),
            show_default="all processors",
            help="Threads that hash and compress.",
        ),
    ):
        command = option(command)
    return command


_drop_bad_xattrs = click.option(
    "--drop-bad-xattrs",
    is_flag=True,
    help="Leave out extended attributes that image importers cannot read, instead of failing.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Republish an operating-system image so that an update costs about what really changed."""


@cli.command(
    help=f"""Rechunk SOURCE into OUTPUT, which is docker:// or oci: (an existing layout may take a new tag).

{_FORMS}
{_CREDENTIALS}
"""
)
@click.argument("source", type=_SOURCE)
@click.argument("output", type=_OUTPUT)
@click.option(
    "--prev-ref",
    type=_READABLE,
    help="The previous image; its layers are kept byte for byte. Without it, the newest version in the repository.",
)
@click.option(
    "--repository",
    type=_RepositoryType(),
    help="Where the previous image is looked for, if not where OUTPUT is.",
)
@click.option("--fresh", is_flag=True, help="Lay the whole image out anew, whatever was published before.")
@click.option(
    "--max-layers", type=click.IntRange(3, 400), default=120, show_default=True, help="Layers that the image may have."
)
@click.option(
    "--max-overhead",
    type=click.FloatRange(0, 100),
    default=5,
    show_default=True,
    help="Superseded bytes that kept layers may hold, in percent of the image.",
)
@click.option(
    "--compression",
    type=_CompressionType(),
    default="zstd",
    show_default=True,
    help="How new layers are compressed; without a level, the best one for each kind of layer.",
)
@click.option(
    "--label", "labels", type=_LabelType(), multiple=True, help="Set a label; K- removes it. May be repeated."
)
@_versions
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="OCI config, or output of podman or docker inspect, to take entry point, environment, labels ... from.",
)
@click.option(
    "--source-date-epoch",
    type=click.IntRange(0, NEWEST),
    envvar="SOURCE_DATE_EPOCH",
    help="Time of the image, in seconds since 1970; no file is younger. Without it: the time of the newest file.",
)
@click.option("--verify/--no-verify", default=True, help="Compare the merged image with the source before it appears.")
@_drop_bad_xattrs
@_registry
@_common
def build(
    source: Name,
    output: Name,
    prev_ref: Name | None,
    repository: Reference | None,
    fresh: bool,
    max_layers: int,
    max_overhead: float,
    compression: Compression,
    labels: tuple[str, ...],
    tags: tuple[str, ...],
    version: str | None,
    version_template: Template,
    config: Path | None,
    source_date_epoch: int | None,
    verify: bool,
    drop_bad_xattrs: bool,
    tls_verify: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    options = BuildOptions(
        source=source,
        output=output,
        prev_ref=prev_ref,
        repository=repository,
        tags=tags,
        fresh=fresh,
        max_layers=max_layers,
        max_overhead=max_overhead / 100,
        compression=compression,
        labels=labels,
        version=version,
        version_template=version_template,
        config=config,
        created=source_date_epoch,
        now=datetime.now(UTC),
        verify=verify,
        threads=threads,
        scratch=_scratch(),
    )
    published_at = repository or (output.reference if output.transport == "docker" else None)
    with _places(published_at, tls_verify, threads, drop_bad_xattrs=drop_bad_xattrs) as places:
        report = run_build(options, places, _progress(quiet, verbose))
    if as_json:
        _print_json(report)
        return
    layers, size = report["layers"], report["bytes"]
    click.echo(f"{report['ref']} is ready: {report['digest']}")
    if report["fresh"]:
        click.echo(f"fresh layout ({report['reason']}): {layers['total']} layers, {format_size(size['image'])}")
    else:
        click.echo(f"update: {format_size(size['update'])} in {layers['new']} new layers; {layers['kept']} layers kept")
        overhead = 100 * size["dead"] / max(1, size["live"])
        click.echo(f"image:  {format_size(size['image'])} in {layers['total']} layers; {overhead:.1f}% superseded")


@cli.command()
@click.argument("image", type=_READABLE)
@click.argument("source", type=_SOURCE)
@_drop_bad_xattrs
@_registry
@_common
def verify(
    image: Name,
    source: Name,
    drop_bad_xattrs: bool,
    tls_verify: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check that IMAGE, merged as clients merge it, equals SOURCE."""
    progress = _progress(quiet, verbose)
    with _places(_registry_of(image), tls_verify, threads, drop_bad_xattrs=drop_bad_xattrs) as places:
        report = run_verify(image, source, places, progress, threads=threads, scratch=_scratch())
    if as_json:
        _print_json(report)
    else:
        click.echo(f"{image} equals {source}: {report['paths']:,} paths, under both merge rules")


@cli.command()
@click.argument("old", type=_COMPARABLE)
@click.argument("new", type=_COMPARABLE)
@_registry
@_common
def compare(old: Name, new: Name, tls_verify: bool, threads: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """What an update from OLD to NEW costs, and why."""
    progress = _progress(quiet, verbose)
    with _places(_registry_of(new) or _registry_of(old), tls_verify, threads) as places:
        comparison = run_compare(old, new, places, progress, threads=threads, scratch=_scratch())
    if as_json:
        _print_json(msgspec.to_builtins(comparison))
    else:
        click.echo("\n".join(lines(comparison, most=1000 if verbose else 10)))


@cli.command("prev-ref")
@click.argument("repository", type=_RepositoryType())
@_versions
@_registry
@_common
def prev_ref(
    repository: Reference,
    tags: tuple[str, ...],
    version: str | None,
    version_template: Template,
    tls_verify: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """The image in REPOSITORY that a build would update, and why."""
    del quiet, verbose
    scheme = scheme_of(version) if version else version_template
    with _places(repository, tls_verify, threads) as places:
        decision = previous_image(repository, scheme, tags, places)
    ref = f"{repository.name}:{decision.tag}@{decision.digest}" if decision.tag else None
    if as_json:
        _print_json({"prev_ref": ref, "version": decision.tag, "digest": decision.digest, "reason": decision.reason})
    else:
        click.echo(f"{ref or 'none: a build would be the first'}\n{decision.reason}")


def _places(published: Reference | None, tls_verify: bool, threads: int, *, drop_bad_xattrs: bool = False) -> Places:
    """What opens names. Credentials of the environment are for the registry of `published` alone."""
    return Places(
        os.environ,
        given=_credentials(os.environ),
        given_for=published.host if published else "",
        tls_verify=tls_verify,
        threads=threads,
        drop_bad_xattrs=drop_bad_xattrs,
    )


def _credentials(environment: Mapping[str, str]) -> Credentials | None:
    """Those of the environment. They are no options: arguments are for all of a machine to see."""
    secret = environment.get("RECHUNK_TOKEN") or environment.get("RECHUNK_PASSWORD")
    username = environment.get("RECHUNK_USERNAME")
    if username and not secret:
        raise InputError("RECHUNK_USERNAME is set, and neither RECHUNK_PASSWORD nor RECHUNK_TOKEN is: set one of them")
    # To a token, the name matters to few registries, and GHCR is none of them.
    return Credentials(username or "rechunk-action", secret) if secret else None


def _registry_of(name: Name) -> Reference | None:
    return name.reference if name.transport == "docker" else None


def _scratch() -> Path:
    """Where there is room for an image: /tmp may be in memory."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108  # the directories in it have names of their own


def _progress(quiet: bool, verbose: bool) -> Progress:
    return Progress(level=-1 if quiet else int(verbose))


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1))


def _cancel(signum: int, frame: FrameType | None) -> NoReturn:
    """A request to stop is handled as Ctrl-C is: everything is cleaned up on the way out, whatever else is sent."""
    del signum, frame
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"rechunk-action: {message}", err=True)
    sys.exit(code)
