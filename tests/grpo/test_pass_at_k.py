import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.evaluation.pass_at_k import Tally, interval, mean_pass_at_k, pass_at_k
from sandbox.errors import UserError

EIGHTHS = st.integers(0, 8).map(lambda k: k / 8)
TALLIES = st.integers(1, 40).flatmap(lambda n: st.builds(Tally, st.just(n), st.integers(0, n)))


@pytest.mark.parametrize(
    ("num_scored", "num_correct", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 3 of the 6 pairs hold the one correct completion
        (4, 2, 2, 5 / 6),  # the one pair of the two wrong ones does not
        (5, 2, 3, 9 / 10),
        (10, 3, 5, 1 - 21 / 252),
        (4, 0, 4, 0.0),
        (4, 4, 1, 1.0),
        (4, 1, 4, 1.0),  # all four are taken
    ],
)
def test_pass_at_k_by_hand(num_scored: int, num_correct: int, k: int, expected: float):
    assert pass_at_k(Tally(num_scored, num_correct), k) == pytest.approx(expected, abs=1e-15)


@settings(max_examples=50)
@given(TALLIES)
def test_pass_at_1_is_the_share_of_correct_ones(tally: Tally):
    assert pass_at_k(tally, 1) == pytest.approx(tally.num_correct / tally.num_scored, abs=1e-15)


@settings(max_examples=50)
@given(TALLIES)
def test_more_tries_never_pass_less_often(tally: Tally):
    values = [pass_at_k(tally, k) for k in range(1, tally.num_scored + 1)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


@settings(max_examples=50)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_all_sets_of_k_that_hold_a_correct_one(case: tuple[int, int, int]):
    num_scored, num_correct, k = case
    sets = list(itertools.combinations(range(num_scored), k))
    assert pass_at_k(Tally(num_scored, num_correct), k) == pytest.approx(sum(min(some) < num_correct for some in sets) / len(sets))


def test_it_has_no_bias():
    """Its mean over all that can be sampled at a chance p is the truth, 1 - (1 - p)^k; 1 - (1 - c / n)^k would be too low."""
    p, n, k = 0.2, 10, 8
    chances = [binomial(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(chance * pass_at_k(Tally(n, c), k) for c, chance in enumerate(chances))
    plugged_in = sum(chance * (1 - (1 - c / n) ** k) for c, chance in enumerate(chances))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    assert plugged_in < mean - 0.04


def binomial(n: int, k: int) -> int:
    return len(list(itertools.combinations(range(n), k)))


def test_thousands_of_completions_lose_no_digit():
    assert pass_at_k(Tally(100_000, 1), 1000) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_that_the_completions_say_nothing_of_is_refused(k: int):
    with pytest.raises(UserError, match=f"pass@{k} was asked for, but there are 4 scored completions"):
        pass_at_k(Tally(4, 2), k)


def test_the_mean_is_over_tasks_and_leaves_out_those_with_too_few_scored_completions():
    estimate = mean_pass_at_k([Tally(4, 1), Tally(4, 2), Tally(1, 1)], 2)
    assert estimate is not None
    assert (estimate.value, estimate.num_tasks) == (pytest.approx((1 / 2 + 5 / 6) / 2), 2)
    assert mean_pass_at_k([Tally(1, 1)], 2) is None


def test_the_interval_of_right_and_wrong_is_wilsons():
    # by hand for 8 of 10 at z = 1.959964: middle (0.8 + 0.192073) / 1.384146, half 1.959964 / 1.384146 * sqrt(0.016 + 0.0096037)
    estimate = interval([1.0] * 8 + [0.0] * 2)
    assert estimate[:3] == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)


def test_an_interval_is_not_empty_when_all_tasks_agree():
    # z^2 / (n + z^2) by hand, for n = 10: 3.841459 / 13.841459
    assert interval([1.0] * 10)[:3] == pytest.approx((1.0, 1 - 0.277533, 1.0), abs=1e-6)
    assert interval([0.0] * 10)[:3] == pytest.approx((0.0, 0.0, 0.277533), abs=1e-6)
    assert interval([0.5] * 10).low < 0.3


def test_the_completions_of_a_task_do_not_count_as_tasks():
    """Four tasks that are always or never solved: 100 completions of each tell no more than one."""
    often, once = mean_pass_at_k([Tally(100, 100), Tally(100, 0)] * 2, 1), mean_pass_at_k([Tally(1, 1), Tally(1, 0)] * 2, 1)
    assert often == once


@settings(max_examples=30)
@given(st.lists(EIGHTHS, min_size=1, max_size=10), st.floats(0.5, 0.99))
def test_an_interval_holds_its_mean_and_widens_with_its_level(values: list[float], level: float):
    narrow, wide = interval(values, level=level), interval(values, level=0.999)
    assert 0 <= wide.low <= narrow.low + 1e-12 < narrow.high <= wide.high + 1e-12 <= 1 + 1e-12
    assert narrow.low <= narrow.value <= narrow.high


@settings(max_examples=30)
@given(st.lists(TALLIES, min_size=1, max_size=5))
def test_the_order_of_the_tasks_changes_nothing(tallies: list[Tally]):
    assert mean_pass_at_k(tallies, 1) == mean_pass_at_k(tallies[::-1], 1)


@pytest.mark.parametrize(("num_tasks", "n", "k"), [(20, 8, 1), (20, 8, 8), (40, 1, 1)])
def test_nineteen_of_twenty_intervals_hold_the_truth(num_tasks: int, n: int, k: int):
    """Tasks that are easy, hard or in between with equal chance. Standard error of the share: 0.01."""
    dice, chances = random.Random(0), (0.05, 0.5, 0.95)
    truth = sum(1 - (1 - p) ** k for p in chances) / 3
    held = 0
    for _ in range(400):
        tallies = [Tally(n, sum(dice.random() < p for _ in range(n))) for p in dice.choices(chances, k=num_tasks)]
        estimate = mean_pass_at_k(tallies, k)
        assert estimate is not None
        held += estimate.low <= truth <= estimate.high
    assert 0.92 <= held / 400 <= 0.99
