"""The action's scripts as a runner calls them, by a user of its own, with real stores and containers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import containers, stores
from tests.oracles import program, run
from tests.rechunker import FAULTS, rechunker_image, small_tree
from tests.stores import User

pytestmark = pytest.mark.oracle

PREFIX = f"localhost/rechunk-{os.getpid()}"  # docker is shared with other tests
ROOTS = f"{PREFIX}/roots:1"
USERS = f"{PREFIX}/users:1"
DOCKERS = f"{PREFIX}/dockers:1"
EVERYWHERE = f"{PREFIX}/everywhere:1"
DIFFERENT = f"{PREFIX}/different:1"
SYSTEM = f"{PREFIX}/system:1"
"""An operating system, in root's storage and in docker."""
HANGING = f"{PREFIX}/hanging:1"
"""The same in root's storage, but its rechunking never ends, and heeds no request to."""

NUMBER = itertools.count()

SOON = 7.0
"""Seconds: half a second less than the runner leaves between its two signals."""

WRITING = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP")
MOUNTING = (*WRITING, "SYS_ADMIN")
IN_PLACE = (*MOUNTING, "MKNOD")
NUMBERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "SYS_ADMIN": 21, "MKNOD": 27, "SETFCAP": 31}


@dataclass(frozen=True)
class Machine:
    """A machine with a user whom runners work as. Its root's podman storage is private to these tests."""

    place: Path
    user: User
    storage: dict[str, str]
    action: Path

    def start(self, command: str, environment: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
        """Start a script of the action as the runner does."""
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", f'exec "$GITHUB_ACTION_PATH/{command}"'],
            env=environment,
            cwd=environment["GITHUB_WORKSPACE"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            user=self.user.account.pw_uid,
            group=self.user.account.pw_gid,
            extra_groups=[Path("/var/run/docker.sock").stat().st_gid],
            **options,
        )


class Runner:
    """One runner of a machine, with directories whose names take some care."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        home = machine.place / name
        self.temp, self.workspace, self.path = home / "_temp", home / "work, and space", home / "bin"
        self.output = self.temp / "_runner_file_commands" / "set_output_1"
        for directory in (self.output.parent, self.workspace, self.path):
            directory.mkdir(parents=True)
        self.output.touch()
        self.output.with_name("step_summary_1").touch()
        for path in (home, *home.rglob("*")):
            os.chown(path, machine.user.account.pw_uid, machine.user.account.pw_gid)

    @property
    def scratch(self) -> Path:
        return self.temp / "rechunk"

    def environment(self, ref: str, **more: str) -> dict[str, str]:
        return {
            **self.machine.user.login,
            "PATH": os.pathsep.join(map(str, (self.path, self.machine.place / "bin", os.environ["PATH"]))),
            "GITHUB_ACTION_PATH": str(self.machine.action),
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_REPOSITORY": "owner/image",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_SHA": "0" * 40,
            "GITHUB_STEP_SUMMARY": str(self.output.with_name("step_summary_1")),
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
            "INPUT_REF": ref,
            **more,
        }

    @property
    def results(self) -> list[Path]:
        return sorted(self.temp.glob("rechunk-results.*"))

    def start(self, ref: str, **more: str) -> subprocess.Popen[str]:
        return self.machine.start("scripts/run-action", self.environment(ref, **more))

    def run(self, ref: str, **more: str) -> tuple[int, str]:
        return finished(self.start(ref, **more))

    def clean(self, **more: str) -> str:
        status, text = finished(self.machine.start("scripts/clean-action", self.environment("", **more)))
        assert status == 0
        return text

    def stand_in(self, script: str) -> dict[str, str]:
        """What has a shell script run in the container."""
        return {"RECHUNK_ACTION_IMAGE": containers.stand_in(), "INPUT_DESCRIPTION": script}

    def replace(self, program: str, script: str) -> None:
        """Put another program before the one of that name. `$REAL` is the one it replaces."""
        real = shutil.which(program) or "/nowhere"
        (self.path / program).write_text(f"#!/bin/bash\nREAL={real}\n{script}\n")
        (self.path / program).chmod(0o755)

    def shadow(self, functions: str) -> dict[str, str]:
        """What has bash define functions before it runs a script, in the place of its own commands."""
        file = self.path / "functions"
        file.write_text(functions)
        return {"BASH_ENV": str(file)}

    def containers(self) -> list[str]:
        return run("docker", "ps", "-aq", "--filter", f"label=rechunk-action.runner={self.temp}").split()

    def outputs(self) -> dict[str, str]:
        lines = self.output.read_text().splitlines()
        return {lines[i].partition("<<")[0]: lines[i + 1] for i in range(0, len(lines), 3)}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    program("sudo", "sudo")
    with ExitStack() as stack:
        place = stack.enter_context(stores.work())
        stores.write_image(place / "one", author="one")
        stores.write_image(place / "two", author="two")
        storage = stores.root_storage(place / "root")
        (place / "user").mkdir()
        user = stack.enter_context(stores.user(place / "user", "overlay"))
        for layout, name, owners in (
            ("one", ROOTS, [storage]),
            ("one", USERS, [user]),
            ("one", EVERYWHERE, [storage, user]),
            ("one", DIFFERENT, [storage]),
            ("two", DIFFERENT, [user]),
        ):
            for owner in owners:
                stores.store(place / layout, name, owner)  # type: ignore[arg-type]
        for name, faults in ((SYSTEM, ""), (HANGING, "create:deaf\n")):
            tree = small_tree(place / name.split("/")[-1].split(":")[0], 1)
            (tree / FAULTS).write_text(faults)
            run("tar", "-C", tree, "--xattrs", "--xattrs-include=*", "-cf", f"{tree}.tar", ".")
            stores.podman(storage, "import", "--quiet", f"{tree}.tar", name)
        stores.podman(storage, "push", "--quiet", SYSTEM, f"oci:{place}/system.oci")
        for layout, name in (("one", DOCKERS), ("one", EVERYWHERE), ("two", DIFFERENT), ("system.oci", SYSTEM)):
            stack.enter_context(stores.in_docker(place / layout, name))
        stores.podman(storage, "info")  # sets up what podman keeps beside images
        stack.enter_context(may_sudo(user, place / "bin", storage))
        yield Machine(place, user, storage, action_in(place / "an action"))


@contextmanager
def may_sudo(user: User, bin_directory: Path, storage: Mapping[str, str]) -> Iterator[None]:
    """A user may do all that root may, without a password. Root has its images where we keep them."""
    rule = Path(f"/etc/sudoers.d/{user.account.pw_name}")
    rule.write_text(f"{user.account.pw_name} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    config = storage["CONTAINERS_STORAGE_CONF"]
    bin_directory.mkdir()
    (bin_directory / "sudo").write_text(
        f'#!/bin/sh\nshift\nexec /usr/bin/sudo -n env CONTAINERS_STORAGE_CONF={config} "$@"\n'
    )
    (bin_directory / "sudo").chmod(0o755)
    try:
        yield
    finally:
        rule.unlink()


def action_in(directory: Path) -> Path:
    """The action as a runner downloads it: files, without a repository."""
    for name in ("scripts", "src", "requirements"):
        shutil.copytree(containers.ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", "Dockerfile", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(containers.ROOT / name, directory)
    return directory


@pytest.fixture
def runner(machine: Machine) -> Iterator[Runner]:
    made = Runner(machine, f"runner {next(NUMBER)}")
    yield made
    made.clean()


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def cancel(process: subprocess.Popen[str]) -> tuple[int, float]:
    """As the runner cancels a step: its exit status, and the seconds that it took."""
    began = time.monotonic()
    for number, patience in ((signal.SIGINT, 7.5), (signal.SIGTERM, 2.5), (signal.SIGKILL, 60)):
        process.send_signal(number)
        try:
            process.communicate(timeout=patience)
            break
        except subprocess.TimeoutExpired:
            pass
    return process.returncode, time.monotonic() - began


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something is so, while a process runs."""
    until = time.monotonic() + 30
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def running(*command: str) -> list[str]:
    """Processes that were started by a command."""
    wanted = b"".join(word.encode() + b"\0" for word in command)
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes() == wanted:
                found.append(entry.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


@contextmanager
def untouched(machine: Machine) -> Iterator[None]:
    """Root's storage is as it was, times included, and so is what is mounted of it."""
    stores.podman(machine.storage, "info")  # one that has failed leaves the storage mounted on itself
    before = state(machine)
    yield
    assert sorted(state(machine) ^ before) == []


def state(machine: Machine) -> set[str]:
    """All that a writer would change: metadata and times of every file in storage, and what is mounted of it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {line for line in mounts if str(machine.place) in line}
    for path in (machine.place / "root").rglob("*"):
        if path.suffix == ".lock":  # the machine's own podman, which is asked for the image's ID, writes here
            continue
        status = path.lstat()
        found.add(
            f"{path}: {status.st_mode} {status.st_uid} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        )
    return found


# --- Where the image comes from ---


def test_root_s_image_is_read_in_place(runner: Runner) -> None:
    """What the container has read is what podman mounts on the machine, whose storage and mounts stay as they were."""
    with untouched(runner.machine):
        status, text = runner.run(
            ROOTS, RECHUNK_ACTION_IMAGE=containers.action_image(), INPUT_OUTPUT="an output", INPUT_FRESH="true"
        )
    assert status == 0, text
    assert runner.outputs()["location"] == str(runner.workspace / "an output")
    verify = ("verify", f"oci:{runner.workspace}/an output", f"containers-storage:{ROOTS}", "--json")
    verified = subprocess.run(
        [sys.executable, "-m", "rechunk_action", *verify],
        env=os.environ | runner.machine.storage,
        check=False,
        text=True,
        capture_output=True,
    )
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["equal"]
    runner.clean(INPUT_OUTPUT="an output")
    owners = {path.stat().st_uid for path in runner.workspace.rglob("*")}
    assert owners == {runner.machine.user.account.pw_uid}
    assert not runner.scratch.exists()


@pytest.mark.parametrize("ref", [USERS, f"docker-daemon:{DOCKERS}"])
def test_other_images_are_copied(runner: Runner, ref: str) -> None:
    status, text = runner.run(
        ref, RECHUNK_ACTION_IMAGE=containers.action_image(), INPUT_OUTPUT="an output", INPUT_FRESH="true"
    )
    assert status == 0, text
    verify = ("verify", f"oci:{runner.workspace}/an output", f"oci:{runner.machine.place}/one")
    run(sys.executable, "-m", "rechunk_action", *verify)
    assert {path.stat().st_uid for path in runner.workspace.rglob("*")} == {runner.machine.user.account.pw_uid}


@pytest.mark.parametrize(
    ("ref", "source"),
    [
        (ROOTS, "containers-storage:"),
        (f"containers-storage:{ROOTS}", "containers-storage:"),
        (USERS, "docker-archive:{temp}/rechunk/image.tar"),
        (DOCKERS, "docker-archive:{temp}/rechunk/image.tar"),
        (EVERYWHERE, "containers-storage:"),
        (f"docker-daemon:{EVERYWHERE}", "docker-archive:{temp}/rechunk/image.tar"),
        ("oci:{place}/one", "oci:{place}/one"),
        ("oci:{place}/one:a-tag", "oci:{place}/one:a-tag"),
        ("dir:{place}/one", "dir:{place}/one"),
        ("docker://ghcr.io/owner/image:1", "docker://ghcr.io/owner/image:1"),
    ],
)
def test_source(runner: Runner, ref: str, source: str) -> None:
    names = {"place": runner.machine.place, "temp": runner.temp}
    check = 'echo "source=$RECHUNK_SOURCE"; case $RECHUNK_SOURCE in *-archive:*) test -s "${RECHUNK_SOURCE#*:}";; esac'
    status, text = runner.run(ref.format(**names), **runner.stand_in(check))
    assert status == 0, text
    assert f"source={source.format(**names)}" in text


def test_tree_may_be_where_only_root_may_look(runner: Runner) -> None:
    closed = runner.machine.place / "closed"
    shutil.copytree(runner.machine.place / "one", closed / "tree")
    closed.chmod(0o700)
    status, text = runner.run(f"dir:{closed}/tree", **runner.stand_in('ls "${RECHUNK_SOURCE#dir:}"'))
    assert status == 0, text
    assert "oci-layout" in text


def test_paths_may_be_relative_and_have_spaces(runner: Runner) -> None:
    shutil.copytree(runner.machine.place / "one", runner.workspace / "a, layout")
    status, text = runner.run("oci:a, layout", **runner.stand_in('cat "${RECHUNK_SOURCE#oci:}/oci-layout"'))
    assert status == 0, text
    assert "imageLayoutVersion" in text


def test_previous_image_may_be_on_disk(runner: Runner) -> None:
    shutil.copytree(runner.machine.place / "one", runner.workspace / "old")
    show = 'echo "$INPUT_PREV_REF" && ls "$GITHUB_WORKSPACE/old"'
    status, text = runner.run("oci:old", INPUT_PREV_REF="oci:old:1", INPUT_OUTPUT="new", **runner.stand_in(show))
    assert status == 0, text
    assert f"oci:{runner.workspace}/old:1\n" in text
    assert "oci-layout" in text


def test_storage_of_another_driver_is_copied(runner: Runner) -> None:
    runner.replace(
        "sudo",
        '[[ $* == *" info "* ]] && printf "%s\\n" vfs /nowhere "map[]" || exec SUDO "$@"'.replace(
            "SUDO", f"{runner.machine.place}/bin/sudo"
        ),
    )
    status, text = runner.run(ROOTS, **runner.stand_in("id -u; echo $RECHUNK_SOURCE"))
    assert status == 0, text
    assert f"docker-archive:{runner.scratch}/image.tar" in text


def test_different_images_of_one_name_are_not_chosen_between(runner: Runner) -> None:
    status, text = runner.run(DIFFERENT)
    assert status == 2
    assert "is not the same image everywhere: set input ref to containers-storage:" in text
    assert "for that of root's podman storage or containers-storage:" in text
    assert "docker-daemon:" in text
    chosen = text.split("set input ref to ")[1].split()[0]
    status, text = runner.run(chosen, **runner.stand_in("echo $RECHUNK_SOURCE"))
    assert status == 0, text


def test_missing_image(runner: Runner) -> None:
    status, text = runner.run("localhost/dockers:2")
    assert status == 2
    user = runner.machine.user.account.pw_name
    assert (
        f"there is no image localhost/dockers:2 in root's podman storage or {user}'s podman storage or docker" in text
    )
    assert f"did you mean {DOCKERS}?" in text
    status, text = runner.run("oci:nothing/here")
    assert status == 2
    assert "there is no nothing/here, which input ref names" in text
    status, text = runner.run(ROOTS, RECHUNK_ACTION_IMAGE=containers.stand_in(), INPUT_PREV_REF="oci:nothing/here:1")
    assert status == 2
    assert "there is no nothing/here, which input prev-ref names" in text
    status, text = runner.run("")
    assert status == 2
    assert "input ref is missing" in text


@pytest.mark.parametrize(
    "ref", ["x; touch pwned", "$(touch pwned)", "`touch pwned`", "--help", "a\n::set-env::b", "a%0Ab", "é"]
)
def test_unusual_names_are_only_names(runner: Runner, ref: str) -> None:
    status, text = runner.run(ref)
    assert status == 2, text
    [line] = text.splitlines()
    assert line.startswith("::error title=rechunk::there is no image ")
    assert not list(runner.workspace.iterdir())


# --- The container ---


def test_container_image_is_small() -> None:
    size = run("docker", "image", "inspect", "--format", "{{.Size}}", containers.action_image())
    assert int(size) <= 250_000_000


RIGHTS = """
grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status
echo "user $(id -u)"
for path in / /usr /storage /storage/overlay "$GITHUB_WORKSPACE" "$RUNNER_TEMP"; do
    (: >"$path/written") 2>/dev/null && echo "can write to $path"
done
[ -e /run/docker.sock ] && echo "has docker"
for device in /dev/loop-control $(find /dev -type b); do
    ( : <"$device" ) 2>/dev/null && echo "can open $device"
done
awk '$5 ~ "_temp/rechunk$" && / shared:/ { print "mounts are seen outside" }' /proc/self/mountinfo
true
"""


def capabilities(*names: str) -> str:
    return f"{sum(1 << NUMBERS[name] for name in names):016x}"


def test_rights_without_root_s_storage(runner: Runner) -> None:
    status, text = runner.run(DOCKERS, **runner.stand_in(RIGHTS))
    assert status == 0, text
    assert "CapEff:\t0000000000000000" in text
    assert "CapBnd:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert f"user {runner.machine.user.account.pw_uid}" in text
    assert not re.search("can (write|open)|has docker|seen outside", text)


def test_rights_with_root_s_storage(runner: Runner) -> None:
    _, text = runner.run(ROOTS, **runner.stand_in(RIGHTS))
    assert f"CapEff:\t{capabilities(*IN_PLACE)}" in text
    assert f"CapBnd:\t{capabilities(*IN_PLACE)}" in text
    assert "NoNewPrivs:\t1" in text
    assert "user 0" in text
    assert not re.search("can (write|open)|has docker|seen outside", text)


@pytest.mark.parametrize(
    ("ref", "workspace", "rights", "devices", "seen"),
    [
        (ROOTS, "", IN_PLACE, True, True),
        (DOCKERS, "", MOUNTING, True, True),
        (ROOTS, "none", IN_PLACE, False, True),
        ("dir:{place}/one", "none", MOUNTING, False, True),
        (DOCKERS, "none", WRITING, False, False),
    ],
)
def test_rights_with_engine_hhd(
    runner: Runner, ref: str, workspace: str, rights: tuple[str, ...], devices: bool, seen: bool
) -> None:
    """What its containers work in is mounted where it can be, and where not, nothing is."""
    ref = ref.format(place=runner.machine.place)
    status, text = runner.run(ref, INPUT_ENGINE="hhd", INPUT_WORKSPACE=workspace, **runner.stand_in(RIGHTS))
    assert status == 0, text
    assert f"CapEff:\t{capabilities(*rights)}" in text
    assert f"CapBnd:\t{capabilities(*rights)}" in text
    assert "NoNewPrivs:\t1" in text
    assert "user 0" in text
    assert "can write" not in text
    assert "has docker" in text
    opened = re.findall("can open (.*)", text)
    assert ("/dev/loop-control" in opened) == devices
    assert all(device.startswith("/dev/loop") for device in opened)
    assert ("seen outside" in text) == seen
    runner.clean()
    assert_nothing_left(runner)


RECORDER = r"""
case $1 in
    version) echo "$CLIENT" ;;
    info) echo "$SECURITY" ;;
    image) echo sha256:1111 ;;
    run) printf '%s\0' "$@" >"$RUNNER_TEMP/argv"; env --null >"$RUNNER_TEMP/environment" ;;
