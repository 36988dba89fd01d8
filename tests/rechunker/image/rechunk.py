"""What the original's `rechunk` does: plan layers for a commit by its packages, write the image, and tell of it.

All that it is told is in the environment, as 3_chunk.sh has it.
"""

# ruff: noqa: T201 -- what is printed is the container's log

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from .chunked import write_image
from .planning import META, Item, items, layers, plan
from .repository import Commit

INFO = "dev.hhd.rechunk.info"
VERSION = "org.opencontainers.image.version"
REVISION = "org.opencontainers.image.revision"
DESCRIPTION = "org.opencontainers.image.description"
DATABASE = "usr/share/rpm/rpmdb.sqlite"

FORMATS = {
    "commits.none": "- No commits\n",
    "commits.commit": "- <short>: <subject>\n",
    "pkgupd.none": "- No package changes\n",
    "pkgupd.add": "- <package> <new> is new\n",
    "pkgupd.update": "- <package> <old> is now <new>\n",
    "pkgupd.remove": "- <package> <old> is gone\n",
}


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    release: str
    files: Sequence[str]

    @property
    def full_version(self) -> str:
        return f"{self.version}-{self.release}"


def main(environment: Mapping[str, str]) -> None:
    now = datetime.now(UTC)
    commit = Commit(Path(environment["REPO"]), environment["OUT_TAG"])
    packages = installed(commit)
    previous, info = _previous(Path(environment["PREV_MANIFEST"]))

    planned = _planned(commit, packages, environment, info)
    written = plan(*planned, {f"/{path}": checksum for path, checksum in commit.files.items()})
    print(f"Planned {len(set(written.mapping.values()))} layers for {len(packages)} packages")

    version = next_version(environment.get("VERSION", ""), previous, now)
    if version and (version_file := environment.get("VERSION_FN")):
        Path(version_file).write_text(version)
    texts = Texts(environment, packages, version, previous, info, now)
    changelog = texts.fill(environment.get("CHANGELOG", ""))
    Path(f"{environment['OUT_NAME']}.changelog.txt").write_text(changelog)
    labels = _labels(environment, packages, version, planned[1])
    for line in filter(None, environment.get("LABELS", "").splitlines()):
        name, _, value = line.partition("=")
        labels[name] = texts.fill(value, changelog)
    if description := environment.get("DESCRIPTION"):
        labels[DESCRIPTION] = texts.fill(description, changelog)

    created = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    content = {"layers": written.components, "mapping": dict(sorted(written.mapping.items()))}
    Path(environment["CONTENT_META"]).write_text(
        json.dumps({"version": 1, "created": created, "labels": labels, **content}, indent=2)
    )
    if kernel := commit_metadata(environment["REPO"], commit.checksum, "ostree.linux"):
        labels["ostree.linux"] = kernel
    transport, _, name = environment["OUT_REF"].partition(":")
    if transport != "oci":
        raise ValueError(f"this stand-in writes oci:NAME only, not {environment['OUT_REF']}")
    layout, _, tag = name.partition(":")
    level = 1 if environment.get("SKIP_COMPRESSION") else 6
    write_image(commit, written, Path(layout), tag=tag, labels=labels, created=created, level=level)


def installed(commit: Commit) -> list[Package]:
    """The packages in the commit's database. Raises `FileNotFoundError` where there is none."""
    checksum = commit.files.get(DATABASE)
    if checksum is None:
        raise FileNotFoundError(f"/{DATABASE} is not in the commit")
    query = r"[%{=NAME}\t%{=VERSION}\t%{=RELEASE}\t%{FILENAMES}\n]"
    none = r"%{NAME}\t%{VERSION}\t%{RELEASE}\t\n"
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "rpmdb.sqlite").write_bytes(commit.path(checksum, "file").read_bytes())
        command = ["rpm", "--dbpath", directory, "-qa", "--queryformat", none + query]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in listed.splitlines():
        name, version, release, path = line.split("\t")
        files = found.setdefault((name, version, release), [])
        if path:
            files.append(path)
    return [Package(*identity, files) for identity, files in sorted(found.items())]


def next_version(wanted: str, previous: Mapping[str, Any], now: datetime) -> str:
    """The version that the image gets. A free one is looked for among the tags of the previous image's repository."""
    if not wanted:
        return ""
    version = wanted.replace("<date>", now.strftime("%y%m%d"))
    tags = previous.get("RepoTags") or []
    if version != (previous.get("Labels") or {}).get(VERSION) and version not in tags:
        return version
    stem = version[:-2] if len(version) > 3 and version[-2] == "." else version
    candidates = [f"{stem}.{number}" for number in range(1, 10)]
    return next((candidate for candidate in candidates if candidate not in tags), candidates[-1])


