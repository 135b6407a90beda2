"""The config of a run: the parts' own models put together, the checks that no part can do alone, and how files become it.

TOML files say only what differs from the defaults. `--set a.b=c` is the one form of override.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from grpo.learner_config import LearnerConfig, ModelConfig
from grpo.objectives import AnyObjective, Grpo
from grpo.objectives.sources import GroupSource, wrong_source
from grpo.placement import PlacementMode
from rollout.engine import EngineConfig
from rollout.fleet import Publish
from rollout.sampling import Sampling
from rollout.tasks import TasksConfig
from sandbox.config import SandboxConfig
from sandbox.errors import UserError
from verifiers.options import did_you_mean, explain
from verifiers.reward import RewardMix, built_in_mixes
from verifiers.service_pool import VerifiersConfig


class ConfigError(UserError):
    """A config that cannot be run. The message names the file, the field, the value and the remedy."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EvaluationConfig(_Part):
    """[evaluation]: accuracy on the held-out tasks, greedy and at the training temperature."""

    every: int = Field(
        default=20, ge=0, description="Steps between evaluations; 0 evaluates only before the first and after the last step."
    )
    num_tasks: int = Field(default=256, ge=1, description="Held-out tasks used, at most.")
    stop_at: float | None = Field(
        default=None, gt=0, le=1, description="End the run once sampled accuracy reaches this. None: never."
    )


class CheckpointConfig(_Part):
    """[checkpoints]: what is kept to resume from."""

    every: int = Field(default=20, ge=1, description="Steps between checkpoints; the last step is always kept.")
    keep: int = Field(default=2, ge=1, description="Newest checkpoints kept, beside the best by held-out accuracy.")


class TrackingConfig(_Part):
    """[tracking]: where curves go beside metrics.jsonl."""

    wandb_project: str | None = Field(
        default=None, description="W&B project; offline when no key or network is there. None: no W&B."
    )
    wandb_entity: str | None = Field(default=None, description="W&B team or user. None: the key's default.")
    wandb_rollouts_every: int = Field(
        default=10, ge=0, description="Steps whose rollouts the table in W&B grows by, a multiple of rollouts_every; 0 shows none."
    )
    tensorboard: bool = Field(default=False, description="Write event files for TensorBoard; needs the extra tensorboard.")
    rollouts_every: int = Field(default=1, ge=0, description="Steps between Parquet files of rollouts; 0 writes none.")


