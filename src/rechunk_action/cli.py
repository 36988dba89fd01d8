"""The command line.

Results go to standard output (text, or one JSON document with `--json`), everything else to standard error. An
expected failure prints one message and ends with the exit code of its error; only a bug of ours shows a traceback.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from rechunk_action import __version__, options
from rechunk_action.errors import EnvironmentLack, InputError, RechunkError
from rechunk_action.history import history as run_history
from rechunk_action.inspection import compare as run_compare
from rechunk_action.inspection import verify as run_verify
from rechunk_action.job import BuildOptions, HhdOptions
from rechunk_action.oci.config import DESCRIPTION_LABEL, REVISION_LABEL
from rechunk_action.pipeline import Built, previous_image
from rechunk_action.pipeline import build as build_image
from rechunk_action.progress import Progress, harmless
from rechunk_action.registry.credentials import Credentials
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.versions import Template
from rechunk_action.report import model
from rechunk_action.signals import stop_when_asked
from rechunk_action.source.names import Name
from rechunk_action.source.places import Places

if TYPE_CHECKING:
    from rich.console import Console

CANCELLED = 130


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    stop_when_asked()
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is: names, and spaces that do not break
    gc.disable()  # a tenth of the time, to look through tables that live until the end
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.ClickException, click.Abort, KeyboardInterrupt, RechunkError, OSError) as error:
        text, code = _explained(error)
        if _in_a_workflow():
            from rechunk_action import action as workflow  # noqa: PLC0415  # as below

            workflow.error(text)
            workflow.tell(os.environ)
        elif isinstance(error, click.ClickException):
            error.show()
        else:
            click.echo(f"rechunk-action: {harmless(text)}", err=True)
        sys.exit(code)
    except Exception as error:
        if not _in_a_workflow():
            raise
        from rechunk_action import action as workflow  # noqa: PLC0415  # as below

        workflow.bug(error)
        workflow.tell(os.environ)
        sys.exit(RechunkError.exit_code)
    sys.exit(0)


def _in_a_workflow() -> bool:
    return sys.argv[1:2] == ["action"]


def _explained(error: BaseException) -> tuple[str, int]:
    """What to tell the user of an expected failure, and the exit code that goes with it."""
    if isinstance(error, click.ClickException):
        return error.format_message(), InputError.exit_code
    if isinstance(error, RechunkError):
        return str(error), error.exit_code
    if not isinstance(error, OSError):
        return "cancelled; nothing was left behind", CANCELLED
    where = f" for {error.filename}" if error.filename else ""
    text = f"the system reports {error.strerror!r}{where}: check the disk and your rights, and run it again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"the disk is full{where}: free some space, or put the output on another disk"
    return text, EnvironmentLack.exit_code


_FORMS = """
\b
dir:PATH                            a root file system, mounted or unpacked
oci:DIR[:TAG]                       an image in an OCI layout
oci-archive:FILE[:TAG]              the same in a tar file
docker-archive:FILE                 what `docker save` wrote
containers-storage:IMAGE            an image of podman, buildah or skopeo
docker-daemon:IMAGE                 an image of docker
docker://HOST/REPOSITORY[:TAG]      an image in a registry
IMAGE                               an image's name alone: looked for in podman's storage, then in docker's
"""

_CREDENTIALS = """
For a registry that wants a login: RECHUNK_TOKEN, or RECHUNK_USERNAME and RECHUNK_PASSWORD, in the environment;
else what `podman login` and `docker login` have stored.
"""


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
@click.argument("source", type=options.SOURCE)
@click.argument("output", type=options.OUTPUT)
@options.building
@options.on_the_command_line
@options.of_the_rechunker
@options.html
@options.reporting
def build(html: Path | None, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    built = _run_build(_progress(quiet, verbose), None, **given)
    try:
        _tell(built.report, html, as_json=as_json)
    except KeyboardInterrupt:
        raise built.cancelled() from None


def _tell(report: model.Build, html: Path | None, *, as_json: bool) -> None:
    if as_json:
        _print_json(report)
    else:
        from rechunk_action.report.terminal import show_build  # noqa: PLC0415  # as in _console

        show_build(report, _console())
    if html:
        _write_page(html, model.past(report), report)


@cli.command()
@click.argument("image", type=options.READABLE)
@click.argument("source", type=options.SOURCE)
@options.drop_bad_xattrs
@options.tls_verify
@options.reporting
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
    """Check that IMAGE, as clients show it, equals SOURCE."""
    progress = _progress(quiet, verbose)
    with _places(_registry_of(image), tls_verify, threads, drop_bad_xattrs=drop_bad_xattrs) as places:
        report = run_verify(image, source, places, progress, threads=threads, scratch=_scratch())
    if as_json:
        _print_json(report)
    else:
        how = "in its OSTree commit" if report["chunked"] else "under both merge rules"
        click.echo(f"{image} equals {source}: {report['paths']:,} paths, {how}")


@cli.command()
@click.argument("old", type=options.COMPARABLE)
@click.argument("new", type=options.COMPARABLE)
@options.tls_verify
@options.html
@options.reporting
def compare(
    old: Name,
    new: Name,
    tls_verify: bool,
    html: Path | None,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """What an update from OLD to NEW costs, and why."""
    progress = _progress(quiet, verbose)
    with _places(_registry_of(new) or _registry_of(old), tls_verify, threads) as places:
        before, after = run_compare(old, new, places, progress, threads=threads, scratch=_scratch())
    update = model.update(before, after)
    if as_json:
        _print_json(model.Comparison(schema=model.SCHEMA, update=update))
    else:
        from rechunk_action.report.terminal import show_update  # noqa: PLC0415  # as in _console

        show_update(update, _console(), most=1000 if verbose else 10)
    if html:
        _write_page(html, model.history(str(new), [before, after]))


@cli.command(
    help=f"""What the users of the images in REPOSITORY have been downloading, version by version.

