"""What a person sees while something takes its time: the stage under way in a terminal, and a line for each stage that is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Stage:
    """One stage under way. `detail` says what it is at; `advance` counts bytes."""

    def __init__(self, title: str, progress: Progress, bar: TaskID) -> None:
        self._title, self._progress, self._bar = title, progress, bar
        self.result = ""

    def detail(self, text: str) -> None:
        self._progress.update(self._bar, description=f"{self._title}: {text[:60]}")

    def advance(self, num_bytes: int) -> None:
        self._progress.advance(self._bar, num_bytes)


class Stages:
    """Shows stages on a console, one after the other; outside a terminal each is one line when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def stage(self, title: str, *, total_bytes: int | None = None) -> Iterator[Stage]:
        """A stage that lasts as long as the context. Set `result` of what it yields to add to its line."""
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
        if total_bytes is not None:
            columns.insert(3, DownloadColumn())
        progress = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        started = time.monotonic()
        with progress:
            stage = Stage(title, progress, progress.add_task(title, total=total_bytes))
            yield stage
        result = f" ({stage.result})" if stage.result else ""
        self._console.print(f"{time.monotonic() - started:5.1f} s  {title}{result}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