esac
"""


def recorded(runner: Runner, ref: str, **more: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of `docker run`."""
    runner.replace("docker", RECORDER)
    status, text = runner.run(ref, RECHUNK_ACTION_IMAGE="image", **more)
    assert status == 0, text
    argv = (runner.temp / "argv").read_text().split("\0")[:-1]
    environment = (runner.temp / "environment").read_text().split("\0")[:-1]
    return argv, {name: value for name, _, value in (item.partition("=") for item in environment)}


def test_secrets_are_no_arguments(runner: Runner) -> None:
    secrets = {"INPUT_TOKEN": "tok-en", "INPUT_PASSWORD": "pass\nword", "INPUT_USERNAME": "some-user"}
    argv, environment = recorded(runner, "docker://ghcr.io/o/i", INPUT_LABELS="a=b\nc=d", **secrets)
    passed = [name for flag, name in itertools.pairwise(argv) if flag == "--env"]
    for name, value in secrets.items():
        assert name in passed
        assert environment[name] == value
        assert not any(value in argument for argument in argv)
    assert all("=" not in name for name in passed if not name.startswith("TMPDIR="))
    assert {"INPUT_LABELS", "GITHUB_API_URL", "RECHUNK_PULL_REQUEST"} <= set(passed)
    assert environment["RECHUNK_SOURCE"] == "docker://ghcr.io/o/i"
    assert argv[-2:] == ["image", "action"]


