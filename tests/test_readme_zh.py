"""README_zh.md is README.md in Chinese: the same commands, numbers and links."""

import re
from collections import Counter

from tests.commands import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README_zh.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```.*?```", re.DOTALL)
TABLE_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)


def test_code_blocks_are_the_same():
    assert BLOCK.findall(CHINESE) == BLOCK.findall(ENGLISH)


def test_code_words_are_the_same():
    """Commands, files and names within the text."""
    words = [Counter(re.findall(r"`[^`\n]+`", BLOCK.sub("", text))) for text in (ENGLISH, CHINESE)]
    assert words[0] == words[1]


def test_numbers_are_the_same():
    numbers = []
    for text in (ENGLISH, CHINESE):
        prose = re.sub(r"`[^`\n]+`", "", BLOCK.sub("", text))
        numbers.append(Counter(re.findall(r"\d+(?:\.\d+)*|\.\d+", prose)))
    assert numbers[0] == numbers[1]


def test_tables_have_the_same_rows():
    sizes = []
    for text in (ENGLISH, CHINESE):
        rows = TABLE_ROW.findall(BLOCK.sub("", text))
        sizes.append([row.count("|") for row in rows])
    assert sizes[0] == sizes[1]


def test_links_are_the_same_but_for_the_other_language():
    link = re.compile(r"\]\(([^)]+)\)")
    english = Counter(link.findall(ENGLISH)) - Counter(["README_zh.md"])
    chinese = Counter(link.findall(CHINESE)) - Counter(["README.md"])
    assert english == chinese
