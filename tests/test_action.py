"""The GitHub side, as the runner and later steps meet it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from rechunk_action import action, options
from rechunk_action.action import WITHOUT_MEANING, credentials, deadline, plain, translate
from rechunk_action.cli import cli
from rechunk_action.errors import InputError, Overdue
from rechunk_action.registry.reference import parse_reference
from rechunk_action.registry.signature import is_signed
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template
from rechunk_action.report.comment import marker
from rechunk_action.report.markdown import escape
from tests.faulty_proxy import ALWAYS, FaultyProxy
from tests.github_api import REPOSITORY, TOKEN, FakeGitHub, Fault, serving
from tests.registries import PASSWORD, USER, plain_registry, token_registry
from tests.registries import repository as client
from tests.signing import key_text

GIVEN = {"ref": "localhost/image", "repository": "ghcr.io/Owner/Image"}

ROOT = Path(__file__).parent.parent


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


class Runner:
    """What GitHub's runner gives to a step, and takes from it."""

    def __init__(self, home: Path) -> None:
        self.tree = home / "tree"
        (self.tree / "usr/lib").mkdir(parents=True)
        (self.tree / "usr/lib/os-release").write_text("ID=small\nVERSION_ID=42\n")
        self.temp = home / "temp"
        self.temp.mkdir()
        self.output, self.page = self.temp / "output", self.temp / "summary"
        for file in (self.output, self.page):
            file.touch()
        self.environment: dict[str, str] = {}

    def run(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        """The step. Its inputs are named as in a workflow, with underscores."""
        with self.start(**inputs) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, **inputs: str) -> subprocess.Popen[str]:
        given = {"ref": f"dir:{self.tree}", "tls_verify": "false"} | inputs
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.temp),
            "TMPDIR": str(self.temp),
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.page),
            **{f"INPUT_{name.upper()}": value for name, value in given.items()},
            **self.environment,
        }
        command = [sys.executable, "-m", "rechunk_action", "action"]
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.temp,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def outputs(self) -> dict[str, str]:
        """What later steps get."""
        found = re.findall(r"^([\w-]+)<<(\S+)\n(.*?)\n\2$", self.output.read_text(), re.MULTILINE | re.DOTALL)
        return {name: value for name, _, value in found}


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with plain_registry() as running:
        yield running.host


