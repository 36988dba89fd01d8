"""Steps of an engine in real containers; what docker does wrong is told by a proxy before the real daemon."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.engines import container
from rechunk_action.engines.container import Bind, Containers, Step, _failure, _Lines, _pieces, _without_tag
from rechunk_action.errors import EngineFailed, EnvironmentLack, InputError, Overdue, RechunkError
from rechunk_action.oci.layout import read_image
from rechunk_action.progress import Meter, Progress
from tests import stores
from tests.containers import base, stand_in
from tests.faulty_proxy import ALWAYS, FaultyProxy
from tests.oracles import program, run
from tests.registries import plain_registry
from tests.support import patient, write_layout

RUNNER = secrets.token_hex(8)
LABELS = {"rechunk-test.runner": RUNNER}
HANG = "trap '' INT TERM; echo ready; sleep 60"

Show = Callable[[str], None]


class WorkspaceFull(EnvironmentLack):
    """Stands for whatever a caller raises while a step runs."""


@pytest.fixture
def containers() -> Iterator[Containers]:
    """None of them is there any more once the test is over."""
    yield Containers(os.environ, LABELS, pauses=(0.01, 0.02))
    assert left() == []


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with stores.work() as directory, Proxy(directory / "docker.sock") as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, containers: Containers) -> Containers:
    return Containers({"DOCKER_HOST": proxy.host}, LABELS, pauses=(0.01, 0.02))


def left() -> list[str]:
    """The names of our containers that are there."""
    listed = run("docker", "ps", "--all", "--filter", f"label=rechunk-test.runner={RUNNER}", "--format", "{{.Names}}")
    return listed.split()


def step(script: str, **changes: Any) -> Step:
    plain = Step("chunk", changes.pop("image", None) or base(), ["sh", "-c", script], {}, [], [])
    return replace(plain, **changes)


def output(containers: Containers, script: str, **changes: Any) -> list[str]:
    """What a step shows."""
    lines: list[str] = []
    containers.run(step(script, **changes), say=lines.append, watch=lambda: None)
    return lines


def filling_disk() -> tuple[list[float], Callable[[], None]]:
    """A disk that is full when it is looked at for the third time, and when it was looked at."""
    looks: list[float] = []

    def watch() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise WorkspaceFull("the disk is full")

    return looks, watch


def failure(containers: Containers, script: str, **changes: Any) -> RechunkError:
    with pytest.raises(RechunkError) as caught:
        output(containers, script, **changes)
    return caught.value


def once_ready(action: Callable[[], object]) -> tuple[list[str], Show]:
    """What is done as soon as a step says that it is ready, and what it shows otherwise."""
    shown: list[str] = []

    def say(line: str) -> None:
        if line == "ready":
            action()
        else:
            shown.append(line)

    return shown, say


def disturbed(containers: Containers, script: str, action: Callable[[], object], **changes: Any) -> RechunkError:
    """The failure of a step to which something happens."""
    _, say = once_ready(action)
    with pytest.raises(RechunkError) as caught:
        containers.run(step(script, **changes), say=say, watch=lambda: None)
    return caught.value


@pytest.mark.oracle
class TestRights:
    def test_a_step_has_what_it_names_and_nothing_else(self, containers: Containers, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "out").mkdir()
        binds = [Bind(tmp_path / "in", "/in", read_only=True), Bind(tmp_path / "out", "/out")]
        script = """
            id -u; id -g; echo "$GREETING"
            grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status
            ls /sys/class/net
            touch /in/x 2>/dev/null || echo read-only
            touch /out/x
            head -n 1 /proc/1/cmdline | tr '\\0' ' '
        """
        shown = output(
            containers, script, image=stand_in(), environment={"GREETING": "szép = napot"}, binds=binds,
            capabilities=["CHOWN", "SETFCAP"],
        )  # fmt: skip
        assert shown[:3] == ["0", "0", "szép = napot"]
        chown_and_setfcap = f"{1 << 0 | 1 << 31:016x}"
        assert shown[3:6] == [f"CapEff:\t{chown_and_setfcap}", f"CapBnd:\t{chown_and_setfcap}", "NoNewPrivs:\t1"]
        assert shown[6:8] == ["lo", "read-only"]
        assert "init" in shown[8]
        assert (tmp_path / "out/x").exists()

    def test_a_network_is_there_for_those_that_ask(self, containers: Containers) -> None:
        assert output(containers, "ls /sys/class/net", network=True) == ["eth0", "lo"]

    def test_docker_keeps_nothing_of_the_output(self, containers: Containers) -> None:
        logs: list[str] = []

        def look() -> None:
            command = ["docker", "inspect", "--format", "{{.HostConfig.LogConfig.Type}}", *left()]
            logs.append(run(*command).strip())

        _, say = once_ready(look)
        containers.run(step("echo ready"), say=say, watch=lambda: None)
        assert logs == ["none"]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [(["name=seccomp", "name=selinux"], ["label=disable"]), (["name=seccomp,profile=default"], []), (None, [])],
    )
    def test_labels_of_selinux_are_left_alone(self, options: list[str] | None, expected: list[str]) -> None:
        assert container._security(Information({"SecurityOptions": options})) == expected  # type: ignore[arg-type]

    @pytest.mark.parametrize("mode", ["rootless", "userns"])
    def test_users_of_a_namespace_are_refused(self, mode: str) -> None:
        with pytest.raises(EnvironmentLack, match=r"user namespace.*turn off"):
            container._security(Information({"SecurityOptions": [f"name={mode}"]}))  # type: ignore[arg-type]


class Information:
    """What a daemon says of itself."""

    def __init__(self, information: dict[str, object]) -> None:
        self._information = information

    def info(self) -> dict[str, object]:
        return self._information


@pytest.mark.oracle
class TestOutput:
    def test_both_streams_are_shown_as_lines(self, containers: Containers) -> None:
        script = "echo out; printf 'half '; sleep 0.2; echo line; printf 'no\\nend' >&2"
        assert output(containers, script) == ["out", "half line", "no", "end"]

    def test_complaints_are_where_they_were_made(self, containers: Containers) -> None:
        shown = output(containers, "for i in 0 2 4 6 8; do echo $i; echo $((i + 1)) >&2; done")
        assert shown == [str(number) for number in range(10)]

    def test_nothing_is_lost_of_much(self, containers: Containers) -> None:
        shown = output(containers, "seq 200000; seq 200000 >&2")
        assert sorted(map(int, shown)) == sorted([*range(1, 200_001)] * 2)

    def test_a_step_that_is_silent_is_no_less_watched(self, containers: Containers) -> None:
        looks, watch = filling_disk()
        with pytest.raises(WorkspaceFull):
            containers.run(step("exec >&- 2>&-; trap '' TERM; sleep 60"), say=print, watch=watch)
        assert 1.5 < looks[2] - looks[0] < 5

    def test_a_step_that_writes_without_end_is_watched_too(self, containers: Containers) -> None:
        looks, watch = filling_disk()
        with pytest.raises(WorkspaceFull):
            containers.run(step("while :; do echo x; sleep 0.01; done"), say=lambda _: None, watch=watch)
        assert 1.5 < looks[2] - looks[0] < 5

    def test_what_cannot_be_shown_ends_the_step(self, containers: Containers) -> None:
        def say(line: str) -> None:
            raise BrokenPipeError(line)

        with pytest.raises(BrokenPipeError, match="ready"):
            containers.run(step(HANG), say=say, watch=lambda: None)


def lines(*pieces: bytes) -> list[str]:
    made = _Lines()
    return [line for piece in pieces for line in made.feed(piece)] + list(made.end())


class TestLines:
    @pytest.mark.parametrize(
        ("data", "shown"),
        [
            (b"one\ntwo\n", ["one", "two"]),
            (b"one\n\n\ntwo", ["one", "", "", "two"]),
            (b"dos\r\nends\r\n", ["dos", "ends"]),
            (b"\r 10%|#  |\r 60%|## |\r100%|###|\ndone\n", ["100%|###|", "done"]),
            (b" 10%\r 99%\r    \r\ndone\n", [" 99%", "done"]),
            (b" 10%\r 99%\r\x1b[K\rdone\n", ["done"]),
            (b" 10%\r 99%\r", [" 99%"]),
            (b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b(B\n", ["red link"]),
            (b"a\x00b\x08c\x7fd\te\n", ["abcd\te"]),
            ("a\u009b31mb\u2028c\u202ed\n".encode(), ["abcd"]),
            ("szép\n".encode() + b"\xff\xfe\n", ["szép", "\ufffd\ufffd"]),
            (b"x" * 4096 + b"\n" + b"y" * 4097 + b"\nz\n", ["x" * 4096, "y" * 4096 + " ...", "z"]),
            (b"", []),
        ],
    )
    def test_a_line_is_what_a_person_would_have_seen(self, data: bytes, shown: list[str]) -> None:
        assert lines(data) == shown

    @patient
    @given(
        st.lists(
            st.sampled_from([b"a", b"\xc3", b"\xa9", b"\r", b"\n", b"\x1b", b"[", b"3", b"m", b"\0", b"b" * 3000])
        ),
        st.data(),
    )
    def test_it_does_not_matter_how_output_arrives(self, parts: list[bytes], data: st.DataObject) -> None:
        whole = b"".join(parts)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert lines(*pieces) == lines(whole)

    @given(st.binary() | st.text().map(str.encode))
    def test_nothing_is_shown_that_a_terminal_acts_on(self, data: bytes) -> None:
        for line in lines(data):
            assert line.isprintable() or not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]", line)

    @patient
    @given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40))), st.integers(1, 60))
    def test_streams_are_told_apart_wherever_the_connection_cuts(
        self, frames: list[tuple[int, bytes]], size: int
    ) -> None:
        sent = b"".join(struct.pack(">BxxxL", number, len(piece)) + piece for number, piece in frames)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                for start in range(0, len(sent), size):
                    theirs.sendall(sent[start : start + size])
            received = {1: b"", 2: b""}
            for number, piece in _pieces(ours, lambda: None):
                received[number] += piece
        for number, whole in received.items():
            assert whole == b"".join(piece for stream, piece in frames if stream == number)


@pytest.mark.oracle
class TestFailures:
    def test_a_step_that_fails_says_what_it_said_last(self, containers: Containers) -> None:
        error = failure(containers, "seq 100; echo; echo why >&2; exit 3")
        assert isinstance(error, EngineFailed)
        assert re.match(r"step chunk failed \(exit status 3\): see why .*; its last lines:\n  8[12]\n", str(error))
        assert str(error).endswith("\n  99\n  100\n  why")
        assert str(error).count("\n") == container.LAST_LINES

    def test_long_lines_are_repeated_in_part(self, containers: Containers) -> None:
        assert str(failure(containers, "printf %01000d 0; exit 1")).endswith("\n  " + "0" * 300 + " ...")

    def test_a_step_that_fails_without_a_word_is_told(self, containers: Containers) -> None:
        assert "exit status 1): " in str(error := failure(containers, "exit 1"))
        assert str(error).endswith("it wrote nothing")

    def test_a_signal_is_named(self, containers: Containers) -> None:
        error = failure(containers, "kill -SEGV $$")
        assert isinstance(error, EngineFailed)
        assert "exit status 139, SIGSEGV" in str(error)

    @pytest.mark.parametrize(
        ("command", "status"),
        [
            (["/1_prune.sh"], 127),
            (["/etc/passwd"], 126),
            # An executable for a machine that nobody has.
            (["sh", "-c", r"printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\377\376' >/x; chmod +x /x; exec /x"], 126),
        ],
    )
    def test_an_image_of_something_else_is_told(self, containers: Containers, command: list[str], status: int) -> None:
        error = failure(containers, "", command=command)
        assert isinstance(error, InputError)
        assert f"cannot run {command[0]} (exit status {status})" in str(error)
        assert "another architecture" in str(error)
        assert "--rechunk" in str(error)

    @pytest.mark.parametrize("status", [0, 1])
    def test_memory_that_runs_out_is_told(self, containers: Containers, tmp_path: Path, status: int) -> None:
        def limit() -> None:
            run("docker", "update", "--memory", "24m", "--memory-swap", "24m", *left())
            (tmp_path / "go").touch()

        script = f"echo ready; until [ -e /go/go ]; do sleep 0.05; done; tail /dev/zero; exit {status}"
        error = disturbed(containers, script, limit, binds=[Bind(tmp_path, "/go")])
        assert isinstance(error, EnvironmentLack)
        assert f"memory ran out (exit status {status}): use a machine (runner) with more memory" in str(error)

    def test_a_process_that_is_killed_is_told(self, containers: Containers) -> None:
        def kill() -> None:
            os.kill(int(run("docker", "inspect", "--format", "{{.State.Pid}}", *left())), signal.SIGKILL)

        error = disturbed(containers, HANG, kill)
        assert isinstance(error, EnvironmentLack)
        assert "step chunk was killed (exit status 137)" in str(error)
        assert "dmesg" in str(error)

    def test_a_container_that_is_removed_meanwhile_is_told(self, containers: Containers) -> None:
        error = disturbed(containers, HANG, lambda: run("docker", "rm", "--force", *left()))
        assert isinstance(error, EnvironmentLack)
        assert re.search("removed its container while it ran|docker rm", str(error))

    def test_a_directory_that_is_not_there_is_told(self, containers: Containers) -> None:
        error = failure(containers, "true", binds=[Bind(Path("/nowhere/at/all"), "/x")])
        assert isinstance(error, EnvironmentLack)
        assert "/nowhere/at/all" in str(error)

    def test_an_image_that_is_gone_is_told(self, containers: Containers) -> None:
        error = failure(containers, "true", image="sha256:" + "0" * 64)
        assert isinstance(error, EnvironmentLack)
        assert "o such image" in str(error)


@pytest.mark.oracle
class TestStops:
    def test_a_deadline_ends_a_step_that_hangs(self, containers: Containers) -> None:
        started = time.monotonic()
        with pytest.raises(Overdue), overdue_after(1.5):
            containers.run(step(HANG), say=print, watch=lambda: None)
        assert time.monotonic() - started < 10

    @pytest.mark.usefixtures("containers")
    def test_a_stop_at_any_moment_leaves_nothing(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE + AT_ANY_MOMENT, base(), HANG]
        assert run(*command).split() == ["Overdue"] * 10

    @pytest.mark.usefixtures("containers")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_request_to_stop_ends_the_container(self, number: signal.Signals) -> None:
        with elsewhere() as process:
            process.send_signal(number)
            process.send_signal(number)
            assert process.wait(20) == 130

    def test_what_a_killed_run_has_left_is_cleared(self, containers: Containers) -> None:
        other = "rechunk-test-" + secrets.token_hex(4)
        run("docker", "create", "--name", other, "--label", f"rechunk-test.runner={RUNNER}", base(), "true")
        try:
            with elsewhere() as process:
                process.kill()
                process.wait()
            [killed] = set(left()) - {other}
            assert containers.clear() == [killed]
            assert left() == [other]  # it has no step's label
        finally:
            run("docker", "rm", other)
        assert containers.clear() == []


@contextlib.contextmanager
def overdue_after(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise Overdue

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


ELSEWHERE = f"""
import os, sys
from rechunk_action.engines.container import Containers, Step
from rechunk_action.signals import stop_when_asked

