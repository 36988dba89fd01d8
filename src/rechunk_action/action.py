"""The GitHub side: inputs in, groups, annotations, outputs, a job summary, a comment and a release out.

The only module that knows `actions_toolkit`, whose `core` speaks the runner's commands. What it lacks is added here:
every line is flushed, so that it stays in its place among others; values are text before they are handed over; lines
that are not commands cannot be taken for some.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from actions_toolkit import core

from rechunk_action import options
from rechunk_action.errors import EnvironmentLack, GitHubError, InputError, Overdue, TooLarge
from rechunk_action.oci.compression import parse_compression
from rechunk_action.oci.image import Json
from rechunk_action.pipeline import Built
from rechunk_action.progress import Meter, Progress
from rechunk_action.registry.credentials import Credentials
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.versions import Template
from rechunk_action.report import model
from rechunk_action.report.changelog import changelog
from rechunk_action.report.comment import comment as comment_on
from rechunk_action.report.comment import marker
from rechunk_action.report.page import page
from rechunk_action.report.size import format_size
from rechunk_action.report.summary import refused, summary
from rechunk_action.source.names import Name, parse_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from rechunk_action.github import Home

RESULTS = "rechunk-results"
"""Directory below the runner's temporary one for files that later steps may want, where no other is named."""

TOLD = "told"
"""File in the scratch space that says: the workflow was told how this ended. Without it, the cleaning step tells."""

MAX_NOTICES = 8
"""Annotations of one kind: GitHub shows ten a step, and an error has to be among them."""

WITHOUT_MEANING = {
    "prev_ref_fail": "a previous image that cannot be read is always an error",
    "keep_ref": "the built image is never removed",
}
"""Inputs of hhd-dev/rechunk, and why they change nothing here."""

Build = Callable[..., Built]


def run(
    build: Build, inputs: dict[str, Any], environment: Mapping[str, str], *, timeout: int, comment: bool, release: str
) -> None:
    """Build as a workflow asks for it. `timeout` is in minutes. With `comment`, a pull request is told what it costs;
    `release` is the tag of the release that gets the changelog, `""` for none.

    Raises `Overdue` when it is over, `Cancelled` when the image is there already, and what `build` raises.
    """
    for name in ("INPUT_TOKEN", "INPUT_PASSWORD", "INPUT_SIGN_KEY", "INPUT_SIGN_PASSWORD"):
        mask(environment.get(name, ""))
    progress = ActionProgress(verbose=environment.get("RUNNER_DEBUG") == "1")
    given = translate(inputs, environment, progress.notice) | {"sign_key": sign_key(environment)}
    audience = Audience(given, environment, progress.notice, comment=comment, release=release)
    with contextlib.ExitStack() as stack:
        if environment.get("RECHUNK_HELD"):
            end_with_input()
            stack.callback(clear, Path(environment["TMPDIR"]))
        try:
            with deadline(timeout):
                built = build(progress, credentials(environment, given["repository"]), **given)
        except TooLarge as fault:
            audience.hears_of_refused(fault.update, fault.limit)
            raise
    try:
        audience.hears_of_built(built)
    except KeyboardInterrupt:
        raise built.cancelled() from None
    tell(environment)


def translate(inputs: Mapping[str, Any], environment: Mapping[str, str], notice: Callable[[str], None]) -> Json:
    """The action's inputs as options of a build. Raises `InputError` for inputs that do not go together."""
    given, now = dict(inputs), datetime.now(UTC)
    for name, reason in WITHOUT_MEANING.items():
        if given.pop(name) is not None:
            notice(f"input {name.replace('_', '-')} has no meaning here: {reason}")
    if given.pop("clear_plan"):
        given["fresh"] = True
    labels = [*_labels(environment), *given["labels"]]
    fast = bool(given.pop("skip_compression"))
    if given["engine"] == "hhd":
        given["skip_compression"] = fast
        given["git"] = given["git"] or _checkout(environment)
    else:
        labels = [_filled(f"label {label.partition('=')[0]}", label, now, notice) for label in labels]
        given["description"] = _filled("input description", given["description"] or "", now, notice)
        given["compression"] = parse_compression("zstd:1") if fast else given["compression"]
    given["labels"] = labels
    given["revision"] = given["revision"] or environment.get("GITHUB_SHA")
    if isinstance(given["version"], str) and "<date>" in given["version"]:
        given["version"] = Template(given["version"].replace("<date>", "{date:%y%m%d}"))
    given["source"] = parse_name(environment.get("RECHUNK_SOURCE") or given["ref"])
    del given["ref"]
    given["output"] = _output(given)
    return given | {"config": None, "source_date_epoch": None, "verify": True}


