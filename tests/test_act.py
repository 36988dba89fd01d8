"""The examples as GitHub runs them: act, the real action in its container, podman's storage and a registry."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bench.demo_action import overhead
from bench.workflows import BASE, REPOSITORY, Done, Site
from rechunk_action import __version__
from rechunk_action.oci.image import host_architecture
from rechunk_action.registry.image import published_image
from rechunk_action.registry.signature import is_signed
from tests.containers import action_image, base
from tests.github_api import TOKEN, FakeGitHub, serving
from tests.oracles import program, run
from tests.rechunker import FAULTS, rechunker_image, small_tree
from tests.registries import repository
from tests.signing import key_text

pytestmark = pytest.mark.oracle

EXAMPLE = "bazzite-dkub.yml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian root file system as an archive."""
    docker = program("docker", "docker.io")
    archive = tmp_path_factory.mktemp("base") / "root.tar"
    container = run(docker, "create", base(), "true").strip()
    run(docker, "export", "--output", archive, container)
    run(docker, "rm", container)
    return archive


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bootable root file system as an archive."""
    place = tmp_path_factory.mktemp("system")
    small_tree(place / "tree", 1)
    run("tar", "-C", place / "tree", "--xattrs", "--xattrs-include=*", "-cf", place / "root.tar", ".")
    return place / "root.tar"


@pytest.fixture
def site(root: Path) -> Iterator[Site]:
    with opened(root) as site:
        yield site


@contextmanager
def opened(root: Path, **environment: str) -> Iterator[Site]:
    program("docker-registry", "docker-registry")
    # podman wants a short path, and one on a disk.
    with (
        tempfile.TemporaryDirectory(prefix="site-", dir="/var/tmp") as place,
        Site(Path(place), root, {"RECHUNK_ACTION_IMAGE": action_image(), **environment}) as site,
    ):
        yield site
        assert site.containers == []


def tags(site: Site) -> set[str]:
    host, _, name = site.repository.partition("/")
    with repository(host, name) as client:
        return {tag for tag in client.tags() if not tag.startswith("sha256-")}


def test_a_build_and_its_update(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    text = key_text("", key).replace("\n", "\\n")
    (site.place / "repository/.secrets").write_text(f'SIGNING_SECRET="{text}"\n')  # where act looks for them
    first = site.run(EXAMPLE)
    assert site.scratch == []
    assert (first.status, first.outputs["fresh"], first.outputs["prev-ref"]) == (0, "true", "")
    assert tags(site) == {"latest", "stable", first.outputs["version"]}
    assert "a fresh image (first build)" in first.summary

    (site.files / "etc/motd").write_text("two\n")
    second = site.run(EXAMPLE)
    assert (second.status, second.outputs["fresh"]) == (0, "false")
    assert 0 < overhead(second) <= 5
    assert second.outputs["prev-ref"] == f"{site.repository}:{first.outputs['version']}@{first.outputs['digest']}"
    assert 0 < int(second.outputs["update-size"]) < 2000 < int(second.outputs["image-size"])
    assert re.search(r"Users download \d+\sbytes", second.summary)

    host, _, name = site.repository.partition("/")
    with repository(host, name) as published:
        assert all(is_signed(published, done.outputs["digest"], key.public_key()) for done in (first, second))

    pulled = site.podman("pull", "--quiet", "--tls-verify=false", f"{site.repository}:latest").strip()
    labels = json.loads(site.podman("image", "inspect", pulled))[0]["Labels"]
    assert labels["org.opencontainers.image.version"] == second.outputs["version"]
    assert labels["rechunk.prev-ref"] == second.outputs["prev-ref"]


def test_fresh_on_demand_and_on_the_first_of_a_month(site: Site) -> None:
    assert site.run(EXAMPLE).status == 0
    for event, details, fresh in (
        ("workflow_dispatch", {"inputs": {"fresh-rechunk": "true"}}, "true"),
        ("schedule", {"schedule": "5 10 1 * *"}, "true"),
        ("schedule", {"schedule": "5 10 2-31 * *"}, "false"),
    ):
        done = site.run(EXAMPLE, event, **details)
        assert (done.status, done.outputs["fresh"]) == (0, fresh)


def test_a_pull_request_reports_and_publishes_nothing(root: Path) -> None:
    """In one comment, which is kept up to date, and in the end says that the request costs more than it may."""
    github = FakeGitHub(repository=REPOSITORY)
    request = {"number": 7, "base": {"ref": "main"}, "head": {"ref": "change"}}

    def propose(site: Site, inputs: str = "") -> Done:
        """The request's workflow, with more inputs."""
        last = "          tls-verify: ${{ env.TLS_VERIFY }}\n"
        more = f"{last}          token: {TOKEN}\n{inputs}"
        return site.run(EXAMPLE, "pull_request", replace=(last, more), ref="refs/pull/7/merge", pull_request=request)

    with serving(github) as address, opened(root, GITHUB_API_URL=address) as site:
        first = site.run(EXAMPLE)
        assert first.status == 0, first.log[-3000:]
        assert github.asked == []
        before = tags(site)
        (site.files / "etc/motd").write_text("proposed\n")
        done = propose(site)
        assert (done.status, done.outputs["fresh"]) == (0, "false")
        assert 0 < int(done.outputs["update-size"]) < 2000
        assert "Nothing was published" in done.summary
        [comment] = github.comments
        assert f"costs your users **{done.outputs['update-size']}" in comment["body"]
        (site.files / "large").write_bytes(os.urandom(300_000))
        done = propose(site, "          max-update-size: 0.1\n")
        assert done.status != 0
        [error] = done.errors
        assert "the most of it is" in error
        assert "Nothing was published" in done.summary
        [comment] = github.comments
        assert "that are allowed. The largest: " in comment["body"]
        assert [line.partition(" ")[0] for line in github.written] == ["POST", "PATCH"]
        assert tags(site) == before


