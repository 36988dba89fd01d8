"""Engine `delta`: the published layers stay byte for byte, and new ones hold what changed.

The plan is pure (`plan/`), and the same for both formats: `plain` and `chunked` give it the tables of the previous
layers and the tree, and carry it out. Nothing is handed on before the result was compared with the source.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from rechunk_action.engines.chunked import chunked
from rechunk_action.engines.plain import plain
from rechunk_action.job import Job, Made


def delta(job: Job) -> AbstractContextManager[Made]:
    """Make the layers of an image, in the format that it is to have."""
    return chunked(job) if job.format == "ostree" else plain(job)
