"""Facts of made-up images, fixed for good: what the views of reports are tried on.

`python -m tests.reports` writes the golden documents anew, where the model has changed on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rechunk_action.report.model import (
    SCHEMA,
    Budget,
    Build,
    Bytes,
    Comparison,
    Dropped,
    Estimate,
    Facts,
    LayerFacts,
    Layers,
    Past,
    history,
    update,
)
from rechunk_action.tree.lint import Finding

HOSTILE = (
    "<script>alert(1)</script> | `x` **b** $y$ \n::error::no\r\n::set-output name=a::b\n##[error]no [a](b) "
    "@owner #1 GH-2 https://e.com www.e.com :tada: {{7*7}} %%{init: {}}%% \"'; \u202eback \u200b\x1b[31m"
)
"""A name with something in it for every view."""

NAME = "ghcr.io/me/image"
KERNEL = "rpm:kernel-core.x86_64"
PYTHON = "rpm:python3.x86_64"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def layer(number: int, name: str, components: Mapping[str, int], dead: int = 0) -> LayerFacts:
    return LayerFacts(
        digest=digest(number), bytes=sum(components.values()), name=name, components=components, dead=dead
    )


def facts(number: int, layers: list[LayerFacts], packages: Mapping[str, str]) -> Facts:
    version = f"43.2026110{number}"
    return Facts(
        ref=f"{NAME}:{version}",
        digest=digest(1000 + number),
        version=version,
        created=f"2026-11-0{number}T04:00:00Z",
        layers=layers,
        packages=packages,
    )


BASE = layer(1, "kernel, modules", {KERNEL: 120_000_000})
REST = layer(2, "everything else", {"rpm:bash.x86_64": 1_500_000, PYTHON: 9_000_000, "unclaimed": 89_500_000})

VERSIONS = [
    facts(1, [BASE, REST], {KERNEL: "6.16.1-200", PYTHON: "3.13.1-1", "rpm:nano.x86_64": "8.1-1"}),
    facts(
        2,
        [BASE, REST, layer(3, "python3", {PYTHON: 6_400_000, "directories and removals": 100_000})],
        {KERNEL: "6.16.1-200", PYTHON: "3.13.2-1", "rpm:nano.x86_64": "8.1-1"},
    ),
    facts(
        3,
        [
            layer(1, "kernel, modules", {KERNEL: 120_000_000}, dead=112_000_000),
            layer(2, "everything else", {**REST.components}, dead=8_900_000),
            layer(
                4, "kernel, vim", {KERNEL: 31_000_000, "rpm:vim.x86_64": 2_000_000, "file:usr/share/a.img": 1_000_000}
            ),
        ],
        {KERNEL: "6.16.1-200, 6.16.2-200", PYTHON: "3.13.2-1", "rpm:vim.x86_64": "9.1-1"},
    ),
]
"""Python is updated; then a kernel is added, the layer of Python is dropped, nano goes and vim comes."""

ESTIMATES = {
    digest(1002): Estimate(changed=7_000_000, delta=6_600_000, delta_image=226_600_000),
    digest(1003): Estimate(changed=40_000_000, delta=35_000_000, delta_image=261_600_000),
}

UPDATE = update(VERSIONS[1], VERSIONS[2])
HISTORY = history(NAME, VERSIONS, scheme="{version_id}.{date:%Y%m%d}", estimates=ESTIMATES)

BUILD = Build(
    schema=SCHEMA,
    ref=f"{NAME}:43.20261103",
    digest=digest(1003),
    version="43.20261103",
    prev_ref=f"docker://{NAME}:43.20261102@{digest(1002)}",
    fresh=False,
    published=True,
    reason="",
    layers=Layers(total=3, kept=2, new=1),
    bytes=Bytes(image=254_000_000, update=34_000_000, kept=220_000_000, live=133_100_000, dead=120_900_000),
    budget=Budget(overhead=0.05, layers=120, update=50_000_000),
    update=UPDATE,
    history=HISTORY,
    dropped=[Dropped(layer=2, reason="nothing in it is live", live=0, dead=6_500_000)],
    findings=[Finding(rule="var", path="/var/lib/a", text="2 files (1,000 bytes) in /var: ship them in /usr")],
    changelog=None,
    seconds={"scan": 1.25, "write": 60.04},
    disk={},
)

GOLDEN = Path(__file__).parent / "golden"

DOCUMENTS = {
    "update": Comparison(schema=SCHEMA, update=UPDATE),
    "history": Past(schema=SCHEMA, history=HISTORY),
    "build": BUILD,
}
"""What `--json` prints, by the names of the golden documents."""


def golden(document: Any) -> str:
    """A document as its file has it."""
    return json.dumps(msgspec.to_builtins(document), indent=1) + "\n"


def hostile() -> Build:
    """A build of images in which every text is hostile."""
    seen = {f"rpm:{HOSTILE}": "1 " + HOSTILE}
    versions = [
        Facts(
            ref=f"{number} {HOSTILE}",
            digest=digest(number),
            version=f"{number} {HOSTILE}",
            created=HOSTILE,
            layers=[LayerFacts(digest=digest(100 + number), bytes=number, name=HOSTILE, components={HOSTILE: number})],
            packages=seen | {f"file:{number}{HOSTILE}": HOSTILE, HOSTILE: f"{number} {HOSTILE}"},
        )
        for number in (1, 2, 3)
    ]
    return Build(
        schema=SCHEMA,
        ref=HOSTILE,
        digest=digest(3),
        version=HOSTILE,
        prev_ref=HOSTILE,
        fresh=False,
        published=True,
        reason=HOSTILE,
        layers=Layers(total=1, kept=0, new=1),
        bytes=Bytes(image=3, update=3, kept=0, live=3, dead=0),
        budget=Budget(overhead=0.05, layers=120, update=1),
        update=update(*versions[1:]),
        history=history(HOSTILE, versions, scheme=HOSTILE),
        dropped=[Dropped(layer=0, reason=HOSTILE, live=1, dead=2)],
        findings=[Finding(rule=HOSTILE, path=HOSTILE, text=HOSTILE)],
        changelog=HOSTILE,
        seconds={HOSTILE: 1.0},
        disk={HOSTILE: 1},
    )


if __name__ == "__main__":
    for name, document in DOCUMENTS.items():
        (GOLDEN / f"{name}.json").write_text(golden(document))