def credentials(environment: Mapping[str, str], repository: Reference | None) -> Credentials | None:
    """Those given to the action for the repository's registry. GitHub's token is for GitHub's registry alone."""
    secret = environment.get("INPUT_PASSWORD")
    if not secret and repository is not None and repository.host == "ghcr.io":
        secret = environment.get("INPUT_TOKEN")
    return Credentials(environment.get("INPUT_USERNAME") or "rechunk-action", secret) if secret else None


def sign_key(environment: Mapping[str, str]) -> EllipticCurvePrivateKey | None:
    """The key that is given as text. Raises `InputError` for one that cannot be used."""
    text, password = environment.get("INPUT_SIGN_KEY"), environment.get("INPUT_SIGN_PASSWORD", "")
    if not text:
        return None
    from rechunk_action.sign_key import decrypted  # noqa: PLC0415  # takes 0.05 s to load

    names = {"name": "input sign-key", "password_name": "input sign-password"}
    return decrypted(text, password, **names)


@contextlib.contextmanager
def deadline(minutes: float) -> Iterator[None]:
    """Raise `Overdue` after some minutes. Ours comes before the runner's, which would not let us clean up."""

    def overdue(signum: int, frame: FrameType | None) -> NoReturn:
        del signum, frame
        raise Overdue(
            f"not finished within {minutes:g} minutes: see which phase took the time, and raise the input timeout if "
            "that is what it takes"
        )

    before = signal.signal(signal.SIGALRM, overdue)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_with_input() -> None:
    """Be cancelled when standard input ends: who has started us is gone then, and cannot say so any more."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def clear(scratch: Path) -> None:
    """Remove what is in the scratch space, above all the copy of an image: the cleaning step may not come to it."""
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != TOLD:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Audience:
    """Those who hear of a build besides the log: later steps, readers of the job's summary, with `comment` those of a
    pull request, and those of a `release`, which is named by its tag (`""`: none).

    What they cannot be told is a notice, and no reason to fail: the image is there by then, or known not to be.
    """

    given: Json
    environment: Mapping[str, str]
    notice: Callable[[str], None]
    comment: bool
    release: str

    def hears_of_built(self, built: Built) -> None:
        """An image was built. Outputs come first, as later steps need them most."""
        report, notes = built.report, built.report.changelog or changelog(built.report)
        location = str(self.given["output"].path) if self.given["output"].transport == "oci" else ""
        try:
            for name, value in outputs(report, location=location, results=self._results).items():
                set_output(name, value)
        except OSError as fault:
            there = "is there" if report.published else "was not published"
            raise EnvironmentLack(
                f"{report.ref} {there}, and later steps cannot be told of it ({fault.strerror}): make room on the "
                "runner's disk, and run this again"
            ) from None
        files = {"manifest.json": json.dumps(built.manifest, indent=1), "changelog.md": notes}
        self._write({**files, "report.html": page(model.past(report), report), "summary.md": summary(report)})
        what = "fresh image" if report.fresh else "update"
        trial = "" if report.published else ", not published"
        say(f"{report.ref}: {what} of {format_size(report.bytes.update)}{trial}")
        self._comment(comment_on(report.update, repository=self._image, limit=None, history=report.history))
        if self.given["push"]:
            self._release(report.version, notes)

    def hears_of_refused(self, update: model.Update, limit: int) -> None:
        """An update costs more than it may, and by what. The log hears of it by the error."""
        self._write({"summary.md": refused(self._image, update, limit)})
        self._comment(comment_on(update, repository=self._image, limit=limit, history=None))

    @property
    def _image(self) -> str:
        repository: Reference | None = self.given["repository"]
        return repository.name if repository else str(self.given["output"])

    @property
    def _results(self) -> Path:
        named = self.environment.get("RECHUNK_RESULTS")
        return Path(named) if named else Path(self.environment.get("RUNNER_TEMP", ".")) / RESULTS

    def _write(self, files: Mapping[str, str]) -> None:
        """Write files for later steps, of which `summary.md` is the job's summary as well."""
        if path := self.environment.get("GITHUB_STEP_SUMMARY"):
            with self._as_far_as_it_goes(path), open(path, "a", encoding="utf-8") as file:
                file.write(files["summary.md"])
        with self._as_far_as_it_goes(self._results):
            self._results.mkdir(exist_ok=True)
            for name, text in files.items():
                (self._results / name).write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _as_far_as_it_goes(self, where: object) -> Iterator[None]:
        """Turn a fault of writing into a notice."""
        try:
            yield
        except OSError as fault:
            self.notice(f"{fault.filename or where} could not be written: {fault.strerror}; the image is not concerned")

    def _comment(self, text: str) -> None:
        number = self.environment.get("RECHUNK_PULL_REQUEST")
        if self.comment and number:
            from rechunk_action.github import put_comment  # noqa: PLC0415  # takes 0.3 s to load

            self._put("comment", lambda home: put_comment(home, int(number), text))

    def _release(self, version: str, notes: str) -> None:
        """Put the changelog into the notes of the release, which is the latest one if the image is."""
        if self.release:
            from rechunk_action.github import put_release  # noqa: PLC0415  # as above

            tag, mark = self.release.replace("{version}", version), marker(self._image)
            commit, latest = self.environment.get("GITHUB_SHA", ""), "latest" in self.given["tags"]
            self._put("release", lambda home: put_release(home, tag, notes, mark=mark, commit=commit, latest=latest))

    def _put(self, what: str, put: Callable[[Home], str]) -> None:
        """Put something on GitHub, and say where it is."""
        from rechunk_action.github import API, Home  # noqa: PLC0415  # as above

        token = self.environment.get("INPUT_TOKEN", "")
        if not token:
            self.notice(f"no {what} was written, as the input token is empty: leave it out, or give it a token")
            return
        home = Home(self.environment.get("GITHUB_REPOSITORY", ""), token, self.environment.get("GITHUB_API_URL") or API)
        try:
            say(f"{what}: {put(home)}")
        except GitHubError as fault:
            self.notice(str(fault))


