"""An image by its name, wherever a build tool of this machine may have left it.

Every store that the name may mean is asked. One that cannot be is passed over when another has the image; else the
error says so. Several images of one name are never chosen between.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.image import Image
from rechunk_action.progress import UNHEARD, Meter
from rechunk_action.source import Source
from rechunk_action.source.daemon import DockerStore
from rechunk_action.source.names import Name
from rechunk_action.source.storage import storages
from rechunk_action.source.store import Store

IN_STORES = ("", "containers-storage", "docker-daemon")
"""Transports of names that are looked for."""

_OFFERED = 5


@dataclass(frozen=True)
class Found:
    """An image of a store. `image_id` is its ID there: a name may come to mean another image meanwhile."""

    store: Store
    image_id: str

    def source(
        self, scratch: Path, *, threads: int, drop_bad_xattrs: bool = False, meter: Meter = UNHEARD
    ) -> AbstractContextManager[Source]:
        """The image as a source, as `Store.source` opens it."""
        return self.store.source(self.image_id, scratch, threads=threads, drop_bad_xattrs=drop_bad_xattrs, meter=meter)

    def image(self) -> Image:
        """The image's manifest and config. Its layers cannot be opened."""
        return self.store.image(self.image_id)


def find_image(name: Name, environment: Mapping[str, str]) -> Found:
    """The image of that name in the stores that its transport stands for; without one, in all.

    Raises `InputError` when there is none or more than one, `EnvironmentLack` when no store can be asked.
    """
    found: list[Found] = []
    asked: list[Store] = []
    lacks: list[str] = []
    for store in _stores(name.transport, environment):
        try:
            image_id = store.find(name.place)
        except EnvironmentLack as lack:
            lacks.append(str(lack))
            continue
        asked.append(store)
        if image_id:
            found.append(Found(store, image_id))
    if not asked:
        raise EnvironmentLack(f"{name} cannot be looked for: {'; '.join(lacks)}")
    if not found:
        raise InputError(_missing(name, asked, lacks))
    if len({each.image_id for each in found}) > 1:
        choices = " or ".join(f"{each.store.transport}:{each.image_id[:12]} for that of {each.store}" for each in found)
        raise InputError(f"{name} is not the same image everywhere: write {choices}")
    return found[0]


def _stores(transport: str, environment: Mapping[str, str]) -> list[Store]:
    stores: list[Store] = [*storages(environment), DockerStore(environment)]
    return [store for store in stores if transport in ("", store.transport)]


def _missing(name: Name, asked: Sequence[Store], lacks: Sequence[str]) -> str:
    """What to tell the user of an image that is nowhere."""
    near = _near(name.place, [other for store in asked for other in store.names()])
    remedy = f"did you mean {' or '.join(near)}?" if near else "build it first, or name it as its tool lists it"
    if os.geteuid() and name.transport != "docker-daemon":
        lacks = [*lacks, "root's podman storage is for root to read (sudo)"]
    others = f" (not asked: {'; '.join(lacks)})" if lacks else ""
    return f"there is no image {name.place} in {' or '.join(map(str, asked))}: {remedy}{others}"


def _near(wanted: str, names: Sequence[str]) -> list[str]:
    """Names that may have been meant: the same or nearly the same last part, in any registry and with any tag."""
    by_stem: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        by_stem.setdefault(_stem(name), []).append(name)
    stems = difflib.get_close_matches(_stem(wanted), by_stem)
    return [name for stem in stems for name in by_stem[stem]][:_OFFERED]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition("@")[0].partition(":")[0]
