"""The JSON Schema of the documents that `--json` prints, made of the model: what they say is said once.

`python -m rechunk_action.report.schema` prints it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from rechunk_action.report.model import Build, Comparison, Past

DIALECT = "https://json-schema.org/draft/2020-12/schema"

DOCUMENTS = (Build, Comparison, Past)
"""What `build`, `compare` and `history` print."""


def schema() -> dict[str, Any]:
    """The schema. Each document, and each part of one, is defined by the name of its struct in `$defs`."""
    documents, definitions = msgspec.json.schema_components(DOCUMENTS, ref_template="#/$defs/{name}")
    for definition in definitions.values():
        definition["description"] = " ".join(definition["description"].split())
    return {"$schema": DIALECT, "title": "Reports of rechunk-action", "anyOf": list(documents), "$defs": definitions}


def text() -> str:
    """The schema as a file has it."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201  # what this module is run for
