"""The documents that `--json` prints: to the byte on fixed inputs, and by their schema wherever they come from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
from click.testing import CliRunner, Result

from rechunk_action.cli import cli
from rechunk_action.report.model import Build, Comparison, Past
from rechunk_action.report.schema import schema, text
from tests.reports import DOCUMENTS, GOLDEN, golden, hostile

ROOT = Path(__file__).parent.parent


def validate(document: Any, name: str) -> None:
    """Raises an error unless the document is what the schema says of this name."""
    jsonschema.validate(document, schema() | {"$ref": f"#/$defs/{name}", "anyOf": [True]})


@pytest.mark.parametrize("name", DOCUMENTS)
class TestAFixedDocument:
    def test_is_the_golden_one(self, name: str) -> None:
        assert golden(DOCUMENTS[name]) == (GOLDEN / f"{name}.json").read_text()

    def test_is_by_the_schema(self, name: str) -> None:
        document = json.loads((GOLDEN / f"{name}.json").read_text())
        validate(document, type(DOCUMENTS[name]).__name__)
        assert msgspec.convert(document, type(DOCUMENTS[name])) == msgspec.convert(
            msgspec.to_builtins(DOCUMENTS[name]), type(DOCUMENTS[name])
        )


class TestTheSchema:
    def test_is_the_one_in_the_docs(self) -> None:
        assert (ROOT / "docs/report.schema.json").read_text() == text()
        command = [sys.executable, "-m", "rechunk_action.report.schema"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == text()

    def test_takes_the_example_in_the_docs(self) -> None:
        [example] = re.findall(r"```json\n(.*?)```", (ROOT / "docs/reports.md").read_text(), re.DOTALL)
        document = json.loads(example)
        validate(document, "Comparison")
        assert document["update"]["bytes"] == sum(line["bytes"] for line in document["update"]["components"])

    def test_is_one(self) -> None:
        jsonschema.Draft202012Validator.check_schema(schema())

    def test_takes_hostile_names(self) -> None:
        validate(msgspec.to_builtins(hostile()), "Build")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda found: found.pop("digest"),
            lambda found: found.update(fresh="no"),
            lambda found: found["update"].update(bytes=None),
            lambda found: found["update"]["layers"][0].update(state="lost"),
        ],
    )
    def test_takes_no_other_documents(self, damage: Callable[[dict[str, Any]], None]) -> None:
        found = msgspec.to_builtins(DOCUMENTS["build"])
        damage(found)
        with pytest.raises(jsonschema.ValidationError):
            validate(found, "Build")

    def test_allows_new_fields(self) -> None:
        validate(msgspec.to_builtins(DOCUMENTS["build"]) | {"later": 1}, "Build")

    def test_describes_every_struct(self) -> None:
        found = schema()["$defs"]
        assert {Build.__name__, Comparison.__name__, Past.__name__} <= set(found)
        assert all(len(entry["description"]) > 20 for entry in found.values())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command where `dir:tree` is a small system, and `oci:image:2` an update of `oci:image:1`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree/usr/lib").mkdir(parents=True)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments)

    for version in ("1", "2"):
        (tmp_path / f"tree/usr/lib/{version}").write_text(version)
        options = () if version == "1" else ("--prev-ref", "oci:image:1")
        assert run("build", "dir:tree", f"oci:image:{version}", *options).exit_code == 0
    return run


class TestTheCommand:
    def test_prints_builds_by_the_schema(self, run: Callable[..., Result]) -> None:
        fresh = json.loads(run("build", "dir:tree", "oci:image:3", "--json").stdout)
        update = json.loads(run("build", "dir:tree", "oci:image:4", "--prev-ref", "oci:image:1", "--json").stdout)
        for document in (fresh, update):
            validate(document, "Build")
        assert (fresh["fresh"], update["fresh"], update["schema"]) == (True, False, 1)

    def test_prints_comparisons_by_the_schema(self, run: Callable[..., Result]) -> None:
        document = json.loads(run("compare", "oci:image:1", "oci:image:2", "--json").stdout)
        validate(document, "Comparison")
        update = document["update"]
        assert update["bytes"] == sum(line["bytes"] for line in update["components"]) > 0


class TestAPage:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("compare", "oci:image:1", "oci:image:2"),
            ("compare", "oci:image:1", "oci:image:2", "--json"),
            ("build", "dir:tree", "oci:image:3", "--prev-ref", "oci:image:2"),
            ("build", "dir:tree", "oci:image:3"),
        ],
    )
    def test_is_written_as_well(self, run: Callable[..., Result], arguments: tuple[str, ...]) -> None:
        done = run(*arguments, "--html", "page.html")
        assert (done.exit_code, done.stdout != "") == (0, True)
        assert Path("page.html").read_text().lower().startswith("<!doctype html>")

    @pytest.mark.parametrize(
        ("file", "message"), [("no/page.html", "no is no directory"), ("tree", "tree is a directory")]
    )
    def test_that_cannot_be_written_is_told_before_anything_is_done(
        self, run: Callable[..., Result], file: str, message: str
    ) -> None:
        done = run("build", "dir:tree", "oci:image:3", "--html", file)
        assert message in str(done.exception)
        assert run("compare", "oci:image:1", "oci:image:3").exit_code != 0

    def test_that_could_not_be_written_undoes_nothing(self, run: Callable[..., Result]) -> None:
        done = run("build", "dir:tree", "oci:image:3", "--html", "/dev/full")
        assert "is ready" in done.stdout
        assert "all is done but the page: /dev/full could not be written (No space left on device)" in str(
            done.exception
        )
        assert run("compare", "oci:image:1", "oci:image:3").exit_code == 0
