"""What happens when a loss or a gradient is not a finite number: the step is left out, and after a few in a row the run stops."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from grpo.batch import Example
from sandbox.errors import SystemFault

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 3


class NotFinite(SystemFault):
    """Loss or gradient was not finite in MAX_IN_A_ROW optimizer steps in a row; the weights are as they were before them."""


class NonFiniteGuard:
    """Counts optimizer steps that had to be left out. `folder` is where the rows of the one that stops the run are written."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._in_a_row = 0

    def passed(self) -> None:
        """A step was finite."""
        self._in_a_row = 0

    def failed(self, examples: Sequence[Example], *, norm: float, update: int) -> None:
        """A step was not, with this gradient norm. Raises NotFinite when it was one too many."""
        self._in_a_row += 1
        logger.warning("update %d: loss or gradient is not finite (gradient norm %s); the step is left out", update, norm)
        if self._in_a_row < MAX_IN_A_ROW:
            return
        written = ""
        if self._folder is not None:
            path = write_rows(examples, Path(self._folder) / f"update-{update:06d}.jsonl")
            written = f" The rows of the last one, with their log-probabilities, lie in {path}."
        raise NotFinite(
            f"update {update}: loss or gradient was not finite in {self._in_a_row} optimizer steps in a row (the last gradient "
            f"norm is {norm}). The weights are as before them. Lower learner.learning_rate, or use model.dtype = float32.{written}"
        )


def write_rows(examples: Sequence[Example], path: Path) -> Path:
    """Examples as JSON lines, for a person who looks for the one that did it. -> where they lie"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dataclasses.asdict(example)) + "\n" for example in examples))
    return path
