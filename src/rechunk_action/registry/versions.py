"""Versions as tags: how one is made, which tags are versions, and which of them is the newest.

A scheme is a template such as `{version_id}-{date:%Y%m%d}`: text, fields of the image's os-release in lower case, and
the date of the build. `42-20261126` is a version of that scheme, and so is `42-20261126.1`, which a second build of
the day gets. A version that a maintainer has chosen is a scheme, too: what is a number in it may be another one.

Tags are ordered by the numbers in them and not as a registry lists them. What is named after a digest (`sha256-...`:
signatures, attestations, our tables) is never a version. Pure: no clock, no registry.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from string import Formatter

from rechunk_action.errors import InputError
from rechunk_action.registry.reference import valid_tag

DEFAULT_TEMPLATE = "{version_id}-{date:%Y%m%d}"

Key = tuple[tuple[int, ...], ...]
"""What versions of one scheme are ordered by: the numbers of each part."""


class Scheme:
    """A way to make versions. `str()` gives the text that it was made of."""

    def __init__(self, text: str, pattern: str) -> None:
        self._text = text
        self._pattern = re.compile(rf"{pattern}(?:\.([0-9]+))?", re.ASCII)

    def __str__(self) -> str:
        return self._text

    def key(self, tag: str) -> Key | None:
        """What to order a tag by, None when it is no version of this scheme."""
        match = self._pattern.fullmatch(tag) if valid_tag(tag) else None
        if match is None or tag.startswith("sha256-"):
            return None
        return tuple(tuple(map(int, re.findall("[0-9]+", part or ""))) for part in match.groups())

    def ordered(self, tags: Iterable[str]) -> list[str]:
        """Those of the tags that are versions, the oldest first."""
        return sorted((tag for tag in tags if self.key(tag) is not None), key=lambda tag: (self.key(tag), tag))

    def newest(self, tags: Iterable[str]) -> str | None:
        """The newest of those tags that are versions, None when none is."""
        return next(reversed(self.ordered(tags)), None)


class Template(Scheme):
    """A scheme that makes versions of what is known when an image is built."""

    def __init__(self, text: str) -> None:
        """Raises `InputError` for a template that is malformed or has no date."""
        self._parts = _parts(text)
        if not any(field == "date" for _, field, _ in self._parts):
            raise InputError(f"version template {text!r} has no {{date:...}}: without one every build is the same")
        super().__init__(
            text, "".join(re.escape(literal) + _pattern(field, form) for literal, field, form in self._parts)
        )

    def render(self, release: Mapping[str, str], now: datetime) -> str:
        """The version of an image that is built now. `release` holds the image's os-release.

        Raises `InputError` when a field is missing or the result is no tag of this scheme.
        """
        known = {key.lower(): value for key, value in release.items()}
        text = ""
        for literal, field, form in self._parts:
            text += literal
            if field == "date":
                text += now.strftime(form)
            elif field:
                if not known.get(field):
                    raise InputError(
                        f"version template {self}: the image's os-release has no {field.upper()}; name the version "
                        f"with --version, or use one of its fields: {', '.join(sorted(known)) or 'it has none'}"
                    )
                text += known[field]
        if not valid_tag(text) or self.key(text) is None:
            raise InputError(
                f"version template {self} gives {text!r}, which no later build could find again as a tag: name the "
                "version with --version, or use another template"
            )
        return text


def scheme_of(version: str) -> Scheme:
    """The scheme of a version that a maintainer has chosen: its numbers may be others, dates have as many digits.

    Raises `InputError` for what is no tag, or has no number that could tell one version from another.
    """
    if not valid_tag(version):
        raise InputError(f"version {version!r} is no valid tag: use letters, digits, and . _ - (128 at the most)")
    if not _numbered(version):
        raise InputError(
            f"{version!r} is no version: it has no number that another build could raise. A tag that moves from "
            f"version to version is given as --tag {version}"
        )
    return Scheme(version, _shape(version))


@dataclass(frozen=True)
class Stream:
    """Tags that are versions of one image, the oldest first, and the scheme that they have in common."""

    scheme: Scheme
    tags: Sequence[str]


def streams(tags: Iterable[str]) -> list[Stream]:
    """The streams of versions among the tags of a repository, the one that most likely matters first.

    Tags are of one stream when the default template makes them, or when they differ in nothing but their numbers. Of
    two streams, the one with more versions comes first, else that of the default template, else the one that has come
    further. A stream's scheme is named after its newest version.
    """
    template = Template(DEFAULT_TEMPLATE)
    shapes: dict[str, list[str]] = defaultdict(list)
    for tag in tags:
        if valid_tag(tag) and _numbered(tag):
            shapes["" if template.key(tag) else _shape(tag)].append(tag)
    found = [Stream(template, template.ordered(shapes.pop("", [])))]
    for alike in shapes.values():
        ordered = scheme_of(alike[0]).ordered(alike)
        found.append(Stream(scheme_of(ordered[-1]), ordered))
    return sorted(
        (stream for stream in found if stream.tags),
        key=lambda stream: (len(stream.tags), stream.scheme is template, stream.scheme.key(stream.tags[-1])),
        reverse=True,
    )


def successor(version: str, taken: Collection[str]) -> str:
    """The version, or if that is taken the next build of it: `.1`, `.2` and so on, above all that are taken."""
    if version not in taken:
        return version
    first = _BUILD.sub(r"\1", version)
    builds = [re.fullmatch(re.escape(first) + r"(?:\.([0-9]+))?", tag) for tag in taken]
    return f"{first}.{1 + max(int(build[1] or 0) for build in builds if build)}"


def _numbered(tag: str) -> bool:
    """Whether a tag may be a version: it has a number, and is not named after a digest."""
    return not tag.startswith("sha256-") and any(map(str.isdigit, tag))


def _shape(version: str) -> str:
    """The pattern of all versions that have other numbers."""
    parts = re.split(r"([0-9]+)", _BUILD.sub(r"\1", version))
    return "".join(_number(part) if part[:1].isdecimal() else re.escape(part) for part in parts)


_BUILD = re.compile(r"([0-9]{6,})\.[0-9]+$")
"""A date with the number of a build of that day."""

_DATE_DIGITS = 6
"""Digits from which a number is taken for a date, which always has as many."""

_DIRECTIVES = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "y": 2, "j": 3}
"""Of strftime, with the digits that each gives."""


def _parts(text: str) -> list[tuple[str, str, str]]:
    """Text before a field, the field (`""` behind the last one), and its format."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise InputError(
            f"version template {text!r} is malformed ({error}): write it like {DEFAULT_TEMPLATE}"
        ) from None
    parts = []
    for literal, field, form, conversion in parsed:
        if conversion or (field is not None and not re.fullmatch("[a-z][a-z0-9_]*", field)):
            raise InputError(
                f"version template {text!r}: {{{field}}} is no field; use date, or a field of os-release in lower "
                f"case, as in {DEFAULT_TEMPLATE}"
            )
        parts.append((literal, field or "", form or ("%Y%m%d" if field == "date" else "")))
    return parts


def _pattern(field: str, form: str) -> str:
    if field == "date":
        return f"({_date_pattern(form)})"
    if field in ("version_id", "build_id", "image_version"):
        return r"([0-9]+(?:\.[0-9]+)*)"
    return r"[A-Za-z0-9._-]+?" if field else ""


def _date_pattern(form: str) -> str:
    pieces = re.split(r"%(.)", form)
    unknown = next((name for name in pieces[1::2] if name not in _DIRECTIVES), None)
    if unknown is not None or not pieces[1::2] or any("%" in literal for literal in pieces[::2]):
        raise InputError(
            f"date format {form!r} cannot be found again in tags: use %{', %'.join(_DIRECTIVES)} and plain text"
        )
    return "".join(
        f"[0-9]{{{_DIRECTIVES[piece]}}}" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)
    )


def _number(digits: str) -> str:
    return f"([0-9]{{{len(digits)}}})" if len(digits) >= _DATE_DIGITS else "([0-9]+)"
