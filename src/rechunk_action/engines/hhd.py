"""Engine `hhd`: hhd-dev/rechunk's container makes an OSTree-chunked image, and we look after it.

Its three scripts get what they need and nothing else: a writable view of the tree that leaves the built image as it is,
an empty repository, an empty directory for results, the previous image's manifest. They run one after the other,
without network, with the few capabilities that they use, in a workspace that goes away with them.

Nothing of what they say is believed. The tree is looked at before and after it was pruned, and the OSTree commit in the
image, rebuilt from its layers, has to equal the pruned tree; the version, and the labels that tell what was done, are
ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rechunk_action.engines import rechunker
from rechunk_action.engines.container import Containers, Step
from rechunk_action.errors import EngineFailed, EnvironmentLack, InputError, VerificationFailed
from rechunk_action.job import HhdOptions, Job, Layer, Made, Previous
from rechunk_action.oci.config import history_comment, layer_name
from rechunk_action.oci.image import Image, host_architecture, watched
from rechunk_action.oci.stage import blob_path
from rechunk_action.ostree.chunked import read_chunked
from rechunk_action.progress import Meter, Progress
from rechunk_action.source import Source
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.unpack import unpack
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.packages import installed, read_packages
from rechunk_action.tree.scan import Hasher
from rechunk_action.verify import summary, tree_differences
from rechunk_action.workspace import Workspace, workspace

RECHUNKER = (
    "ghcr.io/ublue-os/legacy-rechunk:v1.0.1-x86_64"
    "@sha256:2627cbf92ca60ab7372070dcf93b40f457926f301509ffba47a04d6a9e1ddaf7"
)
"""The rechunker's image, for amd64. hhd-dev's own images expire after 90 days, those of this fork do not."""


def check(given: HhdOptions, environment: Mapping[str, str]) -> None:
    """Raises what can be known before anything is done."""
    if os.geteuid():
        raise EnvironmentLack("engine hhd needs root, to mount a workspace and to read files of all owners: use sudo")
    host = environment.get("DOCKER_HOST") or "unix://"
    if not host.startswith("unix://"):
        raise EnvironmentLack(
            f"engine hhd needs a docker on this machine, which sees its files, and DOCKER_HOST names {host}: unset it"
        )
    if not given.image and host_architecture() != "amd64":
        raise InputError(
            f"there is no rechunker for {host_architecture()} that we know of: name a container image with --rechunk"
        )
    if given.meta:
        rechunker.check_meta(given.meta)
    if given.git and not (given.git / ".git").is_dir():
        raise InputError(
            f"--git {given.git} is no checkout with a repository of its own: it has no directory .git; name one that "
            "was cloned (no worktree or submodule)"
        )


@contextmanager
def hhd(job: Job) -> Iterator[Made]:
    """Have the rechunker make the image, check it, and hand its layers on."""
    options, given, progress = job.options, job.options.hhd, job.progress
    previous, reason = _usable(job)
    with progress.phase("scan", f"read {options.source}") as meter:
        job.source.scan(None, meter)
    for notice in rechunker.check_tree(job.source.tree):
        progress.notice(notice)
    if reason:
        progress.decision(f"fresh plan: {reason}")
    version = job.writer.settle(job.version())
    with _workspace(job) as space:
        containers = Containers(job.environment, _labels(job, space.path.parent))
        image = containers.bring(given.image or RECHUNKER, progress)
        run = _Runs(containers, space, progress)
        tree, copied = _writable(job, space, run)
        repository, results = space.directory("ostree"), space.directory("results")
        chunk = rechunker.chunk(
            image,
            repository,
            results,
            given,
            version=version,
            labels=options.labels,
            max_layers=options.max_layers,
            fresh=previous is None,
        )
        run(rechunker.prune(image, tree))
        run(rechunker.commit(image, tree, repository))
        with run.phase("check", "check what was pruned") as meter:
            source = _scan(tree, job, meter)
            pruned = source.tree
            for notice in rechunker.check_pruned(job.source.tree, pruned):
                progress.notice(notice)
        findings = job.lint(pruned, source.read)
        if copied:
            shutil.rmtree(tree)
        manifest = rechunker.previous_manifest(previous.image, version) if previous else None
        rechunker.supply(results, manifest, given.meta)
        run(chunk)
        made = rechunker.read_results(results)
        with run.phase("verify", "compare the image with what was pruned") as meter:
            read = watched(made.image, made.image.layers, meter)
            _verify(read, pruned, threads=options.threads, compare=options.verify)
        layers = _layers(made, previous, job)
        filled, own = rechunker.filled(options.labels, made.image)
        yield Made(
            layers,
            previous,
            reason,
            version,
            installed(read_packages(job.source.tree, job.source.read)),
            findings,
            labels=own,
            filled=filled,
            changelog=made.changelog or None,
            disk=run.disk,
        )


SHARE_OF_RESULTS = 0.7
"""Bytes of compressed layers for each byte of a tree, at the most: text and programs take half of it."""

COMPRESSED = 0.4
"""Bytes that BTRFS takes for each byte of a tree, at the least (zstd, level 3)."""

WORKSPACE_LABEL = "rechunk-action.workspace"

ROOM = 512 << 20
"""Bytes for what is there besides trees: the workspace's own structures, plans, logs."""


