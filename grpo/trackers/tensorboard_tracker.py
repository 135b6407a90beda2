"""TensorBoard event files, written by TensorBoard's own writer. It comes with the extra `tensorboard`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from grpo.tracking import Tracker
from sandbox.errors import UserError


class TensorboardTracker(Tracker):
    """Scalars by name and step under `folder`, which `tensorboard --logdir runs` finds.

    A resumed run tells TensorBoard to hide what an earlier start wrote of the steps after `from_step`, so each step is shown once.
    """

    def __init__(self, folder: Path, *, from_step: int, config: dict[str, Any]) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else 0)
        if not from_step:
            table = "| field | value |\n|---|---|\n" + "\n".join(f"| {name} | `{value}` |" for name, value in config.items())
            self._writer.add_text("config", table, 0)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def checkpoint_written(self, step: int, path: Path, metadata: dict[str, Any]) -> None:
        """What a resumed run does not log again must not wait in memory."""
        self._writer.flush()

    def alert(self, title: str, text: str) -> None:
        self._writer.add_text(f"alert/{title}", text)

    def close(self) -> None:
        self._writer.close()


def check_tensorboard() -> None:
    """Raise UserError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard is on, but the package tensorboard is not installed. pip install 'grpo-reasoning[tensorboard]', "
            "or leave the field out: metrics.jsonl has every metric."
        )
