"""What hhd-dev/rechunk's container reads and writes: three scripts, their environment, their mounts, their files.

Nothing here runs anything. What is wrong with the scripts is worked around where they are called, and each such place
says so; what they leave is checked before it is used.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from rechunk_action.engines.container import Bind, Step
from rechunk_action.errors import EngineFailed, InputError
from rechunk_action.job import HhdOptions
from rechunk_action.oci.config import DESCRIPTION_LABEL, VERSION_LABEL, label_change
from rechunk_action.oci.image import Image, Json
from rechunk_action.oci.layout import read_image
from rechunk_action.tree.entry import Entry, Tree

PLAN_LABEL = "dev.hhd.rechunk.info"
"""Where hhd-dev/rechunk keeps its plan."""

RPM_DATABASE = "usr/share/rpm/rpmdb.sqlite"

NAME = "image"
"""What the results are called: its own action makes a name of the image's, which has characters of any kind."""

MAX_VALUE = 128 * 1024 - 1
"""Bytes that a variable may have with its name: Linux takes no longer string (execve(2), MAX_ARG_STRLEN)."""

_TO_CHANGE = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP")
_TO_READ = ("DAC_OVERRIDE",)
"""Capabilities: files of all owners are read; the tree is changed with owners, modes and capabilities. Without one of
those, the first script loses what it is for and ends well.
"""


def check_tree(tree: Tree) -> list[str]:
    """Raises `InputError` for a tree that the scripts would ruin or fail on. Returns what the user should know."""
    if not _is_dir(tree, "usr"):
        raise InputError("the image has no directory /usr: it is no operating system; name another source")
    if not (_holds(tree, "etc") or _holds(tree, "usr/etc")):
        raise InputError("the image has neither /etc nor /usr/etc: it is no operating system; name another source")
    if RPM_DATABASE not in tree:
        raise InputError(
            f"the image has no /{RPM_DATABASE}, and hhd-dev/rechunk plans by RPM packages: use engine delta"
        )
    if not any(_is_kernel(path) for path in tree):
        raise InputError(
            "the image has no kernel in /usr/lib/modules/*/vmlinuz, and hhd-dev/rechunk makes bootable images only: "
            "use engine delta, or put the kernel there"
        )
    notices = []
    if not any(_holds(tree, f"{place}/selinux") for place in ("etc", "usr/etc")):
        notices.append("the image has no SELinux policy: its files get no labels")
    return notices


def check_pruned(tree: Tree, pruned: Tree) -> list[str]:
    """What pruning has taken or changed that it should not have, as sentences for the user. Modes, owners and
    attributes are changed on purpose.

    Raises `EngineFailed` when the tree is no system any more: the script never fails, whatever it meets.
    """
    if _holds(pruned, "etc") or not _holds(pruned, "usr/etc") or RPM_DATABASE not in pruned:
        raise EngineFailed(
            "the rechunker has not left a system: /etc should be /usr/etc, and the RPM database where it was; see what "
            "step prune says above, and report it to hhd-dev/rechunk"
        )
    kept = {path: _moved(path) for path, entry in tree.items() if not entry.is_dir and not path.startswith(_PRUNED)}
    lost = [path for path, moved in kept.items() if moved not in pruned]
    changed = [
        path
        for path, moved in kept.items()
        if moved in pruned and moved not in _REWRITTEN and not _same_content(tree[path], pruned[moved])
    ]
    found = (("leaves out files that the image has", lost), ("changes what is in files", changed))
    return [f"the rechunker {what}: {_listed(paths)}" for what, paths in found if paths]


def check_meta(path: Path) -> None:
    """Raises `InputError` for a file of meta packages that the rechunker would fail on, minutes later."""
    import yaml  # noqa: PLC0415  # few builds have such a file, and every command would start later

    try:
        document: Any = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"--meta {path} cannot be read ({error.strerror}): name a file that is there") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--meta {path} is no YAML ({' '.join(str(error).split())}): correct it") from None
    try:
        msgspec.convert(document, _Meta)
    except msgspec.ValidationError as error:
        raise InputError(f"--meta {path} is not like hhd-dev/rechunk's meta.yml ({error}): correct it") from None


def has_plan(image: Image) -> bool:
    """Whether the rechunker can plan by an image. It takes one without a plan for none, without a word."""
    try:
        msgspec.json.decode(image.labels.get(PLAN_LABEL, ""), type=_Plan)
    except msgspec.DecodeError:
        return False
    return True


