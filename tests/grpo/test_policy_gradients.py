"""The objectives that learn from sampled completions, against their papers: by hand, and by loops over numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from objective_cases import BUDGET, UNBOUNDED, Step, advantages_of, close, group

from grpo.batch import Example
from grpo.objectives import Cispo, Dapo, DrGrpo, Grpo, Gspo, Objective, ReinforcePlusPlus, Rloo


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def ratio_of(step: Step, i: int, t: int) -> float:
    return math.exp(step.logprobs[i][t]) / math.exp(step.behavior[i][t])


def k3(step: Step, i: int, t: int) -> float:
    ref_over_pi = math.exp(step.ref[i][t]) / math.exp(step.logprobs[i][t])
    return ref_over_pi - math.log(ref_over_pi) - 1


def token_gain(step: Step, i: int, t: int) -> float:
    """min(r A, clip(r) A) - beta * r * k3 of one token, the ratio at most max_ratio."""
    objective: Any = step.objective
    ratio, advantage = min(ratio_of(step, i, t), objective.max_ratio), step.examples[i].advantage
    clipped = clip(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
    return min(ratio * advantage, clipped * advantage) - objective.kl_coef * ratio * k3(step, i, t)


def gains(step: Step) -> list[list[float]]:
    return [[token_gain(step, i, t) for t in range(n)] for i, n in enumerate(step.lengths)]


@pytest.mark.parametrize(
    ("objective", "average"),
    [
        # 2402.03300, equation 3: 1/G sum over i of 1/|o_i| sum over t
        (Grpo(**UNBOUNDED), lambda gains: mean([mean(row) for row in gains])),
        (Grpo(**UNBOUNDED, kl_coef=0.04), lambda gains: mean([mean(row) for row in gains])),
        # 2503.14476, equation 12, over the batch
        (Dapo(**UNBOUNDED), lambda gains: mean([gain for row in gains for gain in row])),
        # 2503.20783, section 3.2 and listing 1
        (DrGrpo(**UNBOUNDED), lambda gains: mean([sum(row) / BUDGET for row in gains])),
        # 2501.03262, the clipped surrogate in expectation over tokens
        (ReinforcePlusPlus(**UNBOUNDED), lambda gains: mean([gain for row in gains for gain in row])),
    ],
    ids=lambda each: repr(each) if isinstance(each, Objective) else "",
)
@pytest.mark.parametrize("drift", [0.3, 1.5])
def test_the_clipped_objectives_are_the_papers_written_as_loops(objective, average, drift):
    step = Step(6, 7, objective, drift=drift)
    value, _ = step.loss_and_gradient()
    assert -value == pytest.approx(average(gains(step)), rel=1e-6)  # advantages and weights are float32


def test_gspo_is_the_paper_written_as_loops():
    """2507.18071, equations 5 and 7."""
    step = Step(6, 40, Gspo(**UNBOUNDED), drift=0.002)
    terms = []
    for i, length in enumerate(step.lengths):
        pi = math.exp(math.fsum(step.logprobs[i]))
        old = math.exp(math.fsum(step.behavior[i]))
        s = (pi / old) ** (1 / length)
        advantage = step.examples[i].advantage
        terms.append(min(s * advantage, clip(s, 1 - 3e-4, 1 + 4e-4) * advantage))
    value, _ = step.loss_and_gradient()
    assert -value == pytest.approx(mean(terms), rel=1e-6)


def test_gspo_by_hand():
    """Two tokens with ratios e^0.2 and e^-0.1: s = e^0.05, clipped at 1.0004 for a good completion and kept for a bad one."""
    objective = Gspo()
    for advantage, gain, slope in ((2.0, 2 * 1.0004, 0.0), (-2.0, -2 * math.exp(0.05), -2 * math.exp(0.05) / 2)):
        logprobs = torch.tensor([[-1.8, -1.1]], dtype=torch.float64).requires_grad_()
        batch = Step(0, 1, objective).batch([0])
        batch = dataclasses.replace(
            batch,
            mask=torch.ones(1, 2, dtype=torch.bool),
            advantages=torch.tensor([advantage]),
            weights=torch.full((1, 2), 0.5),
            behavior_logprobs=torch.tensor([[-2.0, -1.0]], dtype=torch.float64),
        )
        loss = objective.loss(logprobs, batch)
        loss.value.backward()
        assert -loss.value.item() == pytest.approx(gain)
        assert logprobs.grad is not None
        assert (-logprobs.grad).tolist() == [pytest.approx([slope, slope])]  # ds/dlogprob = s / |y|, for every token alike
        assert loss.sums["policy/clipped_fraction"].item() == (2 if advantage > 0 else 0)


@pytest.mark.parametrize(("objective", "largest"), [(Cispo(**UNBOUNDED), 5.0), (Rloo(**UNBOUNDED), 3.0)], ids=["cispo", "rloo"])
@pytest.mark.parametrize("drift", [0.3, 1.5])
def test_weighted_likelihoods_are_the_papers_written_as_loops(objective, largest, drift):
    """2506.13585, equation 4: sg(min(r, 1 + eps)) A log pi over all tokens; 2402.14740, section 3.3: A log pi(y) over completions.

    The gradient is w * min(r, largest) * A at every token: none is dropped.
    """
    step = Step(6, 7, objective, drift=drift)
    num = sum(step.lengths) if objective.name == "cispo" else len(step.lengths)
    slopes = [
        [min(ratio_of(step, i, t), largest) * step.examples[i].advantage / num for t in range(n)]  # type: ignore[operator]
        for i, n in enumerate(step.lengths)
    ]
    expected = math.fsum(slope * step.logprobs[i][t] for i, row in enumerate(slopes) for t, slope in enumerate(row))
    value, gradient = step.loss_and_gradient()
    assert -value == pytest.approx(expected, rel=1e-6)
    for i, row in enumerate(slopes):
        assert (-gradient[i, : len(row)]).tolist() == pytest.approx(row, rel=1e-6)
        assert gradient[i, len(row) :].tolist() == [0.0] * (BUDGET - len(row))


def test_on_policy_rloo_has_the_gradient_of_plain_reinforce():
    step = Step(3, 6, Rloo(), drift=0.0)
    _, gradient = step.loss_and_gradient()
    for i, example in enumerate(step.examples):
        assert (-gradient[i, : step.lengths[i]]).tolist() == pytest.approx([example.advantage / 6] * step.lengths[i], rel=1e-6)


def test_rloo_compares_each_reward_with_the_mean_of_the_others():
    # 1 - (0 + 0.5) / 2, 0 - (1 + 0.5) / 2, 0.5 - (1 + 0) / 2
    assert advantages_of(Rloo(), group(1.0, 0.0, 0.5)) == pytest.approx([0.75, -0.75, 0.0])
    assert advantages_of(Rloo(), group(1.0)) == [0.0]


def test_reinforce_plus_plus_normalizes_over_all_tokens_of_the_step():
    # Rewards 1, 0 of 1 and 2 tokens, and 1 of 1 token: mean 2/4, variance 1/4 over four tokens.
    assert advantages_of(ReinforcePlusPlus(), group(1.0, 0.0), group(1.0)) == pytest.approx([1.0, -1.0, 1.0])


def test_reinforce_plus_plus_with_baseline_takes_each_groups_mean_off_first():
    # Groups (1, 0) and (1, 1): centered 0.5, -0.5 and 0, 0 over tokens 1, 2, 1, 2; mean -0.5/6; mean square 0.75/6.
    average = -0.5 / 6
    deviation = math.sqrt(0.75 / 6 - average**2)
    expected = [(x - average) / deviation for x in (0.5, -0.5, 0.0, 0.0)]
    assert advantages_of(ReinforcePlusPlus(group_baseline=True), group(1.0, 0.0), group(1.0, 1.0)) == pytest.approx(expected)


# The KL in the reward


def scored(rewards: list[list[float]], k1: list[list[list[float]]], objective: Objective) -> list[Example]:
    """Credited examples whose tokens have these log-ratios to the reference."""
    examples = []
    for g, (rows, kls) in enumerate(zip(rewards, k1, strict=True)):
        groups = group(*rows)
        completions = tuple(
            dataclasses.replace(c, token_ids=(5,) * len(kl), behavior_logprobs=tuple(-1.0 for _ in kl))
            for c, kl in zip(groups.completions, kls, strict=True)
        )
        credited = objective.credit([dataclasses.replace(groups, completions=completions)])
        examples += [
            dataclasses.replace(row, group=g, ref_logprobs=tuple(-1.0 - x for x in kl))
            for row, kl in zip(credited, kls, strict=True)
        ]
    return examples


def test_rloo_charges_the_kl_of_whole_completions_before_it_compares():
    """2402.14740: R = r - beta log(pi/ref), then leave-one-out. KLs 0.3, 0.1, 0.5; beta 0.5."""
    objective = Rloo(kl_coef=0.5)
    examples = scored([[1.0, 0.0, 0.5]], [[[0.1, 0.2], [0.1], [0.5, 0.0, 0.0]]], objective)
    returns = [1.0 - 0.15, 0.0 - 0.05, 0.5 - 0.25]
    expected = [r - (sum(returns) - r) / 2 for r in returns]
    assert [example.advantage for example in objective.charge(examples)] == pytest.approx(expected)


def test_grpo_charges_a_centered_kl_that_is_not_blown_up_by_the_deviation_of_the_rewards():
    objective = Grpo(kl_coef=0.5, kl_in="reward")
    examples = scored([[1.0, 0.0], [1.0, 1.0]], [[[0.4], [0.2]], [[0.01], [0.0]]], objective)
    expected = [1 - 0.05, -1 + 0.05, -0.0025, 0.0025]
    assert [example.advantage for example in objective.charge(examples)] == pytest.approx(expected, abs=1e-5)


def test_reinforce_plus_plus_charges_each_token_for_itself_and_what_follows():
    """2501.03262, equations 8 to 10: A_t = r - beta sum of k1 from t on, then normalized over all tokens of the step."""
    objective = ReinforcePlusPlus(kl_coef=0.5)
    examples = scored([[1.0], [0.0]], [[[0.2, 0.4]], [[0.0, 0.6, 0.2]]], objective)
    returns = [1 - 0.5 * 0.6, 1 - 0.5 * 0.4, -0.5 * 0.8, -0.5 * 0.8, -0.5 * 0.2]
    average = mean(returns)
    deviation = math.sqrt(mean([(x - average) ** 2 for x in returns]))
    charged = [x for example in objective.charge(examples) for x in example.advantage]  # type: ignore[union-attr]
    assert charged == pytest.approx([(x - average) / deviation for x in returns])


@pytest.mark.parametrize("objective", [Grpo(kl_in="reward"), Rloo(), ReinforcePlusPlus(), Grpo(kl_coef=0.5)], ids=repr)
def test_without_a_kl_in_the_reward_nothing_is_charged(objective):
    examples = scored([[1.0, 0.0]], [[[0.4], [0.2]]], objective)
    assert objective.charge(examples) == examples


def test_the_kl_in_the_reward_has_the_gradient_of_the_kl_of_whole_completions():
    """Two tokens of two letters each. In expectation over what the policy samples, charging k1 moves it down the reverse KL."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64).requires_grad_()  # of the first token, and after each letter
    ref = torch.tensor([-0.4, 0.1, 0.2], dtype=torch.float64)
    beta = 0.7

    def logprobs(parameters: torch.Tensor, first: int, second: int) -> torch.Tensor:
        signs = torch.tensor([1.0 - 2 * first, 1.0 - 2 * second], dtype=torch.float64)
        return torch.nn.functional.logsigmoid(signs * torch.stack([parameters[0], parameters[1 + first]]))

    texts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    ours = {text: logprobs(logits, *text) for text in texts}
    theirs = {text: logprobs(ref, *text) for text in texts}
    exact = sum(ours[x].sum().exp() * (ours[x].sum() - theirs[x].sum()) for x in texts)
    (expected,) = torch.autograd.grad(beta * exact, logits, retain_graph=True)  # type: ignore[arg-type]

    objective = Rloo(kl_coef=beta)
    total = torch.zeros(3, dtype=torch.float64)
    for one in texts:
        for other in texts:  # every group of two, as likely as it is
            rows = [
                Example((1,), (5, 5), tuple(ours[x].tolist()), 0.0, ref_logprobs=tuple(theirs[x].tolist())) for x in (one, other)
            ]
            chance = math.exp(ours[one].sum().item() + ours[other].sum().item())
            for row, text in zip(objective.charge(rows), (one, other), strict=True):
                loss = -row.advantage * ours[text].sum() / 2  # type: ignore[operator]
                total += chance * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert close(total, expected, 1e-10)
