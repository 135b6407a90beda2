"""Who is told what happens in a run, from its config."""

from __future__ import annotations

from rich.console import Console

from grpo.config import RunConfig, flatten
from grpo.folder import RunFolder
from grpo.trackers.progress import ProgressTracker
from grpo.trackers.tensorboard_tracker import TensorboardTracker
from grpo.trackers.wandb_rows import past_rows
from grpo.trackers.wandb_tracker import WandbTracker
from grpo.tracking import JsonlTracker, Tracker, Tracking, read_metrics


def open_trackers(
    config: RunConfig, folder: RunFolder, *, from_step: int, wandb_id: str | None, console: Console, title: str
) -> Tracking:
    """metrics.jsonl and the progress display always; W&B, as the run `wandb_id`, and TensorBoard when the config asks for them."""
    trackers: list[Tracker] = [JsonlTracker(folder.metrics, from_step=from_step)]
    tracking = config.tracking
    if tracking.wandb_project is not None and wandb_id is not None:
        every = tracking.wandb_rollouts_every
        wandb = WandbTracker(
            project=tracking.wandb_project,
            entity=tracking.wandb_entity,
            name=title,
            folder=folder.path,
            config=config.model_dump(mode="json"),
            run_id=wandb_id,
            history=past_rows(read_metrics(folder.metrics), folder.rollouts, table_every=every),
            table_every=every,
        )
        trackers.append(wandb)
    if tracking.tensorboard:
        trackers.append(TensorboardTracker(folder.tensorboard, from_step=from_step, config=flatten(config)))
    trackers.append(ProgressTracker(console, title=title, total_steps=config.steps, from_step=from_step))
    return Tracking(trackers)