@pytest.mark.oracle
class TestAStep:
    def test_publishes_and_tells_later_steps(self, runner: Runner, registry: str) -> None:
        repository = f"{registry}/Owner/published"
        done = runner.run(repository=repository, push="true", tags="latest\n\n stable \n", labels="a=b c\nd=e")
        assert (done.returncode, done.stderr) == (0, "")
        first = runner.outputs
        assert first["ref"] == f"{repository.lower()}:{first['version']}"
        assert first.keys() == set(yaml.safe_load((ROOT / "action.yml").read_text())["outputs"])
        assert (first["fresh"], first["prev-ref"], first["location"]) == ("true", "", "")
        labels = json.loads(Path(first["manifest"]).read_text())["annotations"]
        assert (labels["a"], labels["d"]) == ("b c", "e")

        (runner.tree / "new").write_text("new")
        assert runner.run(repository=repository, push="true").returncode == 0
        second = runner.outputs
        assert second["prev-ref"] == f"{first['ref']}@{first['digest']}"
        assert (second["fresh"], second["version"]) == ("false", f"{first['version']}.1")
        assert 0 < int(second["update-size"]) < 1000
        assert "**Users download" in runner.page.read_text()
        assert f"## {escape(second['version'])}" in Path(second["changelog"]).read_text()
        assert second["version"] in Path(second["page"]).read_text()

    def test_labels_the_image_with_what_the_workflow_knows(self, runner: Runner, registry: str) -> None:
        runner.environment = {
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_REPOSITORY": "owner/image",
            "GITHUB_SHA": "0123",
            "GITHUB_RUN_ID": "77",
        }
        url = "org.opencontainers.image.url=https://example.com"
        done = runner.run(repository=f"{registry}/owner/labels", push="true", description="An image", labels=url)
        assert done.returncode == 0
        labels = json.loads(Path(runner.outputs["manifest"]).read_text())["annotations"]
        assert labels["org.opencontainers.image.source"] == "https://github.com/owner/image"
        assert labels["org.opencontainers.image.url"] == "https://example.com"
        assert labels["org.opencontainers.image.revision"] == "0123"
        assert labels["org.opencontainers.image.description"] == "An image"
        assert labels["io.github-actions.build.url"] == "https://github.com/owner/image/actions/runs/77"

    def test_without_push_reports_and_publishes_nothing(self, runner: Runner, registry: str) -> None:
        done = runner.run(repository=f"{registry}/owner/trial", tags="latest")
        assert done.returncode == 0
        assert "not published" in done.stdout
        assert "Nothing was published" in runner.page.read_text()
        assert runner.run(repository=f"{registry}/owner/trial").returncode == 0
        assert runner.outputs["fresh"] == "true"

    def test_fresh_is_fresh(self, runner: Runner, registry: str) -> None:
        for fresh in ("false", "true"):
            assert runner.run(repository=f"{registry}/owner/anew", push="true", fresh=fresh).returncode == 0
        assert (runner.outputs["fresh"], runner.outputs["prev-ref"]) == ("true", "")

    def test_says_why_an_image_is_fresh_and_what_it_updates(self, runner: Runner, registry: str) -> None:
        repository = f"{registry}/owner/why"
        assert "::fresh layout: first build" in runner.run(repository=repository, push="true", version="1").stdout
        assert "::fresh layout: requested" in runner.run(repository=repository, fresh="true").stdout
        done = runner.run(repository=repository, prev_ref=f"{repository}:1")
        assert f"::previous image: docker://{repository}:1, as asked for" in done.stdout

    def test_never_fails_for_want_of_a_page(self, runner: Runner, registry: str) -> None:
        (runner.temp / "rechunk-results").write_text("in the way")
        done = runner.run(repository=f"{registry}/owner/pageless", push="true")
        assert done.returncode == 0
        assert re.search("::notice.*could not be written: .*; the image is not concerned", done.stdout)
        assert runner.outputs["digest"].startswith("sha256:")
        assert "**Users download" in runner.page.read_text()

    def test_never_fails_for_want_of_a_summary(self, runner: Runner, registry: str) -> None:
        runner.environment["GITHUB_STEP_SUMMARY"] = "/dev/full"
        done = runner.run(repository=f"{registry}/owner/unsummed", push="true")
        assert done.returncode == 0
        assert "/dev/full could not be written: No space left on device; the image is not concerned" in done.stdout
        assert Path(runner.outputs["page"]).exists()

    def test_that_cannot_tell_later_steps_says_that_the_image_is_there(self, runner: Runner, registry: str) -> None:
        runner.environment["GITHUB_OUTPUT"] = "/dev/full"
        done = runner.run(repository=f"{registry}/owner/untold", push="true", version="1")
        assert done.returncode == 3
        said = f"::error.*::{registry}/owner/untold:1 is there, and later steps cannot be told of it"
        assert re.search(said, done.stdout)

    def test_clears_its_scratch_space_and_leaves_word(self, runner: Runner, registry: str) -> None:
        (runner.temp / "scratch").mkdir()
        for inputs in ({"push": "true"}, {"ref": "dir:/missing"}):
            (runner.temp / "scratch/image.tar").write_bytes(b"copied")
            runner.environment = {"RECHUNK_HELD": "1", "TMPDIR": str(runner.temp / "scratch")}
            with runner.start(**inputs, repository=f"{registry}/owner/word") as process:
                process.wait(timeout=60)
                process.communicate()
            assert [path.name for path in (runner.temp / "scratch").iterdir()] == ["told"]

    def test_a_bug_is_an_error_too(self, runner: Runner) -> None:
        runner.output.unlink()
        done = runner.run(output="image")
        assert done.returncode == 1
        assert len([line for line in done.stdout.splitlines() if line.startswith("::error")]) == 1
        assert "a bug of rechunk-action" in done.stdout
        assert "Traceback" in done.stdout
        assert done.stderr == ""

    def test_may_write_a_layout(self, runner: Runner) -> None:
        assert runner.run(output="image", version="1").returncode == 0
        assert "Nothing was published" not in runner.page.read_text()
        assert Path(runner.temp, runner.outputs["location"], "index.json").is_file()

    def test_keeps_phases_in_groups(self, runner: Runner, registry: str) -> None:
        lines = runner.run(repository=f"{registry}/owner/groups", push="true").stdout.splitlines()
        marks = [line for line in lines if line.startswith(("::group::", "::endgroup::"))]
        assert len(marks) > 6
        assert [mark.startswith("::group::") for mark in marks] == [True, False] * (len(marks) // 2)

    def test_never_shows_a_secret(self, runner: Runner) -> None:
        with token_registry(public=False) as gate:
            for secret, code in ((PASSWORD, 0), ("wrong-one", 4)):
                given = {"repository": f"{gate.host}/owner/image", "username": USER, "password": secret}
                given |= {"token": "github-token"}
                done = runner.run(**given, push="true")
                assert done.returncode == code
                shown = [line for line in done.stdout.splitlines() if not line.startswith("::add-mask::")]
                assert f"::add-mask::{secret}" in done.stdout
                assert "::add-mask::github-token" in done.stdout
                files = "".join(path.read_text() for path in runner.temp.rglob("*") if path.is_file())
                assert not [word for word in (secret, "github-token") if word in "".join(shown) + files]

    def test_signs_with_a_key_that_it_never_shows(self, runner: Runner, registry: str) -> None:
        key, repository = ec.generate_private_key(ec.SECP256R1()), f"{registry}/owner/signed"
        secrets = {"sign_key": key_text("the-password", key), "sign_password": "the-password"}
        done = runner.run(repository=repository, push="true", **secrets)
        assert (done.returncode, done.stderr) == (0, "")
        with client(registry, "owner/signed") as published:
            assert is_signed(published, runner.outputs["digest"], key.public_key())
        shown = [line for line in done.stdout.splitlines() if not line.startswith("::add-mask::")]
        written = "".join(path.read_text() for path in runner.temp.rglob("*") if path.is_file())
        for secret in ("the-password", *secrets["sign_key"].splitlines()):
            assert f"::add-mask::{secret}\n" in done.stdout
            assert secret not in "".join(shown) + written

    def test_fails_with_one_error_that_says_what_to_do(self, runner: Runner) -> None:
        for inputs, code, text in (
            ({"repository": "localhost:1/o/i"}, 4, "nothing listens at localhost:1: start the registry"),
            ({}, 2, "name in the input repository where images are published"),
            ({"repository": "ghcr.io/o/i:tag"}, 2, "leave out the tag"),
            ({"repository": "localhost:1/o/i", "max_layers": "many"}, 2, "Invalid value for input max-layers"),
            ({"ref": ""}, 2, "Missing input ref"),
            ({"output": "image", "push": "true"}, 2, "leave one out"),
            ({"output": "image", "sign_key": key_text("")}, 2, "input sign-key signs what is published in a registry"),
            ({"repository": "localhost:1/o/i", "sign_key": "x"}, 2, "input sign-key holds no private key of cosign"),
            (
                {"repository": "localhost:1/o/i", "sign_key": key_text("p")},
                2,
                "input sign-key cannot be opened with the password in input sign-password",
            ),
            ({"output": "image", "engine": "other"}, 2, "Invalid value for input engine"),
            ({"output": "image", "push": "maybe"}, 2, "Invalid value for input push"),
            ({"output": "image", "tags": "a b"}, 2, "'a b' is no valid tag"),
            ({"output": "image", "labels": "nothing"}, 2, "neither KEY=VALUE nor KEY-"),
        ):
            done = runner.run(**inputs)
            errors = [line for line in done.stdout.splitlines() if line.startswith("::error")]
            assert (done.returncode, len(errors), done.stderr) == (code, 1, "")
            assert text in errors[0]

    def test_an_update_may_be_too_large(self, runner: Runner, registry: str) -> None:
        repository = f"{registry}/owner/large"
        assert runner.run(repository=repository, push="true", max_update_size="0.1").returncode == 0
        (runner.tree / "large").write_bytes(os.urandom(300_000))
        done = runner.run(repository=repository, push="true", max_update_size="0.1")
        assert done.returncode == 5
        assert re.search(r"costs users 30\d.\d\s*kB, and 100.0\s*kB are allowed", done.stdout)
        assert "raise input max-update-size" in done.stdout
        assert runner.run(repository=repository, push="true", max_update_size="0.4").returncode == 0

    def test_what_is_too_large_is_told_to_readers_of_the_summary(self, runner: Runner, registry: str) -> None:
        repository = f"{registry}/owner/refused"
        assert runner.run(repository=repository, push="true").returncode == 0
        (runner.tree / "large").write_bytes(os.urandom(300_000))
        for push in ("true", "false"):
            runner.page.write_text("")
            runner.output.write_text("")
            assert runner.run(repository=repository, push=push, max_update_size="0.1").returncode == 5
            text = runner.page.read_text().replace("\N{NO-BREAK SPACE}", " ")
            assert re.search(
                r"\*\*Nothing was published\*\*: users would download \*\*30\d\.\d kB\*\*, and 100\.0 kB", text
            )
            assert re.search(r"\n\| .* \| 30\d\.\d kB \|", text)
            assert runner.outputs == {}

    def test_hostile_names_are_text(self, runner: Runner, registry: str) -> None:
        (runner.tree / "::error::x").write_text("x")
        os.mkfifo(runner.tree / "line\n::warning::x")
        done = runner.run(repository=f"{registry}/owner/hostile", push="true", version="1<date>")
        assert done.returncode == 0
        assert not [line for line in done.stdout.splitlines() if line.startswith(("::error", "::warning"))]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("phase", ["read 127.0.0.1:", "read dir:", "plan", "write", "verify", "publish"])
    def test_leaves_nothing_when_it_is_cancelled(self, runner: Runner, registry: str, phase: str, number: int) -> None:
        name = f"owner/cancelled-{'-'.join(re.findall('[a-z]+', phase))}-{number}"
        assert runner.run(repository=f"{registry}/{name}", push="true").returncode == 0
        (runner.tree / "large").write_bytes(os.urandom(1 << 20) * 100)
        before = set(runner.temp.iterdir())
        with FaultyProxy(registry) as line:
            line.fault("delay", seconds=0.2, times=ALWAYS)
            with runner.start(repository=f"{line.host}/{name}", push="true") as process:
                assert process.stdout is not None
                assert any(text.startswith(f"::group::{phase}") for text in process.stdout)
                started = time.monotonic()
                process.send_signal(number)
                process.communicate(timeout=20)
        assert process.returncode == 130
        assert time.monotonic() - started < 7
        assert set(runner.temp.iterdir()) == before

    def test_ends_when_its_caller_is_gone(self, runner: Runner, registry: str) -> None:
        (runner.tree / "large").write_bytes(os.urandom(1 << 20) * 100)
        runner.environment = {"RECHUNK_HELD": "1", "TMPDIR": str(runner.temp / "scratch")}
        (runner.temp / "scratch").mkdir()
        before = set(runner.temp.iterdir())
        with runner.start(repository=f"{registry}/owner/held", push="true") as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert any(text.startswith("::group::write") for text in process.stdout)
            process.stdin.close()
            process.stdin = None
            process.communicate(timeout=20)
        assert process.returncode == 130
        assert set(runner.temp.iterdir()) == before


@pytest.fixture
def github(runner: Runner) -> Iterator[FakeGitHub]:
    """GitHub, as the step finds it in a workflow for pull request 7."""
    fake = FakeGitHub()
    with serving(fake) as address:
        runner.environment = {
            "GITHUB_API_URL": address,
            "GITHUB_REPOSITORY": REPOSITORY,
            "GITHUB_SHA": "0123",
            "INPUT_TOKEN": TOKEN,
            "RECHUNK_PULL_REQUEST": "7",
        }
        yield fake


@pytest.mark.oracle
class TestOnGitHub:
    def test_a_pull_request_is_told_what_it_costs_in_one_comment(
        self, runner: Runner, registry: str, github: FakeGitHub
    ) -> None:
        repository = f"{registry}/owner/commented"
        assert runner.run(repository=repository, push="true").returncode == 0
        assert github.asked == []
        for size in (100_000, 300_000):
            (runner.tree / "large").write_bytes(os.urandom(size))
            done = runner.run(repository=repository, comment="true")
            assert done.returncode == 0
            assert f"comment: https://github.com/{REPOSITORY}/pull/7#issuecomment-1\n" in done.stdout
            [comment] = github.comments
            assert comment["body"].startswith(
                f"{marker(repository)}\nMerging this costs your users **{size // 100_000}0"
            )
            assert "mostly " in comment["body"]

    def test_nobody_is_told_what_nobody_asked_for(self, runner: Runner, registry: str, github: FakeGitHub) -> None:
        repository = f"{registry}/owner/quiet"
        assert runner.run(repository=repository, comment="false", release="").returncode == 0
        runner.environment["RECHUNK_PULL_REQUEST"] = ""
        assert runner.run(repository=repository, comment="true", release="{version}").returncode == 0
        assert github.asked == []

    def test_a_pull_request_is_told_by_how_much_it_is_too_large(
        self, runner: Runner, registry: str, github: FakeGitHub
    ) -> None:
        repository = f"{registry}/owner/too-large"
        assert runner.run(repository=repository, push="true").returncode == 0
        (runner.tree / "large").write_bytes(os.urandom(300_000))
        assert runner.run(repository=repository, max_update_size="0.1", comment="true").returncode == 5
        [comment] = github.comments
        text = comment["body"].replace("\N{NO-BREAK SPACE}", " ")
        assert re.search(
            r"That is 20\d\.\d kB more than the 100\.0 kB that are allowed\. The largest: [^(]+ \(30", text
        )
        (runner.tree / "large").write_bytes(b"small")
        assert runner.run(repository=repository, max_update_size="0.1", comment="true").returncode == 0
        [comment] = github.comments
        assert "more than" not in comment["body"]

    def test_a_published_version_gets_a_release(self, runner: Runner, registry: str, github: FakeGitHub) -> None:
        repository = f"{registry}/owner/released"
        for tags in ("latest\nstable", "stable"):
            done = runner.run(repository=repository, push="true", release="image-{version}", tags=tags)
            tag = f"image-{runner.outputs['version']}"
            assert f"release: https://github.com/{REPOSITORY}/releases/tag/{tag}\n" in done.stdout
            release = github.releases[tag]
            assert (release["target_commitish"], release["make_latest"]) == ("0123", str("latest" in tags).lower())
            assert Path(runner.outputs["changelog"]).read_text().strip() in release["body"]
        assert len(github.releases) == 2
        assert runner.run(repository=repository, release="image-{version}").returncode == 0
        assert len(github.releases) == 2

    def test_faults_are_notices(self, runner: Runner, registry: str, github: FakeGitHub) -> None:
        repository = f"{registry}/owner/faults"
        given = {"repository": repository, "push": "true", "comment": "true", "release": "{version}"}
        github.faults = [Fault(method, 403, {"message": "no\n::error::x"}) for method in ("GET", "POST .*releases")]
        done = runner.run(**given)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search("::notice.*the comment in pull request 7 .*`permissions: pull-requests: write`", done.stdout)
        assert re.search("::notice.*release .*`permissions: contents: write`", done.stdout)
        assert "\n::error" not in done.stdout
        runner.environment["INPUT_TOKEN"] = ""
        done = runner.run(**given)
        assert done.returncode == 0
        assert done.stdout.count("as the input token is empty") == 2
        assert (github.comments, github.releases) == ([], {})

    @pytest.mark.parametrize("push", ["true", "false"])
    def test_cancelled_it_says_what_became_of_the_image(
        self, runner: Runner, registry: str, github: FakeGitHub, push: str
    ) -> None:
        github.faults = [Fault("GET", seconds=5)]
        with runner.start(repository=f"{registry}/owner/late-{push}", push=push, comment="true") as process:
            while not github.asked:
                time.sleep(0.05)
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=4)
        assert process.returncode == 130
        what = f"{registry}/owner/late-true:.* is there" if push == "true" else "nothing was published"
        assert re.search(f"::error.*::cancelled when the image was complete: {what}", out)

    def test_the_token_is_never_shown(self, runner: Runner, registry: str, github: FakeGitHub) -> None:
        given = {"repository": f"{registry}/owner/secret", "push": "true", "comment": "true", "release": "1"}
        done = runner.run(**given)
        assert f"::add-mask::{TOKEN}\n" in done.stdout
        files = "".join(path.read_text() for path in runner.temp.rglob("*") if path.is_file())
        assert TOKEN not in done.stdout.replace(f"::add-mask::{TOKEN}", "") + files
        assert len(github.written) == 2


