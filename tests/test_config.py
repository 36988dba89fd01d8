"""What the new image's config and manifest take over, and what they say themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rechunk_action import __version__
from rechunk_action.errors import InputError
from rechunk_action.oci.compression import MEDIA_TYPES
from rechunk_action.oci.config import history_comment, image_config, image_labels, image_manifest, load_config, oci_type
from rechunk_action.oci.image import CONFIG, MANIFEST, host_architecture
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.table import Blob
from tests.support import archive, file, pack, write_layout

RUN = {"Env": ["A=1"], "Entrypoint": ["/init"], "User": "7", "Labels": {"a": "1"}, "StopSignal": "SIGRTMIN+3"}

OCI = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "created": "2024-05-01T00:00:00Z",
    "author": "me",
    "config": RUN,
    "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
}
PODMAN = [
    {
        "Id": "abc",
        "Digest": "sha256:1",
        "Created": "2024-05-01T00:00:00Z",
        "Author": "me",
        "Architecture": "arm64",
        "Os": "linux",
        "Variant": "v8",
        "Config": RUN,
        "Labels": {"a": "1"},
        "RootFS": {"Type": "layers", "Layers": []},
        "History": [{"created_by": "x"}],
    }
]
DOCKER = PODMAN[0] | {"Config": RUN | {"Hostname": "", "Image": "sha256:2", "AttachStdin": False}}


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def config(source: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"labels": {}, "history": [], "diff_ids": [], "created": 0}
    return image_config(source, **defaults | options)


def labels(inherited: dict[str, str] | None = None, *changes: str, **options: Any) -> dict[str, str]:
    defaults: dict[str, Any] = {"version": None, "created": 0, "chunks": 3, "prev_ref": None, "engine": "delta"}
    defaults["own"] = {}
    return image_labels(inherited or {}, changes, **defaults | options)


@pytest.mark.parametrize("document", [OCI, PODMAN, DOCKER, [OCI]], ids=["oci", "podman", "docker", "list"])
def test_configs_are_taken_from_any_tool(tmp_path: Path, document: object) -> None:
    loaded = load_config(write(tmp_path / "config", document))
    made = config(loaded, labels=RUN["Labels"])
    assert made["config"] == RUN
    assert {key: made[key] for key in ("architecture", "variant", "os", "author")} == {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "author": "me",
    }
    assert loaded["created"] == "2024-05-01T00:00:00Z"


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        [OCI, OCI],
        "text",
        7,
        None,
        {"layers": []},
        {"config": []},
        {"config": "text"},
        {"config": {"Labels": ["a=1"]}},
        {"config": {"Labels": {"a": 1}}},
        {"architecture": 7},
        {"architecture": "amd64", "created": 7},
        [{"Config": "text"}],
    ],
    ids=str,
)
def test_what_is_no_config_is_refused(tmp_path: Path, document: object) -> None:
    with pytest.raises(InputError, match=str(tmp_path / "config")):
        load_config(write(tmp_path / "config", document))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b"PATH=/usr/bin"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config").write_bytes(text)
    with pytest.raises(InputError, match="is no JSON"):
        load_config(tmp_path / "config")


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "config")
    with pytest.raises(InputError, match="Is a directory"):
        load_config(tmp_path)


def test_an_image_without_a_config_gets_one() -> None:
    assert config() == {
        "architecture": host_architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Labels": {}},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }


def test_what_describes_other_layers_is_not_taken_over() -> None:
    source = OCI | {
        "history": [{"created_by": "x"}],
        "container": "abc",
        "config": RUN | {"Hostname": "h", "Image": "i"},
    }
    made = config(source, diff_ids=["sha256:2"])
    assert made.keys() == {"architecture", "variant", "os", "author", "created", "config", "rootfs", "history"}
    assert made["config"].keys() == RUN.keys()
    assert (made["rootfs"]["diff_ids"], made["history"]) == (["sha256:2"], [])


def test_labels_and_time_are_those_of_the_new_image() -> None:
    made = config(OCI, labels={"b": "2", "a": "1"}, created=86_400)
    assert list(made["config"]["Labels"].items()) == [("a", "1"), ("b", "2")]
    assert made["created"] == "1970-01-02T00:00:00Z"


def test_history_has_one_entry_for_each_layer() -> None:
    made = config(OCI, history=["one", "", "three"], diff_ids=["sha256:1", "sha256:2", "sha256:3"])
    assert [entry["comment"] for entry in made["history"]] == ["one", "", "three"]
    assert not any("empty_layer" in entry for entry in made["history"])


# Labels


def test_labels_of_the_built_image_stay() -> None:
    assert labels({"a": "1", "ostree.bootable": "true"}).items() >= {"a": "1", "ostree.bootable": "true"}.items()


@pytest.mark.parametrize("label", ["ostree.linux", "dev.hhd.rechunk.info"])
def test_labels_that_were_true_of_a_base_image_go(label: str) -> None:
    assert label not in labels({label: "6.17"})


@pytest.mark.parametrize("label", ["ostree.final-diffid", "ostree.commit"])
def test_labels_that_lie_about_the_format_go(label: str) -> None:
    assert label not in labels({label: "sha256:1"})
    with pytest.raises(InputError, match=f"label {label} would make clients"):
        labels({}, f"{label}=sha256:1")


def test_labels_tell_what_was_done() -> None:
    made = labels({"rechunk.version": "0", "rechunk.prev-ref": "old", "rechunk.other": "x"}, created=60, version="42.1")
    assert made == {
        "containers.bootc": "1",
        "org.opencontainers.image.created": "1970-01-01T00:01:00Z",
        "org.opencontainers.image.version": "42.1",
        "rechunk.chunks": "3",
        "rechunk.engine": "delta",
        "rechunk.version": __version__,
    }


def test_only_an_update_names_the_previous_image() -> None:
    assert labels(prev_ref="oci:a@sha256:1")["rechunk.prev-ref"] == "oci:a@sha256:1"
    assert "rechunk.prev-ref" not in labels()


def test_the_version_of_the_built_image_stays_unless_a_new_one_is_given() -> None:
    inherited = {"org.opencontainers.image.version": "41"}
    assert labels(inherited)["org.opencontainers.image.version"] == "41"
    assert labels(inherited, version="42")["org.opencontainers.image.version"] == "42"


@pytest.mark.parametrize(
    ("change", "label", "value"),
    [
        ("a=2", "a", "2"),
        ("new=x", "new", "x"),
        ("a=", "a", ""),
        ("a=b=c", "a", "b=c"),
        ("a=b-", "a", "b-"),
        ("a-=1", "a-", "1"),
        ("a-", "a", None),
        ("never-there-", "never-there", None),
        ("containers.bootc-", "containers.bootc", None),
    ],
)
def test_changes_to_labels_win(change: str, label: str, value: str | None) -> None:
    assert labels({"a": "1"}, change, version="42").get(label) == value


def test_no_label_says_another_version_than_the_one_that_is_published() -> None:
    change = "org.opencontainers.image.version=latest.20261127"
    assert labels({}, change, version="42")["org.opencontainers.image.version"] == "42"
    assert labels({}, change)["org.opencontainers.image.version"] == "latest.20261127"


def test_what_the_format_of_the_image_wants_wins() -> None:
    own = {"ostree.commit": "new", "a": "own"}
    assert labels({"ostree.commit": "old"}, "a=mine", own=own).items() >= own.items()


def test_changes_to_labels_are_made_in_order() -> None:
    assert "a" not in labels({}, "a=1", "a-")
    assert labels({}, "a-", "a=1")["a"] == "1"


@pytest.mark.parametrize("change", ["", "a", "=b", "-", "="])
def test_other_changes_to_labels_are_refused(change: str) -> None:
    with pytest.raises(InputError, match="is neither KEY=VALUE nor KEY-"):
        labels({}, change)


# Manifest and history


def test_a_manifest_lists_layers_as_oci_names_them() -> None:
    blobs = [Blob(f"sha256:{number}", number, media_type) for number, media_type in enumerate(MEDIA_TYPES)]
    layers = [(blob, {"note": "n"} if blob is blobs[0] else {}) for blob in blobs]
    made = image_manifest({"mediaType": "x", "digest": "sha256:c", "size": 9}, layers, {"b": "2", "a": "1"})
    assert (made["schemaVersion"], made["mediaType"]) == (2, MANIFEST)
    assert made["config"] == {"mediaType": CONFIG, "digest": "sha256:c", "size": 9}
    assert [(layer["digest"], layer["size"]) for layer in made["layers"]] == [
        (blob.digest, blob.size) for blob in blobs
    ]
    assert [layer.get("annotations") for layer in made["layers"]] == [{"note": "n"}, *[None] * (len(blobs) - 1)]
    assert {layer["mediaType"] for layer in made["layers"]} <= {key for key in MEDIA_TYPES if ".oci." in key}
    assert list(made["annotations"]) == ["a", "b"]


def test_oci_names_of_media_types_mean_the_same() -> None:
    assert [MEDIA_TYPES[oci_type(media_type)] for media_type in MEDIA_TYPES] == list(MEDIA_TYPES.values())


@pytest.mark.parametrize(
    ("history", "comments"),
    [
        ([{"comment": "one"}, {"created_by": "RUN two"}], ["one", "RUN two"]),
        (
            [
                {"comment": "FROM fedora", "created_by": "RUN one"},
                {"comment": "buildkit.dockerfile.v0", "created_by": "COPY two"},
            ],
            ["RUN one", "COPY two"],
        ),
        ([{"comment": "FROM fedora"}, {"comment": "from here", "created_by": "x"}], ["FROM fedora", "from here"]),
        ([{"empty_layer": True}, {"comment": "one"}, {"empty_layer": True}, {}], ["one", ""]),
        ([{"comment": "one"}], ["", ""]),
        ([], ["", ""]),
        (None, ["", ""]),
    ],
)
def test_history_tells_of_kept_layers(tmp_path: Path, history: object, comments: list[str]) -> None:
    layers = [pack(archive(file("a"))), pack(archive(file("b")))]
    image = read_image(write_layout(tmp_path / "layout", layers, config={"history": history}), None)
    assert [history_comment(image, number) for number in (0, 1)] == comments