@pytest.mark.parametrize("example", ["minimal.yml", "matrix.yml", "migrate-from-hhd-rechunk/after.yml"])
def test_every_example_publishes(site: Site, example: str) -> None:
    for flavour in ("", "-gnome", "-nvidia"):
        site.podman("tag", BASE, f"{BASE}{flavour}:stable")
    done = site.run(example)
    assert done.status == 0, done.log[-3000:]
    assert done.outputs["fresh"] == "true"


def test_wrong_inputs_are_one_error(site: Site) -> None:
    for wrong, text in (
        (("localhost/bazzite-dkub\n", "localhost/bazzite-dkup\n"), "did you mean|there is no image"),
        (("tls-verify: ${{ env.TLS_VERIFY }}", "max-layers: 1"), "Invalid value for input max-layers"),
    ):
        done = site.run(EXAMPLE, replace=wrong)
        assert done.status != 0
        assert len(done.errors) == 1
        assert re.search(text, done.errors[0])
        assert done.outputs.get("ref", "") == ""


def test_hhd_makes_a_build_and_its_update(system: Path) -> None:
    """The third build fails, in the rechunker; it publishes nothing and leaves nothing."""
    here = ("engine: hhd\n", f"engine: hhd\n          rechunk: {rechunker_image()}\n")
    with opened(system) as site:
        first = site.run("engine-hhd.yml", replace=here)
        assert first.status == 0, first.log[-3000:]
        assert (first.outputs["fresh"], first.outputs["prev-ref"]) == ("true", "")

        (site.files / "etc/motd").write_text("two\n")
        second = site.run("engine-hhd.yml", replace=here)
        assert second.status == 0, second.log[-3000:]
        assert site.scratch == []
        assert second.outputs["prev-ref"] == f"{site.repository}:{first.outputs['version']}@{first.outputs['digest']}"
        assert second.outputs["fresh"] == "false"
        assert 0 < int(second.outputs["update-size"]) < int(second.outputs["image-size"])
        assert re.search(r"Users download", second.summary)
        title, _, *listed = (site.told / "changelog.md").read_text().splitlines()
        assert title == f"# Custom Bazzite-DX {second.outputs['version']}"
        assert listed[0].endswith(": a change"), "the commit of this build"
        labels = newest_labels(site)
        assert labels["org.opencontainers.image.version"] == second.outputs["version"]
        assert labels["rechunk.version"] == __version__
        assert labels["rechunk.chunks"] == second.outputs["chunks"]
        assert labels["rechunk.prev-ref"] == second.outputs["prev-ref"]
        assert labels["rechunk.engine"] == "hhd"
        assert labels["ostree.bootable"] == "true"
        assert labels["org.opencontainers.image.description"].endswith(f", after {first.outputs['version']}")

        before = tags(site)
        (site.files / FAULTS).parent.mkdir(parents=True)
        (site.files / FAULTS).write_text("create:exit:7\n")
        third = site.run("engine-hhd.yml", replace=here)
        assert third.status != 0
        [error] = third.errors
        assert error.startswith("step commit failed (exit status 7)")
        assert (tags(site), site.scratch) == (before, [])


def newest_labels(site: Site) -> dict[str, str]:
    """Labels of the newest image, which its manifest has as annotations."""
    host, _, name = site.repository.partition("/")
    with repository(host, name) as client:
        image = published_image(client, "latest", host_architecture())
    assert image.labels == image.manifest["annotations"]
    return dict(image.labels)


@pytest.mark.parametrize("when", ["Rechunk", "::group::write layers", "::group::publish"])
def test_cancelled_it_leaves_nothing(site: Site, when: str) -> None:
    (site.files / "large").write_bytes(os.urandom(1 << 20) * 100)
    with site.start(EXAMPLE) as process:
        assert process.stdout is not None
        assert any(when in line for line in process.stdout)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    while site.containers:
        time.sleep(0.1)
        assert time.monotonic() - started < 7
    # act kills the step, and its cleaning step does not run either: what remains is what those have made.
    made = {"rechunk", "held", "complaint", "id", "security", "told", "version"}
    assert {Path(path).name for path in site.scratch} <= made
    assert {tag for tag in tags(site) if tag in ("latest", "stable")} in (set(), {"latest", "stable"})
    again = site.run(EXAMPLE)
    assert again.status == 0


def test_a_killed_container_fails_the_step_and_leaves_nothing(site: Site) -> None:
    (site.files / "large").write_bytes(os.urandom(1 << 20) * 100)
    docker = program("docker", "docker.io")
    with site.start(EXAMPLE) as process:
        assert process.stdout is not None
        log = ""
        for line in process.stdout:
            log += line
            if "::group::write layers" in line:
                for container in run(docker, "ps", "--quiet", "--filter=label=rechunk-action.runner").split():
                    if str(site.place) in run(docker, "inspect", container):
                        subprocess.run([docker, "kill", container], check=True, capture_output=True)
    assert process.returncode != 0
    [error] = site.done(process.returncode, log).errors
    assert "the container was killed" in error
    assert (site.containers, site.scratch) == ([], [])
    assert site.run(EXAMPLE).status == 0


def test_demo_says_what_to_do_without_docker(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.demo_action", tmp_path / "out"],
        env=os.environ | {"DOCKER_HOST": "unix:///nowhere"},
        check=False,
        text=True,
        capture_output=True,
    )
    assert done.returncode != 0
    assert done.stderr == "error: no docker daemon answers: start it (systemctl start docker), and run this again\n"
