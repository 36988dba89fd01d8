"""The example workflows, run here as GitHub runs them: by act on this machine, with the real action.

A `Site` is what a workflow needs around it, in one directory: a repository with the workflow and a Containerfile, a
registry on loopback, a podman storage with a base image. Nothing else of the machine is written to, but docker's
images, where the action's container is built. A context manager; what it started ends with it.

Of a workflow only what its `env` names is replaced (registry, TLS, base image), and a step is added at the end that
writes down what the action has told. Actions of others are stood in for, since none can be fetched: they do nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.registries import plain_registry

ROOT = Path(__file__).parent.parent
OURS = "dkolb/rechunk-action"
REPOSITORY = "dkolb/bazzite-dkub"
BASE = "localhost/base"

CONTAINERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY files /
"""

REPORT = """
      - name: Write down what the action has told
        if: always()
        run: |
          cp "$RUNNER_TEMP"/rechunk-results.*/* "{place}" || true
          printf '%s' "$OUTPUTS" >"{place}/outputs.json"
        env:
          OUTPUTS: ${{{{ toJSON(steps.rechunk.outputs) }}}}
"""


@dataclass(frozen=True)
class Done:
    """A workflow that has ended: its exit status, log, and what the action has told (empty where it did not run)."""

    status: int
    log: str
    outputs: Mapping[str, str]
    summary: str

    @property
    def errors(self) -> list[str]:
        """Annotations that say why it failed."""
        return re.findall(r"::error[^:]*::(.*)", self.log)