class RunConfig(_Part):
    """A whole run. Dimensions: `groups_per_step` tasks (P), `group_size` completions for each (G), N = P * G rows per step."""

    model_config = ConfigDict(title="the config")

    seed: int = Field(default=0, ge=0, description="Seeds task order, sampling and initialization.")
    steps: int = Field(default=100, ge=1, description="Training steps, each with one sync of the rollout workers.")
    groups_per_step: int = Field(default=16, ge=1, description="Groups an update learns from (P).")
    group_size: int = Field(default=16, ge=1, description="Completions sampled per task (G).")
    max_lag: int = Field(default=0, ge=0, description="Updates that sampling may run ahead of learning; 0 is strictly on-policy.")
    publish: Publish = Field(
        default="inflight",
        description="How new weights reach completions that are being sampled: inflight, they go on with them at once; wait, each "
        "finishes its turn before (see sampling.tokens_per_turn), and no turn begins meanwhile. Nothing is being sampled then with "
        "max_lag = 0.",
    )
    publish_every: int = Field(
        default=1,
        ge=1,
        description="Steps between syncs: workers sample that long from one iterate. A resumed run begins with a sync.",
    )
    over_sample: float = Field(
        default=1.0,
        ge=1,
        le=8,
        description="With max_lag = 0: begin this many times the groups a step misses, take those that finish first and give up "
        "the rest. Above 1 a step does not wait for its slowest groups, learns from quick ones more often, and no run repeats.",
    )
    max_tries: int = Field(default=8, ge=1, description="Give up a step after sampling this many times the groups it wants.")
    max_unscored: float = Field(
        default=0.1, ge=0, le=1, description="Stop when more of a step's completions than this share have no reward."
    )
    deadline_s: float = Field(
        default=1800.0,
        gt=0,
        description="Seconds that anything a run waits for may take: a prompt, a check, an update, a sync, an evaluation, a "
        "checkpoint. The first of a kind may take twice as long, and ten times the longest so far is no hang. Past that the stacks "
        "of all processes are written, and the part is restarted or the run ends.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where policy and engines run. auto: cuda when there is one."
    )
    ray_address: str = Field(default="local", description="local starts a Ray cluster for this run; auto or ray://... joins one.")
    placement: PlacementMode = Field(
        default="auto",
        description="separate: learner and workers have GPUs of their own; colocated: they share them, and with max_lag = 0 the "
        "engines give their memory up while the learner updates; auto: separate when the cluster has enough, else shared.",
    )
    plugins: tuple[str, ...] = Field(default=(), description="Verifier plugins: a dotted module, FILE.py, or FILE.py:name.")
    model: ModelConfig = Field(default=ModelConfig(), description="The policy.")
    tasks: TasksConfig = Field(description="Prompts and references.")
    rewards: dict[str, RewardMix] = Field(default={}, description="Reward mixes by name, beside the built-in ones.")
    verifiers: VerifiersConfig = Field(default=VerifiersConfig(), description="What judges.")
    sandbox: SandboxConfig = Field(default=SandboxConfig(), description="Where programs run that verifiers judge.")
    sampling: Sampling = Field(default=Sampling(), description="How completions are sampled.")
    engine: EngineConfig = Field(default=EngineConfig(), description="What samples them.")
    objective: AnyObjective = Field(default=Grpo(), description="What is learnt from groups.")
    learner: LearnerConfig = Field(default=LearnerConfig(), description="How it is learnt.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Held-out accuracy.")
    checkpoints: CheckpointConfig = Field(default=CheckpointConfig(), description="What is kept.")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="Where curves go.")

    @property
    def group_source(self) -> GroupSource:
        """Where groups come from: what the tasks record, or the policy; for self-play both."""
        form = self.tasks.recorded_form
        if form == "demonstrations" and "samples beside a demonstration" in self.objective.learns_from:
            return "samples beside a demonstration"
        return form or "samples"

    @property
    def is_live(self) -> bool:
        """Whether groups are sampled; otherwise they are recorded in the tasks."""
        return self.group_source.startswith("samples")

    @property
    def recorded_size(self) -> int | None:
        """Completions in each recorded group; None when groups are sampled."""
        return None if self.is_live else 2 if self.tasks.recorded_form == "pairs" else 1

    @property
    def is_on_policy(self) -> bool:
        """Whether every group is sampled by the weights that learn from it."""
        return self.max_lag == 0 and self.publish_every == 1

    @property
    def mixes(self) -> dict[str, RewardMix]:
        return built_in_mixes() | self.rewards

    @property
    def fingerprint(self) -> str:
        """A hash of every value, the same for the same run."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a TOML file with `--set` overrides applied. Raises ConfigError, never a bare pydantic or TOML error."""
    return config_of(read_toml(path), overrides, where=str(path))


