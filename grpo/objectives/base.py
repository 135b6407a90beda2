"""What an objective is: frozen hyperparameters and two pure steps, from groups to examples and from log-probabilities to a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from grpo.batch import Average, Batch, Example
from grpo.objectives.sources import GroupSource
from grpo.objectives.surrogate import Loss
from rollout.types import Group


class Objective(BaseModel, ABC):
    """From groups to a loss. The class that holds the hyperparameters is their config: one paper, one file.

    `learns_from` names the sources whose groups it understands. `rows_per_unit` is how many consecutive rows of `credit` are never
    parted, by mini-batches or micro-batches: 2 for pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learns_from: ClassVar[tuple[GroupSource, ...]] = ("samples",)
    rows_per_unit: ClassVar[int] = 1

    name: Any = Field(description="Which objective it is: each class narrows this to a Literal.")  # the first of all fields

    @property
    @abstractmethod
    def average(self) -> Average:
        """How tokens are weighed (grpo.batch.token_weights)."""

    @property
    def compares(self) -> bool:
        """Whether it learns from differences within a group, so that sampled groups need 2 completions or more."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the reference policy must score the examples."""
        return False

    @property
    def reference_is_last_iterate(self) -> bool:
        """Whether the reference policy is the one that sampled, and so moves with every sync."""
        return False

    @property
    def needs_zero_advantages(self) -> bool:
        """Whether a row with advantage 0 has a gradient, so that it must be sent through the model."""
        return False

    def units_per_group(self, group_size: int) -> int:
        """How many units `credit` makes of a group whose completions are all scored, at most."""
        return group_size

    def keep(self, group: Group) -> bool:
        """Whether a group is worth a place in the step. A refused one is replaced by another."""
        return True

    @abstractmethod
    def credit(self, groups: Sequence[Group]) -> list[Example]:
        """Examples, each with what it teaches. Raises UserError for a group of a form that the objective does not understand."""

    def charge(self, examples: Sequence[Example]) -> list[Example]:
        """The same examples once the reference policy has scored them: where a KL is part of the reward it is charged here."""
        return list(examples)

    def probes(self, examples: Sequence[Example]) -> list[Example]:
        """Rows to be scored by policy and reference before an optimizer step on `examples`, for `reference_point`."""
        return []

    def reference_point(self, log_ratios: Tensor) -> float:
        """A number about the whole optimizer step, from log(pi / ref) of each probe, [K]. It reaches the loss in its batch."""
        return 0.0

    @abstractmethod
    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        """The loss of some rows of a step; over all rows of the step the losses add up. logprobs: [B, T]"""


def scored_examples(group: Group, place: int = 0) -> list[Example]:
    """The scored completions of a group with their rewards. An unscored one is in neither the mean nor the result."""
    return [
        Example.of(completion, reward=verdict.reward, group=place, task_id=group.task.id)
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
        if verdict.reward is not None
    ]
