"""What a learner is made from: everything about one that is known before it starts, and may travel to its process."""

from __future__ import annotations

from dataclasses import dataclass

from grpo.learner_config import LearnerConfig, ModelConfig
from grpo.objectives import Objective
from grpo.ranks import ALONE, Place
from rollout.transports import Transport


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """All that is needed to make a learner.

    `total_steps` are optimizer steps, for the schedule; `max_tokens` is the completion budget; `max_mismatch` is None when
    completions may come from older weights, whose log-probabilities rightly differ. `reference_every` is the number of training
    steps after which the policy becomes its own reference, 0 for never; `reference_device` is where that waits, None for beside the
    policy. `fault_folder` is where a batch goes that stopped the run. `place` is which rank of several this is.
    `keep_sent`: weights that were broadcast or lent may be asked for again after they have moved on; `across_nodes`: by other
    machines. `engines_sleep`: the engines want the memory that a training step has used.
    """

    model_path: str
    model: ModelConfig
    learner: LearnerConfig
    objective: Objective
    temperature: float
    max_tokens: int
    max_mismatch: float | None
    total_steps: int
    seed: int
    device: str
    engine_dtype: str
    snapshot_folder: str
    transport: Transport = "shm"
    keep_sent: bool = False
    across_nodes: bool = False
    engines_sleep: bool = False
    num_threads: int | None = None
    reference_every: int = 0
    reference_device: str | None = None
    fault_folder: str | None = None
    place: Place = ALONE
