"""Engine `delta` with plain layers: files, and whiteouts for what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rechunk_action.engines.layering import (
    Adopted,
    accounted,
    assemble,
    bring,
    explain,
    keep_all,
    plan_layers,
    write_all,
)
from rechunk_action.errors import VerificationFailed
from rechunk_action.job import Job, Made
from rechunk_action.oci.layer import LayerPlan, Written, write_layer
from rechunk_action.oci.merge import Replay
from rechunk_action.progress import Advance
from rechunk_action.stored import with_tables
from rechunk_action.tree.components import components
from rechunk_action.tree.packages import installed, read_packages
from rechunk_action.tree.scan import Hasher
from rechunk_action.verify import differences, summary
from rechunk_action.workers import Workers


@contextmanager
def plain(job: Job) -> Iterator[Made]:
    """Keep the layers of the previous image, as far as they are worth it, and write the rest."""
    options, source, writer, progress = job.options, job.source, job.writer, job.progress
    adopted, reason = _adopt(job), job.reason
    with Workers(1) as beside:
        # Checking the previous blobs takes a processor that the walk leaves idle.
        checked = beside.submit(keep_all, adopted, writer)
        with (
            progress.phase("scan", f"read {options.source}") as meter,
            Hasher(options.threads, meter) as hasher,
        ):
            source.scan(hasher if adopted else None, meter)
            packages = read_packages(source.tree, source.read)
            owner = components(source.tree, packages)
            hasher.finish()
        findings = job.lint(source.tree, source.read)
        with progress.phase("plan", "plan layers"):
            plan = plan_layers(source.tree, owner, adopted, options)
        if adopted and not plan.kept:
            adopted, reason = None, "nothing of the previous image can be kept"
        explain(plan, reason, progress)
        bring(source, [path for new in plan.new for path in new.paths if source.tree[path].kind == "f"], progress)

        def write(new: LayerPlan, path: Path, level: int, threads: int, advance: Advance) -> Written:
            return write_layer(
                new,
                source.tree,
                source,
                path,
                compression=options.compression,
                level=level,
                threads=threads,
                newest=options.created,
                advance=advance,
            )

        written = write_all(plan, source.tree, write, job, checked, update=adopted is not None)
    layers, tables = assemble(plan, adopted, written)
    writer.limit({layer.blob.digest for layer in layers})
    merged = Replay(tables, source.tree)
    if options.verify:
        with progress.phase("verify", "verify the merged image"):
            found = differences(merged)
        if found:
            raise VerificationFailed("the image that was written is not the source. " + summary(found))
    yield Made(
        accounted(layers, tables, merged.dead(), owner, adopted),
        adopted.previous if adopted else None,
        reason,
        job.version(),
        installed(packages),
        findings,
        drops=plan.drops,
    )


def _adopt(job: Job) -> Adopted | None:
    previous = job.previous
    if previous is None:
        return None
    with job.progress.phase("previous", f"read {previous.ref}") as meter:
        layers = with_tables(previous.image, previous.image.layers, job.options.threads, job.progress, meter=meter)
    return Adopted(previous, layers)
