"""What the versions of an image really changed, and what delta layering would have cost: from what is in their layers.

The planner is replayed with the same budget that builds have where nobody says otherwise, from the first version on for
which all is known. Where the package databases of an image were read, they tell what belongs together, and packages and
components for the facts; elsewhere, what shares a layer is taken to belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rechunk_action.contents import Contents
from rechunk_action.engines.layering import MAX_LAYERS, MAX_OVERHEAD
from rechunk_action.errors import InputError, NotInRegistry
from rechunk_action.oci.image import Image
from rechunk_action.plan.simulation import Simulation, Step, Version, changed
from rechunk_action.progress import Progress
from rechunk_action.report.model import Estimate, Facts
from rechunk_action.report.size import format_size


def look_deeper(
    versions: Sequence[tuple[Facts, Image]], progress: Progress, *, deep: bool, threads: int, scratch: Path
) -> tuple[list[Facts], dict[str, Estimate]]:
    """What tables tell of versions, the oldest first: their facts, with packages and components where those were not
    known, and estimates of updates, by the digests of the images that they lead to. All as far as it can be told.

    `deep` is whether layers are read that have no table stored; `scratch` is a directory for what is needed of them.
    """
    images = [image for _, image in versions]
    stored = {blob: image for image in images for blob in image.layers if image.blobs.has_table(blob)}
    missing = {blob for image in images for blob in image.layers} - stored.keys()
    size = sum(blob.size for blob in missing)
    if missing:
        what = f"{len(missing):,} layers have no table stored, {format_size(size)} in all"
        progress.decision(f"{what}: reading them" if deep else f"{what}: --deep reads them, for estimates")
    known = [facts for facts, _ in versions]
    if not deep and not stored:
        return known, {}
    estimates: dict[str, Estimate] = {}
    before: Version | None = None
    simulation: Simulation | None = None
    with progress.phase("tables", "read tables", size if deep else None) as meter:
        contents = Contents(images, stored, meter, deep=deep, threads=threads, scratch=scratch)
        for number, (facts, image) in enumerate(versions):
            try:
                version = contents.next()
            except (InputError, NotInRegistry) as error:
                progress.notice(f"no estimate for updates from and to {facts.ref}: {error}")
                version = None
            if version is None:
                before = simulation = None
                continue
            known[number], version = contents.explain(facts, version, progress)
            if before is None or simulation is None or (before.first is None) != (version.first is None):
                _tell_unfit(facts.ref, version, progress)
                simulation = Simulation(version, max_layers=MAX_LAYERS, max_overhead=MAX_OVERHEAD / 100)
            else:
                step = simulation.update(version)
                _tell_dropped(facts.ref, step, progress)
                estimates[image.digest] = Estimate(
                    changed=changed(before, version), delta=step.update, delta_image=step.image
                )
            before = version
    return known, estimates


def _tell_unfit(ref: str, version: Version, progress: Progress) -> None:
    """Tell of layers that an update cannot keep, in the version that delta layering would have started from."""
    problems = [layer.table.problem for layer in version.layers if layer.table.problem]
    if problems:
        progress.notice(
            f"{len(problems)} of {len(version.layers)} layers of {ref} cannot be kept by an update ({problems[0]}): "
            "the first one is estimated with all that is in them"
        )


def _tell_dropped(ref: str, step: Step, progress: Progress) -> None:
    """Tell of layers whose files are written again, and above all of one that makes up most of an update."""
    for drop in step.drops:
        if drop.live:
            tell = progress.notice if drop.live > step.update / 2 else progress.detail
            again = f"{format_size(drop.live)} of a dropped layer that are written again"
            tell(f"the estimate for {ref} has {again}, since {drop.reason}")
