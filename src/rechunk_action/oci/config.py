"""The configuration and manifest of the new image.

What runs in the image (user, environment, entry point, labels ...) is taken over from the image that was built. What
describes its layers is ours: `rootfs`, `history` (one entry a layer; clients count them), and the labels that tell what
this tool did. Labels that would make a client take the image for an OSTree-chunked one go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from rechunk_action import __version__
from rechunk_action.errors import InputError
from rechunk_action.oci.image import CONFIG, MANIFEST, Image, Json, RunConfig, host_architecture
from rechunk_action.oci.table import Blob

CHUNKED_LABEL = "ostree.final-diffid"
"""Its presence makes clients read the first layer as an OSTree commit (ostree-ext, store.rs)."""

FORMAT_LABELS = (CHUNKED_LABEL, "ostree.commit")

PLAN_LABEL = "dev.hhd.rechunk.info"
"""Holds hhd-dev/rechunk's plan of an image's layers."""

STALE_LABELS = (*FORMAT_LABELS, "ostree.linux", PLAN_LABEL)
"""What the tool that made a base image said of its layers and its kernel: true of the built image no more, and a wrong
kernel there has kept machines from booting."""

ENGINE_LABEL = "rechunk.engine"
"""Which of our engines made an image's layers."""

VERSION_LABEL = "org.opencontainers.image.version"
CREATED_LABEL = "org.opencontainers.image.created"
DESCRIPTION_LABEL = "org.opencontainers.image.description"
REVISION_LABEL = "org.opencontainers.image.revision"

_RUN_KEYS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "ArgsEscaped",
    "Healthcheck",
    "Shell",
    "OnBuild",
)
"""Of the config's `config` object: image-spec's fields and those that docker adds."""

_PLATFORM_KEYS = ("architecture", "os", "os.version", "os.features", "variant", "author")


def load_config(path: Path) -> Json:
    """An OCI config, or the output of `podman inspect` or `docker inspect`, as an OCI config.

    Raises `InputError` when the file is missing or is neither.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give --config an existing file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}): give --config an OCI config or an inspect output") from None
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict) or not {"config", "Config", "architecture", "Architecture"} & document.keys():
        raise InputError(f"{path} is neither an OCI config nor the inspect output of one image")
    for key in ("architecture", "variant", "os", "config", "created", "author"):
        if key.title() in document:
            document.setdefault(key, document[key.title()])
    try:
        msgspec.convert(document, RunConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not the config of an image ({error}): give --config another file") from None
    return document


def history_comment(image: Image, layer: int) -> str:
    """What the history of an image says of a layer, `""` where it does not count one entry for each layer."""
    entries = [entry for entry in image.config.get("history") or [] if not entry.get("empty_layer")]
    if len(entries) != len(image.layers):
        return ""
    comment, command = (str(entries[layer].get(key) or "") for key in ("comment", "created_by"))
    return command if command and comment.startswith(_NOT_OF_LAYERS) else comment or command


_NOT_OF_LAYERS = ("FROM ", "buildkit.")
"""Comments in which builders tell of themselves: what the build began with (buildah), and that it was BuildKit."""


def layer_name(image: Image, layer: int) -> str:
    """What is in a layer, for people, as `name_of` has it."""
    return name_of(image.manifest["layers"][layer].get("annotations") or {}, history_comment(image, layer))


def name_of(annotations: Mapping[str, str], comment: str) -> str:
    """What is in a layer, for people: packages, where its annotations name them (OSTree-chunked images do that), else
    what the image's history says.
    """
    names = [name for name in annotations.get("ostree.components", "").split(",") if name]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more or comment


_NAMED = 3


def image_config(
    source: Json | None,
    *,
    labels: Mapping[str, str],
    history: Sequence[str],
    diff_ids: Sequence[str],
    created: int,
) -> Json:
    """The new image's config. `history` describes each layer, `created` is in seconds since 1970."""
    source = source or {}
    when = timestamp(created)
    run: dict[str, Any] = {key: value for key, value in (source.get("config") or {}).items() if key in _RUN_KEYS}
    run["Labels"] = dict(sorted(labels.items()))
    platform = {key: source[key] for key in _PLATFORM_KEYS if source.get(key)}
    return {
        "architecture": host_architecture(),
        "os": "linux",
        **platform,
        "created": when,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": when, "created_by": "rechunk-action", "comment": text} for text in history],
    }


def image_manifest(
    config: Json, layers: Sequence[tuple[Blob, Mapping[str, str]]], annotations: Mapping[str, str]
) -> Json:
    """The new image's manifest. `config` is the stored config's descriptor, layers come with their annotations."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config | {"mediaType": CONFIG},
        "layers": [
            {"mediaType": oci_type(blob.media_type), "digest": blob.digest, "size": blob.size}
            | ({"annotations": dict(sorted(notes.items()))} if notes else {})
            for blob, notes in layers
        ],
        "annotations": dict(sorted(annotations.items())),
    }


def oci_type(media_type: str) -> str:
    """The OCI name of a layer's media type: an OCI manifest names no docker types, and the blob is the same."""
    if media_type.startswith("application/vnd.docker."):
        return "application/vnd.oci.image.layer.v1.tar" + media_type.partition("tar")[2].replace(".", "+")
    return media_type


def image_labels(
    inherited: Mapping[str, str],
    changes: Sequence[str],
    *,
    version: str | None,
    created: int,
    chunks: int,
    prev_ref: str | None,
    engine: str,
    own: Mapping[str, str],
) -> dict[str, str]:
    """The new image's labels: those of the built image, the user's changes to them (`K=V`, `K-`), and ours.

    A version is what the image is published as, so no label says another. (docker/metadata-action makes one up.)
    `own` are those that this image's format or place wants: they tell the truth, and nothing overrides them.

    Raises `InputError` for a change that is neither.
    """
    labels = {
        key: value for key, value in inherited.items() if key not in STALE_LABELS and not key.startswith("rechunk.")
    }
    labels["containers.bootc"] = labels.get("containers.bootc", "1")
    labels[CREATED_LABEL] = timestamp(created)
    for key, value in map(label_change, changes):
        if value is None:
            labels.pop(key, None)
        else:
            labels[key] = value
    if version:
        labels[VERSION_LABEL] = version
    labels |= {"rechunk.version": __version__, "rechunk.chunks": str(chunks), ENGINE_LABEL: engine, **own}
    if prev_ref:
        labels["rechunk.prev-ref"] = prev_ref
    return labels


def label_change(text: str) -> tuple[str, str | None]:
    """A label and its value, None where it is to be removed, from `K=V` or `K-`.

    Raises `InputError` for what is neither.
    """
    key, equals, value = text.partition("=")
    if equals and key in FORMAT_LABELS:
        raise InputError(f"label {key} would make clients read the image as an OSTree-chunked one: leave it out")
    if equals and key:
        return key, value
    if text.endswith("-") and len(text) > 1:
        return text[:-1], None
    raise InputError(f"label {text!r} is neither KEY=VALUE nor KEY- (which removes it)")


def timestamp(seconds: int) -> str:
    """Seconds since 1970 as RFC 3339 has them, in any year: strftime gives the year 1, Go's zero time, one digit."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat() + "Z"
