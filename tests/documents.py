"""The documents: their pages, and the commands that they tell a reader to type. What the tests of documents share."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMMENT = re.compile(r"\s+#.*")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines(block: str) -> list[str]:
    """The commands of a block as they are typed, without what is said of them."""
    return [COMMENT.sub("", line) for line in block.splitlines()]


def commands(program: str) -> list[str]:
    """Those of all documents that begin with this word, each once."""
    found = [block for page in PAGES for block in blocks("sh", page.read_text())]
    return sorted({line for block in found for line in lines(block) if line.startswith(f"{program} ")})


def section(page: str, title: str) -> list[str]:
    """The commands of the first block below a heading of a page, in order."""
    return lines(blocks("sh", (ROOT / page).read_text().partition(f"\n## {title}\n")[2])[0])
