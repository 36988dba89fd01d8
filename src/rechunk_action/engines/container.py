"""Steps of an engine, each in a container of its own.

Invariants:
- A container is removed on every way out: success, failure, a request to stop, a deadline, an exception of the
  caller's. What a killed run has left, the next one removes (`clear`).
- Its output is followed while it runs, and kept nowhere: docker's log driver is `none`.
- What it writes is cleaned before anybody sees it: lines of bounded length, without what a terminal would act on.
- It has the capabilities that a step names and no others, gains none, and has no network unless the step asks for it.
"""

from __future__ import annotations

import re
import secrets
import select
import signal
import struct
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker import APIClient, DockerClient
from docker.errors import APIError, InvalidRepository, NotFound
from docker.types import LogConfig, Mount
from docker.utils import socket as streams
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from rechunk_action.docker_daemon import connected
from rechunk_action.errors import EngineFailed, EnvironmentLack, InputError, RechunkError
from rechunk_action.progress import Advance, Progress
from rechunk_action.signals import undisturbed

LONGEST_LINE = 4096
"""Bytes of a line that are shown."""

LAST_LINES = 20
"""Lines that the error of a failed step repeats."""

_REPEATED = 300
"""Characters of each of them."""

LABEL = "rechunk-action.step"
"""The label that every container of ours has. Its value is the step's name."""