def commit_metadata(repository: str, checksum: str, key: str) -> str | None:
    """A string of the commit's metadata."""
    command = ["ostree", f"--repo={repository}", "show", f"--print-metadata-key={key}", checksum]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    return shown.stdout.strip().strip("'") if shown.returncode == 0 else None


class Texts:
    """Templates, filled with what is known of the image."""

    def __init__(
        self,
        environment: Mapping[str, str],
        packages: Sequence[Package],
        version: str,
        previous: Mapping[str, Any],
        info: Mapping[str, Any],
        now: datetime,
    ) -> None:
        formatters = (line.partition("=") for line in environment.get("FORMATTERS", "").splitlines())
        own = {name: _unescaped(value) for name, _, value in formatters if name}
        self._formats = FORMATS | own
        self._versions = _versions(packages)
        self._values = {
            **{name: value for name, value in own.items() if name not in FORMATS},
            **{f"version:{package.name}": package.version for package in reversed(packages)},
            **{f"relver:{package.name}": package.full_version for package in reversed(packages)},
            "version": version,
            "date": now.strftime("%y%m%d"),
            "timestamp": now.replace(tzinfo=None).isoformat() + "Z",
            "pretty": environment.get("PRETTY", ""),
            "previous": (previous.get("Labels") or {}).get(VERSION, ""),
            "imginfo": f"{len(packages)} packages\n",
            "commits": self._commits(environment, info.get("revision") or (previous.get("Labels") or {}).get(REVISION)),
            "pkgupd": self._updates(info.get("packages", {})),
        }

    def fill(self, template: str, changelog: str = "") -> str:
        return _filled(template.replace("<changelog>", changelog), self._values)

    def _commits(self, environment: Mapping[str, str], previous: str | None) -> str:
        checkout, revision = environment.get("GIT_DIR"), environment.get("REVISION")
        if not (checkout and revision and previous):
            return self._formats["commits.none"]
        git = ["git", f"--git-dir={checkout}/.git", "log", "--format=%h%x00%H%x00%s", f"{previous}..{revision}"]
        listed = subprocess.run(git, check=False, capture_output=True, text=True).stdout.splitlines()
        named = (dict(zip(("short", "hash", "subject"), line.split("\0"), strict=True)) for line in listed)
        lines = [_filled(self._formats["commits.commit"], names) for names in named]
        return "".join(lines) or self._formats["commits.none"]

    def _updates(self, before: Mapping[str, str]) -> str:
        lines = []
        for name in sorted(before.keys() | self._versions.keys()):
            old, new = before.get(name), self._versions.get(name)
            if old != new:
                kind = "add" if old is None else "remove" if new is None else "update"
                names = {"package": name, "old": old or "", "new": new or ""}
                lines.append(_filled(self._formats[f"pkgupd.{kind}"], names))
        return "".join(lines) or self._formats["pkgupd.none"]


def _previous(manifest: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `skopeo inspect` has said of the previous image, and its plan. Without a plan, the image counts as none."""
    if not manifest.exists():
        return {}, {}
    try:
        previous: dict[str, Any] = json.loads(manifest.read_text())
        info: dict[str, Any] = json.loads(previous["Labels"][INFO])
    except (ValueError, KeyError, TypeError) as error:
        print(f"Error loading previous manifest: {error!r}")
        return {}, {}
    return previous, info


def _planned(
    commit: Commit, packages: Sequence[Package], environment: Mapping[str, str], info: Mapping[str, Any]
) -> tuple[Mapping[str, Item], list[list[str]]]:
    own_meta = Path("_meta_in.yml")
    meta = yaml.safe_load(own_meta.read_text()) if own_meta.exists() else META
    count = int(environment.get("MAX_LAYERS") or meta.get("max_layers", 39))
    sizes = {f"/{path}": commit.path(checksum, "file").stat().st_size for path, checksum in commit.files.items()}
    owners = {path: package.name for package in packages for path in package.files}
    found = items(sizes, owners, meta)
    return found, layers(found, meta, count, [] if environment.get("CLEAR_PLAN") else info.get("layers", []))


def _labels(
    environment: Mapping[str, str], packages: Sequence[Package], version: str, planned: list[list[str]]
) -> dict[str, str]:
    revision = environment.get("REVISION") or None
    about = {"uniq": version, "packages": _versions(packages), "layers": planned, "revision": revision}
    labels = {INFO: json.dumps({"version": 2, **about})}
    if version:
        labels[VERSION] = version
    if revision:
        labels[REVISION] = revision
    return labels


def _versions(packages: Sequence[Package]) -> dict[str, str]:
    """Of packages with one name, the first."""
    return {package.name: package.full_version for package in reversed(packages)}


def _filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"<([^<>\s]+)>", lambda match: values.get(match[1], match[0]), template)


def _unescaped(text: str) -> str:
    return text.replace(r"\n", "\n").replace(r"\t", "\t").replace(r"\r", "\r")


if __name__ == "__main__":
    main(os.environ)
