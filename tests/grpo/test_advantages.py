from math import inf, nan, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.objectives.advantages import batch_normalized, group_centered, group_normalized, leave_one_out

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


def test_leave_one_out_by_hand():
    # 1 - (0 + 0 + 0.5) / 3, 0 - (1 + 0 + 0.5) / 3 twice, 0.5 - 1 / 3
    assert leave_one_out(rewards(1, 0, 0, 0.5)).tolist() == pytest.approx([5 / 6, -0.5, -0.5, 1 / 6])


def test_batch_normalized_counts_each_value_as_often_as_it_is_there():
    # 3, 0, 0, 0: mean 3/4, variance 27/16
    values = batch_normalized(rewards(3, 0), rewards(1, 3))
    assert values.tolist() == pytest.approx([(9 / 4) / sqrt(27 / 16), (-3 / 4) / sqrt(27 / 16)])


@given(values=st.lists(EIGHTHS, min_size=2, max_size=16).filter(lambda values: len(set(values)) > 1))
def test_batch_normalized_values_have_mean_0_and_standard_deviation_1(values):
    normalized = batch_normalized(rewards(*values), torch.ones(len(values), dtype=torch.float64))
    assert normalized.mean().item() == pytest.approx(0, abs=1e-12)
    assert normalized.std(correction=0).item() == pytest.approx(1, rel=1e-12)


@given(value=st.floats(-1e6, 1e6), size=st.integers(1, 70))
def test_equal_values_of_a_batch_become_exactly_0(value, size):
    values = torch.full((size,), value, dtype=torch.float64)
    assert batch_normalized(values, torch.arange(size, dtype=torch.float64)).tolist() == [0.0] * size


@pytest.mark.parametrize("advantages", [group_normalized, group_centered, leave_one_out])
@given(value=st.floats(-1e6, 1e6), size=st.integers(1, 70))
def test_equal_rewards_of_any_value_teach_exactly_nothing(advantages, value, size):
    assert advantages(torch.full((size,), value, dtype=torch.float64)).tolist() == [0.0] * size
    assert advantages(torch.full((size,), value, dtype=torch.float32)).tolist() == [0.0] * size


@pytest.mark.parametrize("advantages", [group_normalized, group_centered, leave_one_out])
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
@pytest.mark.parametrize(
    "advantages", [group_normalized, group_centered, leave_one_out, lambda values: batch_normalized(values, torch.ones(3))]
)
def test_a_reward_that_is_no_finite_number_is_refused(advantages, bad):
    with pytest.raises(ValueError, match="finite"):
        advantages(rewards(0.5, bad, 1))
