"""A build as the changelog of a release: what a user wants to know of a version."""

from __future__ import annotations

from rechunk_action.report.markdown import components, escape, fitted, packages, skips
from rechunk_action.report.model import Build
from rechunk_action.report.size import format_size
from rechunk_action.report.words import changes

MAX_CHANGELOG = 120_000
"""Bytes: the notes of a release may have 125,000 characters, and somebody may have written some."""

TOP = 5
"""Components that are listed by name: packages are listed anyway."""


def changelog(report: Build) -> str:
    """The changelog of a build."""
    update = report.update
    listed = packages(update)
    largest = components(update, TOP)
    parts = {
        "version": f"## {escape(report.version or report.ref)}\n\n{_sentence(report)}",
        "older versions": skips(report.history),
        "packages": f"### Packages\n\n{changes(update)}\n\n{listed}" if listed else "",
        "the largest parts": f"### What the download holds\n\n{largest}" if largest else "",
    }
    return fitted(parts, MAX_CHANGELOG).rstrip() + "\n"


def _sentence(report: Build) -> str:
    old, image = report.update.old, format_size(report.bytes.image)
    if old is None:
        return f"A fresh image: it downloads {image}."
    return (
        f"Downloads {format_size(report.bytes.update)} coming from {escape(old.name)} ({image} for a new installation)."
    )
