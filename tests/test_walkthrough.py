"""The walkthrough is true: its commands are run as they stand there, and print what it shows."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.series import NAMESPACES
from tests import stores
from tests.oracles import program

pytestmark = pytest.mark.oracle

PAGE = Path(__file__).parent.parent / "docs/walkthrough.md"

REPOSITORY = "me/my-image"

VARYING = ("…", r"[0-9a-f]{12,}", r"\d+(?:[.,-]\d+)*", r"\b(?:bytes|kB|MB)\b")
"""What may differ from run to run: ends of words that the page leaves out, digests, numbers and dates, units."""

LEFT_OUT = "..."
"""A line of the page that stands for any number of lines."""


@dataclass
class Step:
    """A command, and the lines that the page shows below it."""

    command: str
    shown: list[str] = field(default_factory=list)


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line.removeprefix("$ ")))
            elif found[-1].command.endswith("\\"):
                found[-1].command += f"\n{line}"
            else:
                found[-1].shown.append(line)
    return found


def agrees(output: str, shown: list[str]) -> bool:
    output = output.replace("\N{NO-BREAK SPACE}", " ")  # before units: right in a terminal, a trap on a page
    output = re.sub(r"^ +", "", output, flags=re.MULTILINE)  # sizes are aligned at the right
    pattern = "".join(r"(?:.*\n)*?" if line == LEFT_OUT else f"{_loosely(line.lstrip())}\n" for line in shown)
    return re.fullmatch(pattern, output) is not None


def _loosely(line: str) -> str:
    """A pattern for lines that differ from this one where runs do."""
    pieces = re.split(f"({'|'.join(VARYING)})", line)
    varying = (next(pattern for pattern in VARYING if re.fullmatch(pattern, piece)) for piece in pieces[1::2])
    pieces[1::2] = [pattern if pattern != "…" else r"\S*" for pattern in varying]
    pieces[::2] = map(re.escape, pieces[::2])
    return "".join(pieces)


@dataclass(frozen=True)
class Walk:
    """What the page's commands have said and left: `outputs` of all `steps`, and a directory with the registry."""

    steps: list[Step]
    outputs: list[str]
    directory: Path
    environment: dict[str, str]
    host: str

    def manifest(self, digest: str) -> Any:
        [data] = self._below("blobs/sha256", f"*/{digest.removeprefix('sha256:')}/data")
        return json.loads(data.read_bytes())

    @property
    def tags(self) -> dict[str, str]:
        """The digests of all published images by their tags."""
        links = self._below(f"repositories/{REPOSITORY}/_manifests/tags", "*/current/link")
        found = {link.parent.parent.name: link.read_text() for link in links}
        return {tag: digest for tag, digest in found.items() if not tag.startswith("sha256-")}

    def _below(self, place: str, pattern: str) -> list[Path]:
        return list((self.directory / "registry/docker/registry/v2" / place).glob(pattern))


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    """The walk of somebody in an empty directory, whose images are apart from those of the machine."""
    for needed in ("docker-registry", "mmdebstrap", "podman"):
        program(needed, needed)
    with stores.work() as place:
        environment = stores.root_storage(place / "storage") | {"TMPDIR": str(place)}
        environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), environment["PATH"]))
        directory = place / "empty"
        directory.mkdir()
        host = f"localhost:{_free_port()}"
        walked = steps(re.sub(r"localhost:\d+", host, PAGE.read_text()))
        outputs = _run([step.command for step in walked], directory, environment)
        yield Walk(walked, outputs, directory, environment, host)


def _run(commands: list[str], directory: Path, environment: dict[str, str]) -> list[str]:
    """What each command of one script prints. The script's processes and mounts end with it."""
    mark = "---- and now the next ----\n"
    script = "".join(f"{command}\nprintf %s '{mark}'\n" for command in commands)
    done = subprocess.run(
        [*NAMESPACES, "--mount-proc", "bash", "-euc", script],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    outputs = done.stdout.split(mark)
    assert done.returncode == 0, f"{commands[len(outputs) - 1]}\n{outputs[-1]}"
    return outputs[:-1]


def _free_port() -> int:
    """A port for the registry instead of the page's, which something may have here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_commands_print_what_the_page_shows(walk: Walk) -> None:
    wrong = [
        f"$ {step.command}\nprints:\n{output}and not:\n" + "\n".join(step.shown)
        for step, output in zip(walk.steps, walk.outputs, strict=True)
        if not agrees(output, step.shown)
    ]
    assert not wrong, "\n\n".join(wrong)


def test_second_pull_fetches_what_is_new_and_nothing_else(walk: Walk) -> None:
    newest = walk.tags["latest"]
    [before] = set(walk.tags.values()) - {newest}
    old, new = walk.manifest(before), walk.manifest(newest)
    fresh = {layer["digest"] for layer in new["layers"]} - {layer["digest"] for layer in old["layers"]}
    assert len(fresh) == len(new["layers"]) - len(old["layers"]) == 1
    log = (walk.directory / "registry.log").read_text()
    fetched = re.findall(r'"GET /v2/\S+/blobs/(\S+) HTTP/1.1" 200 .*"containers/', log)
    assert sorted(fetched) == sorted({new["config"]["digest"], *fresh})


def test_user_has_the_second_version_in_the_end(walk: Walk) -> None:
    image = f"{walk.host}/{REPOSITORY}:latest"
    mounted = Path(stores.podman(walk.environment, "image", "mount", image).strip())
    try:
        assert (mounted / "etc/motd").read_text() == "Welcome to version 2\n"
    finally:
        stores.podman(walk.environment, "image", "unmount", image)


class TestThePage:
    def test_commands_may_take_several_lines(self) -> None:
        page = "text\n```console\n$ one \\\n    more\nout\n$ two\n```\n```sh\n$ other\n```\n```console\n$ three\n```\n"
        assert steps(page) == [Step("one \\\n    more", ["out"]), Step("two"), Step("three")]

    @pytest.mark.parametrize(
        ("output", "shown"),
        [
            ("", []),
            ("update: 1,309.8 kB in 12 layers\n", ["update: 140 bytes in 1 layers"]),
            ("me:24.04-20261231.1 is sha256:0123456789abcdef\n", ["me:12-20261126 is sha256:6ba5bf3a37c3…"]),
            ("a\nb\nc\nd\n", ["a", LEFT_OUT, "d"]),
            ("a\n", ["a", LEFT_OUT]),
            ("  99 bytes  x\n", [" 100 bytes  x"]),
        ],
    )
    def test_agrees_with_another_run(self, output: str, shown: list[str]) -> None:
        assert agrees(output, shown)

    @pytest.mark.parametrize(
        ("output", "shown"),
        [
            ("a\n", []),
            ("", ["a"]),
            ("a\nb\n", ["a"]),
            ("a\nb\n", [LEFT_OUT, "a"]),
            ("12 layers kept\n", ["12 layers new"]),
            ("none: a build would be the first\n", ["me:12-20261126"]),
            ("a.b\n", ["a+b"]),
        ],
    )
    def test_does_not_agree_with_what_is_not_there(self, output: str, shown: list[str]) -> None:
        assert not agrees(output, shown)
