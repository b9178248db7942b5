"""README.md and docs/*.md: their code runs, and their links lead somewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, write_pickle
from tests.run_page import Block, commands, read_blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = ("python", "sh", "diff")
OTHER_LANGUAGES = ("", "text", "json", "bibtex")
GENERATED = (".git", "__pycache__", "pt", "result", "log", "MOSI", "MOSEI", "SYNTHETIC")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECONDS = 1200


def needs_running(page: Path) -> bool:
    return any(block.language in RUN and not block.skipped for block in read_blocks(page))


def heading_anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    anchors = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            words = re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower())
            anchors.add(words.replace(" ", "-"))
    return anchors


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_blocks_run(page, tmp_path, corpus):
    """In a copy of the project, on the synthetic data cut to a few utterances, and offline."""
    if not needs_running(page):
        pytest.skip("the page has no code that is run")
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(*GENERATED, ".*_cache"))
    write_pickle(project / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_page", str(page.relative_to(ROOT))],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_blocks_are_well_formed(page):
    for block in read_blocks(page):
        place = f"{page.name}:{block.line}"
        assert block.language in (*RUN, *OTHER_LANGUAGES), place
        if block.language == "python":
            compile(block.code, place, "exec")
        elif block.language == "json":
            json.loads(block.code)
        elif block.language == "sh":
            subprocess.run(["bash", "-n", "-c", block.code], check=True)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_to_files_and_headings(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in heading_anchors(target), f"{page.name}: {link}"


PAGE = """\
# Title

```sh
first
```

<!-- not run: needs MOSI -->

```python
second
```

```
third
```
"""
SHELL = r"""
pip install -r requirements.txt && python run.py \
  -d synthetic   # trains
# a comment
python -m pytest
ls
"""


def test_code_blocks_are_read_with_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert list(read_blocks(page)) == [
        Block("sh", 4, "first\n", skipped=False),
        Block("python", 10, "second\n", skipped=True),
        Block("", 14, "third\n", skipped=False),
    ]


def test_commands_are_joined_over_lines_and_installations_are_left_out():
    assert commands(SHELL) == ["python run.py    -d synthetic   # trains", "ls"]
