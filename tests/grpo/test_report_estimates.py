"""Intervals around what a run logged. The estimators behind them have test_pass_at_k.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.report.estimates import accuracy_interval, reward_interval, shown_ks


def test_one_and_powers_of_four_and_the_whole_group_are_shown():
    assert [shown_ks(size) for size in (0, 1, 4, 8, 16, 64)] == [(), (1,), (1, 4), (1, 4, 8), (1, 4, 16), (1, 4, 16, 64)]


@pytest.mark.parametrize(
    ("share", "num_tasks", "low", "high"),
    [
        (0.5, 100, 0.40383, 0.59617),  # z^2/n = 0.0384146; half = sqrt(0.0096037 + 0.0003689) / 1.0384146 = 0.09617
        (0.0, 10, 0.0, 0.27753),  # z^2/n = 0.384146; middle = half = 0.192073 / 1.384146
        (1.0, 10, 0.72247, 1.0),
    ],
)
def test_the_interval_of_an_accuracy_is_wilsons(share: float, num_tasks: int, low: float, high: float):
    assert accuracy_interval(share, num_tasks) == pytest.approx((low, high), abs=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 400), st.floats(0, 1))
def test_it_holds_the_accuracy_also_when_some_tasks_were_unscored(num_tasks: int, accuracy: float):
    low, high = accuracy_interval(accuracy, num_tasks)
    assert 0.0 <= low <= accuracy <= high <= 1.0


def test_the_interval_of_a_reward_is_over_prompts():
    """Two prompts of 50 completions, one hopeless and one solved, say no more than two completions would."""
    assert reward_interval([0, 50], [50, 50]) == pytest.approx(accuracy_interval(0.5, 2))


def test_a_prompt_without_scored_completions_does_not_count():
    assert reward_interval([0, 3, 1], [0, 4, 4]) == reward_interval([3, 1], [4, 4])
    assert reward_interval([0], [0]) is None
    assert reward_interval([], []) is None
