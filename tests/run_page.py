"""Run the code blocks of a Markdown page, in the order of the page.

python -m tests.run_page docs/extending.md
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)$")
NOT_RUN = re.compile(r"^<!-- not run: .+ -->$")
SKIPPED = ("pip install", "python -m pytest")  # by the beginning of a command


@dataclass
class Block:
    """A fenced code block.

    Attributes:
        language: The word after the fence, such as python; "" for none.
        line: The line number of its first line of code.
        code: Its text.
        skipped: Whether a comment before it marks it as not run.
    """

    language: str
    line: int
    code: str
    skipped: bool


def read_blocks(page: Path) -> Iterator[Block]:
    """Read the code blocks of a page.

    `<!-- not run: reason -->` on the line before a block, or before the empty line that precedes
    it, marks the block as skipped.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    block, before = None, ""
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if block is None and fence:
            block = Block(fence[1], number + 1, "", bool(NOT_RUN.match(before)))
        elif block is not None and fence:
            yield block
            block, before = None, ""
        elif block is not None:
            block.code += line + "\n"
        elif line:
            before = line
    if block is not None:
        raise ValueError(f"{page}:{block.line}: the code block has no end")


def commands(code: str) -> list[str]:
    """The commands of a shell block that are run: a command a line, or continued with a backslash.

    Installations and runs of the tests are left out, also from `installation && command`.
    """
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        parts = [part.strip() for part in line.split("&&")]
        parts = [part for part in parts if part and not part.startswith(("#", *SKIPPED))]
        if parts:
            found.append(" && ".join(parts))
    return found


def run_page(page: Path) -> None:
    """Run the blocks of a page: python in one namespace, sh by bash, diff by patch.

    Raises:
        subprocess.CalledProcessError: A command failed.
    """
    namespace = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.skipped:
            continue
        print(f"--- {page}:{block.line}", flush=True)
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # tracebacks have the lines of the page
            exec(compile(code, str(page), "exec"), namespace)
        elif block.language == "sh":
            for command in commands(block.code):
                print(f"$ {command}", flush=True)
                subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)
        elif block.language == "diff":
            subprocess.run(["patch", "-p1"], input=block.code, text=True, check=True)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