@dataclass(frozen=True)
class Bind:
    """A directory or file of this machine, and where the container finds it."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Step:
    """What is to be run, as root, and all that it may use. `capabilities` are names such as `CHOWN`."""

    name: str
    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    binds: Sequence[Bind]
    capabilities: Sequence[str]
    network: bool = False


class Containers:
    """Containers of the docker daemon that the environment names, or of this machine's.

    `labels` tell the containers of this run, and of those that ran in its place before, from all others. `pauses` are
    the waits before an image is tried again, in seconds.
    """

    def __init__(
        self, environment: Mapping[str, str], labels: Mapping[str, str], *, pauses: Sequence[float] = (3, 10, 30)
    ) -> None:
        self._environment = environment
        self._labels = labels
        self._pauses = pauses

    def bring(self, image: str, progress: Progress) -> str:
        """The ID of an image, which is pulled unless docker has it. `image` is a name, with or without tag and digest,
        or an ID.

        Raises `InputError` when there is no such image, and `EnvironmentLack` when it cannot be had.
        """
        name = _without_tag(image)
        with connected(self._environment) as client:
            image_id = _image_id(client, name)
            if image_id is None:
                with progress.phase("pull", f"pull {image}") as advance:
                    self._pull(client.api, name, progress.notice, advance)
                image_id = str(client.images.get(name).id)
            return image_id

    def run(self, step: Step, *, say: Callable[[str], None], watch: Callable[[], None]) -> None:
        """Run a step to its end. `say` is given each line that it writes; `watch` is called about every second, by this
        thread, and ends the container when it raises.

        Raises `EngineFailed` when the step fails, `InputError` when the image cannot run it, and `EnvironmentLack` when
        memory runs out, or docker or somebody else ends it.
        """
        last: deque[str] = deque(maxlen=LAST_LINES)

        def show(line: str) -> None:
            if line.strip():
                last.append(line)
            say(line)

        with connected(self._environment) as client, self._container(client.api, step, say) as container:
            try:
                state = _carry_out(client.api, step, container, show, _about_every_second(watch))
            except NotFound:
                raise EnvironmentLack(
                    f"step {step.name}: somebody removed its container while it ran: see that nothing removes "
                    "containers in the meantime (docker rm, docker system prune), and run this again"
                ) from None
            except APIError:
                raise
            except (RequestException, HTTPError) as error:
                raise EnvironmentLack(
                    f"step {step.name}: docker went away while it ran, and how that ended is not known ({error}): "
                    "see what docker has logged (journalctl --unit docker), and run this again"
                ) from None
        if state["ExitCode"] != 0 or state["OOMKilled"]:  # a script may go on without the program that was killed
            raise _failure(step, state, last)

    def clear(self) -> list[str]:
        """Remove the containers that an earlier run, which was killed, has left. Their names."""
        labels = [LABEL, *(f"{name}={value}" for name, value in self._labels.items())]
        with connected(self._environment) as client:
            left = client.api.containers(all=True, filters={"label": labels})
            for container in left:
                with undisturbed():
                    _remove(client.api, container["Id"])
        # One that docker is about to remove has no name any more.
        return [(container["Names"] or [container["Id"]])[0].removeprefix("/") for container in left]

    def _pull(self, api: APIClient, image: str, notice: Callable[[str], None], advance: Advance) -> None:
        for pause in (*self._pauses, None):
            try:
                _pull(api, image, advance)
            except _Fault as fault:
                if pause is None:
                    raise EnvironmentLack(
                        f"{image} could not be pulled in {len(self._pauses) + 1} tries ({fault}): see whether this "
                        "machine reaches the registry, and run this again"
                    ) from None
                notice(f"{image} could not be pulled ({fault}): it is tried again in {pause:.0f} s")
                time.sleep(pause)
            else:
                return

    @contextmanager
    def _container(self, api: APIClient, step: Step, say: Callable[[str], None]) -> Iterator[str]:
        """The name of a container for a step, not started yet."""
        name = f"rechunk-{secrets.token_hex(8)}"
        options = self._options(api, step)
        try:
            with undisturbed():  # the daemon would go on, and we would not know when
                api.create_container(name=name, **options)
            yield name
        finally:
            with undisturbed():
                try:
                    _remove(api, name)
                except (APIError, RequestException) as error:  # a reason to tell, but none to forget how we got here
                    say(f"container {name} could not be removed ({error}): remove it (docker rm --force {name})")

    def _options(self, api: APIClient, step: Step) -> dict[str, Any]:
        host = api.create_host_config(
            mounts=[
                Mount(bind.target, str(bind.source.absolute()), type="bind", read_only=bind.read_only)
                for bind in step.binds
            ],
            cap_drop=["ALL"],
            cap_add=list(step.capabilities),
            security_opt=["no-new-privileges", *_security(api)],
            network_mode="bridge" if step.network else "none",
            log_config=LogConfig(type="none"),
            init=True,
        )
        return {
            "image": step.image,
            "entrypoint": [*_IN_ORDER, *step.command],
            "environment": dict(step.environment),
            "labels": {**self._labels, LABEL: step.name},
            "user": "0:0",
            "host_config": host,
        }


_IN_ORDER = ("/bin/sh", "-c", 'exec "$@" 2>&1', "sh")
"""Docker carries output and complaints on streams of their own, and tells nothing of which line came first."""


# --- Images ---


class _Fault(Exception):
    """A pull failed, and may succeed when it is tried again."""


_ABSENT = re.compile(
    "not found|(?:manifest|name) unknown|does not exist|no matching manifest|invalid reference|lowercase"
    "|denied|unauthorized|forbidden|authentication required|no basic auth",
    re.IGNORECASE,
)
"""What docker and registries say of images that are not there, or not for us: they do not tell the two apart."""


def _without_tag(image: str) -> str:
    """`name:tag@digest` as `name@digest`: no docker heeds the tag then, and not each one takes it."""
    name, at, digest = image.partition("@")
    stem, _, tag = name.rpartition(":")
    return f"{stem if at and stem and '/' not in tag else name}{at}{digest}"


def _image_id(client: DockerClient, name: str) -> str | None:
    try:
        return str(client.images.get(name).id)
    except APIError as error:
        if error.is_client_error():  # there is none, or there could be none
            return None
        raise


def _pull(api: APIClient, image: str, advance: Advance) -> None:
    """Try once. `advance` is told of the bytes that arrive."""
    done: dict[str, int] = {}
    try:
        for event in api.pull(image, stream=True, decode=True):
            if "error" in event:
                raise _pull_failure(image, event["error"])
            if event.get("status") == "Downloading":
                current = event["progressDetail"].get("current", 0)
                advance(current - done.get(event["id"], 0))
                done[event["id"]] = current
    except InvalidRepository as error:
        raise _pull_failure(image, f"invalid reference: {error}") from None
    except APIError as error:
        raise _pull_failure(image, error.explanation or "") from None


def _pull_failure(image: str, said: str) -> Exception:
    if "no space left" in said:
        return EnvironmentLack(
            f"{image} could not be pulled ({said}): free some space where docker keeps images (docker system df)"
        )
    if _ABSENT.search(said):
        return InputError(
            f"the container image {image} cannot be had ({said}): name another one with --rechunk, or log in to its "
            "registry (docker login)"
        )
    return _Fault(said)


# --- Containers ---


def _security(api: APIClient) -> Sequence[str]:
    """Security options that this machine needs. Raises `EnvironmentLack` where root in a container is not root."""
    known = " ".join(api.info().get("SecurityOptions") or ())
    if "name=rootless" in known or "name=userns" in known:
        raise EnvironmentLack(
            "docker runs containers in a user namespace, where the files of an image belong to others: turn off "
            "rootless mode or userns-remap, or use a machine without"
        )
    # Files would have to be labelled for the container, and ours carry the labels of the image.
    return ["label=disable"] if "name=selinux" in known else []


def _remove(api: APIClient, container: str) -> None:
    """Kill and remove a container, if it is there."""
    try:
        api.remove_container(container, v=True, force=True)
    except NotFound:
        pass
    except APIError as error:
        if "already in progress" not in (error.explanation or ""):
            raise


def _carry_out(
    api: APIClient, step: Step, container: str, show: Callable[[str], None], watch: Callable[[], None]
) -> dict[str, Any]:
    """Start a container, show what it writes, and return how it has ended."""
    with _attached(api, container) as connection:  # first: whoever comes later misses the beginning
        _start(api, step, container)
        lines: defaultdict[int, _Lines] = defaultdict(_Lines)
        for stream, piece in _pieces(connection, watch):
            for line in lines[stream].feed(piece):
                show(line)
    for stream_lines in lines.values():
        for line in stream_lines.end():
            show(line)
    return _final_state(api, container, watch)


@contextmanager
def _attached(api: APIClient, container: str) -> Iterator[Any]:
    """The connection that carries the container's output."""
    connection = api.attach_socket(container)
    try:
        yield connection
    finally:
        connection._response.close()  # noqa: SLF001  # the SDK keeps it here, and closing less leaves the socket open


