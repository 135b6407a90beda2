"""The reference policy of a learner: kept only when it is asked for, refreshed when it is time, saved with a checkpoint."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from learner_cases import make_learner, on_policy, random_examples, random_rows, same_weights, weights_of

from grpo.batch import Example, make_batch
from grpo.learner import Learner
from grpo.objectives import Dpo, Grpo, Kto
from grpo.objectives.kto import mismatched

RANKS = pytest.mark.parametrize("rank", [0, 3], ids=["full", "lora"])


def logprobs(learner: Learner, rows: list[Example]) -> list[tuple[float, ...]]:
    return learner._scorer.logprobs(rows)


def reference_logprobs(learner: Learner, rows: list[Example]) -> list[tuple[float, ...]]:
    return learner._scorer.reference_logprobs(rows)


def test_scores_come_in_the_order_of_the_rows_whatever_the_micro_batches(model_path):
    rows = [*random_examples(7), Example((5,), (), (), 0.0)]
    one_by_one = make_learner(model_path, tokens_per_micro_batch=1)
    together = make_learner(model_path, tokens_per_micro_batch=10_000)
    for row, alone, beside in zip(rows, logprobs(one_by_one, rows), logprobs(together, rows), strict=True):
        with torch.no_grad():
            expected = one_by_one._policy.score(make_batch([row], [0.0]), temperature=1.0).logprobs[0].tolist()
        assert alone == tuple(expected)
        assert beside == pytest.approx(alone, abs=1e-5)


async def test_a_learner_scores_for_whoever_asks(model_path):
    learner = make_learner(model_path, temperature=0.7)
    rows = random_examples(3)
    (own,) = on_policy(learner._policy, rows[:1], temperature=0.7)
    assert (await learner.score(rows))[0] == pytest.approx(own.behavior_logprobs)


@RANKS
async def test_the_reference_stays_where_the_policy_began(model_path, rank):
    learner = make_learner(model_path, objective=Dpo(), rank=rank)
    rows = random_rows(Dpo(), 4)
    start = logprobs(learner, rows)
    for _ in range(3):
        await learner.update(rows)
    assert logprobs(learner, rows) != start
    assert reference_logprobs(learner, rows) == start


@RANKS
async def test_it_becomes_the_policy_every_so_many_steps(model_path, rank):
    learner = make_learner(model_path, objective=Dpo(), rank=rank, reference_every=2)
    rows = random_rows(Dpo(), 4)
    start = logprobs(learner, rows)
    await learner.update(rows)
    assert reference_logprobs(learner, rows) == start
    await learner.update(rows)
    after_two = logprobs(learner, rows)
    assert reference_logprobs(learner, rows) == after_two != start
    await learner.update(rows)
    assert reference_logprobs(learner, rows) == after_two != logprobs(learner, rows)


@RANKS
async def test_a_resumed_learner_has_the_reference_and_the_count_it_was_saved_with(model_path, tmp_path, rank):
    options = {"objective": Dpo(), "rank": rank, "reference_every": 2}
    steady = make_learner(model_path, **options)
    rows = random_rows(Dpo(), 4)
    for _ in range(3):
        await steady.update(rows)
    await steady.save(str(tmp_path))
    resumed = make_learner(model_path, **options)
    await resumed.restore(str(tmp_path))
    for _ in range(2):
        one, other = (await steady.update(rows)).metrics, (await resumed.update(rows)).metrics
        assert one["preference/margin"] == other["preference/margin"]
    assert same_weights(weights_of(steady), weights_of(resumed))
    assert reference_logprobs(steady, rows) == reference_logprobs(resumed, rows)


async def test_a_reference_that_never_moves_is_not_written_into_every_checkpoint(model_path, tmp_path):
    learner = make_learner(model_path, objective=Dpo())
    await learner.save(str(tmp_path))
    assert not (tmp_path / "reference.safetensors").exists()


async def test_where_the_reference_waits_changes_nothing(model_path):
    beside, away = (make_learner(model_path, objective=Dpo(), reference_device=device) for device in (None, "cpu"))
    rows = random_rows(Dpo(), 4)
    for _ in range(2):
        await beside.update(rows)
        await away.update(rows)
    assert same_weights(weights_of(beside), weights_of(away))


async def test_a_pair_moves_apart_and_the_log_says_so(model_path):
    learner = make_learner(model_path, objective=Dpo())
    rows = random_rows(Dpo(), 4)
    first = (await learner.update(rows)).metrics
    assert first["loss/value"] == pytest.approx(math.log(2), rel=1e-5)  # the policy is its reference
    assert first["preference/margin"] == pytest.approx(0, abs=1e-5)
    for _ in range(5):
        last = (await learner.update(rows)).metrics
    assert last["preference/accuracy"] == 1
    assert last["preference/chosen"] > last["preference/rejected"]
    assert last["loss/value"] < 0.6


async def test_ktos_reference_point_is_the_mean_over_mismatched_rows_of_the_whole_step(model_path):
    learner = make_learner(model_path, objective=Kto(), learning_rate=0.05, tokens_per_micro_batch=20)
    rows = random_rows(Kto(), 8)
    first = (await learner.update(rows)).metrics
    assert first["preference/reference_point"] == pytest.approx(0, abs=1e-6)  # before any weight has moved
    desirable = [dataclasses.replace(row, advantage=1.0, reward=1.0) for row in rows]
    await learner.update(desirable)
    log_ratios = learner._scorer.log_ratios(mismatched(rows)).tolist()
    expected = max(0.0, sum(log_ratios) / len(log_ratios))
    assert expected > 0.01
    assert (await learner.update(rows)).metrics["preference/reference_point"] == pytest.approx(expected, rel=1e-5)


def test_mismatched_rows_too_long_for_the_model_are_left_out(model_path):
    learner = make_learner(model_path, objective=Kto())  # 64 positions
    rows = [Example((5,) * 40, (6,), None, 1.0), Example((7,), (8,) * 40, None, 1.0)]
    assert len(learner._scorer.log_ratios(mismatched(rows))) == 1


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
async def test_with_a_kl_the_log_tells_it_wherever_it_is_charged(model_path, kl_in):
    learner = make_learner(model_path, objective=Grpo(kl_coef=0.1, kl_in=kl_in), learning_rate=0.05)
    examples = on_policy(learner._policy, random_examples(8))
    assert (await learner.update(examples)).metrics["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert (await learner.update(on_policy(learner._policy, examples))).metrics["policy/kl"] > 1e-3