def test_docker_keeps_no_log(runner: Runner) -> None:
    """What masks a secret names it. The output arrives nevertheless."""
    show = 'echo "::add-mask::secret"; touch "$TMPDIR/started"; while [ -e "$TMPDIR/started" ]; do sleep 0.1; done'
    process = runner.start("docker://ghcr.io/o/i", **runner.stand_in(show))
    wait_for((runner.scratch / "started").exists, process)
    [container] = runner.containers()
    kept = subprocess.run(["docker", "logs", container], check=False, text=True, capture_output=True)
    (runner.scratch / "started").unlink()
    status, text = finished(process)
    assert status == 0
    assert "::add-mask::secret" in text
    assert "secret" not in kept.stdout + kept.stderr


@pytest.mark.parametrize(
    ("client", "option"),
    [
        ("20.10.24+dfsg1", "bind-nonrecursive"),
        ("24.0.7", "bind-nonrecursive"),
        ("25.0.0", "bind-recursive=disabled"),
        ("29.1.0-rc.1", "bind-recursive=disabled"),
        ("", "bind-nonrecursive"),
    ],
)
def test_every_docker_is_asked_in_its_own_words(runner: Runner, client: str, option: str) -> None:
    argv, _ = recorded(runner, f"containers-storage:{ROOTS}", CLIENT=client)
    [storage] = [argument for argument in argv if ',"target=/storage",' in argument]
    assert storage.endswith(f",readonly,{option}")