def previous_manifest(image: Image, version: str | None) -> Json:
    """The previous image as `skopeo inspect` shows it, which is all that the rechunker knows of it.

    It would settle a version of its own where ours has been used: what we have settled has not, so it is told of no
    tags, nor of a previous version of the same name.
    """
    labels = {key: value for key, value in image.labels.items() if (key, value) != (VERSION_LABEL, version)}
    layers = image.manifest["layers"]
    return {
        "Name": str(image.blobs),
        "Digest": image.digest,
        "RepoTags": [],
        "Created": image.config.get("created"),
        "DockerVersion": "",
        "Labels": labels,
        "Architecture": image.architecture,
        "Os": image.config.get("os"),
        "Layers": [layer["digest"] for layer in layers],
        "LayersData": [
            {
                "MIMEType": layer["mediaType"],
                "Digest": layer["digest"],
                "Size": layer["size"],
                "Annotations": layer.get("annotations"),
            }
            for layer in layers
        ],
        "Env": (image.config.get("config") or {}).get("Env"),
    }


def prune(image: str, tree: Path) -> Step:
    """Turns a tree into one that OSTree can commit, in place. Works in a directory of its own when it finds none."""
    return Step(
        "prune", image, ("/sources/rechunk/1_prune.sh",), {"TREE": "/var/tree"}, (Bind(tree, "/var/tree"),), _TO_CHANGE
    )


def commit(image: str, tree: Path, repository: Path) -> Step:
    """Makes an OSTree commit of the tree, in a repository below a directory that has to be empty."""
    environment = {"TREE": "/var/tree", "REPO": "/var/ostree/repo", "RESET_TIMESTAMP": "1"}
    binds = (Bind(tree, "/var/tree", read_only=True), Bind(repository, "/var/ostree"))
    return Step("commit", image, ("/sources/rechunk/2_create.sh",), environment, binds, _TO_READ)


def chunk(
    image: str,
    repository: Path,
    results: Path,
    given: HhdOptions,
    *,
    version: str | None,
    labels: Sequence[str],
    max_layers: int | None,
    fresh: bool,
) -> Step:
    """Plans layers and writes the image, into a directory that has to be empty but for what `supply` puts there.

    Raises `InputError` for texts that are longer than a program can be given.
    """
    templates = _templates(labels)
    settings = {
        "REPO": "/var/ostree/repo",
        "OUT_NAME": NAME,
        "OUT_REF": f"oci:{NAME}",
        "MAX_LAYERS": str(max_layers or ""),
        "SKIP_COMPRESSION": "1" if given.skip_compression else "",
        "CLEAR_PLAN": "1" if fresh else "",
        "VERSION": version or "",
        "VERSION_FN": "/workspace/version.txt",
        "PRETTY": given.pretty,
        "DESCRIPTION": templates.pop(DESCRIPTION_LABEL, ""),
        "CHANGELOG": given.changelog,
        "REVISION": given.revision,
        "LABELS": "\n".join(f"{key}={value}" for key, value in templates.items()),
        "FORMATTERS": "\n".join(given.formatters),
        "GIT_DIR": "/var/git" if given.git else "",
    }
    for name, value in settings.items():
        size = len(os.fsencode(f"{name}={value}"))
        if size > MAX_VALUE:
            raise InputError(
                f"{name.lower()} takes {size:,} bytes, and {MAX_VALUE:,} is all that a program can be given: shorten it"
            )
    binds = [Bind(repository, "/var/ostree", read_only=True), Bind(results, "/workspace")]
    if given.git:
        binds.append(Bind((given.git / ".git").absolute(), "/var/git/.git", read_only=True))
    environment = {name: value for name, value in settings.items() if value} | {"PYTHONUNBUFFERED": "1"}
    return Step("chunk", image, ("/sources/rechunk/3_chunk.sh",), environment, binds, _TO_READ)


def filled(labels: Sequence[str], image: Image) -> tuple[dict[str, str], dict[str, str]]:
    """The labels of an image that the rechunker has made: those that it was told, with their texts filled in, by how
    they were given (`K=V`), and those of its own.
    """
    told = {key: value for key, value in _templates(labels).items() if key in image.labels}
    own = {key: value for key, value in image.labels.items() if key not in told and key != VERSION_LABEL}
    return {f"{key}={value}": f"{key}={image.labels[key]}" for key, value in told.items()}, own


def supply(results: Path, previous: Json | None, meta: Path | None) -> None:
    """Lay out what the rechunker looks for in the directory of its results."""
    if previous:
        (results / "previous.manifest.json").write_text(json.dumps(previous))
    if meta:
        (results / "_meta_in.yml").write_bytes(meta.read_bytes())


@dataclass(frozen=True)
class Results:
    """What the rechunker has made."""

    image: Image
    layout: Path
    changelog: str


