"""What `grpo eval` shall do: which policy answers which tasks, how often, and judged by what. Nothing is sampled here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from grpo.config import ConfigError, RunConfig, config_of, read_toml
from grpo.export import find_checkpoint
from grpo.folder import RunFolder
from rollout.rows import OF_REASONING_GYM
from rollout.sampling import Sampling
from rollout.tasks import load_prompts, load_tasks
from sandbox.errors import UserError
from verifiers.judge_options import address, variable_with_key
from verifiers.types import Task


class Endpoint(NamedTuple):
    """A model behind an OpenAI-compatible API. `key_variable` names the environment variable with the key, None for no key."""

    base_url: str
    model: str
    key_variable: str | None = None
    timeout_s: float = 600.0
    max_retries: int = 5

    @property
    def key(self) -> str | None:
        return None if self.key_variable is None else os.environ[self.key_variable]


class Wish(NamedTuple):
    """The arguments of `grpo eval`, as they were typed; None for what was not."""

    model: str | None = None
    step: str | None = None
    tasks: str | None = None
    limit: int | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()
    num_samples: int = 4
    ks: Sequence[int] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    endpoint: Endpoint | None = None
    concurrency: int = 16
    output: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What is asked of whom. `settings` is all that a stored completion depends on beside its task and its index."""

    config: RunConfig
    tasks: tuple[Task, ...]
    sampling: Sampling
    num_samples: int
    ks: tuple[int, ...]
    checkpoint: Path | None
    run: Path | None
    endpoint: Endpoint | None
    concurrency: int
    output: Path
    settings: Mapping[str, Any]