def test_labels_of_files(runner: Runner) -> None:
    """Where SELinux keeps containers from files that are not labelled for them."""
    ref = "docker://ghcr.io/o/i"
    assert "label=disable" in recorded(runner, ref, SECURITY="[name=seccomp,profile=default name=selinux]")[0]
    assert "label=disable" not in recorded(runner, ref, SECURITY="[name=seccomp,profile=default]")[0]


@pytest.mark.parametrize("option", ["name=rootless", "name=userns"])
def test_docker_in_a_user_namespace(runner: Runner, option: str) -> None:
    runner.replace("docker", RECORDER)
    status, text = runner.run("docker://ghcr.io/o/i", SECURITY=f"[name=seccomp,profile=default {option}]")
    assert status == 3
    assert "turn off rootless mode or userns-remap" in text


@pytest.mark.parametrize(
    ("inputs", "network"),
    [
        ({"INPUT_REPOSITORY": "ghcr.io/owner/image"}, False),
        ({"INPUT_REPOSITORY": "localhost.example/image"}, False),
        ({"INPUT_REPOSITORY": "localhost:5000/image"}, True),
        ({"INPUT_PREV_REF": "docker://127.0.0.1:5000/image:1"}, True),
        ({"INPUT_REPOSITORY": "[::1]:5000/image"}, True),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, False),
        ({"HTTPS_PROXY": "http://user:p@ss@127.0.0.1:3128/"}, True),
        ({"http_proxy": "localhost:3128"}, True),
        ({"GITHUB_API_URL": "https://api.github.com"}, False),
        ({"GITHUB_API_URL": "https://git.example/api/v3"}, False),
        ({"GITHUB_API_URL": "http://127.0.0.1:3000"}, True),
    ],
)
def test_the_machine_s_network_is_for_what_listens_on_it(runner: Runner, inputs: dict[str, str], network: bool) -> None:
    argv, _ = recorded(runner, "docker://ghcr.io/o/i", **inputs)
    assert ("--network" in argv) == network