def read_results(results: Path) -> Results:
    """The image and what goes with it, not yet compared with anything.

    Raises `EngineFailed` when there is none, or one whose parts do not belong together.
    """
    layout = results / NAME
    _repair(results)
    try:
        image = read_image(layout, None)
        changelog = results / f"{NAME}.changelog.txt"
        text = changelog.read_text(errors="replace") if changelog.is_file() else ""
    except InputError as error:
        raise EngineFailed(f"the rechunker ended well, and what it wrote is no image ({error}): {_REPORT}") from None
    history = [entry for entry in image.config.get("history") or [] if not entry.get("empty_layer")]
    if len(history) != len(image.layers):
        raise EngineFailed(
            f"the rechunker's image has {len(image.layers)} layers and tells of {len(history)} in its history, which "
            f"makes clients fail: {_REPORT}"
        )
    return Results(image, layout, text)


def damaged(error: InputError) -> EngineFailed:
    """What to tell the user of an image of the rechunker's that clients could not import."""
    return EngineFailed(f"the rechunker's image is damaged ({error}): {_REPORT}")


_REPORT = "run it again, name another container image (--rechunk), or report it to hhd-dev/rechunk"

_LISTED = 5

_REWRITTEN = ("usr/lib/passwd", "usr/lib/group", "usr/etc/passwd", "usr/etc/group")
"""What pruning writes anew on purpose."""

_PRUNED = (
    *("boot/", "dev/", "ostree", "proc/", "run/", "sys/", "sysroot", "tmp/"),
    *("etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-"),
    *(".dockerenv", "usr/lib/.build-id/", "usr/lib/sysimage/rpm-ostree-base-db/"),
)
"""What is pruned on purpose, by the beginning of its path."""

_PLACES = (("etc/", "usr/etc/"), ("var/lib/", "usr/lib/"), ("var/", "usr/share/factory/var/"))
"""Where pruning moves what is in a directory."""


def _moved(path: str) -> str:
    for before, after in _PLACES:
        if path.startswith(before):
            return after + path.removeprefix(before)
    return path


def _same_content(before: Entry, after: Entry) -> bool:
    """By the digest where it is known, else by size and time, as rsync tells."""
    if (before.kind, before.size, before.target) != (after.kind, after.size, after.target):
        return False
    return before.digest == after.digest if before.digest else before.mtime == after.mtime


def _listed(paths: Collection[str]) -> str:
    named = ", ".join(f"/{path}" for path in sorted(paths)[:_LISTED])
    return named + (f" and {len(paths) - _LISTED:,} more" if len(paths) > _LISTED else "")


def _is_dir(tree: Tree, path: str) -> bool:
    return path in tree and tree[path].is_dir


def _holds(tree: Tree, path: str) -> bool:
    return _is_dir(tree, path) and any(other.startswith(f"{path}/") for other in tree)


def _is_kernel(path: str) -> bool:
    return path.startswith("usr/lib/modules/") and path.endswith("/vmlinuz") and path.count("/") == _KERNEL_DEPTH


_KERNEL_DEPTH = 4


def _templates(labels: Sequence[str]) -> dict[str, str]:
    """Labels that the rechunker can be told: of one line each, or the description. They override its own, two of which
    are not to be.
    """
    found = {}
    for key, value in map(label_change, labels):
        if value is None or key in (VERSION_LABEL, PLAN_LABEL):
            continue
        if "\n" not in value or key == DESCRIPTION_LABEL:
            found[key] = value
    return found


class _Plan(TypedDict):
    """What is read of a plan. In its first version, layers were told by their annotations."""

    version: int
    layers: NotRequired[list[list[str]]]


class _Package(TypedDict, total=False):
    packages: list[str]
    files: list[str]
    dedicated: bool


class _Meta(TypedDict):
    """What is read of a file of meta packages."""

    meta: dict[str, _Package]
    max_layers: NotRequired[Annotated[int, msgspec.Meta(gt=0)]]
    layer_prefill_ratio: NotRequired[Annotated[float, msgspec.Meta(ge=0)]]
    layer_max_ratio: NotRequired[Annotated[float, msgspec.Meta(gt=0)]]


def _repair(results: Path) -> None:
    """The last script gives directories the mode 0666, which makes them useless, and files one with which all may
    write to them.

    Raises `EngineFailed` for what is neither: a link would have us read, and publish, a file of this machine.
    """
    for directory, names, files in os.walk(results):
        os.chmod(directory, 0o755)  # noqa: S103  # what is to be published is no secret
        for name in (*names, *files):
            path = f"{directory}/{name}"
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                os.chmod(path, 0o644)
            elif not stat.S_ISDIR(mode):
                raise EngineFailed(f"the rechunker has written {path}, which is neither file nor directory: {_REPORT}")
