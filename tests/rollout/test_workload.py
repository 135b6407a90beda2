"""Which worker has the least to do."""

from __future__ import annotations

import pytest

from rollout.sampling import Sampling
from rollout.workload import Workload
from tests.fakes import make_completion, make_task


def test_a_group_weighs_its_prompt_once_and_each_completion_as_long_as_they_have_been():
    workload = Workload(3)
    task, setting = make_task(prompt="x" * 40), Sampling(max_tokens=100)
    with workload.group(0, task, setting, n=4) as first:
        assert workload.tokens == (10 + 4 * 100, 0, 0)
        first.ended([make_completion(text="y" * 20)])  # a fifth of the budget
        assert workload.tokens == (10 + 3 * 100, 0, 0)
        with workload.group(1, task, Sampling(max_tokens=1000), n=2):
            assert workload.tokens == pytest.approx((310, 10 + 2 * 200, 0))
            assert workload.least([0, 1, 2]) == 2
            assert workload.least([0, 1]) == 0
    assert workload.tokens == pytest.approx((0, 0, 0))


def test_a_group_that_ends_early_leaves_nothing_behind():
    workload = Workload(1)
    with workload.group(0, make_task(), Sampling(), n=8) as load:
        load.ended([make_completion(), make_completion(1)])
    assert workload.tokens == (0,)