def test_container_image_is_pulled_with_patience(runner: Runner) -> None:
    runner.replace("docker", 'case $1 in image) exit 1 ;; pull) echo "$@" >>"$RUNNER_TEMP/pulls"; exit 1 ;; esac')
    runner.replace("sleep", "true")
    status, text = runner.run("docker://ghcr.io/o/i", RECHUNK_ACTION_IMAGE="mirror.example/action@sha256:1")
    assert status == 3
    assert "the container image mirror.example/action@sha256:1 cannot be had" in text
    assert (runner.temp / "pulls").read_text() == "pull --quiet mirror.example/action@sha256:1\n" * 3


def test_container_images_of_other_versions_go(runner: Runner) -> None:
    """Those of today stay: another runner may be about to start one."""
    builder = (
        'case $1 in image) [[ $2 = prune ]] && printf "%s " "$@" >"$RUNNER_TEMP/prune"; exit 1 ;; '
        'build) echo "$BUILDX_BUILDER $*" >"$RUNNER_TEMP/build" ;; esac'
    )
    runner.replace("docker", builder)
    status, text = runner.run("docker://ghcr.io/o/i")
    assert status == 0, text
    builder, _, built = (runner.temp / "build").read_text().partition(" ")
    version = built.split("--tag rechunk-action:")[1].split()[0]
    assert builder == "default"
    assert f"--label rechunk-action.version={version} " in built
    pruned = (runner.temp / "prune").read_text()
    assert "--filter until=24h --filter label=rechunk-action.version " in pruned
    assert f"--filter label!=rechunk-action.version={version} " in pruned


def test_results_of_every_run_are_kept_apart(runner: Runner) -> None:
    """One as root, one as the runner's user; and one that leaves none."""
    write = 'id -u >"$RECHUNK_RESULTS/manifest.json"; mkdir "$RECHUNK_RESULTS/more"; touch "$TMPDIR/told"'
    for ref in (ROOTS, DOCKERS):
        status, text = runner.run(ref, **runner.stand_in(write))
        assert status == 0, text
        runner.clean()
    assert {(path / "manifest.json").read_text() for path in runner.results} == {
        "0\n",
        f"{runner.machine.user.account.pw_uid}\n",
    }
    owners = {path.stat().st_uid for each in runner.results for path in (each, *each.rglob("*"))}
    assert owners == {runner.machine.user.account.pw_uid}
    assert runner.run(ROOTS, **runner.stand_in("true"))[0] == 0
    runner.clean()
    assert len(runner.results) == 2


def test_logins_are_seen_and_not_written(runner: Runner) -> None:
    login = runner.machine.user.runtime / "containers/auth.json"
    login.parent.mkdir(exist_ok=True)
    login.write_text("{}")
    try:
        argv, _ = recorded(runner, "docker://ghcr.io/o/i", REGISTRY_AUTH_FILE=str(login))
    finally:
        shutil.rmtree(login.parent)
    assert argv.count(f'type=bind,"source={login}","target={login}",readonly') == 1


# --- Engine hhd ---


def with_hhd(**more: str) -> dict[str, str]:
    """What has the real rechunker's stand-in work for the action."""
    image = containers.action_image()
    return {"RECHUNK_ACTION_IMAGE": image, "INPUT_ENGINE": "hhd", "INPUT_RECHUNK": rechunker_image()} | more


def test_hhd_reads_root_s_image_in_place(runner: Runner) -> None:
    """Its tree is laid over what podman has mounted, and nothing is copied or left."""
    (runner.workspace / "meta.yml").write_text("meta: {own: {packages: [bash]}}\n")
    texts = {"INPUT_CHANGELOG": "# What is new in <pretty>\n", "INPUT_PRETTY": "Mine", "INPUT_META": "meta.yml"}
    with untouched(runner.machine):
        status, text = runner.run(SYSTEM, INPUT_OUTPUT="an output", **with_hhd(**texts))
        runner.clean(INPUT_OUTPUT="an output")
    assert status == 0, text
    assert not re.search("unpack|copied|plain directory", text), text
    [results] = runner.results
    assert (results / "changelog.md").read_text() == "# What is new in Mine\n"
    assert "own" in (results / "manifest.json").read_text()
    outputs = runner.outputs()
    assert outputs["location"] == str(runner.workspace / "an output")
    assert outputs.keys() == set(yaml.safe_load((containers.ROOT / "action.yml").read_text())["outputs"])
    assert_nothing_left(runner)


