"""What holds for every objective, whatever its paper."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_cases import ALL, DEFAULTS, FROM_PAIRS, FROM_SAMPLES, Step, advantages_of, close, group
from pydantic import TypeAdapter, ValidationError

from grpo.batch import Example, micro_batches
from grpo.objectives import AnyObjective, Cispo, Dapo, DrGrpo, Grpo, ReinforcePlusPlus, Rloo, Sft, Spin
from grpo.objectives.policy_gradient import ClippedObjective


def test_credit_carries_the_tokens_and_their_behavior_logprobs():
    first, second = Grpo().credit([group(0.0, 1.0)])
    assert first == Example((1, 2), (5,), (-1.0,), pytest.approx(-1, rel=1e-5), reward=0.0, task_id="t")
    assert second == Example((1, 2), (5, 5), (-2.0, -2.0), pytest.approx(1, rel=1e-5), reward=1.0, task_id="t")


def test_unscored_completions_are_in_neither_the_mean_nor_the_standard_deviation_nor_the_examples():
    assert advantages_of(Grpo(), group(1.0, None, 0.0, None)) == advantages_of(Grpo(), group(1.0, 0.0))
    assert advantages_of(DrGrpo(), group(1.0, None, 0.0, 0.0)) == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert advantages_of(Grpo(), group(1.0, None)) == [0.0]  # one scored completion has nothing to be compared with
    assert advantages_of(Grpo(), group(None, None)) == []


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_step_without_a_scored_completion_has_no_examples(objective):
    assert objective.credit([group(None, None)]) == []
    assert objective.credit([]) == []


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
    assert {o.name: (o.average, o.rows_per_unit, o.compares, o.needs_reference) for o in DEFAULTS} == {
        "grpo": ("sequence", 1, True, False),
        "dapo": ("token", 1, True, False),
        "dr_grpo": ("constant", 1, True, False),
        "gspo": ("sequence", 1, True, False),
        "cispo": ("token", 1, True, False),
        "rloo": ("sum", 1, True, False),
        "reinforce_plus_plus": ("token", 1, False, False),
        "dpo": ("sum", 2, True, True),
        "ipo": ("sum", 2, True, True),
        "orpo": ("sum", 2, True, False),
        "simpo": ("sum", 2, True, False),
        "spin": ("sum", 2, False, True),
        "kto": ("sum", 1, False, True),
        "sft": ("token", 1, False, False),
    }
    assert [o.name for o in DEFAULTS if o.reference_is_last_iterate] == ["spin"]
    assert ReinforcePlusPlus(group_baseline=True).compares


@pytest.mark.parametrize("objective", FROM_SAMPLES, ids=repr)
def test_coefficient_0_asks_for_no_reference_and_another_does(objective):
    assert not objective.needs_reference
    assert not objective.needs_zero_advantages
    for kl_in, computes_flat_rows in (("loss", True), ("reward", False)):
        charged = objective.model_copy(update={"kl_coef": 0.1, "kl_in": kl_in})
        assert charged.needs_reference
        assert charged.needs_zero_advantages == computes_flat_rows


def test_the_defaults_are_the_papers():
    fields = {"clip_low", "clip_high", "kl_in", "beta", "margin", "odds_weight"}
    assert {o.name: o.model_dump(include=fields) for o in DEFAULTS} == {
        "grpo": {"clip_low": 0.2, "clip_high": 0.2, "kl_in": "loss"},
        "dapo": {"clip_low": 0.2, "clip_high": 0.28, "kl_in": "loss"},  # 2503.14476, section 4.1
        "dr_grpo": {"clip_low": 0.2, "clip_high": 0.2, "kl_in": "loss"},
        "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "kl_in": "loss"},  # 2507.18071, section 5.1
        "cispo": {"clip_high": 4.0, "kl_in": "loss"},
        "rloo": {"kl_in": "reward"},  # 2402.14740, section 2
        "reinforce_plus_plus": {"clip_low": 0.2, "clip_high": 0.2, "kl_in": "reward"},  # 2501.03262, equation 8
        "dpo": {"beta": 0.1},
        "ipo": {"beta": 0.1},
        "orpo": {"odds_weight": 0.1},
        "simpo": {"beta": 2.0, "margin": 1.0},
        "spin": {"beta": 0.1},
        "kto": {"beta": 0.1},
        "sft": {},
    }


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_config_table_names_its_objective(objective):
    assert TypeAdapter(AnyObjective).validate_python(objective.model_dump()) == objective


def test_the_page_about_objectives_names_each_with_its_paper():
    page = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` ?(?:\[([\d.]+)\])?", page, re.MULTILINE))
    papers = {o.name: re.search(r"arXiv:([\d.]+)\.", type(o).model_fields["name"].description or "") for o in DEFAULTS}
    assert {name: paper for name, paper in rows.items() if name in papers} == {
        name: match[1] if match else "" for name, match in papers.items()
    }


@pytest.mark.parametrize("bounds", [(1.5, 2.0), (0.5, 0.9), (-1.0, 2.0), (math.nan, 2.0)])
def test_bounds_that_leave_out_what_is_on_policy_are_refused(bounds):
    with pytest.raises(ValidationError, match="the ratio is 1 on policy"):
        Grpo(sequence_bounds=bounds)


@pytest.mark.parametrize("objective", ALL, ids=repr)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), num_units=st.integers(1, 10), budget=st.integers(1, 60), chance=st.randoms())
def test_no_division_into_micro_batches_and_no_order_changes_loss_or_gradient(objective, seed, num_units, budget, chance):
    step = Step(seed, num_units, objective, drift=0.6)  # far enough for some rows to be truncated or left out
    value, gradient = step.loss_and_gradient()
    size = objective.rows_per_unit
    parts = micro_batches(step.examples, tokens_per_micro_batch=budget, rows_per_unit=size)
    chance.shuffle(parts)
    shuffled = []
    for part in parts:
        units = [part[i : i + size] for i in range(0, len(part), size)]
        chance.shuffle(units)
        shuffled.append([row for unit in units for row in unit])
    divided_value, divided_gradient = step.loss_and_gradient(shuffled)
    assert divided_value == pytest.approx(value, rel=1e-12, abs=1e-14)
    assert close(divided_gradient, gradient, 1e-12)


@pytest.mark.parametrize("objective", FROM_SAMPLES, ids=repr)
def test_leaving_out_rows_with_advantage_0_gives_the_gradient_of_computing_them(objective):
    step = Step(4, 9, objective)
    taught = [i for i, example in enumerate(step.examples) if not example.is_flat]
    value, gradient = step.loss_and_gradient()
    assert len(taught) < 9
    short_value, short_gradient = step.loss_and_gradient([taught])
    assert short_value == pytest.approx(value, rel=1e-12)
    assert close(short_gradient, gradient, 1e-12)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_nan_outside_the_completions_changes_nothing(objective):
    step = Step(5, 4, objective)
    batch = step.batch(list(range(len(step.lengths))))
    logprobs = step.table()[:, : batch.mask.shape[1]]
    assert not batch.mask.all()

    def with_outside(value: float):
        def fill(scores):
            return None if scores is None else scores.masked_fill(~batch.mask, value)

        filled = dataclasses.replace(batch, behavior_logprobs=fill(batch.behavior_logprobs), ref_logprobs=fill(batch.ref_logprobs))
        table = logprobs.masked_fill(~batch.mask, value).requires_grad_()
        loss = objective.loss(table, filled)
        loss.value.backward()
        logged = {name: each.tolist() for name, each in {**loss.sums, **loss.means}.items()}
        return loss.value.item(), table.grad.tolist() if table.grad is not None else None, logged

    assert with_outside(math.nan) == with_outside(0.0) == with_outside(-math.inf)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_nan_inside_a_completion_is_never_hidden(objective):
    step = Step(5, 4, objective)
    step.logprobs[1][0] = math.nan
    value, _ = step.loss_and_gradient()
    assert math.isnan(value)


def smooth(objective):
    """Without what has a corner or holds a factor still, so that finite differences see the gradient."""
    options = {"clip_low": 1.0, "clip_high": 1e6} if isinstance(objective, ClippedObjective) else {}
    return objective.model_copy(update=options)


@pytest.mark.parametrize("objective", [o for o in ALL if not isinstance(o, (Cispo, Rloo))], ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_finite_differences(objective, seed):
    step = Step(seed, 5, smooth(objective), drift=0.1)
    batch = step.batch(list(range(len(step.lengths))))
    table = step.table()[:, : batch.mask.shape[1]].nan_to_num(-1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: step.objective.loss(x, batch).value, table, rtol=1e-6, atol=1e-9)


@settings(max_examples=50)
@given(reward=st.floats(0, 1), size=st.integers(1, 16))
def test_rewards_that_are_all_equal_have_no_gradient_under_any_objective_that_compares(reward, size):
    flat = [group(*[reward] * size, task_id="a"), group(*[reward] * size, task_id="b")]
    for objective in FROM_SAMPLES:
        assert advantages_of(objective, *flat) == [0.0] * (2 * size), objective
    for objective in (o for o in FROM_PAIRS if not isinstance(o, Spin)):
        assert not objective.keep(flat[0])
        assert objective.credit(flat) == []


EIGHTHS = st.integers(0, 4).map(lambda k: k / 8)


@settings(max_examples=50)
@given(rewards=st.lists(EIGHTHS, min_size=2, max_size=8), constant=EIGHTHS)
def test_a_constant_added_to_all_rewards_changes_nothing(rewards, constant):
    plain, raised = group(*rewards), group(*(reward + constant for reward in rewards))
    for objective in (*FROM_SAMPLES, *FROM_PAIRS):
        assert advantages_of(objective, raised) == pytest.approx(advantages_of(objective, plain), abs=1e-12), objective


def test_the_loss_of_sft_is_the_mean_negative_loglikelihood_of_all_tokens():
    step = Step(7, 5, Sft())
    logprobs = [x for row in step.logprobs for x in row]
    value, gradient = step.loss_and_gradient()
    assert value == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-6)
    assert gradient[gradient != 0].tolist() == pytest.approx([-1 / len(logprobs)] * len(logprobs), rel=1e-6)