def outputs(report: model.Build, *, location: str, results: Path) -> dict[str, str]:
    """The action's outputs. Sizes are in bytes, `results` is the directory of the files."""
    return {
        "ref": report.ref,
        "digest": report.digest,
        "version": report.version,
        "chunks": str(report.layers.total),
        "prev-ref": report.prev_ref or "",
        "fresh": str(report.fresh).lower(),
        "update-size": str(report.bytes.update),
        "image-size": str(report.bytes.image),
        "location": location,
        "manifest": str(results / "manifest.json"),
        "changelog": str(results / "changelog.md"),
        "page": str(results / "report.html"),
    }


class ActionProgress(Progress):
    """Phases are groups of the log, notices and decisions are annotations."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(sys.stdout, level=int(verbose))
        self._notices = 0

    @contextlib.contextmanager
    def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Meter]:
        core.start_group(plain(title))
        sys.stdout.flush()
        try:
            with super().phase(name, title, total) as meter:
                yield meter
        finally:
            core.end_group()
            sys.stdout.flush()

    def notice(self, text: str) -> None:
        text = as_inputs(text)
        self._notices += 1
        if self._notices > MAX_NOTICES:
            say(text)
        else:
            core.notice(text, title="rechunk")
            sys.stdout.flush()

    def decision(self, text: str) -> None:
        self.notice(text)

    def output(self, line: str) -> None:
        say(line)

    def _say(self, text: str) -> None:
        say(text)


def error(text: str) -> None:
    """The annotation that says why the step failed. Options are named as the inputs that they are here."""
    core.error(as_inputs(text), title="rechunk")
    sys.stdout.flush()


def as_inputs(text: str) -> str:
    """A message in which options have the names of the inputs that they are here."""

    def as_input(match: re.Match[str]) -> str:
        return f"input {_INPUTS.get(match[1], match[1])}" if match[1] in _FLAGS else match[0]

    return _OPTION.sub(as_input, text)


def bug(error: Exception) -> None:
    """Show what only our developers can read, as text, and say what to do with it."""
    say("".join(traceback.format_exception(error)))
    core.error(
        f"a bug of rechunk-action ({type(error).__name__}): no tag points at anything incomplete; "
        "please report it with the lines above",
        title="rechunk",
    )
    sys.stdout.flush()


def tell(environment: Mapping[str, str]) -> None:
    """Leave word that the workflow knows how this ended."""
    if environment.get("RECHUNK_HELD"):
        with contextlib.suppress(OSError):
            (Path(environment["TMPDIR"]) / TOLD).touch()


def mask(secret: str) -> None:
    """Have the runner hide a secret wherever it is printed."""
    for line in filter(str.strip, secret.splitlines()):
        core.set_secret(line)
    sys.stdout.flush()


def set_output(name: str, value: str) -> None:
    core.set_output(name, value)
    sys.stdout.flush()


def say(text: str) -> None:
    """Lines of the log."""
    for line in text.splitlines():
        sys.stdout.write(plain(line) + "\n")
    sys.stdout.flush()


def plain(text: str) -> str:
    """A line that the runner cannot take for a command: names in it may come from anywhere."""
    return re.sub(r"^(\s*):(?=:)", r"\1: ", text).replace("##[", "## [")


def _labels(environment: Mapping[str, str]) -> list[str]:
    """What the workflow knows of the image. Labels of the same name in the input `labels` win."""
    server, repository = environment.get("GITHUB_SERVER_URL"), environment.get("GITHUB_REPOSITORY")
    home = f"{server}/{repository}" if server and repository else ""
    run_id = environment.get("GITHUB_RUN_ID")
    known = {
        "org.opencontainers.image.source": home,
        "org.opencontainers.image.url": home,
        "io.github-actions.build.url": f"{home}/actions/runs/{run_id}" if home and run_id else "",
    }
    return [f"{name}={text}" for name, text in known.items() if text]


def _checkout(environment: Mapping[str, str]) -> Path | None:
    """The workflow's checkout, where there is one."""
    workspace = environment.get("GITHUB_WORKSPACE")
    return Path(workspace) if workspace and Path(workspace, ".git").is_dir() else None