class Site:
    """What a workflow needs around it. `base` is a tar archive of the root file system to build images on."""

    def __init__(self, place: Path, base: Path, environment: Mapping[str, str]) -> None:
        """`environment` is for the action, in addition to what act hands on."""
        self.place = place
        self._base = base
        self._more = environment
        self._stack = ExitStack()
        self.files = place / "repository/files"
        self.told = place / "told"
        self.registry = ""

    def __enter__(self) -> Self:
        self.place.mkdir(exist_ok=True)
        for directory in (self.files / "etc", self.told, self.place / "home", self.place / "bin"):
            directory.mkdir(parents=True)
        (self.files / "etc/motd").write_text("Welcome\n")
        (self.place / "repository/Containerfile").write_text(CONTAINERFILE)
        self._git("init", "--quiet", "--initial-branch=main", ".")
        self._git("remote", "add", "origin", f"https://github.com/{REPOSITORY}")
        storage = self.place / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.place}/images"\nrunroot = "{self.place}/run"\n'
        )
        # sudo would not hand on where the storage is. Who calls this is root anyway.
        sudo = self.place / "bin/sudo"
        sudo.write_text('#!/bin/sh\n[ "$1" != -n ] || shift\nexec "$@"\n')
        sudo.chmod(0o755)
        self._environment = dict(os.environ) | {
            "HOME": str(self.place / "home"),
            "PATH": f"{self.place}/bin:{Path(sys.executable).parent}:/usr/bin:{os.environ['PATH']}",
            "CONTAINERS_STORAGE_CONF": str(storage),
            **self._more,
        }
        self._copy_action()
        self.podman("import", "--quiet", str(self._base), BASE)
        self._stack.callback(self._unmount)
        self.registry = self._stack.enter_context(plain_registry()).host
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def repository(self) -> str:
        """Where the workflow publishes."""
        return f"{self.registry}/{REPOSITORY}"

    def podman(self, *arguments: str) -> str:
        """What podman says, on the site's own storage."""
        command = ("podman", *arguments)
        return subprocess.run(command, env=self._environment, check=True, text=True, stdout=subprocess.PIPE).stdout

    def run(
        self,
        example: str,
        event: str = "workflow_dispatch",
        *,
        replace: tuple[str, str] = ("", ""),
        **details: object,
    ) -> Done:
        """Run an example to its end, with a piece of its text replaced. `details` are in the event's payload; `ref` is
        main's unless it is told.
        """
        with self.start(example, event, replace=replace, **details) as process:
            log, _ = process.communicate()
        return self.done(process.returncode, log)

    def start(
        self,
        example: str,
        event: str = "workflow_dispatch",
        *,
        replace: tuple[str, str] = ("", ""),
        **details: object,
    ) -> subprocess.Popen[str]:
        """Start an example, with its log on standard output."""
        shutil.rmtree(self.told)
        self.told.mkdir()
        workflow = self.place / "repository/.github/workflows/build.yml"
        workflow.parent.mkdir(parents=True, exist_ok=True)
        workflow.write_text(self._adapted((ROOT / "examples" / example).read_text()).replace(*replace))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "--message=a change")
        payload = self.place / "event.json"
        repository = {"name": REPOSITORY.partition("/")[2], "full_name": REPOSITORY, "default_branch": "main"}
        payload.write_text(json.dumps({"ref": "refs/heads/main", "repository": repository} | details))
        return subprocess.Popen(
            [*self._act(workflow), event, "--eventpath", str(payload)],
            cwd=self.place / "repository",
            env=self._environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def done(self, status: int, log: str) -> Done:
        """What has come of a workflow that has ended."""
        outputs, summary = self.told / "outputs.json", self.told / "summary.md"
        return Done(
            status,
            log,
            (json.loads(outputs.read_text()) if outputs.exists() else None) or {},
            summary.read_text() if summary.exists() else "",
        )

    @property
    def containers(self) -> list[str]:
        """Containers of the action that are still there, by their runner's temporary directory."""
        shown = ("--all", "--filter=label=rechunk-action.runner", '--format={{.Label "rechunk-action.runner"}}')
        listed = subprocess.run(["docker", "ps", *shown], check=True, text=True, stdout=subprocess.PIPE).stdout
        return [runner for runner in listed.split() if runner.startswith(str(self.place))]

    @property
    def scratch(self) -> list[str]:
        """What is in the action's scratch space."""
        found = list((self.place / "home").glob(".cache/act/*/tmp/rechunk"))
        return [str(path) for directory in found for path in (directory, *directory.iterdir())]

    def _act(self, workflow: Path) -> list[str]:
        stand_in = self.place / "nothing"
        stand_in.mkdir(exist_ok=True)
        steps = {"using": "composite", "steps": [{"run": ":", "shell": "bash"}]}
        (stand_in / "action.yml").write_text(json.dumps({"name": "nothing", "runs": steps}))
        called = set(re.findall(r"uses: ([\w.-]+/[\w.-]+)\S*@(\w+)", workflow.read_text()))
        local = [
            f"--local-repository={name}@{commit}={self.place / 'action' if name == OURS else stand_in}"
            for name, commit in sorted(called)
            if name != "actions/checkout"
        ]
        handed_on = [f"--env={name}={self._environment[name]}" for name in ("CONTAINERS_STORAGE_CONF", *self._more)]
        return ["act", f"--workflows={workflow}", "--platform=ubuntu-24.04=-self-hosted", *local, *handed_on]

    def _adapted(self, text: str) -> str:
        for pattern, value in (
            (r"(?<=^  REPOSITORY: ).*", self.repository),
            (r"(?<=^  TLS_VERIFY: ).*", '"false"'),
            (r"(?<=^  BASE_IMAGE: ).*", BASE),
        ):
            text, count = re.subn(pattern, value, text, flags=re.MULTILINE)
            if count != 1:
                raise ValueError(f"the example has {count} lines like {pattern}")
        if "id: rechunk" not in text:
            text = re.sub(rf"(?m)^( *)(- )?(?=uses: {OURS}@)", _identify, text)
        return text.rstrip() + "\n" + REPORT.format(place=self.told)

    def _copy_action(self) -> None:
        """The action as it is here, less what git ignores: act reads all that is in its directory."""
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
        ).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                target = self.place / "action" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)

    def _git(self, *arguments: str) -> None:
        user = ("-c", "user.name=a maintainer", "-c", "user.email=maintainer@example.com", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *user, *arguments], cwd=self.place / "repository", check=True)

    def _unmount(self) -> None:
        """The storage, which podman mounts on itself."""
        places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in reversed([place for place in places if place.startswith(f"{self.place}/")]):
            subprocess.run(["umount", "--lazy", place], check=True)


def _identify(step: re.Match[str]) -> str:
    """Give a step the name by which its outputs are asked for, before its line `uses`."""
    indent, dash = step[1], step[2] or ""
    return f"{indent}{dash}id: rechunk\n{indent}{' ' * len(dash)}"
