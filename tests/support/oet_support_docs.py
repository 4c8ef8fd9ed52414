"""The fenced blocks of the documentation, and what is to be done with each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(r"(?:^<!-- run: ([^\n]*?) -->\n)?^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page's path in the repository.
        line: Where it begins.
        language: The word behind the fence; empty for none.
        text: What is in it.
        where: `server` (a shell beside a server: the default for sh), `cluster` (a namespace with the operator), or `no`.
        test: The test that runs it elsewhere, for `no`.
    """

    page: str
    line: int
    language: str
    text: str
    where: str
    test: str


def list_pages() -> list[Path]:
    """Return the pages that people read; those that are generated have no commands of their own."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if "Written by `make generate`" not in page.read_text(encoding="utf-8")]


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for found in _BLOCK.finditer(text):
        note, language, body = found.groups()
        where, _, test = (note or "server").partition(", by ")
        line = text.count("\n", 0, found.start()) + 1
        blocks.append(Block(str(page.relative_to(ROOT)), line, language, body, where, test))
    return blocks


def list_blocks() -> list[Block]:
    """Return all blocks of all pages."""
    return [block for page in list_pages() for block in read_blocks(page)]


def find_test(name: str) -> bool:
    """Tell whether a test is there: a file, or `FILE::FUNCTION`."""
    path, _, function = name.partition("::")
    file = ROOT / path
    return file.is_file() and (not function or re.search(rf"^def {function}\(", file.read_text(), re.M) is not None)
