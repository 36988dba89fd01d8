"""What engine `delta` does alike in both formats: take layers over, plan, write side by side, put all in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rechunk_action.job import BuildOptions, Job, Layer, Previous, Writer
from rechunk_action.oci.config import history_comment
from rechunk_action.oci.layer import LayerPlan, Written
from rechunk_action.oci.table import Table
from rechunk_action.plan.compaction import Drop
from rechunk_action.plan.plain import Plan, Published, plan_fresh, plan_update
from rechunk_action.progress import Advance, Progress
from rechunk_action.record import bytes_by_component
from rechunk_action.source import Source
from rechunk_action.tree.entry import Tree
from rechunk_action.workers import Task, Workers

MAX_LAYERS = 120
"""Layers that an image may have where nobody says otherwise: container engines take 127."""

MAX_OVERHEAD = 5
"""Superseded bytes that kept layers may hold where nobody says otherwise, in percent of the live ones."""


@dataclass(frozen=True)
class Adopted:
    """The previous image as one that layers can be added to: those of its layers that can be kept, from `first` on."""

    previous: Previous
    layers: Sequence[Published]
    first: int = 0


def keep_all(adopted: Adopted | None, writer: Writer) -> None:
    """Take over every layer of the previous image that can be kept, checked. Those that the plan drops go again."""
    if adopted:
        for layer in adopted.layers:
            if not layer.table.problem:
                writer.keep(adopted.previous.image, layer.blob, layer.table)


def plan_layers(
    tree: Tree,
    owner: Mapping[str, str],
    adopted: Adopted | None,
    options: BuildOptions,
    *,
    base: Table | None = None,
) -> Plan:
    """An update of the previous image, or a fresh layout where there is none or nothing of it is worth keeping.

    `base` is what the image's first layer says, where that is not planned. Drops tell the places that layers have in
    the previous image.
    """
    max_layers = (options.max_layers or MAX_LAYERS) - (base is not None)
    drops: Sequence[Drop] = ()
    if adopted:
        plan = plan_update(
            adopted.layers, tree, lambda: owner, max_layers=max_layers, max_overhead=options.max_overhead, base=base
        )
        drops = [replace(drop, index=adopted.first + drop.index) for drop in plan.drops]
        if plan.kept:
            return replace(plan, drops=drops)
    return replace(plan_fresh(tree, owner, max_layers=max_layers), drops=drops)


def explain(plan: Plan, reason: str, progress: Progress) -> None:
    """Tell the user what was decided. `reason` is that for a fresh image, `""` for an update."""
    if reason:
        progress.decision(f"fresh layout: {reason}")
    progress.detail(f"{len(plan.kept)} layers kept, {len(plan.new)} new")
    for drop in plan.drops:
        progress.detail(f"layer {drop.index + 1} dropped: {drop.reason} ({drop.live:,} bytes live, {drop.dead:,} dead)")
    for new in plan.new:
        progress.detail(f"new layer: {new.name} ({len(new.paths):,} files, {len(new.whiteouts):,} removals)")


def bring(source: Source, paths: Collection[str], progress: Progress) -> None:
    """Bring the contents of new layers within reach. That takes time where they are in an archive."""
    if source.directory or not paths:
        source.prepare(paths)
        return
    with progress.phase("prepare", "unpack files for new layers") as meter:
        source.prepare(paths, meter)


Write = Callable[[LayerPlan, Path, int, int, Advance], Written]
"""Writes a layer into a file, at a compression level and with so many threads, and tells of bytes of the archive."""


def write_all(plan: Plan, tree: Tree, write: Write, job: Job, checked: Task[None], *, update: bool) -> list[Written]:
    """Write the new layers side by side, the largest first, so that no thread is left with one at the end.

    `checked` is done once the layers that are kept have been looked at.
    """
    options, writer = job.options, job.writer
    new = plan.new
    sizes = [layer.archive_size(tree) for layer in new]
    level = options.compression.update_level if update else options.compression.level
    with job.progress.phase("write", "write layers", sum(sizes)) as advance:

        def write_one(number: int) -> Written:
            threads = options.threads if sizes[number] * options.threads > sum(sizes) else 1
            written = write(new[number], writer.scratch / f"layer-{number}", level, threads, advance)
            writer.adopt(written.path, written.blob.digest)
            writer.store_table(written.blob, written.table)
            return written

        order = sorted(range(len(new)), key=lambda number: -sizes[number])
        with Workers(options.threads) as workers:
            finished = dict(zip(order, workers.map(write_one, order), strict=True))
    with nullcontext() if checked.done() else job.progress.phase("keep", "take over kept layers"):
        checked.result()
    return [finished[number] for number in range(len(new))]


def assemble(plan: Plan, adopted: Adopted | None, written: Sequence[Written]) -> tuple[list[Layer], list[Table]]:
    """The layers that were planned in order, and their tables."""
    fresh = iter(zip(plan.new, written, strict=True))
    layers, tables = [], []
    for item in plan.layers:
        if isinstance(item, int):
            assert adopted is not None  # noqa: S101  # for the type checker: only an update keeps layers
            kept = adopted.layers[item]
            comment = history_comment(adopted.previous.image, adopted.first + item)
            layers.append(Layer(kept.blob, comment, kept=True))
            tables.append(kept.table)
        else:
            new, result = next(fresh)
            layers.append(Layer(result.blob, new.name, kept=False))
            tables.append(result.table)
    return layers, tables


def accounted(
    layers: Sequence[Layer],
    tables: Sequence[Table],
    dead: Sequence[int],
    owner: Mapping[str, str],
    adopted: Adopted | None,
) -> list[Layer]:
    """The layers with what is in them, by component, and what of it is superseded.

    What was known of a kept layer when it was new stays: packages that are gone by now have no owner to ask.
    """
    known = {layer.digest: layer.components for layer in adopted.previous.facts.layers} if adopted else {}
    return [
        replace(
            layer,
            components=known.get(layer.blob.digest) or bytes_by_component(layer.blob, table, owner),
            dead=lost,
        )
        for layer, table, lost in zip(layers, tables, dead, strict=True)
    ]