def make_plan(wish: Wish) -> Plan:
    """Everything looked up and checked. Raises UserError in a sentence."""
    ks = chosen_ks(wish.ks, wish.num_samples)
    check_numbers(wish)
    run = Path(wish.model) if wish.model is not None and is_run(Path(wish.model)) else None
    checkpoint = find_checkpoint(RunFolder(run), wish.step) if run is not None else None
    if wish.step is not None and run is None:
        raise UserError(f"--step names a checkpoint of a run, and {wish.model} is the folder of none. Leave it out.")
    config = eval_config(wish, run)
    sampling = config.sampling.model_copy(update=_without_none(temperature=wish.temperature, max_tokens=wish.max_tokens))
    if sampling.temperature == 0 and wish.num_samples > 1:
        raise UserError(f"at temperature 0 all {wish.num_samples} completions of a task would be equal. Add -n 1.")
    tasks = load_prompts(config.tasks) if wish.tasks is not None else load_tasks(config.tasks).held_out
    policy = described_policy(wish, run, checkpoint)
    settings = described(config, sampling, policy)
    return Plan(
        config=config,
        tasks=tasks[: wish.limit],
        sampling=sampling,
        num_samples=wish.num_samples,
        ks=ks,
        checkpoint=checkpoint,
        run=run,
        endpoint=wish.endpoint,
        concurrency=wish.concurrency,
        output=wish.output or default_output(policy, config, run),
        settings=settings,
    )


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, not that of a model: both hold a config.json."""
    if (path / "checkpoints").is_dir():
        return True
    try:
        return "config_hash" in json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False


def chosen_ks(asked: Sequence[int], num_samples: int) -> tuple[int, ...]:
    """The k of pass@k, in order: those asked for, or 1, 2, 4, ... up to the number of completions."""
    ks = tuple(sorted(set(asked))) or tuple(2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples)
    if bad := [k for k in ks if not 1 <= k <= num_samples]:
        raise UserError(
            f"pass@{bad[-1]} needs at least {max(bad[-1], 1)} completions of each task, and -n is {num_samples}. Raise -n, or ask "
            "for a smaller --k, from 1 on."
        )
    return ks


def check_numbers(wish: Wish) -> None:
    """Numbers beyond their ends."""
    for name, value, least in (
        ("-n", wish.num_samples, 1),
        ("--limit", wish.limit, 1),
        ("--max-tokens", wish.max_tokens, 1),
        ("--concurrency", wish.concurrency, 1),
        ("--temperature", wish.temperature, 0),
    ):
        if value is not None and not value >= least:
            raise UserError(f"{name} is {value}; it must be {least} or more.")


def eval_config(wish: Wish, run: Path | None) -> RunConfig:
    """The config file, or that of the run, or the defaults, with the tasks, the model and the overrides that were given."""
    where = " ".join(["grpo eval", *([wish.model] if wish.model else [])])
    values: dict[str, Any] = {}
    if wish.config is not None:
        values, where = read_toml(wish.config), str(wish.config)
    elif run is not None:
        values = json.loads(RunFolder(run).recorded_config().model_dump_json())
    if wish.tasks is None and "tasks" not in values:
        raise UserError("no tasks were given. Name a source with --tasks, or a config with --config to use its held-out tasks.")
    if wish.tasks is not None:
        values["tasks"] = {**values.get("tasks", {}), "source": wish.tasks, "held_out_source": None}
        if wish.tasks.startswith("reasoning_gym:"):
            values["tasks"] |= OF_REASONING_GYM
        values["tasks"] = {name: value for name, value in values["tasks"].items() if value is not None}
    values["model"] = policy_values(wish, run)
    try:
        return config_of(values, wish.overrides, where=where)
    except ConfigError as error:
        alone = wish.config is None and run is None
        hint = (
            " What --tasks needs beside its source comes from --config FILE or --set tasks.NAME=…, as in configs/." if alone else ""
        )
        raise ConfigError(f"{error}{hint}") from None


def policy_values(wish: Wish, run: Path | None) -> dict[str, Any]:
    """The [model] table of what is evaluated."""
    if run is not None:
        recorded = json.loads(RunFolder(run).recorded_config().model.model_dump_json())
        return {name: value for name, value in recorded.items() if name != "start_from"}
    if wish.endpoint is None and wish.model is None:
        raise UserError("no policy was given. Name a run, a model folder or a hub name, or an endpoint: --base-url, --model.")
    return {} if wish.model is None else {"path": wish.model}


def described_policy(wish: Wish, run: Path | None, checkpoint: Path | None) -> dict[str, Any]:
    if wish.endpoint is not None:
        if wish.model is not None:
            raise UserError(f"both {wish.model} and --base-url were given. Evaluate one of them.")
        return {"base_url": wish.endpoint.base_url, "model": wish.endpoint.model}
    if run is not None and checkpoint is not None:
        return {"run": str(run), "checkpoint": checkpoint.name}
    return {"model": wish.model}


def described(config: RunConfig, sampling: Sampling, policy: Mapping[str, Any]) -> dict[str, Any]:
    """What a stored completion and its verdict depend on, JSON-ready."""
    tasks = config.tasks.model_dump(mode="json", include={"source", "held_out_source", "prompt", "reference", "system", "chat"})
    mix = config.mixes[config.tasks.rewards].model_dump(mode="json")
    judged = {"rewards": config.tasks.rewards, "mix": mix, "plugins": list(config.plugins)}
    return {
        "policy": dict(policy),
        "tasks": tasks,
        **judged,
        "sampling": sampling.model_dump(include={"temperature", "max_tokens"}),
        "seed": config.seed,
    }


def default_output(policy: Mapping[str, Any], config: RunConfig, run: Path | None) -> Path:
    """RUN/evals/step-000120-TASKS, evals/MODEL-TASKS, or evals/MODEL-at-HOST-PORT-TASKS of an endpoint.

    The same for the same question, so that it is resumed, and another for the model of that name in a folder.
    """
    source = config.tasks.source.partition("?")[0].partition(":")[2] or Path(config.tasks.source).stem
    tasks = _as_name(source)
    if run is not None:
        return run / "evals" / f"{policy['checkpoint']}-{tasks}"
    model = Path(str(policy["model"])).name
    if "base_url" in policy:
        place = urlsplit(policy["base_url"])
        model = "-".join([model, "at", _as_name(place.hostname or ""), *([] if place.port is None else [str(place.port)])])
    return Path("evals") / f"{model}-{tasks}"


def _as_name(text: str) -> str:
    """As a part of a folder's name."""
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in text).strip("-.")


def checked_endpoint(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its address as it is used. Raises UserError for one that cannot be, or a variable that holds no key."""
    try:
        variable_with_key(endpoint.key_variable)
        return endpoint._replace(base_url=address(endpoint.base_url))
    except ValueError as error:
        raise UserError(f"--base-url, --key-variable: {error}") from None


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
