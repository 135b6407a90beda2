import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from grpo.batch import Batch, Example, make_batch, micro_batches, token_weights
from grpo.objectives import AnyObjective, Dapo, DrGrpo, Grpo, Objective, Sft
from rollout.types import Completion, Group
from verifiers.types import Task, Verdict

BUDGET = 8
LIVE = [Grpo(), Grpo(kl_coef=0.04), Dapo(), DrGrpo()]


def group(*rewards: float | None, correct: tuple[bool, ...] | None = None) -> Group:
    """A group with these rewards, None being unscored; completion i has i + 1 tokens."""
    correct = correct or tuple(reward == 1 for reward in rewards)
    completions = tuple(
        Completion(i, (1, 2), (5,) * (i + 1), "x", "stop", behavior_logprobs=(-float(i + 1),) * (i + 1))
        for i in range(len(rewards))
    )
    verdicts = tuple(
        Verdict(reward, is_correct, (), cause="the sandbox is down" if reward is None else None)
        for reward, is_correct in zip(rewards, correct, strict=True)
    )
    return Group(Task("t", "p", "r", "math"), completions, verdicts)


def advantages_of(objective: Objective, *groups: Group) -> list[float]:
    return [example.advantage for example in objective.credit(groups)]


def test_credit_carries_the_tokens_and_their_behavior_logprobs():
    first, second = Grpo().credit([group(0.0, 1.0)])
    assert first == Example((1, 2), (5,), (-1.0,), pytest.approx(-1, rel=1e-5))
    assert second == Example((1, 2), (5, 5), (-2.0, -2.0), pytest.approx(1, rel=1e-5))


def test_unscored_completions_are_in_neither_the_mean_nor_the_standard_deviation_nor_the_examples():
    assert advantages_of(Grpo(), group(1.0, None, 0.0, None)) == advantages_of(Grpo(), group(1.0, 0.0))
    assert advantages_of(DrGrpo(), group(1.0, None, 0.0, 0.0)) == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert advantages_of(Grpo(), group(1.0, None)) == [0.0]  # one scored completion has nothing to be compared with
    assert advantages_of(Grpo(), group(None, None)) == []


def test_each_group_is_compared_within_itself():
    assert advantages_of(DrGrpo(), group(1.0, 0.0), group(0.5, 0.25)) == pytest.approx([0.5, -0.5, 0.125, -0.125])


def test_a_reward_that_is_not_a_number_never_becomes_a_verdict():
    with pytest.raises(ValueError, match="reward"):
        group(math.nan, 1.0)


def test_dapo_keeps_groups_that_are_neither_all_right_nor_all_wrong():
    cases = {
        group(1.0, 0.0): True,
        group(1.0, 1.0): False,
        group(0.0, 0.0): False,
        group(1.0, None): False,  # of the scored ones all are right
        # Judged by correctness, not by the shaped reward: one right answer was too long, one wrong answer was neat.
        group(1.0, 0.5, correct=(True, True)): False,
        group(0.2, 0.0, correct=(False, False)): False,
    }
    assert {g: Dapo().keep(g) for g in cases} == cases
    assert all(Grpo().keep(g) for g in cases)


def test_sft_learns_every_completion_with_reward_1_and_no_other():
    examples = Sft().credit([group(1.0, 0.5, 1.0, None), group(0.0, 0.9)])
    assert [(len(example.token_ids), example.advantage) for example in examples] == [(1, 1.0), (3, 1.0)]
    assert Sft().keep(group(0.5, 1.0))
    assert not Sft().keep(group(0.5, 0.9))


def test_what_each_objective_asks_for():
    assert [(o.average, o.compares, o.needs_reference, o.needs_zero_advantages) for o in (*LIVE, Sft())] == [
        ("sequence", True, False, False),
        ("sequence", True, True, True),
        ("token", True, False, False),
        ("constant", True, False, False),
        ("token", False, False, False),
    ]


def test_the_defaults_are_the_papers():
    assert (Grpo().clip_low, Grpo().clip_high, Grpo().kl_coef) == (0.2, 0.2, 0.0)
    assert (Dapo().clip_low, Dapo().clip_high, Dapo().kl_coef) == (0.2, 0.28, 0.0)  # 2503.14476, sections 2.3 and 4.1
    assert (DrGrpo().clip_low, DrGrpo().clip_high, DrGrpo().kl_coef) == (0.2, 0.2, 0.0)


@pytest.mark.parametrize("objective", [*LIVE, Sft()], ids=repr)
def test_a_config_table_names_its_objective(objective):
    assert TypeAdapter(AnyObjective).validate_python(objective.model_dump()) == objective


class Step:
    """A table of log-probabilities that stands for the model, and examples whose loss it gives, whole or in parts."""

    def __init__(self, seed: int, num_rows: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, BUDGET + 1, (num_rows,), generator=generator).tolist()
        self.logprobs = -torch.rand(num_rows, BUDGET, generator=generator, dtype=torch.float64) * 3
        self.ref = self.logprobs + 0.3 * torch.randn(num_rows, BUDGET, generator=generator, dtype=torch.float64)
        behavior = (self.logprobs + 0.3 * torch.randn(num_rows, BUDGET, generator=generator)).float().tolist()
        advantages = torch.randn(num_rows, generator=generator)
        advantages[::3] = 0
        self.examples = [Example((1,), (2,) * n, tuple(behavior[i][:n]), advantages[i].item()) for i, n in enumerate(lengths)]

    def weights(self, objective: Objective) -> list[float]:
        lengths = torch.tensor([len(example.token_ids) for example in self.examples])
        return token_weights(lengths, objective.average, max_tokens=BUDGET).tolist()

    def batch(self, objective: Objective, rows: list[int]) -> Batch:
        weights = self.weights(objective)
        batch = make_batch([self.examples[i] for i in rows], [weights[i] for i in rows])
        return dataclasses.replace(batch, ref_logprobs=self.ref[rows, : batch.mask.shape[1]])

    def loss_and_gradient(self, objective: Objective, parts: list[list[int]]) -> tuple[float, Tensor]:
        logprobs = self.logprobs.clone().requires_grad_()
        total = 0.0
        for rows in parts:
            batch = self.batch(objective, rows)
            loss = objective.loss(logprobs[rows, : batch.mask.shape[1]], batch).value
            loss.backward()
            total += loss.item()
        assert logprobs.grad is not None
        return total, logprobs.grad


