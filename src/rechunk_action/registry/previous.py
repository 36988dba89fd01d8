"""Which published image a build updates: the newest version in the repository, whatever else is tagged there.

Only a proven absence means that there is none: an answer that says so. A repository that cannot be read is an error
of the registry's, never a silent first build.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rechunk_action.registry.client import Repository
from rechunk_action.registry.versions import Scheme


@dataclass(frozen=True)
class Decision:
    """The newest version and its digest, both None where nothing was published yet. `reason` is for people."""

    tag: str | None
    digest: str | None
    reason: str


def find_previous(repository: Repository, scheme: Scheme, moving: Collection[str]) -> Decision:
    """Decide, by tags alone. `moving` are tags that go from version to version, and so are none.

    Raises `RegistryError` when the registry cannot tell.
    """
    tags = repository.tags()
    if not tags:
        return Decision(None, None, f"{repository} has no tags yet")
    candidates = [tag for tag in tags if tag not in moving]
    versions = sum(scheme.key(tag) is not None for tag in candidates)
    while (newest := scheme.newest(candidates)) is not None:
        found = repository.resolve(newest)
        if found is not None:
            which = "the only version" if versions == 1 else f"the newest of {versions:,} versions"
            return Decision(newest, found.digest, f"{which} like {scheme}")
        candidates.remove(newest)  # deleted since the tags were listed
    return Decision(None, None, f"none of the {len(tags):,} tags of {repository} is a version like {scheme}")