def _start(api: APIClient, step: Step, container: str) -> None:
    try:
        api.start(container)
    except APIError as error:
        if not error.is_client_error() or "No such container" in (error.explanation or ""):
            raise
        raise InputError(_unfit(step, error.explanation or "")) from None


def _pieces(connection: Any, watch: Callable[[], None]) -> Iterator[tuple[int, bytes]]:  # noqa: ANN401  # whatever the SDK has
    """What a container writes, each piece with the number of the stream that it was written to."""
    unread, stream, left = b"", 0, 0
    while data := _received(connection, watch):
        unread += data
        while unread:
            if not left:
                if len(unread) < _HEADER.size:
                    break
                stream, left = _HEADER.unpack_from(unread)
                unread = unread[_HEADER.size :]
            piece, unread = unread[:left], unread[left:]
            left -= len(piece)
            yield stream, piece


_HEADER = struct.Struct(">BxxxL")
"""Of what docker sends: the stream's number, and how many bytes of it follow."""


def _received(connection: Any, watch: Callable[[], None]) -> bytes:  # noqa: ANN401  # as above
    """The next bytes, empty once the container or the daemon has ended: which one it was, docker tells when asked."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    while True:
        watch()
        if poll.poll(_STEP_MS):
            try:
                return streams.read(connection, 1 << 16) or b""
            except OSError:
                return b""


_STEP_MS = 500
"""Milliseconds of a wait: a signal that arrives just before one is not seen until it is over."""


def _about_every_second(watch: Callable[[], None]) -> Callable[[], None]:
    """`watch`, for callers that call more often."""
    due = 0.0

    def look() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + 1
            watch()

    return look


def _final_state(api: APIClient, container: str, watch: Callable[[], None]) -> dict[str, Any]:
    """How a container has ended. It may still run: output ends with the connection, which is lost before it is."""
    while True:
        state: dict[str, Any] = api.inspect_container(container)["State"]
        if not state["Running"]:
            return state
        watch()
        time.sleep(0.1)


# --- Output ---


class _Lines:
    """A stream of output as lines that are fit to be shown. Of a line that is written over again and again, as progress
    bars are, the last state is given.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._before = ""

    def feed(self, data: bytes) -> Iterator[str]:
        for part in _ENDS.split(data):
            if part == b"\n":
                yield self._take()
            elif part == b"\r":
                self._before = self._take()
            else:
                self._line += part[: LONGEST_LINE + 1 - len(self._line)]

    def end(self) -> Iterator[str]:
        if last := self._take():
            yield last

    def _take(self) -> str:
        """The line so far. One that is blank is what it was before the last carriage return."""
        text = _shown(bytes(self._line))
        taken = text if text.strip() else self._before or text
        self._line.clear()
        self._before = ""
        return taken