def hang():
    step = Step("chunk", sys.argv[1], ["sh", "-c", sys.argv[2]], {{}}, [], [])
    Containers(os.environ, {LABELS!r}).run(step, say=lambda line: print(line, flush=True), watch=lambda: None)
"""

UNTIL_STOPPED = """
stop_when_asked()
try:
    hang()
except KeyboardInterrupt:
    sys.exit(130)
"""

AT_ANY_MOMENT = """
import signal
from rechunk_action.errors import Overdue

def stop(*_):
    raise Overdue

signal.signal(signal.SIGALRM, stop)
sys.argv[2] = sys.argv[2].replace("echo ready", ":")
for moment in range(10):
    signal.setitimer(signal.ITIMER_REAL, 0.002 + moment * 0.05)
    try:
        hang()
    except Overdue:
        print("Overdue")
"""


@contextlib.contextmanager
def elsewhere() -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of a step that hangs."""
    command = [sys.executable, "-c", ELSEWHERE + UNTIL_STOPPED, base(), HANG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.oracle
class TestDaemon:
    @pytest.mark.parametrize(
        ("request_line", "status", "message", "kind", "told"),
        [
            ("POST .*/containers/create", 500, "a bad day", EnvironmentLack, r"docker failed \(a bad day\)"),
            ("POST .*/containers/create", 409, "name in use", EnvironmentLack, r"docker failed \(name in use\)"),
            ("POST .*/attach", 500, "a bad day", EnvironmentLack, r"docker failed \(a bad day\)"),
            ("POST .*/start", 500, "a bad day", EnvironmentLack, r"docker failed \(a bad day\)"),
            ("POST .*/start", 400, "exec: sh: not found", InputError, r"cannot run sh \(exec: sh: not found\)"),
            ("POST .*/start", 404, "No such container: x", EnvironmentLack, "somebody removed its container"),
            ("GET .*/containers/.*/json", 404, "No such container: x", EnvironmentLack, "somebody removed"),
            ("GET .*/containers/.*/json", 500, "a bad day", EnvironmentLack, r"docker failed \(a bad day\)"),
        ],
    )
    def test_errors_of_the_daemon_are_told(
        self, proxy: Proxy, proxied: Containers, request_line: str, status: int, message: str, kind: type, told: str
    ) -> None:
        proxy.answer(request_line, status, {"message": message})
        error = failure(proxied, "true")
        assert isinstance(error, kind)
        assert re.search(told, str(error))

    @pytest.mark.parametrize("request_line", ["POST .*/attach", "POST .*/start", "GET .*/containers/.*/json"])
    def test_a_daemon_that_breaks_off_is_told(self, proxy: Proxy, proxied: Containers, request_line: str) -> None:
        proxy.hang_up(request_line)
        error = failure(proxied, "true")
        assert isinstance(error, EnvironmentLack)
        assert re.search("step chunk: docker went away while it ran.*journalctl", str(error))

    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the SDK's, of sockets that it could not connect
    def test_a_daemon_that_ends_is_told_and_what_it_leaves_is_cleared(
        self, proxy: Proxy, proxied: Containers, containers: Containers
    ) -> None:
        shown, say = once_ready(proxy.end)
        with pytest.raises(EnvironmentLack, match="docker went away while it ran"):
            proxied.run(step(HANG), say=say, watch=lambda: None)
        assert re.match(r"container rechunk-\w+ could not be removed .*docker rm --force rechunk-", shown[-1])
        with pytest.raises(EnvironmentLack, match="docker does not run"):
            proxied.clear()
        assert containers.clear() == [shown[-1].split()[1]]
        gc.collect()

    def test_a_step_is_seen_to_its_end_when_only_its_output_is_lost(self, proxy: Proxy, proxied: Containers) -> None:
        _, say = once_ready(proxy.cut)
        proxied.run(step("echo ready; sleep 1; echo unheard"), say=say, watch=lambda: None)

    def test_a_container_that_cannot_be_removed_is_told(
        self, proxy: Proxy, proxied: Containers, containers: Containers
    ) -> None:
        proxy.answer("DELETE .*", 500, {"message": "device or resource busy"})
        [told] = output(proxied, "true")
        assert re.match(r"container rechunk-\w+ could not be removed .*resource busy.*docker rm --force", told)
        assert containers.clear() == [told.split()[1]]

    def test_a_container_that_somebody_else_removes_is_no_fault(
        self, proxy: Proxy, proxied: Containers, containers: Containers
    ) -> None:
        proxy.answer("DELETE .*", 409, {"message": "removal of container x is already in progress"})
        assert output(proxied, "true") == []
        assert len(containers.clear()) == 1

    def test_memory_of_the_machine_that_runs_out_is_told(self) -> None:
        error = _failure(step("x"), {"ExitCode": 137, "OOMKilled": True}, ["the last word"])
        assert isinstance(error, EnvironmentLack)
        assert "memory ran out (exit status 137)" in str(error)
        assert str(error).endswith("its last lines:\n  the last word")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layout(tmp_path_factory.mktemp("layout"), stores.layers(), config=stores.CONFIG)


def pull_stream(*events: dict[str, object]) -> bytes:
    """An answer of the daemon that reports on a pull."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    bodies = [json.dumps(event).encode() + b"\r\n" for event in events]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


def refusal(said: str) -> bytes:
    return pull_stream({"status": "Pulling from made/image"}, {"errorDetail": {"message": said}, "error": said})


ABSENT = "rechunk.invalid/made/image:1"
UNAVAILABLE = "received unexpected HTTP status: 503 Service Unavailable"


@pytest.mark.oracle
class TestImages:
    def test_an_image_that_docker_has_is_used(self, proxy: Proxy, proxied: Containers) -> None:
        image_id = run("docker", "image", "inspect", "--format", "{{.Id}}", base()).strip()
        for name in (base(), image_id, image_id.removeprefix("sha256:")[:12]):
            assert proxied.bring(name, Progress(io.StringIO())) == image_id
        assert not any("/images/create" in asked for asked in proxy.asked)

    @pytest.mark.parametrize("wanted", ["{name}:1", "{name}@{digest}", "{name}:1@{digest}"])
    def test_an_image_is_pulled_once(self, containers: Containers, layout: Path, wanted: str) -> None:
        manifest = read_image(layout, None).digest
        with registry_with(layout, "1") as (name, proxy), removed_after(name):
            image, told = wanted.format(name=name, digest=manifest), io.StringIO()
            image_id = containers.bring(image, Progress(told))
            assert (
                run("docker", "image", "inspect", "--format", "{{index .Config.Env 0}}", image_id) == "PATH=/usr/bin\n"
            )
            assert re.fullmatch(rf"pull {image}: \d+\.\d s \([^(]+/s\)\n", told.getvalue())
            proxy.forget()
            assert containers.bring(image, Progress(told)) == image_id
            assert proxy.exchanges == []

    def test_an_image_that_is_nowhere_is_told_at_once(self, containers: Containers, layout: Path) -> None:
        with registry_with(layout) as (name, proxy):
            told = io.StringIO()
            with pytest.raises(InputError, match=rf"container image {name}:1 cannot be had .*name another .*--rechunk"):
                containers.bring(f"{name}:1", Progress(told))
            assert "again" not in told.getvalue()
            assert len(proxy.asked(path="manifests")) <= 2  # docker looks with HEAD, then with GET

    def test_a_registry_that_is_back_after_a_while_gives_the_image(self, containers: Containers, layout: Path) -> None:
        with registry_with(layout, "1") as (name, proxy), removed_after(name):
            proxy.fault("answer", path="manifests", times=2, status=503)
            told = io.StringIO()
            assert containers.bring(f"{name}:1", Progress(told))
            assert re.search(f"notice: {name}:1 could not be pulled .*it is tried again in 0 s", told.getvalue())

    def test_a_registry_that_stays_away_is_told(self, containers: Containers, layout: Path) -> None:
        with registry_with(layout) as (name, proxy):
            proxy.fault("answer", times=ALWAYS, status=503)
            told = io.StringIO()
            with pytest.raises(EnvironmentLack, match=rf"{name}:1 could not be pulled in 3 tries \(.*registry"):
                containers.bring(f"{name}:1", Progress(told))
            assert told.getvalue().count("notice: ") == 2

    @pytest.mark.parametrize(
        "said",
        [
            "pull access denied for made/image, repository does not exist or may require 'docker login'",
            "Head https://ghcr.io/v2/made/image/manifests/1: denied",
            "unauthorized: authentication required",
            "manifest unknown",
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
        ],
    )
    def test_a_refusal_is_not_tried_again(self, proxy: Proxy, proxied: Containers, said: str) -> None:
        for answer in (refusal(said), (404, said), (500, said)):
            if isinstance(answer, bytes):
                proxy.reply("POST .*/images/create", answer)
            else:
                proxy.answer("POST .*/images/create", answer[0], {"message": answer[1]})
            with pytest.raises(InputError, match=r"cannot be had .*--rechunk, or log in to its registry"):
                proxied.bring(ABSENT, Progress(io.StringIO()))
        assert len([asked for asked in proxy.asked if "/images/create" in asked]) == 3

    @pytest.mark.parametrize(
        "said", [UNAVAILABLE, "x509: certificate signed by unknown authority", "toomanyrequests: slow down", "EOF"]
    )
    def test_what_may_pass_is_tried_again(self, proxy: Proxy, proxied: Containers, said: str) -> None:
        proxy.reply("POST .*/images/create", refusal(said))
        proxy.answer("POST .*/images/create", 500, {"message": said})
        proxy.reply("POST .*/images/create", refusal("manifest unknown"))
        told = io.StringIO()
        with pytest.raises(InputError, match="manifest unknown"):
            proxied.bring(ABSENT, Progress(told))
        assert told.getvalue().count(f"notice: {ABSENT} could not be pulled ({said})") == 2

    def test_a_full_disk_is_told(self, proxy: Proxy, proxied: Containers) -> None:
        proxy.reply("POST .*/images/create", refusal("write /var/lib/docker/tmp/x: no space left on device"))
        with pytest.raises(EnvironmentLack, match=r"no space left.*free some space where docker keeps images"):
            proxied.bring(ABSENT, Progress(io.StringIO()))

    def test_bytes_are_counted_as_they_arrive(self, proxy: Proxy, proxied: Containers) -> None:
        def event(layer: str, status: str, current: int | None = None) -> dict[str, object]:
            return {"id": layer, "status": status, "progressDetail": {} if current is None else {"current": current}}

        events = [event("a", "Downloading", 10), event("b", "Downloading", 5), event("a", "Downloading", 30)]
        events += [event("a", "Download complete"), event("a", "Extracting", 1000), event("b", "Downloading", 7)]
        proxy.reply("POST .*/images/create", pull_stream(*events, {"error": "manifest unknown"}))
        counted = Counted()
        with pytest.raises(InputError):
            proxied.bring(ABSENT, counted)
        assert counted.meter.done == 37

    def test_a_pull_that_breaks_off_is_told(self, proxy: Proxy, proxied: Containers) -> None:
        proxy.reply("POST .*/images/create", pull_stream({"status": "Pulling"}).removesuffix(b"0\r\n\r\n"))
        with pytest.raises(EnvironmentLack, match="does not answer as docker should"):
            proxied.bring(ABSENT, Progress(io.StringIO()))

    @pytest.mark.parametrize("name", ["No Name", "https://ghcr.io/x/y", "UPPER"])
    def test_a_name_that_no_image_has_is_told(self, containers: Containers, name: str) -> None:
        with pytest.raises(InputError, match="cannot be had"):
            containers.bring(name, Progress(io.StringIO()))

    @pytest.mark.parametrize(
        ("image", "name"),
        [
            ("ghcr.io/x/y:v1@sha256:ab", "ghcr.io/x/y@sha256:ab"),
            ("localhost:5000/x@sha256:ab", "localhost:5000/x@sha256:ab"),
            ("localhost:5000/x:v1@sha256:ab", "localhost:5000/x@sha256:ab"),
            ("localhost:5000/x:v1", "localhost:5000/x:v1"),
            ("sha256:ab", "sha256:ab"),
            ("x", "x"),
        ],
    )
    def test_a_digest_says_it_all(self, image: str, name: str) -> None:
        assert _without_tag(image) == name


class Counted(Progress):
    """Has one meter for all phases."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.meter = Meter()

    @contextlib.contextmanager
    def phase(self, *_: object) -> Iterator[Meter]:
        yield self.meter


@contextlib.contextmanager
def registry_with(layout: Path, *images: str) -> Iterator[tuple[str, FaultyProxy]]:
    """A registry behind a proxy, the name of its repository, and images in there by their tags."""
    with plain_registry() as registry, FaultyProxy(registry.host) as proxy:
        skopeo = (program("skopeo", "skopeo"), "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false")
        for tag in images:
            run(*skopeo, f"oci:{layout}", f"docker://{registry.host}/made/image:{tag}")
        yield f"{proxy.host}/made/image", proxy


@contextlib.contextmanager
def removed_after(repository: str) -> Iterator[None]:
    """What docker has of a repository then."""
    try:
        yield
    finally:
        run("docker", "image", "rm", "--force", *set(run("docker", "image", "ls", "--quiet", repository).split()))


class Proxy:
    """The real daemon behind a socket of ours. Requests may be answered otherwise, and connections be cut."""

    def __init__(self, path: Path) -> None:
        self.host = f"unix://{path}"
        self.asked: list[str] = []
        self._path = path
        self._rules: list[tuple[str, bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def reply(self, request_line: str, answer: bytes) -> None:
        """Answer the next request that matches by these bytes, and close the connection."""
        self._rules.append((request_line, answer))

    def answer(self, request_line: str, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.reply(request_line, head.encode() + body)

    def hang_up(self, request_line: str) -> None:
        self.reply(request_line, b"")

    def cut(self) -> None:
        """All connections that are there."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """As a daemon that ends: nobody can connect any more."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()

    def _serve(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            daemon = socket.socket(socket.AF_UNIX)
            daemon.connect((os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock").removeprefix("unix://"))
            self._pairs.append((client, daemon))
            thread = threading.Thread(target=self._forward, args=(client, daemon))
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket, daemon: socket.socket) -> None:
        with client, daemon, contextlib.suppress(OSError):
            while True:
                for end in select.select([client, daemon], [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    if end is client and (answer := self._rule(data)) is not None:
                        client.sendall(answer)
                        client.shutdown(socket.SHUT_WR)
                        client.recv(1 << 16)  # what is left of the request
                        return
                    (daemon if end is client else client).sendall(data)

    def _rule(self, data: bytes) -> bytes | None:
        request_line = data.split(b"\r\n", 1)[0].decode(errors="replace")
        if not request_line.endswith(" HTTP/1.1"):
            return None  # a body
        self.asked.append(request_line)
        for rule in self._rules:
            if re.match(rule[0], request_line):
                self._rules.remove(rule)
                return rule[1]
        return None