@pytest.mark.parametrize(("ref", "copied"), [(f"docker-daemon:{SYSTEM}", True), ("dir:{place}/system", False)])
def test_hhd_does_without_a_file_system_of_its_own(runner: Runner, ref: str, copied: bool) -> None:
    """A tree is laid over, and images out of docker are unpacked, without a mount anywhere."""
    place = runner.machine.place
    status, text = runner.run(ref.format(place=place), INPUT_OUTPUT="out", INPUT_WORKSPACE="none", **with_hhd())
    assert status == 0, text
    assert ("unpack" in text) == copied
    assert (runner.outputs()["fresh"], runner.outputs()["prev-ref"]) == ("true", "")
    assert (place / "system/etc/passwd").read_text().count("\n") > 1, "pruned was a view of it"
    runner.clean(INPUT_OUTPUT="out")
    assert_nothing_left(runner)


def test_hhd_is_shown_what_inputs_name_and_no_more(runner: Runner) -> None:
    for path in ("src/own/.git", ".git"):
        (runner.workspace / path).mkdir(parents=True)
    (runner.workspace / "meta.yml").touch()
    hhd = {"INPUT_ENGINE": "hhd", "INPUT_META": "meta.yml"}

    def checkouts(argv: list[str]) -> list[str]:
        return re.findall('target=([^"]*[.]git)"', "\n".join(argv))

    argv, environment = recorded(runner, "docker://ghcr.io/o/i", **hhd)
    assert checkouts(argv) == [f"{runner.workspace}/.git"]
    assert environment["INPUT_META"] == f"{runner.workspace}/meta.yml"
    assert any(f'"target={runner.workspace}/meta.yml",readonly' in argument for argument in argv)
    argv, environment = recorded(runner, "docker://ghcr.io/o/i", INPUT_GIT="src/own", **hhd)
    assert checkouts(argv) == [f"{runner.workspace}/src/own/.git"]
    assert environment["INPUT_GIT"] == f"{runner.workspace}/src/own"
    argv, _ = recorded(runner, "docker://ghcr.io/o/i", INPUT_GIT="src/own", INPUT_META="meta.yml")
    assert not re.search("[.]git|meta.yml|docker.sock|/dev", "\n".join(argv))


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ({"HOST": "ssh://build.example"}, 3, "docker is asked at ssh://build.example: unset DOCKER_HOST"),
        ({"INPUT_META": "no.yml"}, 2, "there is no no.yml, which input meta names"),
        ({"INPUT_GIT": "/usr"}, 2, "/usr, which input git names, has no directory .git: name a checkout"),
    ],
)
def test_hhd_that_cannot_work_is_told(runner: Runner, more: dict[str, str], status: int, told: str) -> None:
    runner.replace("docker", 'case $1 in context) echo "$HOST" ;; run) exit 9 ;; esac')
    given = {"RECHUNK_ACTION_IMAGE": "image", "INPUT_ENGINE": "hhd"} | more
    ended, text = runner.run("docker://ghcr.io/o/i", **given)
    assert (ended, text.count("::error")) == (status, 1), text
    assert told in text


def test_hhd_takes_root(runner: Runner) -> None:
    runner.replace("sudo", "exit 1")
    status, text = runner.run(DOCKERS, INPUT_ENGINE="hhd", **runner.stand_in("true"))
    assert status == 3
    assert "sudo wants a password: use a runner whose user may use sudo, or engine delta" in text


def test_hhd_where_nothing_can_be_mounted(runner: Runner) -> None:
    runner.replace("sudo", f'[[ $* != *" mount "* ]] || exit 32\nexec "{runner.machine.place}/bin/sudo" "$@"')
    status, text = runner.run(DOCKERS, INPUT_ENGINE="hhd", **runner.stand_in("true"))
    assert status == 3
    assert "cannot be mounted so that docker finds what is mounted in it" in text
    assert mounted(runner) == []
    assert [path.name for path in runner.scratch.iterdir()] == ["told"]


# --- Cancelled and killed ---


def assert_nothing_left(runner: Runner) -> None:
    assert runner.containers() == []
    assert mounted(runner) == []
    assert loop_devices(runner) == []
    assert not runner.scratch.exists()


def mounted(runner: Runner) -> list[str]:
    """What is mounted in the runner's temporary directory."""
    places = [line.split()[4].replace(r"\040", " ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{runner.temp}/")]


def loop_devices(runner: Runner) -> list[str]:
    listed = run("losetup", "--list", "--noheadings", "--output", "BACK-FILE").splitlines()
    return [path for path in listed if path.startswith(f"{runner.temp}/")]


@pytest.mark.parametrize("first", ["ps", "version", "info"])
def test_cancelled_in_the_first_moments(runner: Runner, first: str) -> None:
    sleep = ("sleep", f"{300_000 + os.getpid()}")
    runner.replace("docker", f'[[ $1 != {first} ]] || exec {" ".join(sleep)}\nexec "$REAL" "$@"')
    process = runner.start(DOCKERS, **runner.stand_in("true"))
    wait_for(lambda: running(*sleep), process)
    status, seconds = cancel(process)
    (runner.path / "docker").unlink()
    assert status == 130
    assert seconds < SOON
    assert not running(*sleep)
    assert_nothing_left(runner)


def test_time_is_over_before_the_container_runs(runner: Runner) -> None:
    sleep = ("sleep", f"{400_000 + os.getpid()}")
    runner.replace("docker", f'[[ $1 != save ]] || exec {" ".join(sleep)}\nexec "$REAL" "$@"')
    # Minutes are seconds.
    clock = runner.shadow('read() { [[ $1 != -rt ]] || set -- -rt "$(($2 / 60))"; builtin read "$@"; }')
    status, text = runner.run(DOCKERS, INPUT_TIMEOUT="2", **clock, **runner.stand_in("true"))
    assert status == 3
    assert text.count("::error") == 1
    assert "::error title=rechunk::not finished within 2 minutes" in text
    assert "raise the input timeout" in text
    assert not running(*sleep)
    assert runner.clean(OUTCOME="failure") == ""
    assert_nothing_left(runner)