_ENDS = re.compile(rb"([\r\n])")


def _shown(line: bytes) -> str:
    text = _UNSHOWN.sub("", line[:LONGEST_LINE].decode(errors="replace"))
    return text if len(line) <= LONGEST_LINE else f"{text} ..."


_UNSHOWN = re.compile(
    r"""
      (?: \x1b\[ | \x9b ) [0-?]* [ -/]* [@-~]?                          # colours, moves of the cursor
    | (?: \x1b[\]P^_X] | [\x9d\x90\x9e\x9f\x98] ) [^\x07\x1b\x9c]* (?: \x07 | \x1b\\ | \x9c )?  # titles, links
    | \x1b [ -/]* [0-~]?
    | [\x00-\x08\x0b-\x1f\x7f-\x9f]                                     # all other controls, but for tabs
    | [\u2028\u2029\u202a-\u202e\u2066-\u2069]                          # line ends, and changes of direction
    """,
    re.VERBOSE,
)


# --- Failures ---

_KILLED = 128 + signal.SIGKILL
_CANNOT_RUN = (126, 127)
"""Exit statuses of a program that is not there, or cannot be executed."""


def _failure(step: Step, state: Mapping[str, Any], last: Collection[str]) -> RechunkError:
    status = state["ExitCode"]
    said = "; its last lines:" + "".join(f"\n  {_shortened(line)}" for line in last) if last else "; it wrote nothing"
    if state["OOMKilled"]:
        return EnvironmentLack(
            f"step {step.name}: memory ran out (exit status {status}): use a machine (runner) with more memory{said}"
        )
    if status == _KILLED:
        return EnvironmentLack(
            f"step {step.name} was killed (exit status {status}): somebody ended it (docker kill, docker rm), or the "
            f"machine's memory ran out, which its kernel's log tells (dmesg): run this again, with more memory{said}"
        )
    if status in _CANNOT_RUN or any("exec format error" in line.lower() for line in last):
        return InputError(_unfit(step, f"exit status {status}") + said)
    return EngineFailed(
        f"step {step.name} failed ({_named(status)}): see why in what it wrote, remedy that, and run this again{said}"
    )


def _shortened(line: str) -> str:
    return line if len(line) <= _REPEATED else f"{line[:_REPEATED]} ..."


def _unfit(step: Step, why: str) -> str:
    return (
        f"step {step.name}: the image {step.image} cannot run {step.command[0]} ({why}): it is no container of "
        "hhd-dev/rechunk, or made for another architecture than this machine's; name another one with --rechunk"
    )


def _named(status: int) -> str:
    try:
        return f"exit status {status}, {signal.Signals(status - 128).name}"
    except ValueError:
        return f"exit status {status}"
