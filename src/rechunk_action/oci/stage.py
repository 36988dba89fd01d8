"""The parts of an image that is being made: blobs, tables and scratch space, in a directory that goes with it.

Whatever ends the making, the directory is gone: at the latest with the next run (`scratch`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.image import MAX_JSON, Json, checked_digest, digest_of
from rechunk_action.oci.table import Blob, Table, encode_table
from rechunk_action.scratch import Scratch

BLOBS = "blobs/sha256"
TABLES = "rechunk-tables/v1"
RECORDS = "rechunk-records/v1"
"""Directories, named as a layout has them. A version changes whenever what is in there would be read differently."""


def blob_path(layout: Path, digest: str) -> Path:
    return layout / BLOBS / checked_digest(digest).partition(":")[2]


def table_path(layout: Path, digest: str) -> Path:
    """Where the table of the layer with this digest is."""
    return layout / TABLES / checked_digest(digest).partition(":")[2]


def record_path(layout: Path, digest: str) -> Path:
    """Where the record with this digest is."""
    return layout / RECORDS / checked_digest(digest).partition(":")[2]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have what the system reports of a file that is open name it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class Stage:
    """A context manager: what is in the directory when it is left is gone."""

    def __init__(self, parent: Path, prefix: str) -> None:
        """In a new directory, its name with a prefix that nothing else in `parent` has. Raises `OSError`."""
        self._scratch = Scratch(parent, prefix)
        self._stage = self._scratch.path
        self._stage.chmod(0o755)  # a layout is for all to read, and another user's podman may have to write into it
        for part in (BLOBS, TABLES, RECORDS, "scratch"):
            (self._stage / part).mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        lost = isinstance(error, FileNotFoundError) and not self._stage.exists()
        self._scratch.remove()
        if lost:
            raise EnvironmentLack(
                f"{self._stage} was removed while an image was made in it: see what removes files there, and run it "
                "again"
            ) from None

    @property
    def scratch(self) -> Path:
        """A directory for what is not finished yet."""
        return self._stage / "scratch"

    def adopt(self, path: Path, digest: str) -> None:
        """Take a finished file as a blob: its place may go, and on another file system it is copied."""
        shutil.move(path, blob_path(self._stage, digest))

    def limit(self, digests: Collection[str]) -> None:
        """Give up the blobs and tables of all other layers."""
        names = {digest.partition(":")[2] for digest in digests}
        for directory in (BLOBS, TABLES):
            for file in (self._stage / directory).iterdir():
                if file.name not in names:
                    file.unlink()

    def store_table(self, blob: Blob, table: Table) -> None:
        self._write(table_path(self._stage, blob.digest), encode_table(table))

    def store_json(self, document: Json, media_type: str) -> Json:
        """Store a manifest or config; returns its descriptor."""
        data = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        if len(data) > MAX_JSON:
            raise InputError(f"a {media_type} of {len(data):,} bytes is more than clients read: use fewer labels")
        digest = digest_of(data)
        self._write(blob_path(self._stage, digest), data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        with writing(path):
            path.write_bytes(data)