def test_a_deadline_is_an_error_with_a_remedy() -> None:
    with pytest.raises(Overdue, match="raise the input timeout"), deadline(0.001):
        time.sleep(5)
    time.sleep(0.1)


class TestInputs:
    @pytest.fixture
    def notices(self) -> list[str]:
        return []

    @pytest.fixture
    def translated(self, notices: list[str]) -> Callable[..., dict[str, Any]]:
        """Inputs as click hands them over."""

        def of(checkout: str = "", **inputs: Any) -> dict[str, Any]:
            command = cli.commands["action"]
            environment = {f"INPUT_{name.upper()}": value for name, value in inputs.items()}
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                context = command.make_context("action", [], auto_envvar_prefix="INPUT")
            for name in ("timeout", "comment", "release"):
                context.params.pop(name)
            return translate(context.params, environment | {"GITHUB_WORKSPACE": checkout}, notices.append)

        return of

    def test_are_options_of_a_build(self, translated: Callable[..., dict[str, Any]]) -> None:
        found = translated(**GIVEN, push="true")
        assert (str(found["source"]), str(found["output"])) == ("localhost/image", "docker://ghcr.io/owner/image")
        assert (found["push"], found["fresh"], found["max_layers"]) == (True, False, None)

    def test_that_are_empty_are_not_given(self, translated: Callable[..., dict[str, Any]], notices: list[str]) -> None:
        names = _inputs().keys() - GIVEN.keys() - set(options.SECRETS)
        assert translated(**GIVEN, **dict.fromkeys((name.replace("-", "_") for name in names), "")) == translated(
            **GIVEN
        )
        assert notices == []

    def test_of_hhd_rechunk_work(self, translated: Callable[..., dict[str, Any]], notices: list[str]) -> None:
        found = translated(
            **GIVEN,
            prev_ref="ghcr.io/owner/image:42",
            clear_plan="true",
            skip_compression="true",
            description="d",
            revision="r",
            labels="org.opencontainers.image.revision=mine",
            version="42.<date>",
        )
        assert (str(found["prev_ref"]), found["fresh"]) == ("docker://ghcr.io/owner/image:42", True)
        assert found["compression"].level == 1
        assert (found["description"], found["revision"]) == ("d", "r")
        assert found["labels"] == ["org.opencontainers.image.revision=mine"]
        assert isinstance(found["version"], Template)
        assert str(found["version"]) == "42.{date:%y%m%d}"
        assert notices == []

    def test_placeholders_of_hhd_rechunk_are_filled_in_or_told(
        self, translated: Callable[..., dict[str, Any]], notices: list[str]
    ) -> None:
        labels = "a=built <date>, <timestamp>\nb=<version> of <version:kernel>\nc=<other>"
        found = translated(**GIVEN, labels=labels, description="of <date>, <pretty>")
        assert re.fullmatch(r"a=built \d{6}, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["labels"][0])
        assert found["labels"][1:] == ["b=<version> of <version:kernel>", "c=<other>"]
        assert re.fullmatch(r"of \d{6}, <pretty>", found["description"])
        assert notices == [
            "label b: engine delta does not fill in <version>",
            "label b: engine delta does not fill in <version:kernel>",
            "input description: engine delta does not fill in <pretty>",
        ]

    def test_are_left_to_the_rechunker_with_its_engine(
        self, translated: Callable[..., dict[str, Any]], notices: list[str]
    ) -> None:
        found = translated(**GIVEN, engine="hhd", labels="a=<date> <version>", skip_compression="true")
        assert found["labels"] == ["a=<date> <version>"]
        assert found["skip_compression"]
        assert found["compression"].level == 3
        assert notices == []

    def test_show_the_rechunker_the_workflow_s_checkout(
        self, translated: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        def git(**inputs: str) -> Path | None:
            found: Path | None = translated(str(tmp_path), **GIVEN, **inputs)["git"]
            return found

        assert git(engine="hhd") is None, "nothing was checked out"
        (tmp_path / ".git").mkdir()
        assert git(engine="hhd") == tmp_path
        assert git(engine="hhd", git="/other") == Path("/other")
        assert git(engine="delta") is None

    @pytest.mark.parametrize("name", WITHOUT_MEANING)
    def test_without_meaning_are_told(
        self, translated: Callable[..., dict[str, Any]], notices: list[str], name: str
    ) -> None:
        translated(**GIVEN, **{name: "true"})
        [notice] = notices
        assert notice.startswith(f"input {name.replace('_', '-')} has no meaning here: ")

    def test_name_the_source_that_was_found(self) -> None:
        given = {"ref": "x", "engine": "delta", "version": None, "labels": (), "repository": None, "push": False}
        left_out = ("clear_plan", "skip_compression", "compression", "description", "revision")
        given |= dict.fromkeys((*WITHOUT_MEANING, *left_out))
        found = translate({**given, "output": Path("o")}, {"RECHUNK_SOURCE": "oci-archive:/scratch/image.tar"}, print)
        assert str(found["source"]) == "oci-archive:/scratch/image.tar"

    def test_that_do_not_go_together_are_told(self, translated: Callable[..., dict[str, Any]]) -> None:
        with pytest.raises(InputError, match="leave one out"):
            translated(**GIVEN, push="true", output="image")
        with pytest.raises(InputError, match="input repository"):
            translated(ref="x")


class TestCredentials:
    def test_of_github_are_for_its_registry_alone(self) -> None:
        environment = {"INPUT_TOKEN": "t", "INPUT_USERNAME": "u"}
        found = credentials(environment, parse_reference("ghcr.io/o/i"))
        assert found is not None
        assert (found.username, found.password) == ("u", "t")
        assert credentials(environment, parse_reference("quay.io/o/i")) is None
        assert credentials(environment, None) is None

    def test_of_the_user_are_for_any(self) -> None:
        found = credentials({"INPUT_TOKEN": "t", "INPUT_PASSWORD": "p"}, parse_reference("quay.io/o/i"))
        assert found is not None
        assert found.password == "p"  # noqa: S105  # a password of this test


class TestOneDefinition:
    """action.yml, the options and the README say the same of every input."""

    def test_inputs_of_the_action_are_the_options(self) -> None:
        assert set(_inputs()) == set(_options()) | set(options.SECRETS)

    def test_defaults_agree(self) -> None:
        defaults = {name: _default(option) for name, option in _options().items()}
        defaults |= {"version": DEFAULT_TEMPLATE, "prev-ref": "newest version", "tls-verify": "true"}
        listed = dict(_rows("Input"))
        for name, entry in _inputs().items():
            if name in options.SECRETS:
                continue
            stated = re.search(r" \(([^() ]+)\)\.$", entry["description"])
            assert entry.get("default", "") == ""
            assert (stated[1] if stated else "") in ("", defaults[name]), name
            assert listed[name].strip("`") in (defaults[name], ""), name

    def test_what_is_required_is_required(self) -> None:
        required = {name for name, entry in _inputs().items() if entry.get("required")}
        assert required == {name for name, option in _options().items() if option.required} == {"ref"}

    def test_every_input_is_handed_over_and_described_in_a_sentence(self) -> None:
        steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
        handed = {key: value for step in steps for key, value in (step.get("env") or {}).items()}
        for name, entry in _inputs().items():
            assert handed[f"INPUT_{name.replace('-', '_').upper()}"] == f"${{{{ inputs.{name} }}}}"
            assert re.fullmatch(r"[A-Z].*[.]", entry["description"].strip(), re.DOTALL), name

    def test_the_readme_lists_inputs_and_outputs_and_no_others(self) -> None:
        document = yaml.safe_load((ROOT / "action.yml").read_text())
        assert {name for name, _ in _rows("Input")} == set(document["inputs"])
        assert {name for name, _ in _rows("Output")} == set(document["outputs"])


def _rows(heading: str) -> list[tuple[str, str]]:
    """Each name in the first column of the README's table of that heading, with what the second column says."""
    text = (ROOT / "README.md").read_text()
    table = text.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [(name, row[1].strip()) for row in rows for name in re.findall(r"`([\w-]+)`", row[0])]


def _inputs() -> dict[str, dict[str, Any]]:
    inputs: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    return inputs


def _options() -> dict[str, click.Option]:
    """The action's options by the names of its inputs."""
    found = {}
    for option in cli.commands["action"].params:
        assert isinstance(option, click.Option)
        flag = max(option.opts, key=len).removeprefix("--")
        found[{"label": "labels", "tag": "tags", "formatter": "formatters"}.get(flag, flag)] = option
    found.pop("threads")
    return found


def _default(option: click.Option) -> str:
    default = option.get_default(click.Context(cli.commands["action"]))
    return str(default).lower() if isinstance(default, bool) else "" if default is None else str(default)


class TestTheLog:
    @pytest.mark.parametrize("text", ["::error::x", "  ::set-output name=a::b", "\t::x", "a ##[error]b", "##[group]"])
    def test_has_no_commands_but_ours(self, text: str) -> None:
        shown = plain(text)
        assert not re.match(r"\s*::", shown)
        assert "##[" not in shown

    def test_keeps_other_text(self) -> None:
        assert plain("a::b # c :x") == "a::b # c :x"

    def test_options_are_inputs_in_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        action.error("Invalid value for '--max-layers': use --version, --label a=b or --tls-verify=false -- or not")
        said = capsys.readouterr().out
        assert "value for input max-layers: use input version, input labels a=b or input tls-verify=false -- or" in said

    def test_options_of_other_programs_stay_what_they_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        action.error("remove it (docker rm --force x), unmount it (umount --recursive /x), or name another (--rechunk)")
        said = capsys.readouterr().out
        assert "(docker rm --force x), unmount it (umount --recursive /x), or name another (input rechunk)" in said