class _Runs:
    """Runs steps one after the other, each as a phase, and looks at the disk: `disk` has the peak of each in bytes."""

    def __init__(self, containers: Containers, space: Workspace, progress: Progress) -> None:
        self._containers = containers
        self._space = space
        self._progress = progress
        self.disk: dict[str, int] = {}

    def __call__(self, step: Step) -> None:
        with self.phase(step.name, f"hhd-dev/rechunk: {step.name}"):
            self._containers.run(step, say=self._progress.output, watch=lambda: self._look(step.name))

    @contextmanager
    def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Meter]:
        with self._progress.phase(name, title, total) as meter:
            try:
                yield meter
            except (EngineFailed, OSError):
                self._space.check()  # which tells more of missing room than the one who has met with it
                raise
            self._look(name)

    def _look(self, name: str) -> None:
        self._space.check()
        self.disk[name] = max(self._space.used(), self.disk.get(name, 0))


def _usable(job: Job) -> tuple[Previous | None, str]:
    """The previous image, if the rechunker can plan by it, or the reason for a fresh plan."""
    previous = job.previous
    if previous is None:
        return None, job.reason
    if not rechunker.has_plan(previous.image):
        return None, f"previous image has no plan of hhd-dev/rechunk (label {rechunker.PLAN_LABEL})"
    if job.options.max_layers:
        job.progress.notice("--max-layers has no effect on a plan that is there: build with --fresh once to change it")
    return previous, ""


def _labels(job: Job, home: Path) -> dict[str, str]:
    """Labels of our containers, by which what a killed run has left is found."""
    labels = {WORKSPACE_LABEL: str(home)}
    if runner := job.environment.get("RUNNER_TEMP"):
        labels["rechunk-action.runner"] = runner
    return labels


def _workspace(job: Job) -> AbstractContextManager[Workspace]:
    """Scratch space for the repository (a copy of the tree), the layers, and the tree where that has to be copied."""
    given, size, notice = job.options.hhd, _bytes(job.source.tree), job.progress.notice

    def end(home: Path) -> None:
        """End what a run that was killed has left at work."""
        for container in Containers(job.environment, {WORKSPACE_LABEL: str(home)}).clear():
            notice(f"removed container {container}, which a run that was killed had left behind")

    return workspace(
        job.options.scratch,
        kind=given.workspace,
        size=given.workspace_size,
        need=int(size * (2 + SHARE_OF_RESULTS)) + ROOM,
        least=int(size * (1 if job.source.directory else 2) * COMPRESSED),
        environment=job.environment,
        notice=notice,
        end=end,
    )


def _bytes(tree: Tree) -> int:
    return sum(entry.size for path, entry in tree.items() if entry.kind == "f" and entry.group in ("", path))


def _writable(job: Job, space: Workspace, run: _Runs) -> tuple[Path, bool]:
    """A view of the source that may be written to, and whether it is a copy."""
    source = job.source
    if source.directory:
        try:
            return space.overlay(source.directory, "tree"), False
        except EnvironmentLack as lack:
            job.progress.notice(f"the tree is copied: {lack}")
    directory = space.path / "tree"
    directory.mkdir()
    with run.phase("unpack", f"unpack {job.options.source}", _bytes(source.tree)) as advance:
        unpack(source, directory, advance)
    return directory, True


def _scan(directory: Path, job: Job, meter: Meter) -> Source:
    with Hasher(job.options.threads, meter) as hasher:
        source = DirectorySource(str(directory), drop_bad_xattrs=True)
        source.scan(hasher, meter)
        hasher.finish()
    return source


def _verify(image: Image, pruned: Tree, *, threads: int, compare: bool) -> None:
    try:
        chunked = read_chunked(image, threads=threads)
    except InputError as error:
        raise rechunker.damaged(error) from None
    if not compare:
        return
    found = tree_differences(chunked.tree(), pruned)
    if found:
        raise VerificationFailed("the rechunker's image is not what was pruned. " + summary(found))


def _layers(made: rechunker.Results, previous: Previous | None, job: Job) -> list[Layer]:
    """The image's layers, their blobs handed to the writer."""
    held = previous.image.digests if previous else set()
    notes = [layer.get("annotations") or {} for layer in made.image.manifest["layers"]]
    for digest in made.image.digests:
        job.writer.adopt(blob_path(made.layout, digest), digest)
    return [
        Layer(
            blob,
            history_comment(made.image, index),
            blob.digest in held,
            notes[index],
            # By the packages that share it: what of a layer is whose, the rechunker does not tell.
            {layer_name(made.image, index) or blob.digest: blob.size},
        )
        for index, blob in enumerate(made.image.layers)
    ]
