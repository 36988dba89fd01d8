"""What linters do not tell of the action, the workflows, the examples and the scripts that they call."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rechunk_action.registry.client import Repository
from tests.oracles import program
from tests.registries import htpasswd_registry, plain_registry, repository

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.yml"))
OURS = [path for path in EXAMPLES if path.name != "before.yml"]

OUR_ACTION = "dkolb/rechunk-action"
ZEROS = "0" * 40
DIGEST = "sha256:" + "ab" * 32
IMAGE = f"ghcr.io/dkolb/rechunk-action@{DIGEST}"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_workflow = pytest.mark.parametrize("path", WORKFLOWS + EXAMPLES, ids=named)
each_example = pytest.mark.parametrize("path", OURS, ids=named)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(document: Any) -> Iterator[dict[str, Any]]:
    for job in document["jobs"].values() if "jobs" in document else [document["runs"]]:
        yield from job["steps"]


def our_steps(path: Path) -> list[dict[str, Any]]:
    return [step for step in steps(load(path)) if re.match(rf"\./$|{OUR_ACTION}@", step.get("uses", ""))]


# --- Actions that are called ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ROOT / "action.yml", *WORKFLOWS, *EXAMPLES], ids=named)
def test_actions_are_pinned_by_commit_and_their_version_is_told(path: Path) -> None:
    for line in re.findall(r"^.*\buses:.*$", path.read_text(), re.MULTILINE):
        assert re.search(r"uses: (\./|[\w./-]+@[0-9a-f]{40} # (v\d[\d.]*|the newest release))$", line), line


def test_an_action_is_pinned_to_one_commit_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS + EXAMPLES:
        for name, pin in re.findall(r"uses: ([\w./-]+)@(.*)$", path.read_text(), re.MULTILINE):
            pins.setdefault(name, set()).add(pin)
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}
    assert pins[OUR_ACTION] == {f"{ZEROS} # the newest release"}
    assert [name for name, found in pins.items() if ZEROS in str(found)] == [OUR_ACTION]


@each_workflow
def test_a_checkout_leaves_no_token_behind(path: Path) -> None:
    for step in steps(load(path)):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", [*WORKFLOWS, *OURS], ids=named)
def test_the_action_is_called_with_inputs_that_it_has(path: Path) -> None:
    required = {name for name, given in ACTION["inputs"].items() if given.get("required")}
    for step in our_steps(path):
        assert required <= step["with"].keys() <= ACTION["inputs"].keys()


@pytest.mark.parametrize("path", [*WORKFLOWS, *OURS], ids=named)
def test_outputs_that_are_read_are_the_actions(path: Path) -> None:
    text = path.read_text()
    for step in our_steps(path):
        for name in re.findall(rf"steps\.{step.get('id')}\.outputs\.([\w-]+)", text):
            assert name in ACTION["outputs"]


# --- Rights -----------------------------------------------------------------------------------------------------------


@each_workflow
def test_a_job_has_the_rights_that_it_names_and_no_others(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert isinstance(job["permissions"], dict)
        for right, level in job["permissions"].items():
            line = re.search(rf"^ +{right}: {level}(.*)$", path.read_text(), re.MULTILINE)
            assert line
            assert level == "read" or line[1].startswith(" # "), "what it is for"


@pytest.mark.parametrize("path", [ROOT / "action.yml", *WORKFLOWS, *EXAMPLES], ids=named)
def test_no_expression_becomes_shell_code(path: Path) -> None:
    for step in steps(load(path)):
        assert "${{" not in step.get("run", "")


@each_example
def test_a_run_that_publishes_is_never_cancelled(path: Path) -> None:
    assert load(path)["concurrency"]["cancel-in-progress"] in (False, "${{ github.event_name == 'pull_request' }}")


@each_example
def test_nothing_but_the_main_branch_publishes(path: Path) -> None:
    only_main = "${{ github.ref == 'refs/heads/main' }}"
    workflow = load(path)
    (step,) = our_steps(path)
    assert step["with"]["push"] == only_main or (
        step["with"]["push"] == "${{ env.PUBLISH }}" and workflow["env"]["PUBLISH"] == only_main
    )


# --- Examples ---------------------------------------------------------------------------------------------------------


@each_example
def test_what_a_trial_replaces_is_at_the_top(path: Path) -> None:
    text = path.read_text()
    for name in ("REPOSITORY", "TLS_VERIFY", "BASE_IMAGE"):
        assert name in load(path)["env"]
        assert re.search(rf"env\.{name}|\${name}\b", text)


def test_the_image_is_laid_out_anew_on_the_first_of_a_month_and_on_demand() -> None:
    workflow = load(ROOT / "examples/bazzite-dkub.yml")
    (step,) = our_steps(ROOT / "examples/bazzite-dkub.yml")
    first = re.fullmatch(
        r"\$\{\{ inputs\.fresh-rechunk \|\| github\.event\.schedule == '(.*)' \}\}", step["with"]["fresh"]
    )
    crons = [entry["cron"].split() for entry in workflow[True]["schedule"]]  # YAML takes the key `on` for a boolean
    assert first
    assert [cron[2] for cron in crons if cron == first[1].split()] == ["1"]
    assert [cron[2] for cron in crons if cron != first[1].split()] == ["2-31"], "the other days, and each of them once"
    assert workflow[True]["workflow_dispatch"]["inputs"]["fresh-rechunk"]["type"] == "boolean"


def test_only_what_publishes_gets_the_key() -> None:
    (step,) = our_steps(ROOT / "examples/bazzite-dkub.yml")
    assert step["with"]["push"] == "${{ env.PUBLISH }}"
    assert step["with"]["sign-key"] == "${{ env.PUBLISH == 'true' && secrets.SIGNING_SECRET || '' }}"


def test_the_index_names_every_example() -> None:
    linked = set(re.findall(r"\]\(([^):]+)\)", (ROOT / "examples/README.md").read_text()))
    assert linked == {
        *("bazzite-dkub.yml", "minimal.yml", "matrix.yml", "engine-hhd.yml"),
        "migrate-from-hhd-rechunk/README.md",
    }
    for name in linked:
        assert (ROOT / "examples" / name).exists()


def test_dependabot_looks_where_something_is_pinned() -> None:
    for update in load(ROOT / ".github/dependabot.yml")["updates"]:
        assert update["cooldown"]["default-days"] >= 7
        for directory in update.get("directories", [update.get("directory")]):
            assert (ROOT / directory.lstrip("/")).is_dir()


# --- Shell code in YAML -----------------------------------------------------------------------------------------------


def lint_run_blocks(*paths: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, str(ROOT / "scripts/lint_run_blocks.py"), *map(str, paths)]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("block", "line", "complaint"),
    [
        ("run: echo $1", 3, "SC2086"),
        ("run: |\n        true\n        echo $1", 5, "SC2086"),
        ("run: >-\n        cat\n        $1", 4, "SC2086"),
        ("run: echo '${{ inputs.ref }}'", 3, "an expression in shell code"),
        ("run: |\n        echo '${{ inputs.ref }}'", 4, "an expression in shell code"),
    ],
)
def test_shell_code_is_checked_where_it_stands(tmp_path: Path, block: str, line: int, complaint: str) -> None:
    path = tmp_path / "action.yml"
    path.write_text(f"runs:\n  steps:\n    - {block}\n")
    done = lint_run_blocks(path)
    assert done.returncode == 1, done.stderr
    assert re.search(rf"^{re.escape(str(path))}:{line}:.*{complaint}", done.stdout, re.MULTILINE), done.stdout


def test_good_shell_code_passes() -> None:
    done = lint_run_blocks(ROOT / "action.yml", *WORKFLOWS, *EXAMPLES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- Releases ---------------------------------------------------------------------------------------------------------


class Checkout:
    """A clone of a repository with what a release reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "scripts").mkdir(parents=True)
        for script in (ROOT / "scripts").glob("release-*"):
            shutil.copy(script, path / "scripts")
        shutil.copy(ROOT / "scripts/run-action", path / "scripts")
        (path / "pyproject.toml").write_text('[project]\nname = "rechunk-action"\nversion = "1.2.3"\n')
        (path / "CHANGELOG.md").write_text(
            "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-26\n\n### Added\n\n- One.\n\n"
            "## [1.2.30] - 2026-11-25\n\n- Two.\n\n## [1.2.2] - 2026-11-24\n"
        )
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit()

    def git(self, *arguments: str) -> str:
        settings = {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "Some One",
            "GIT_AUTHOR_EMAIL": "someone@example.org",
            "GIT_COMMITTER_NAME": "Some One",
            "GIT_COMMITTER_EMAIL": "someone@example.org",
        }
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=self.path, env=os.environ | settings, check=True, text=True, stdout=subprocess.PIPE
        )
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "The state that is released")

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path / "scripts" / script, *arguments], capture_output=True, text=True, check=False, cwd="/"
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Why a script failed, as the annotation tells."""
    assert done.returncode in (2, 4), done
    found = re.findall("^::error::(.*)$", done.stderr, re.MULTILINE)
    assert found, done
    return str(found[-1])


def test_a_release_is_asked_for_by_a_tag(checkout: Checkout) -> None:
    done = checkout.run("release-version", "v1.2.3-source")
    assert (done.returncode, done.stdout) == (0, "1.2.3\n")


@pytest.mark.parametrize("tag", ["v1.2.3", "1.2.3-source", "v1.2-source", "v1.2.3-source-2", "v1.2.3;id-source"])
def test_other_tags_ask_for_nothing(checkout: Checkout, tag: str) -> None:
    assert "is no tag for a release" in complaint(checkout.run("release-version", tag))


def test_the_package_has_the_version_that_is_released(checkout: Checkout) -> None:
    assert "has version 1.2.3, not 1.2.4" in complaint(checkout.run("release-version", "v1.2.4-source"))


@pytest.mark.parametrize("text", ["", "# Changelog\n\n## [1.2.3] - today\n\n## [1.2.2]\n\n- Old.\n"])
def test_the_changelog_tells_what_is_released(checkout: Checkout, text: str) -> None:
    (checkout.path / "CHANGELOG.md").write_text(text)
    assert "says nothing under '## [1.2.3]" in complaint(checkout.run("release-version", "v1.2.3-source"))


def test_notes_are_the_section_of_the_version(checkout: Checkout) -> None:
    assert checkout.run("release-notes", "1.2.3").stdout == "### Added\n\n- One.\n"
    assert checkout.run("release-notes", "1.2.30").stdout == "- Two.\n"


def test_this_version_of_the_package_is_found() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    done = subprocess.run(
        [ROOT / "scripts/release-version", "v999.0.0-source"], capture_output=True, text=True, check=False
    )
    assert f"has version {version[1]}, not 999.0.0" in complaint(done)


def test_a_release_names_the_container_image_in_one_line(checkout: Checkout, tmp_path: Path) -> None:
    tagged = checkout.git("rev-parse", "HEAD")
    done = checkout.run("release-commit", "1.2.3", IMAGE)
    assert done.returncode == 0, done.stderr
    assert checkout.git("rev-parse", "v1.2.3^{commit}^") == tagged
    assert checkout.git("show", "--format=%an <%ae>", "--no-patch", "HEAD").startswith("github-actions[bot] <")
    changed = checkout.git("diff", "--unified=0", "HEAD^", "HEAD").splitlines()
    assert [line for line in changed if re.match(r"[+-](?![+-])", line)] == [
        "-readonly RELEASED_IMAGE=",
        f"+readonly RELEASED_IMAGE={IMAGE}",
    ]
    # What users get: the tag, pushed to the repository that others clone.
    checkout.git("init", "--quiet", "--bare", str(tmp_path / "origin"))
    checkout.git("push", "--quiet", str(tmp_path / "origin"), "refs/tags/v1.2.3")
    checkout.git("clone", "--quiet", "--branch", "v1.2.3", str(tmp_path / "origin"), str(tmp_path / "users"))
    script = tmp_path / "users/scripts/run-action"
    assert f"\nreadonly RELEASED_IMAGE={IMAGE}\n" in script.read_text()
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_a_release_after_another_replaces_the_image(checkout: Checkout) -> None:
    checkout.run("release-commit", "1.2.3", IMAGE)
    newer = IMAGE.replace("ab", "cd")
    done = checkout.run("release-commit", "1.2.4", newer)
    assert done.returncode == 0, done.stderr
    assert f"+readonly RELEASED_IMAGE={newer}" in checkout.git("diff", "HEAD^", "HEAD")


@pytest.mark.parametrize(
    ("version", "image", "text"),
    [
        ("1.2", IMAGE, "is no version"),
        ("1.2.3", "ghcr.io/dkolb/rechunk-action:1.2.3", "by its digest"),
        ("1.2.3", IMAGE[:-1], "by its digest"),
        ("1.2.3", f"{IMAGE}\nrm -rf", "by its digest"),
        ("1.2.3", f"a|e id|@{DIGEST}", "by its digest"),
    ],
)
def test_a_release_of_anything_else_is_refused(checkout: Checkout, version: str, image: str, text: str) -> None:
    before = checkout.git("rev-parse", "HEAD")
    assert text in complaint(checkout.run("release-commit", version, image))
    assert (checkout.git("rev-parse", "HEAD"), checkout.git("status", "--short")) == (before, "")


def test_a_release_holds_nothing_that_was_not_committed(checkout: Checkout) -> None:
    (checkout.path / "scripts/run-action").write_text("readonly RELEASED_IMAGE=\n")
    assert "not committed" in complaint(checkout.run("release-commit", "1.2.3", IMAGE))


def test_a_release_has_one_line_to_change(checkout: Checkout) -> None:
    for text in ("", "readonly RELEASED_IMAGE=\nreadonly RELEASED_IMAGE=\n"):
        (checkout.path / "scripts/run-action").write_text(text)
        checkout.commit()
        assert "one line of scripts/run-action should" in complaint(checkout.run("release-commit", "1.2.3", IMAGE))
        checkout.git("checkout", "--quiet", ".")


def test_a_tag_is_never_moved(checkout: Checkout) -> None:
    checkout.run("release-commit", "1.2.3", IMAGE)
    before = checkout.git("rev-parse", "HEAD", "v1.2.3")
    assert "a tag v1.2.3 already" in complaint(checkout.run("release-commit", "1.2.3", IMAGE.replace("ab", "cd")))
    assert checkout.git("rev-parse", "HEAD", "v1.2.3") == before


# --- Registries -------------------------------------------------------------------------------------------------------


def push_image(host: str, *processors: str) -> str:
    """An image for some processors, as `latest` in owner/image; its digest."""
    kind = "application/vnd.oci.image"
    manifests = []
    with repository(host) as target:
        for processor in processors:
            platform = {"os": "linux", "architecture": processor}
            config = json.dumps(platform | {"rootfs": {"type": "layers", "diff_ids": []}}).encode()
            held = {"mediaType": f"{kind}.config.v1+json", "digest": target.upload_bytes(config), "size": len(config)}
            image = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "config": held, "layers": []}
            manifests.append(_put(target, "", image) | {"platform": platform})
        index = {"schemaVersion": 2, "mediaType": f"{kind}.index.v1+json", "manifests": manifests}
        return str(_put(target, "latest", index)["digest"])


def _put(target: Repository, tag: str, manifest: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    target.put_manifest(tag or digest, data, manifest["mediaType"])
    return {"mediaType": manifest["mediaType"], "digest": digest, "size": len(data)}


def test_a_released_image_can_be_pulled_by_everybody(checkout: Checkout) -> None:
    program("skopeo", "skopeo")
    with plain_registry() as registry:
        image = f"{registry.host}/owner/image@{push_image(registry.host, 'amd64', 'arm64')}"
        done = checkout.run("release-check", image, "amd64", "arm64")
        assert done.returncode == 0, done.stderr
        assert f"{image} has no image for riscv64" in complaint(checkout.run("release-check", image, "riscv64"))
        absent = f"{registry.host}/owner/image@{DIGEST}"
        assert "cannot be pulled" in complaint(checkout.run("release-check", absent, "amd64"))


def test_a_private_image_is_not_released(checkout: Checkout) -> None:
    program("skopeo", "skopeo")
    with htpasswd_registry() as registry:
        image = f"{registry.host}/owner/image@{DIGEST}"
        assert "make the package public" in complaint(checkout.run("release-check", image, "amd64"))


def test_the_self_test_fails_when_the_action_told_something_else() -> None:
    program("skopeo", "skopeo")
    with plain_registry() as registry:
        digest = push_image(registry.host, "amd64")

        def passes(*arguments: str, **outputs: str) -> bool:
            given = {"FRESH": "false", "DIGEST": digest, "UPDATE_SIZE": "200"} | outputs
            settings = os.environ | {"REPOSITORY": f"{registry.host}/Owner/Image"} | given
            done = subprocess.run(
                [ROOT / "scripts/self-test", *arguments], env=settings, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0 or "::error::" in done.stdout, done
            return done.returncode == 0

        assert passes("published", "update")
        assert passes("published", "fresh", FRESH="true", UPDATE_SIZE="40000000")
        assert passes("reported", DIGEST=DIGEST)
        assert not passes("published", "update", FRESH="true")
        assert not passes("published", "update", DIGEST=DIGEST)
        assert not passes("published", "update", UPDATE_SIZE="40000000")
        assert not passes("published", "fresh")
        assert not passes("reported")
