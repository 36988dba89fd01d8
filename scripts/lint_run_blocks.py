#!/usr/bin/env python3
"""Check the shell code in workflows and actions: scripts/lint_run_blocks.py FILE...

Every `run:` block goes through ShellCheck; lines are counted as in the file. A block that holds an expression is
refused outright: what the expression stands for would become shell code. Values reach a block through `env:`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import yaml

BLOCK_STYLES = ("|", ">")
"""Scalars whose text begins on the line below the one that names them."""


def main(paths: list[str]) -> int:
    complaints = [complaint for path in paths for block in run_blocks(path) if (complaint := check(path, block))]
    sys.stdout.write("".join(complaints))
    return int(bool(complaints))


def run_blocks(path: str) -> Iterator[yaml.ScalarNode]:
    with open(path, encoding="utf-8") as file:
        document = yaml.compose(file, Loader=yaml.SafeLoader)
    nodes = [document] if document else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == "run" and isinstance(value, yaml.ScalarNode):
                    yield value
                nodes.append(value)


def check(path: str, block: yaml.ScalarNode) -> str:
    """What is wrong with a block."""
    first = block.start_mark.line + (block.style in BLOCK_STYLES)
    if "${{" in block.value:
        return f"{path}:{first + 1}: error: an expression in shell code; hand its value over in env\n"
    command = ["shellcheck", "--shell", "bash", "--format", "gcc", "-"]
    found = subprocess.run(command, input="\n" * first + block.value, capture_output=True, text=True, check=False)
    if found.stderr:
        raise RuntimeError(f"shellcheck: {found.stderr}")
    return "".join(f"{path}{line.removeprefix('-')}" for line in found.stdout.splitlines(keepends=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
