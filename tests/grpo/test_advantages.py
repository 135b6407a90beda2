from math import inf, nan, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.objectives.advantages import group_centered, group_normalized

EIGHTHS = st.integers(-80, 80).map(lambda k: k / 8)  # sums of them are exact, so that rounding cannot blur a property


def rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_normalized_advantages_by_hand():
    # mean 2/5; variance (2 * 0.36 + 3 * 0.16) / 5 = 0.24
    assert group_normalized(rewards(1, 0, 0, 1, 0)).tolist() == pytest.approx(
        [0.6 / sqrt(0.24), -0.4 / sqrt(0.24), -0.4 / sqrt(0.24), 0.6 / sqrt(0.24), -0.4 / sqrt(0.24)], rel=1e-5
    )


def test_the_standard_deviation_is_that_of_the_population_and_epsilon_stands_beside_it():
    assert group_normalized(rewards(0, 1)).tolist() == pytest.approx([-0.5 / (0.5 + 1e-6), 0.5 / (0.5 + 1e-6)], rel=1e-12)


def test_centered_advantages_by_hand():
    assert group_centered(rewards(1, 0, 0, 1, 0)).tolist() == pytest.approx([0.6, -0.4, -0.4, 0.6, -0.4])


@pytest.mark.parametrize("advantages", [group_normalized, group_centered])
@given(value=st.floats(-1e6, 1e6), size=st.integers(1, 70))
def test_equal_rewards_of_any_value_teach_exactly_nothing(advantages, value, size):
    assert advantages(torch.full((size,), value, dtype=torch.float64)).tolist() == [0.0] * size
    assert advantages(torch.full((size,), value, dtype=torch.float32)).tolist() == [0.0] * size


@pytest.mark.parametrize("advantages", [group_normalized, group_centered])
@given(values=st.lists(EIGHTHS, min_size=1, max_size=16), constant=EIGHTHS)
def test_adding_a_constant_to_all_rewards_changes_nothing(advantages, values, constant):
    shifted = advantages(rewards(*values) + constant)
    assert shifted.tolist() == pytest.approx(advantages(rewards(*values)).tolist(), abs=1e-12)


@given(values=st.lists(EIGHTHS, min_size=2, max_size=16).filter(lambda values: len(set(values)) > 1))
def test_normalized_advantages_have_mean_0_and_standard_deviation_1(values):
    advantages = group_normalized(rewards(*values))
    assert advantages.mean().item() == pytest.approx(0, abs=1e-12)
    assert advantages.std(correction=0).item() == pytest.approx(1, rel=1e-4)  # 1 but for epsilon: at most 1e-6 / (1/32)


def test_rounding_noise_between_rewards_stays_noise():
    assert group_normalized(rewards(0.1 + 0.2, 0.3)).abs().max().item() < 1e-9


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("advantages", [group_normalized, group_centered])
def test_a_reward_that_is_no_finite_number_is_refused(advantages, bad):
    with pytest.raises(ValueError, match="finite"):
        advantages(rewards(0.5, bad, 1))
