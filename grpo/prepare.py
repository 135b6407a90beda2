"""What is checked and made before any part of a run starts: engine, model folder, references, prompts that fit."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from grpo.config import ConfigError, RunConfig
from grpo.folder import RunFolder
from grpo.tiny_model import make_tiny_model
from rollout.errors import ModelError, TaskError
from rollout.prompting import Prompting, make_prompting
from rollout.tasks import TaskSet
from verifiers.service import VerifierService
from verifiers.types import Task

logger = logging.getLogger(__name__)


def check_engine(config: RunConfig) -> None:
    if config.engine.kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            'engine.kind is "vllm", which is not installed. Install requirements/cpu.lock or requirements/cuda.lock, or use '
            "--set engine.kind=hf, which needs nothing more."
        )


def prepare_model(config: RunConfig, folder: RunFolder) -> str:
    """Where the policy is loaded from; makes the embedded tiny model in the run folder when the config asks for it."""
    path = config.model.path
    if path == "tiny":
        place = folder.path / "tiny-model"
        if not (place / "config.json").exists():
            make_tiny_model(place, seed=config.seed)
        return str(place.resolve())
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ModelError(f"model.path = {path!r}: the folder holds no config.json. Give a model folder in Hugging Face form.")
        return str(Path(path).resolve())
    return path


def fitting(task_set: TaskSet, config: RunConfig, model_path: str) -> TaskSet:
    """The tasks whose prompt leaves room for a completion in the model's length; the others are counted in a warning.

    Raises TaskError for the others where they shall be refused, and for a recorded completion that is longer than the model: cut
    short it would end where it does not.
    """
    from transformers import AutoConfig

    prompting = make_prompting(model_path, system=config.tasks.system, chat=config.tasks.chat)  # refuses what is no model
    positions = getattr(AutoConfig.from_pretrained(model_path), "max_position_embeddings", None)
    if positions is not None:
        check_recorded_lengths(task_set, prompting, positions)
    longest = config.engine.max_model_len or positions
    if longest is None:
        return task_set
    too_long = overlong((*task_set.train, *task_set.held_out), prompting, longest)
    if not too_long:
        return task_set
    if config.tasks.too_long == "refuse":
        raise TaskError(
            f"{len(too_long)} tasks have prompts that do not fit into the model's {longest} tokens: "
            f"{', '.join(sorted(too_long)[:5])}{', ...' if len(too_long) > 5 else ''}. Shorten them, use a model for longer texts, "
            'or set tasks.too_long = "skip".'
        )
    train, held_out = (tuple(task for task in part if task.id not in too_long) for part in (task_set.train, task_set.held_out))
    if not train or not held_out:
        raise ModelError(
            f"{model_path}: no {'held-out' if train else 'training'} task fits into {longest} tokens. Raise engine.max_model_len, "
            "use a model for longer texts, or give shorter prompts."
        )
    return dataclasses.replace(task_set, train=train, held_out=held_out)


def overlong(tasks: Sequence[Task], prompting: Prompting, longest: int) -> set[str]:
    """The ids of the tasks whose prompt leaves no room for a completion, counted in a warning when there are any."""
    too_long = {task.id for task in tasks if len(prompting.prompt_ids(task)) >= longest}
    if too_long:
        logger.warning(
            "%d of %d tasks are left out: their prompts do not fit into the model's %d tokens (the first is %s)",
            *(len(too_long), len(tasks), longest, min(too_long)),
        )
    return too_long


def check_recorded_lengths(task_set: TaskSet, prompting: Prompting, positions: int) -> None:
    """Raise TaskError for a row that is longer than the model's positions."""
    for task in task_set.train:
        for each in task_set.recorded.get(task.id, ()):
            # A text has no more tokens than bytes, but for one before it and one after: few need to be tokenized to know.
            if len(prompting.prompt_ids(task)) + len(each.text.encode()) + 2 <= positions:
                continue
            recorded = prompting.recorded(task, each.text)
            num_prompt, num_completion = len(recorded.prompt_ids), len(recorded.token_ids)
            if num_prompt < positions < num_prompt + num_completion:  # a prompt too long by itself is left out below
                raise TaskError(
                    f"task {task.id}: its prompt and recorded completion have {num_prompt} + {num_completion} tokens, and the "
                    f"model has positions for {positions}. Shorten or drop the row, or use a model for longer texts."
                )


async def check_references(config: RunConfig, task_set: TaskSet) -> None:
    """Refuse an unknown verifier, a reference that none understands, a missing sandbox or judge, before anything costly starts."""
    verifiers = VerifierService(config.rewards, plugins=config.plugins, sandbox=config.sandbox)
    try:
        await verifiers.prepare(judged_tasks(config, task_set))
        await verifiers.probe_sandbox(config.tasks.rewards)
        await verifiers.probe(config.tasks.rewards)
    finally:
        await verifiers.close()


def judged_tasks(config: RunConfig, task_set: TaskSet) -> tuple[Task, ...]:
    """The tasks whose completions verifiers will judge: recorded ones come with their worth."""
    return (*task_set.train, *task_set.held_out) if config.is_live else task_set.held_out
