"""From scores to a reward."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from verifiers.reward import Component, RewardMix, built_in_mixes, combine
from verifiers.types import Outcome, Score, correct, infra, partial, wrong

RIGHT, WRONG, HALF, LOST = correct(""), wrong(""), partial(0.5, ""), infra("it died")


def mix(**components: dict[str, Any]) -> RewardMix:
    return RewardMix.model_validate(components)


CASES = [
    # components, scores, reward, is_correct
    ({"math": {}}, {"math": RIGHT}, 1.0, True),
    ({"math": {}}, {"math": WRONG}, 0.0, False),
    ({"math": {"weight": 3}, "form": {}}, {"math": RIGHT, "form": WRONG}, 0.75, True),  # 3 / (3 + 1)
    ({"math": {}, "length": {"weight": 0.5}}, {"math": RIGHT, "length": HALF}, 1.25 / 1.5, True),
    ({"math": {}, "form": {"weight": 0}}, {"math": RIGHT, "form": WRONG}, 1.0, True),
    ({"math": {}, "form": {"gate": True}}, {"math": RIGHT, "form": WRONG}, 0.0, False),
    ({"math": {}, "form": {"gate": True, "weight": 0}}, {"math": RIGHT, "form": RIGHT}, 1.0, True),
    ({"math": {}, "form": {"gate": True}}, {"math": RIGHT, "form": HALF}, 0.0, False),  # half a gate is no gate
    ({"form": {}, "math": {"weight": 2}}, {"form": WRONG, "math": RIGHT}, 2 / 3, True),  # the greatest weight decides
    ({"form": {}, "math": {}}, {"form": WRONG, "math": RIGHT}, 0.5, False),  # the first of equals decides
    ({"math": {}, "judge": {"required": False}}, {"math": RIGHT, "judge": LOST}, 1.0, True),  # left out of both sums
]


@pytest.mark.parametrize(("components", "scores", "reward", "is_correct"), CASES)
def test_scores_combine_to(components: dict[str, Any], scores: dict[str, Score], reward: float, is_correct: bool):
    verdict = combine(mix(**components), scores)
    assert verdict.reward == pytest.approx(reward, abs=1e-12)
    assert verdict.is_correct is is_correct
    assert verdict.scores == tuple(scores.values())


def test_a_lost_required_component_leaves_the_completion_unscored_with_the_cause():
    verdict = combine(mix(math={}, judge={"weight": 0.1}), {"math": RIGHT, "judge": LOST})
    assert (verdict.reward, verdict.is_correct, verdict.cause) == (None, False, "judge: it died")


def test_when_every_optional_component_is_lost_nothing_is_scored():
    verdict = combine(mix(a={"required": False}, b={"weight": 0}), {"a": LOST, "b": RIGHT})
    assert verdict.reward is None
    assert "a: it died" in str(verdict.cause)


@pytest.mark.parametrize(
    "components",
    [
        {},
        {"math": {"weight": 0}},
        {"math": {"weight": -1}},
        {"math": {"weight": float("nan")}},
        {"math": {"weight": float("inf")}},
        {"a": {"weight": 1e308}, "b": {"weight": 1e308}},
        {"math": {"wieght": 1}},
        {"math": {}, "form": {"gate": True, "required": False}},
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(components: dict[str, Any]):
    with pytest.raises(ValidationError):
        mix(**components)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5, None])
def test_a_score_outside_its_range_cannot_be_made(value: float | None):
    with pytest.raises(ValueError, match="cannot have the value"):
        Score(Outcome.PARTIAL, value, "")


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.floats(1e-6, 1e6), st.floats(0, 1)), min_size=1, max_size=6))
def test_a_reward_is_the_weighted_mean_and_stays_in_range(parts: dict[str, tuple[float, float]]):
    made = RewardMix({name: Component(weight=weight) for name, (weight, _) in parts.items()})
    verdict = combine(made, {name: partial(value, "") for name, (_, value) in parts.items()})
    top = bottom = 0.0
    for weight, value in parts.values():
        top, bottom = top + weight * value, bottom + weight
    assert verdict.reward == pytest.approx(top / bottom, rel=1e-9)
    assert 0.0 <= verdict.reward <= 1.0


def test_the_built_in_mixes_are_there():
    assert built_in_mixes()["math"].main == "math"
    assert built_in_mixes()["math_lenient"]["math"].options == {"lenient": True, "evaluated": False, "rounded": 4}
    assert built_in_mixes()["format"]["format"].options == {"preset": "think_answer"}