def close(one: Tensor, other: Tensor, rel: float) -> bool:
    return bool((one - other).norm() <= rel * other.norm())


@pytest.mark.parametrize("objective", [*LIVE, Sft()], ids=repr)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 12), budget=st.integers(1, 60), chance=st.randoms())
def test_no_division_into_micro_batches_and_no_order_changes_loss_or_gradient(objective, seed, num_rows, budget, chance):
    step = Step(seed, num_rows)
    value, gradient = step.loss_and_gradient(objective, [list(range(num_rows))])
    parts = micro_batches(step.examples, tokens_per_micro_batch=budget)
    chance.shuffle(parts)
    for part in parts:
        chance.shuffle(part)
    divided_value, divided_gradient = step.loss_and_gradient(objective, parts)
    assert divided_value == pytest.approx(value, rel=1e-12, abs=1e-14)
    assert close(divided_gradient, gradient, 1e-12)


@pytest.mark.parametrize("objective", [Grpo(), Dapo(), DrGrpo()], ids=repr)
def test_leaving_out_rows_with_advantage_0_gives_the_gradient_of_computing_them(objective):
    step = Step(seed=4, num_rows=9)
    taught = [i for i, example in enumerate(step.examples) if example.advantage != 0]
    value, gradient = step.loss_and_gradient(objective, [list(range(9))])
    assert len(taught) < 9
    short_value, short_gradient = step.loss_and_gradient(objective, [taught])
    assert short_value == pytest.approx(value, rel=1e-12)
    assert close(short_gradient, gradient, 1e-12)


def test_nan_in_the_padding_changes_nothing():
    step, objective = Step(seed=5, num_rows=4), Grpo(kl_coef=0.1)
    batch = step.batch(objective, [0, 1, 2, 3])
    assert batch.behavior_logprobs is not None
    assert batch.ref_logprobs is not None
    assert not batch.mask.all()
    logprobs = step.logprobs[:, : batch.mask.shape[1]]
    poisoned = dataclasses.replace(
        batch,
        behavior_logprobs=batch.behavior_logprobs.masked_fill(~batch.mask, math.nan),
        ref_logprobs=batch.ref_logprobs.masked_fill(~batch.mask, math.nan),
    )
    for each in (objective, Sft()):
        clean = each.loss(logprobs, batch).value
        assert each.loss(logprobs.masked_fill(~batch.mask, math.nan), poisoned).value.equal(clean)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def token_gain(objective: Grpo | Dapo | DrGrpo, step: Step, i: int, j: int) -> float:
    """min(r A, clip(r) A) - beta k3 of one token, with numbers instead of tensors."""
    example = step.examples[i]
    assert example.behavior_logprobs is not None
    logprob, ref = step.logprobs[i, j].item(), step.ref[i, j].item()
    ratio = math.exp(logprob - example.behavior_logprobs[j])
    clipped = max(1 - objective.clip_low, min(1 + objective.clip_high, ratio))
    kl = ratio * (math.exp(ref - logprob) - (ref - logprob) - 1)
    return min(ratio * example.advantage, clipped * example.advantage) - objective.kl_coef * kl


@pytest.mark.parametrize("objective", LIVE, ids=repr)
def test_the_loss_is_the_papers_written_as_loops(objective):
    step = Step(seed=6, num_rows=7)
    gains = [[token_gain(objective, step, i, j) for j in range(len(e.token_ids))] for i, e in enumerate(step.examples)]
    expected = {
        "grpo": mean([mean(row) for row in gains]),  # 2402.03300, equation 3
        "dapo": mean([gain for row in gains for gain in row]),  # 2503.14476, equation 12, over the batch
        "dr_grpo": mean([sum(row) / BUDGET for row in gains]),  # 2503.20783, section 3.2 and listing 1
    }[objective.name]
    value, _ = step.loss_and_gradient(objective, [list(range(7))])
    assert -value == pytest.approx(expected, rel=1e-6)  # advantages, weights and behavior log-probabilities are float32


def test_the_loss_of_sft_is_the_mean_negative_loglikelihood_of_all_tokens():
    step = Step(seed=7, num_rows=5)
    logprobs = [step.logprobs[i, j].item() for i, e in enumerate(step.examples) for j in range(len(e.token_ids))]
    value, gradient = step.loss_and_gradient(Sft(), [list(range(5))])
    assert value == pytest.approx(-mean(logprobs), rel=1e-6)
    assert gradient[gradient != 0].tolist() == pytest.approx([-1 / len(logprobs)] * len(logprobs), rel=1e-6)


@settings(max_examples=50)
@given(reward=st.floats(0, 1), size=st.integers(1, 16))
def test_a_flat_group_has_no_gradient_under_any_live_objective(reward, size):
    for objective in (Grpo(), Dapo(), DrGrpo()):
        assert advantages_of(objective, group(*[reward] * size)) == [0.0] * size
