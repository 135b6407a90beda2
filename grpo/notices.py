"""What the parts of a run warn of, each in a log of its own, told where a person looks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

OURS = ("sandbox", "verifiers", "rollout", "grpo")
_WARNING = re.compile(r"\S+ \S+ (?:WARNING|ERROR|CRITICAL) (\w+)[\w.]*: (.+)")


class Notices:
    """Warnings of our own packages in `*.log` of a folder, as they are written; `from_start` those that stand there too.

    The same warning is told once, and `most` of them at all: a run must not scroll away. Other libraries' stay in the logs.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None], *, most: int = 20, from_start: bool = False) -> None:
        self._folder, self._tell, self._most = folder, tell, most
        self._read = {} if from_start else {path: path.stat().st_size for path in folder.glob("*.log")}
        self._told: set[str] = set()

    async def follow(self, *, every_s: float = 1.0) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(every_s)

    def look(self) -> None:
        """Tell what was written since the last look."""
        for notice in self._new():
            if notice in self._told or len(self._told) > self._most:
                continue
            self._told.add(notice)
            self._tell(notice if len(self._told) <= self._most else f"more warnings stand in {self._folder}")

    def _new(self) -> Iterator[str]:
        for path in sorted(self._folder.glob("*.log")):
            try:
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    whole_lines = file.read().rpartition(b"\n")[0]
            except OSError:  # gone or not ours to read: the others are still followed
                continue
            self._read[path] = self._read.get(path, 0) + len(whole_lines) + bool(whole_lines)
            for line in whole_lines.decode(errors="replace").split("\n"):
                match = _WARNING.match(line)
                if match is not None and match[1] in OURS:
                    yield f"{path.stem}: {match[2]}"
