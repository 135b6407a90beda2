"""The objectives that learn from preferences, against their papers: by hand, and by loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_cases import FROM_PAIRS, Step, group

from grpo.batch import Example, make_batch
from grpo.objectives import Dpo, Ipo, Kto, Objective, Orpo, Simpo, Spin
from grpo.objectives.kto import mismatched
from grpo.objectives.surrogate import Loss
from rollout.errors import TaskError
from rollout.types import Completion, Group
from verifiers.types import Task, Verdict


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# One pair: log-probabilities -1, -2 chosen against -2, -3, -4 rejected; the reference gives -2, -2 and -2, -2, -3.
CHOSEN, REJECTED = [-1.0, -2.0], [-2.0, -3.0, -4.0]
REF_CHOSEN, REF_REJECTED = [-2.0, -2.0], [-2.0, -2.0, -3.0]


def loss_of(objective: Objective) -> Loss:
    ref = (tuple(REF_CHOSEN), tuple(REF_REJECTED)) if objective.needs_reference else (None, None)
    rows = [
        Example((1,), (5, 6), None, 1.0, ref_logprobs=ref[0]),
        Example((1,), (7, 8, 9), None, -1.0, ref_logprobs=ref[1]),
    ]
    logprobs = torch.tensor([[*CHOSEN, math.nan], REJECTED], dtype=torch.float64)
    return objective.loss(logprobs, make_batch(rows, [0.5, 0.5]))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # h = (-3 + 4) - (-9 + 7) = 3
        (Dpo(beta=0.5), math.log(1 + math.exp(-1.5))),
        (Spin(beta=0.5), math.log(1 + math.exp(-1.5))),
        (Ipo(beta=0.25), (3 - 2) ** 2),
        # -3/2 and -9/3
        (Simpo(beta=2.0, margin=1.0), math.log(1 + math.exp(-(-3 + 6 - 1)))),
        # P = e^-1.5 and e^-3: log odds -1.5 - log(1 - e^-1.5) and -3 - log(1 - e^-3)
        (
            Orpo(odds_weight=0.2),
            1.5 + 0.2 * math.log(1 + math.exp(-((-1.5 - math.log(1 - math.exp(-1.5))) - (-3 - math.log(1 - math.exp(-3)))))),
        ),
    ],
    ids=lambda each: each.name if isinstance(each, Objective) else "",
)
def test_a_pair_by_hand(objective, expected):
    loss = loss_of(objective)
    assert loss.value.item() == pytest.approx(expected, rel=1e-7)
    assert loss.means["preference/accuracy"].tolist() == [1.0, 1.0]


def test_implicit_rewards_are_logged():
    means = {name: value.tolist() for name, value in loss_of(Dpo(beta=0.5)).means.items()}
    assert means == {
        "preference/accuracy": [1.0, 1.0],
        "preference/margin": [pytest.approx(1.5), 1.0],
        "preference/chosen": [pytest.approx(0.5), 1.0],
        "preference/rejected": [pytest.approx(-1.0), 1.0],
    }


def log_ratio(step: Step, i: int) -> float:
    """log(pi(y|x) / ref(y|x)) from the two probabilities."""
    return math.log(math.prod(map(math.exp, step.logprobs[i])) / math.prod(map(math.exp, step.ref[i])))


def pair_by_loops(step: Step, w: int, el: int) -> float:
    """The loss of one pair as its paper writes it."""
    objective = step.objective
    pi = [math.prod(map(math.exp, row)) for row in step.logprobs]
    length = step.lengths
    if isinstance(objective, (Dpo, Spin)):  # 2305.18290, equation 7; 2401.01335, equation 4.7 with the logistic loss
        return -math.log(sigmoid(objective.beta * log_ratio(step, w) - objective.beta * log_ratio(step, el)))
    if isinstance(objective, Ipo):  # 2310.12036, equation 17
        return (log_ratio(step, w) - log_ratio(step, el) - 1 / (2 * objective.beta)) ** 2
    if isinstance(objective, Simpo):  # 2405.14734, equation 6
        beta = objective.beta
        return -math.log(sigmoid(beta / length[w] * math.log(pi[w]) - beta / length[el] * math.log(pi[el]) - objective.margin))
    assert isinstance(objective, Orpo)  # 2403.07691, equations 3, 4, 6 and 7
    p_w, p_l = pi[w] ** (1 / length[w]), pi[el] ** (1 / length[el])
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -math.log(p_w) - objective.odds_weight * math.log(sigmoid(math.log(odds_ratio)))


@pytest.mark.parametrize("objective", FROM_PAIRS, ids=repr)
def test_the_loss_is_the_papers_written_as_loops(objective):
    step = Step(8, 6, objective)
    value, _ = step.loss_and_gradient()
    assert value == pytest.approx(mean([pair_by_loops(step, i, i + 1) for i in range(0, 12, 2)]), rel=1e-6)


def test_kto_is_the_paper_written_as_loops():
    """2402.01306, section 4.1: the mean of lambda_y - v."""
    objective = Kto(beta=0.7, desirable_weight=1.25, undesirable_weight=0.5)
    step, z = Step(8, 12, objective), Step.reference_point
    losses = []
    for i, example in enumerate(step.examples):
        if example.reward == 1:
            losses.append(1.25 - 1.25 * sigmoid(0.7 * (log_ratio(step, i) - z)))
        else:
            losses.append(0.5 - 0.5 * sigmoid(0.7 * (z - log_ratio(step, i))))
    value, gradient = step.loss_and_gradient()
    assert {example.reward for example in step.examples} == {0.0, 1.0}
    assert value == pytest.approx(mean(losses), rel=1e-6)
    for i, example in enumerate(step.examples):
        signs = {-math.copysign(1, x) for x in gradient[i, : step.lengths[i]].tolist()}
        assert signs == {1.0 if example.reward == 1 else -1.0}, "what is desirable becomes likelier, what is not less so"


def test_kto_logs_each_kind_apart():
    objective = Kto(beta=0.5)
    step = Step(8, 12, objective)
    means = objective.loss(step.table()[:, : max(step.lengths)], step.batch(list(range(12)))).means
    for name, reward in (("preference/chosen", 1.0), ("preference/rejected", 0.0)):
        values = [0.5 * log_ratio(step, i) for i, example in enumerate(step.examples) if example.reward == reward]
        assert means[name].tolist() == [pytest.approx(sum(values)), len(values)]


def test_the_reference_point_is_a_mean_that_is_never_negative():
    assert Kto().reference_point(torch.tensor([0.5, 0.25])) == 0.375
    assert Kto().reference_point(torch.tensor([0.5, -1.0])) == 0.0
    assert Kto().reference_point(torch.tensor([])) == 0.0


def row(prompt: int, token: int) -> Example:
    return Example((prompt,), (token,), None, 1.0)


def test_mismatched_rows_pair_each_prompt_with_the_completion_of_another():
    rows = [row(1, 10), row(1, 11), row(2, 20), row(3, 30)]
    own = {(1,): {(10,), (11,)}, (2,): {(20,)}, (3,): {(30,)}}
    probes = mismatched(rows)
    assert sorted(probe.prompt_ids for probe in probes) == [(1,), (1,), (2,), (3,)]
    assert all(probe.token_ids not in own[probe.prompt_ids] for probe in probes)


def test_one_prompt_alone_is_mismatched_with_its_other_completions_and_one_row_with_nothing():
    assert {probe.token_ids for probe in mismatched([row(1, 10), row(1, 11)])} == {(10,), (11,)}
    assert mismatched([row(1, 10)]) == []


@given(st.permutations([row(i % 3, 10 + i) for i in range(7)]))
def test_the_order_of_the_rows_does_not_change_what_they_are_mismatched_with(rows):
    first = [row(i % 3, 10 + i) for i in range(7)]
    assert set(mismatched(rows)) == set(mismatched(first))


# From groups to pairs


def test_the_best_completion_is_chosen_over_the_worst_the_first_of_equals():
    rows = Dpo().credit([group(0.5, 1.0, 0.0, 1.0, 0.0), group(None, 0.2, 0.7, task_id="u")])
    assert [(len(r.token_ids), r.advantage, r.reward, r.task_id) for r in rows] == [
        (2, 1.0, 1.0, "t"),
        (3, -1.0, 0.0, "t"),
        (3, 1.0, 0.7, "u"),
        (2, -1.0, 0.2, "u"),
    ]


def test_sampled_rows_keep_their_behavior_logprobs_so_that_a_lost_sync_is_noticed():
    assert all(r.behavior_logprobs is not None for r in Dpo().credit([group(1.0, 0.0)]))


@pytest.mark.parametrize("objective", [o for o in FROM_PAIRS if not isinstance(o, Spin)], ids=repr)
def test_groups_without_a_pair_are_replaced(objective):
    assert objective.keep(group(1.0, 0.0))
    assert not objective.keep(group(1.0, 1.0))
    assert not objective.keep(group(1.0, None))
    assert objective.credit([group(1.0, 1.0)]) == []


def duel(*tokens: tuple[int, ...], demonstration: tuple[int, ...]) -> Group:
    """Samples, and the demonstration of their task after them."""
    completions = [Completion(i, (1,), ids, "x", "stop", (-1.0,) * len(ids)) for i, ids in enumerate(tokens)]
    completions.append(Completion(len(tokens), (1,), demonstration, "x", "stop"))
    verdicts = [*(Verdict(1.0, True, ()) for _ in tokens), Verdict(1.0, True, ())]
    return Group(Task("t", "p", "r", "math"), tuple(completions), tuple(verdicts))


def test_spin_prefers_the_demonstration_to_each_sample_however_good():
    rows = Spin().credit([duel((5,), (6, 7), demonstration=(8, 9))])
    assert [(r.token_ids, r.advantage) for r in rows] == [((8, 9), 1.0), ((5,), -1.0), ((8, 9), 1.0), ((6, 7), -1.0)]
    assert all(r.behavior_logprobs is None for r in rows)


def test_spin_learns_nothing_from_a_sample_that_is_the_demonstration():
    assert not Spin().keep(duel((8, 9), demonstration=(8, 9)))
    assert Spin().keep(duel((8, 9), (8,), demonstration=(8, 9)))
    assert [r.token_ids for r in Spin().credit([duel((8, 9), (8,), demonstration=(8, 9))])] == [(8, 9), (8,)]


def recorded(*tokens: tuple[int, ...], rewards: tuple[float, ...] = (1.0, 0.0)) -> Group:
    completions = tuple(Completion(i, (1,), ids, "x", "stop") for i, ids in enumerate(tokens))
    return Group(Task("row 7", "p", "r", "math"), completions, tuple(Verdict(reward, reward == 1, ()) for reward in rewards))


@pytest.mark.parametrize(
    ("objective", "bad", "message"),
    [
        (Dpo(), recorded((5, 6), (5, 6)), "task row 7: its chosen completion and its rejected one are the same tokens"),
        (Dpo(), recorded((), (5,)), "task row 7: its chosen completion has no tokens. Drop the row."),
        (Simpo(), recorded((5,), ()), "task row 7: its rejected completion has no tokens. Drop the row."),
        (Kto(), recorded((5,), (6,), rewards=(1.0, 0.5)), "task row 7: the reward is 0.5, and kto learns from completions that"),
        (Kto(), recorded((), rewards=(1.0,)), "task row 7: its completion has no tokens. Drop the row."),
    ],
)
def test_groups_of_the_wrong_form_are_refused_by_name(objective, bad, message):
    with pytest.raises(TaskError) as caught:
        objective.credit([bad])
    assert message in str(caught.value)


@pytest.mark.parametrize("log_p", [-1e-12, 0.0, -1e-3, -40.0])
def test_the_log_odds_are_finite_at_both_ends(log_p):
    from grpo.objectives.orpo import log_odds

    for dtype in (torch.float32, torch.float64):
        p = torch.tensor([log_p], dtype=dtype, requires_grad=True)
        value = log_odds(p)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert p.grad is not None
        assert torch.isfinite(p.grad).all()
    if log_p <= -1e-3:
        assert value.item() == pytest.approx(math.log(math.exp(log_p) / (1 - math.exp(log_p))))
