"""TensorBoard: its own files, read back by its own reader."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from grpo.trackers.tensorboard_tracker import TensorboardTracker
from sandbox.errors import UserError

IS_INSTALLED = importlib.util.find_spec("tensorboard") is not None


@pytest.mark.slow
@pytest.mark.skipif(not IS_INSTALLED, reason="the extra tensorboard is not installed")
def test_a_resumed_run_shows_each_step_once(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for from_step, steps in ((0, range(1, 8)), (4, range(5, 10))):  # killed at step 7, its newest checkpoint that of step 4
        tracker = TensorboardTracker(tmp_path, from_step=from_step, config={"seed": 0})
        for step in steps:
            tracker.log(step, {"reward/mean": step / 10})
        tracker.alert("slow", "task t3")
        tracker.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    values = {event.step: event.value for event in read.Scalars("reward/mean")}
    assert len(read.Scalars("reward/mean")) == len(values)
    assert values == {step: pytest.approx(step / 10) for step in range(1, 10)}


def test_where_it_is_not_installed_the_message_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorboard is not installed\. pip install 'grpo-reasoning\[tensorboard\]', or leave"):
        TensorboardTracker(tmp_path, from_step=0, config={})