REPOSITORY is HOST/REPOSITORY, or oci:DIR for the tags of a layout. Its images may be anyone's.

{_CREDENTIALS}
"""
)
@click.argument("repository", type=options.IMAGES)
@options.of_a_history
@options.tls_verify
@options.html
@options.reporting
def history(
    repository: Name,
    last: int,
    version: Template | str | None,
    deep: bool,
    tls_verify: bool,
    html: Path | None,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    with _places(_registry_of(repository), tls_verify, threads) as places:
        past = run_history(
            repository,
            version,
            places,
            _progress(quiet, verbose),
            last=last,
            deep=deep,
            threads=threads,
            scratch=_scratch(),
        )
    if as_json:
        _print_json(model.Past(schema=model.SCHEMA, history=past))
    else:
        from rechunk_action.report.terminal import show_history  # noqa: PLC0415  # as in _console

        show_history(past, _console())
    if html:
        _write_page(html, past)


@cli.command("prev-ref")
@click.argument("repository", type=options.RepositoryType())
@options.version
@options.tags
@options.tls_verify
@options.reporting
def prev_ref(
    repository: Reference,
    tags: tuple[str, ...],
    version: Template | str | None,
    tls_verify: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """The image in REPOSITORY that a build would update, and why."""
    del quiet, verbose
    with _places(repository, tls_verify, threads) as places:
        decision = previous_image(repository, version, tags, places)
    ref = f"{repository.name}:{decision.tag}@{decision.digest}" if decision.tag else None
    if as_json:
        _print_json({"prev_ref": ref, "version": decision.tag, "digest": decision.digest, "reason": decision.reason})
    else:
        click.echo(f"{ref or 'none: a build would be the first'}\n{decision.reason}")


@cli.command("action", context_settings={"auto_envvar_prefix": "INPUT"})
@options.in_a_workflow
@options.building
@options.of_the_rechunker
@options.of_hhd_rechunk
@options.threads
def action(timeout: int, comment: bool, release: str | None, **inputs: Any) -> None:
    """The GitHub action's entry point: reads INPUT_* and GITHUB_*, writes outputs and a summary."""
    from rechunk_action.action import run  # noqa: PLC0415  # costs 0.2 s that only a workflow repays

    run(_run_build, inputs, os.environ, timeout=timeout, comment=comment, release=release or "")


def _run_build(
    progress: Progress,
    credentials: Credentials | None,
    *,
    source: Name,
    output: Name,
    repository: Reference | None,
    max_overhead: float,
    max_update_size: float | None,
    source_date_epoch: int | None,
    drop_bad_xattrs: bool,
    tls_verify: bool,
    threads: int,
    labels: Sequence[str],
    description: str | None,
    revision: str | None,
    **given: Any,
) -> Built:
    """Build, with options as they were given."""
    for text in options.unread(click.get_current_context(), given["engine"]):
        progress.notice(text)
    described = {DESCRIPTION_LABEL: description, REVISION_LABEL: revision}
    hhd = HhdOptions(
        image=given.pop("rechunk"),
        pretty=given.pop("pretty") or "",
        changelog=given.pop("changelog") or "",
        revision=revision or "",
        formatters=given.pop("formatters"),
        git=given.pop("git"),
        meta=given.pop("meta"),
        skip_compression=given.pop("skip_compression", False),
        workspace=given.pop("workspace"),
        workspace_size=given.pop("workspace_size"),
    )
    what = BuildOptions(
        source=source,
        output=output,
        repository=repository,
        max_overhead=max_overhead / 100,
        max_update_size=None if max_update_size is None else int(max_update_size * options.MEGABYTE),
        created=source_date_epoch,
        now=datetime.now(UTC),
        threads=threads,
        scratch=_scratch(),
        labels=(*(f"{key}={text}" for key, text in described.items() if text), *labels),
        hhd=hhd,
        **given,
    )
    published = _registry_of(output) or repository
    with _places(published, tls_verify, threads, drop_bad_xattrs=drop_bad_xattrs, credentials=credentials) as places:
        return build_image(what, places, progress)


def _places(
    published: Reference | None,
    tls_verify: bool,
    threads: int,
    *,
    drop_bad_xattrs: bool = False,
    credentials: Credentials | None = None,
) -> Places:
    """What opens names. Credentials, given ones or the environment's, are for the registry of `published` alone."""
    return Places(
        os.environ,
        given=credentials or _credentials(os.environ),
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


def _console() -> Console:
    """Standard output, for the views of reports."""
    from rich.console import Console  # noqa: PLC0415  # costs 0.1 s that only who reads a report repays

    return Console()


def _write_page(file: Path, history: model.History, build: model.Build | None = None) -> None:
    """Write a report as a page, whole or not at all. It comes last: what was done and said stays so, whatever becomes
    of the file.
    """
    from rechunk_action.report.page import page  # noqa: PLC0415  # costs 0.1 s that only a page repays

    text = page(history, build)
    device = file.exists() and not file.is_file()
    part = file if device else file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        if not device:
            part.replace(file.resolve())
    except OSError as fault:
        raise EnvironmentLack(
            f"all is done but the page: {file} could not be written ({fault.strerror}). Look at the disk and your "
            "rights, or name another file"
        ) from None
    finally:
        if not device:
            part.unlink(missing_ok=True)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(msgspec.to_builtins(document), indent=1))