def _filled(what: str, text: str, now: datetime, notice: Callable[[str], None]) -> str:
    """A text with those of hhd-dev/rechunk's placeholders filled in that are known here."""
    filled = text.replace("<date>", f"{now:%y%m%d}").replace("<timestamp>", f"{now:%Y-%m-%dT%H:%M:%SZ}")
    for name in _PLACEHOLDER.findall(filled):
        notice(f"{what}: engine delta does not fill in {name}")
    return filled


_PLACEHOLDER = re.compile(r"<(?:changelog|commits|imginfo|pkgupd|pretty|previous|(?:rel)?ver(?:sion)?(?::[^>]*)?)>")

_OPTION = re.compile(r"(?:[Oo]ption )?'?(?<![\w-])--([a-z][a-z_-]*[a-z])'?")
_INPUTS = {"label": "labels", "tag": "tags", "formatter": "formatters"}
_FLAGS = {flag.removeprefix("--") for flag in options.flags_of_inputs()}
"""Messages name options of other programs as well (docker rm --force)."""


def _output(given: Json) -> Name:
    """Where the image goes, by the inputs `repository`, `push` and `output`, of which the last is used up."""
    directory: Path | None = given.pop("output")
    repository: Reference | None = given["repository"]
    if given["push"] and directory:
        raise InputError("push publishes the image, and output writes it to a directory instead: leave one out")
    if directory:
        place = Path(os.environ.get("GITHUB_WORKSPACE", ".")) / directory
        return Name("oci", str(place))
    if repository is None:
        raise InputError("name in the input repository where images are published, as in ghcr.io/owner/image")
    return Name("docker", repository.name)