@pytest.mark.parametrize(
    ("timeout", "rest"), [("", "58"), ("30", "28"), ("1", "1"), ("0", "0"), ("soon", "soon"), ("-1", "-1")]
)
def test_time_that_remains_is_the_container_s(runner: Runner, timeout: str, rest: str) -> None:
    later = runner.shadow("SECONDS=70")
    _, environment = recorded(runner, "docker://ghcr.io/o/i", INPUT_TIMEOUT=timeout, **later)
    assert environment["INPUT_TIMEOUT"] == rest


def test_cancelled_while_the_container_image_is_built(runner: Runner) -> None:
    sleep = ("sleep", f"{100_000 + os.getpid()}")
    action = action_in(runner.temp / "action")
    (action / "Dockerfile").write_text(f"FROM {containers.base()}\nRUN {' '.join(sleep)}\n")
    path = os.pathsep.join((str(runner.path), str(runner.machine.place / "bin"), containers.builder_path()))
    process = runner.start(ROOTS, GITHUB_ACTION_PATH=str(action), PATH=path)
    wait_for(lambda: running(*sleep), process)
    status, seconds = cancel(process)
    assert status == 130
    assert seconds < SOON
    wait_for(lambda: not running(*sleep))
    assert_nothing_left(runner)


def test_cancelled_while_the_image_is_copied(runner: Runner) -> None:
    sleep = ("sleep", f"{200_000 + os.getpid()}")
    runner.replace("docker", f'[[ $1 != save ]] || exec {" ".join(sleep)}\nexec "$REAL" "$@"')
    process = runner.start(DOCKERS, **runner.stand_in("true"))
    wait_for(lambda: running(*sleep), process)
    status, seconds = cancel(process)
    assert status == 130
    assert seconds < SOON
    assert not running(*sleep)
    assert_nothing_left(runner)


def test_cancelled_while_the_container_runs(runner: Runner) -> None:
    script = """trap 'exit 130' INT; touch "$TMPDIR/started"; while :; do sleep 0.1; done"""
    process = runner.start(ROOTS, **runner.stand_in(script))
    wait_for((runner.scratch / "started").exists, process)
    status, seconds = cancel(process)
    assert status == 130
    assert seconds < SOON
    wait_for(lambda: not runner.containers())
    runner.clean()
    assert_nothing_left(runner)


def test_cancelled_while_it_works(runner: Runner) -> None:
    """The real one: no half of an image stays behind, either."""
    with untouched(runner.machine):
        process = runner.start(
            ROOTS, RECHUNK_ACTION_IMAGE=containers.action_image(), INPUT_OUTPUT="out", INPUT_FRESH="true"
        )
        wait_for(lambda: list(runner.workspace.iterdir()), process)  # the image is being made, beside its place
        status, seconds = cancel(process)
        wait_for(lambda: not runner.containers())
    assert status == 130
    assert seconds < SOON
    assert list(runner.workspace.iterdir()) == []


MOUNT = """
container=$(podman create --image-volume=ignore --network=none ${RECHUNK_SOURCE#*:} true)
ls $(podman mount $container)/usr/bin/su && touch "$TMPDIR/started" && exec sleep 600
"""


def test_killed_container_leaves_no_mount(runner: Runner) -> None:
    with shell_in_action_image() as shell, untouched(runner.machine):
        process = runner.start(ROOTS, RECHUNK_ACTION_IMAGE=shell, INPUT_DESCRIPTION=MOUNT)
        wait_for((runner.scratch / "started").exists, process)
        run("docker", "kill", *runner.containers())
        status, _ = finished(process)
        wait_for(lambda: not runner.containers())
    assert status == 137
    runner.clean()
    assert_nothing_left(runner)


