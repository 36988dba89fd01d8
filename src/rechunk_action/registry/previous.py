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
    versions = scheme.ordered(tag for tag in tags if tag not in moving)
    for tag in reversed(versions):
        found = repository.resolve(tag)
        if found is not None:  # else it was deleted since the tags were listed
            which = "the only version" if len(versions) == 1 else f"the newest of {len(versions):,} versions"
            return Decision(tag, found.digest, f"{which} like {scheme}")
    return Decision(None, None, f"none of the {len(tags):,} tags of {repository} is a version like {scheme}")
