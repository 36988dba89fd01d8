"""The parts of an image that is being made: blobs, tables and scratch space, in a directory that goes with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Self

from rechunk_action.errors import InputError
from rechunk_action.oci.image import MAX_JSON, Json, checked_digest, digest_of
from rechunk_action.oci.table import Blob, Table, encode_table
from rechunk_action.signals import undisturbed

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


class Stage:
    """A context manager: what is in the directory when it is left is gone."""

    def __init__(self, directory: Path) -> None:
        self._stage = directory
        for part in (BLOBS, TABLES, RECORDS, "scratch"):
            (directory / part).mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            shutil.rmtree(self._stage, ignore_errors=True)

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
        table_path(self._stage, blob.digest).write_bytes(encode_table(table))

    def store_json(self, document: Json, media_type: str) -> Json:
        """Store a manifest or config; returns its descriptor."""
        data = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        if len(data) > MAX_JSON:
            raise InputError(f"a {media_type} of {len(data):,} bytes is more than clients read: use fewer labels")
        digest = digest_of(data)
        blob_path(self._stage, digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}