def until_it_hangs(process: subprocess.Popen[str]) -> str:
    """What it has written until its second container is at work."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if "::group::hhd-dev/rechunk: commit" in line:
            return text
    raise AssertionError(text)


@pytest.mark.parametrize("shared", [False, True])
def test_killed_hhd_leaves_what_the_last_step_removes(runner: Runner, shared: bool) -> None:
    """Where mounts are shared, as systemd has it, and where they are not."""
    with untouched(runner.machine), ExitStack() as stack:
        if shared:
            run("mount", "--bind", runner.temp, runner.temp)
            stack.callback(run, "umount", runner.temp)
            run("mount", "--make-shared", runner.temp)
        process = runner.start(HANGING, **with_hhd(INPUT_OUTPUT="out"))
        until_it_hangs(process)
        wait_for(lambda: len(runner.containers()) == 2, process)
        places = [place for place in mounted(runner) if place != str(runner.scratch)]
        assert [Path(place).name for place in places] == ["root", "tree"]
        assert (str(runner.scratch) in mounted(runner)) != shared
        assert len(loop_devices(runner)) == 1
        [_, first] = runner.containers()
        run("docker", "kill", first)
        assert finished(process)[0] == 137
        assert len(runner.containers()) == 1
        runner.clean(INPUT_OUTPUT="out")
        assert_nothing_left(runner)
        assert list(runner.workspace.iterdir()) == []


def test_mounts_go_wherever_the_runners_directory_is(runner: Runner) -> None:
    """Runners are told of a directory by a link, where that is on another disk."""
    link = runner.temp.with_name("link")
    link.symlink_to(runner.temp)
    place = runner.scratch / "rechunk-workspace-x/root"
    place.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "none", place)
    runner.clean(RUNNER_TEMP=str(link))
    assert_nothing_left(runner)


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_hhd_that_is_cancelled_leaves_nothing(runner: Runner, how: str) -> None:
    """By itself, even where the runner kills docker at once."""
    process = runner.start(HANGING, **with_hhd(INPUT_OUTPUT="out"))
    until_it_hangs(process)
    if how == "cancelled":
        status, seconds = cancel(process)
        assert status == 130
        assert seconds < SOON
    else:
        process.kill()
        process.communicate()
    wait_for(lambda: not runner.containers())
    assert loop_devices(runner) == []
    assert mounted(runner) == [str(runner.scratch)]
    assert [path.name for path in runner.scratch.iterdir() if path.is_dir()] == []
    runner.clean()
    assert_nothing_left(runner)
    assert list(runner.workspace.iterdir()) == []


@pytest.mark.parametrize("last", ["the last step", "the next run"])
def test_killed_while_it_writes_it_leaves_no_half_of_an_image(runner: Runner, last: str) -> None:
    (runner.workspace / ".out.settings").mkdir()
    process = runner.start(
        ROOTS, RECHUNK_ACTION_IMAGE=containers.action_image(), INPUT_OUTPUT="out", INPUT_FRESH="true"
    )
    wait_for(lambda: list(runner.workspace.glob(".out.rechunk-*/blobs")), process)
    run("docker", "kill", *runner.containers())
    assert finished(process)[0] == 137
    if last == "the last step":
        runner.clean(INPUT_OUTPUT="out")
    else:
        assert runner.run(ROOTS, INPUT_OUTPUT="out", **runner.stand_in("true"))[0] == 0
    assert [path.name for path in runner.workspace.iterdir()] == [".out.settings"]


@pytest.mark.parametrize(
    ("script", "outcome", "told"),
    [
        ("kill -KILL 1 $$", "failure", True),
        ('touch "$TMPDIR/told"; exit 2', "failure", False),
        ("exit 130", "cancelled", False),
        ("true", "success", False),
    ],
)
def test_every_failure_is_one_error(runner: Runner, script: str, outcome: str, told: bool) -> None:
    _, text = runner.run("docker://ghcr.io/o/i", **runner.stand_in(script))
    assert "::error" not in text
    text = runner.clean(OUTCOME=outcome)
    assert text.count("\n") == text.count("::error title=rechunk::") == told
    assert ("use a runner with more memory" in text) == told


def test_container_that_does_not_start_is_one_error(runner: Runner) -> None:
    status, _ = runner.run("docker://ghcr.io/o/i", SSL_CERT_FILE="/no/where", **runner.stand_in("true"))
    assert status == 125
    assert "the container could not be started" in runner.clean(OUTCOME="failure")


@pytest.mark.parametrize("wrong", [{"INPUT_REF": ""}, {"DOCKER_HOST": "unix:///nowhere"}])
def test_what_is_told_is_told_once(runner: Runner, wrong: dict[str, str]) -> None:
    status, text = finished(runner.machine.start("scripts/run-action", runner.environment("x") | wrong))
    assert status in (2, 3)
    assert text.count("::error") == 1
    assert "::error" not in runner.clean(OUTCOME="failure", **wrong)


@contextmanager
def shell_in_action_image() -> Iterator[str]:
    """The action's container image, but it runs the input `description` as the stand-in does."""
    name = f"{PREFIX}/shell:1"
    container = run("docker", "create", containers.action_image()).strip()
    run("docker", "commit", "--change", 'ENTRYPOINT ["sh", "-c", "eval \\"$INPUT_DESCRIPTION\\""]', container, name)
    run("docker", "rm", container)
    try:
        yield name
    finally:
        run("docker", "image", "rm", name)


def test_killed_script_leaves_what_the_last_step_removes(runner: Runner, machine: Machine) -> None:
    other = Runner(machine, f"{runner.temp.parent.name} beside it")
    processes = []
    for each in (runner, other):
        processes.append(
            each.start(ROOTS, **each.stand_in('mkdir "$TMPDIR/kept" && touch "$TMPDIR/kept/file" && sleep 600'))
        )
        wait_for((each.scratch / "kept/file").exists, processes[-1])
        processes[-1].kill()
        processes[-1].communicate()
        assert len(each.containers()) == 1
    began = time.monotonic()
    assert runner.clean() == "Removing a container that an earlier step has left.\n"
    assert time.monotonic() - began < SOON
    assert_nothing_left(runner)
    assert runner.clean() == ""
    # The other runner's is none of its business; that one's next run removes it.
    assert len(other.containers()) == 1
    status, text = other.run(ROOTS, **other.stand_in('ls "$TMPDIR"'))
    assert status == 0
    assert "kept" not in text
    assert other.containers() == []
    other.clean()


# --- Machines that will not do ---


def test_job_in_a_container(runner: Runner) -> None:
    status, text = runner.run(ROOTS, RUNNER_TEMP="/__w/_temp")
    assert status == 3
    assert "remove 'container:' from the job" in text


def test_no_docker(runner: Runner) -> None:
    for name in ("bash", "dirname", "env", "id", "mkdir", "realpath", "rm", "uname"):
        (runner.path / name).symlink_to(shutil.which(name) or "/nowhere")
    status, text = runner.run(ROOTS, PATH=str(runner.path))
    assert status == 3
    assert "docker is not installed" in text


def test_docker_that_does_not_answer(runner: Runner) -> None:
    status, text = runner.run(ROOTS, DOCKER_HOST="unix:///nowhere")
    assert status == 3
    assert "docker does not answer" in text


def test_not_linux(runner: Runner) -> None:
    """The bash of macOS knows less than others."""
    older = runner.shadow('declare() { [[ $1 != -*A* ]] || exit 42; builtin declare "$@"; }\nenable -n mapfile\n')
    runner.replace("uname", "echo Darwin")
    status, text = runner.run(ROOTS, **older)
    assert status == 3
    assert text.count("\n") == 1
    assert "needs a Linux runner" in text
    assert runner.clean(OUTCOME="failure", **older) == ""