def config_of(values: dict[str, Any], overrides: Sequence[str], *, where: str) -> RunConfig:
    """The config of nested tables, which the overrides change. `where` is what they are called in a ConfigError."""
    for override in overrides:
        apply_override(values, override)
    where = " ".join([where, *(f"--set {override}" for override in overrides)])
    if isinstance(values.get("objective"), dict):
        values["objective"].setdefault("name", Grpo().name)
    try:
        # Strict JSON: "3" is no number and true is no 1, but a list may fill a tuple.
        config = RunConfig.model_validate_json(to_json(values, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in explain(error, RunConfig).splitlines())) from None
    check_together(config, where)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Give a TOML file; configs/ holds examples.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in nested tables. c is read as a TOML value, and as plain text where it is none; without c the default holds."""
    dotted, equals, text = override.partition("=")
    *tables, name = (part.strip() for part in dotted.split("."))
    if not equals or not name or not all(tables):
        raise ConfigError(f"--set {override}: expected name=value with dots for tables, such as --set learner.learning_rate=1e-5.")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {table} is a value in the config, not a table that could hold {name}.")
    if text:
        values[name] = _toml_value(text)
    else:
        values.pop(name, None)


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text  # a text of several lines may hold further keys


def check_together(config: RunConfig, where: str) -> None:
    """What no part can check alone."""
    objective = config.objective
    if problem := wrong_source(objective, config.group_source):
        raise ConfigError(f"{where}: {problem}")
    if objective.compares and config.is_live and config.group_size < 2:
        raise ConfigError(
            f"{where}: group_size is {config.group_size}, but {objective.name} compares completions within a group. "
            "Set group_size to 2 or more, or use sft."
        )
    if config.learner.reference_every and (objective.reference_is_last_iterate or not objective.needs_reference):
        why = "has none" if not objective.needs_reference else "moves it with every sync, which publish_every sets"
        raise ConfigError(f"{where}: learner.reference_every moves the reference policy, but {objective.name} {why}. Leave it out.")
    if config.model.start_from is not None and "path" in config.model.model_fields_set:
        raise ConfigError(
            f"{where}: model.path is {config.model.path!r} and model.start_from is {config.model.start_from!r}, but a policy "
            "starts from one of them. Drop the other (--set model.start_from= drops it on the command line)."
        )
    units = config.groups_per_step * objective.units_per_group(config.recorded_size or config.group_size)
    if config.over_sample > 1 and config.max_lag:
        raise ConfigError(
            f"{where}: over_sample is {config.over_sample:g} and max_lag is {config.max_lag}, but a step that may learn from older "
            "groups gives none up. Leave over_sample out, or set max_lag to 0."
        )
    if config.learner.mini_batches > units:
        raise ConfigError(
            f"{where}: learner.mini_batches is {config.learner.mini_batches}, but a step has {units} "
            f"{'rows' if objective.rows_per_unit == 1 else 'pairs'} to divide. Lower it, or raise groups_per_step."
        )
    if config.tasks.rewards not in config.mixes:
        hint = did_you_mean(config.tasks.rewards, config.mixes)
        raise ConfigError(
            f"{where}: tasks.rewards names the mix {config.tasks.rewards!r}, which is not defined. {hint}{' ' if hint else ''}Add "
            f"[rewards.{config.tasks.rewards}], or use one of {', '.join(config.mixes)}."
        )
    if config.sampling.temperature == 0 and config.is_live:
        raise ConfigError(
            f"{where}: sampling.temperature is 0, so all completions of a group would be equal. Set it above 0; 1 is usual."
        )
    if config.engine.transport == "adapter" and (problem := why_no_adapters(config)):
        raise ConfigError(f'{where}: engine.transport = "adapter" publishes LoRA adapters for vLLM to apply, but {problem}')
    max_len = config.engine.max_model_len
    if max_len is not None and config.sampling.max_tokens >= max_len:
        raise ConfigError(
            f"{where}: sampling.max_tokens is {config.sampling.max_tokens}, which leaves no room for a prompt in "
            f"engine.max_model_len = {max_len}. Raise the second or lower the first."
        )


def why_no_adapters(config: RunConfig) -> str | None:
    """What keeps engines from sampling with adapters beside the base weights, and the mend."""
    if not config.model.lora.rank:
        return "model.lora.rank is 0: all weights are trained. Set it, or use auto."
    if config.engine.kind != "vllm":
        return f'engine.kind is "{config.engine.kind}". Use vllm, or auto, which merges them.'
    if config.max_lag and config.publish == "inflight":
        return 'publish is "inflight", and a completion keeps the adapter it began with. Set publish = "wait", or use auto.'
    return None


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every value by its dotted name, JSON-ready."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        else:
            flat[prefix] = value

    walk("", json.loads(config.model_dump_json()))
    return flat
