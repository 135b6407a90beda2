"""The reward mix: which verifiers judge a completion, what each weighs, and how their scores become one reward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from verifiers.types import Outcome, Score, Verdict


class Component(BaseModel):
    """One verifier in a mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="Share in the weighted mean; 0 only informs, or only gates."
    )
    gate: bool = Field(default=False, description="Whether the whole reward is 0 unless this component is correct.")
    required: bool = Field(
        default=True,
        description="Whether an infrastructure fault here leaves the completion unscored; otherwise the others decide alone.",
    )
    verifier: str | None = Field(default=None, description="Name of the verifier; nothing means the component's own name.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the verifier; `grpo verifiers` lists them.")

    @model_validator(mode="after")
    def _gates_are_required(self) -> Component:
        if self.gate and not self.required:
            raise ValueError("gate is true and required is false, but a gate that was not judged is not passed. Drop one of them.")
        return self


class RewardMix(RootModel[dict[str, Component]]):
    """Named components; at least one has a weight. Iterates over the names in order.

    A mix is written `[rewards.NAME.COMPONENT]` in a config, and a Task names the mix that judges it.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _has_weight(self) -> RewardMix:
        total = sum(component.weight for component in self.root.values())
        if not self.root:
            raise ValueError("this reward mix is empty, so nothing could be rewarded. Name at least one component.")
        if total <= 0:
            raise ValueError("all weights of this reward mix are 0, so every reward is undefined. Give one component a weight.")
        if not math.isfinite(total):
            raise ValueError("the weights of this reward mix add up to infinity. Only their ratios matter: use smaller ones.")
        return self

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # iterates like the mapping it holds
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def __getitem__(self, name: str) -> Component:
        return self.root[name]

    def items(self) -> Iterator[tuple[str, Component]]:
        """Names and components, in order."""
        return iter(self.root.items())

    def verifier_name(self, name: str) -> str:
        """The verifier that a component uses."""
        return self.root[name].verifier or name

    @property
    def main(self) -> str:
        """The component that decides correctness: the greatest weight, the first of equals."""
        return max(self.root, key=lambda name: self.root[name].weight)


def combine(mix: RewardMix, scores: Mapping[str, Score]) -> Verdict:
    """The verdict of one completion from the score of every component, by component name.

    reward = sum(weight * value) / sum(weight). A failed gate makes it 0. A required component with the outcome infra leaves the
    completion unscored; an optional one is left out of both sums.
    """
    assert set(scores) == set(mix), f"a mix of {sorted(mix)} cannot be combined from scores of {sorted(scores)}"
    ordered = tuple(scores[name] for name in mix)
    judged = {name: score.value for name, score in scores.items() if score.value is not None}
    for name, component in mix.items():
        if component.required and name not in judged:
            return Verdict(None, False, ordered, f"{name}: {scores[name].reason}")
    weight = sum(mix[name].weight for name in mix if name in judged)
    if weight <= 0:
        causes = "; ".join(f"{name}: {scores[name].reason}" for name in mix if name not in judged)
        return Verdict(None, False, ordered, f"no component with a weight was scored ({causes})")
    gates_passed = all(scores[name].outcome is Outcome.CORRECT for name, component in mix.items() if component.gate)
    is_correct = gates_passed and scores[mix.main].outcome is Outcome.CORRECT
    if not gates_passed:
        return Verdict(0.0, False, ordered)
    reward = sum(mix[name].weight * judged[name] for name in mix if name in judged) / weight
    return Verdict(min(reward, 1.0), is_correct, ordered)


def built_in_mixes() -> dict[str, RewardMix]:
    """The mixes that exist without any config.

    `math` is the answer alone; `math_lenient` is for evaluation beside other graders: no box is needed, sums need not be evaluated,
    decimals may be rounded. `code`: all tests pass. `format`: think, then answer. `reasoning_gym`: full marks from the dataset's
    own scorer. `countdown`: an expression that makes the target.
    """
    return {
        "math": RewardMix({"math": Component()}),
        "math_lenient": RewardMix({"math": Component(options={"lenient": True, "evaluated": False, "rounded": 4})}),
        "code": RewardMix({"unit_tests": Component()}),
        "format": RewardMix({"format": Component(options={"preset": "think_answer"})}),
        "reasoning_gym": RewardMix({"reasoning_gym": Component()}),
        "countdown": RewardMix({"countdown": Component()}),
    }
