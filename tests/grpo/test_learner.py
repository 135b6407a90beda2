import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import make_learner, on_policy, random_examples, random_rows, same_weights, weights_of
from objective_cases import DEFAULTS, UNBOUNDED, WITH_KL
from torch import Tensor

from grpo.batch import Example, make_batch
from grpo.learner import Learner, MismatchTooLarge
from grpo.learner_config import LearnerConfig
from grpo.metrics import UpdateTotals
from grpo.nonfinite import NotFinite
from grpo.objectives import Dapo, Dpo, DrGrpo, Grpo, Kto, Rloo, Sft
from grpo.optimizer import rate_factor
from rollout.snapshot import verify
from sandbox.errors import SystemFault, UserError

UNEQUAL = (1.0, -0.5, 0.25)


def sampled(learner: Learner, count: int = 8, *, advantages: tuple[float, ...] = UNEQUAL, seed: int = 0) -> list[Example]:
    return on_policy(learner._policy, random_examples(count, seed=seed, advantages=advantages))


def logprob(learner: Learner, example: Example) -> float:
    with torch.no_grad():
        return learner._policy.score(make_batch([example], [0.0]), temperature=1.0).logprobs.sum().item()


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("objective", [Grpo(), Dapo(), DrGrpo()], ids=lambda objective: objective.name)
async def test_what_was_good_becomes_likelier_and_what_was_bad_less_likely(model_path, objective, rank):
    learner = make_learner(model_path, objective=objective, rank=rank)
    good, bad = sampled(learner, 2, advantages=(1.0, -1.0))
    before = logprob(learner, good), logprob(learner, bad)
    for _ in range(3):
        await learner.update(on_policy(learner._policy, [good, bad]))
    assert logprob(learner, good) > before[0]
    assert logprob(learner, bad) < before[1]


async def test_sft_learns_recorded_examples(model_path):
    learner = make_learner(model_path, objective=Sft(), max_mismatch=0.01)  # nothing to compare with: never too large
    demonstrations = [dataclasses.replace(e, behavior_logprobs=None, advantage=1.0) for e in random_examples(6)]
    losses = [(await learner.update(demonstrations)).metrics["loss/value"] for _ in range(8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5
    num_tokens = sum(len(e.token_ids) for e in demonstrations)
    first = make_learner(model_path, objective=Sft())
    assert losses[0] == pytest.approx(-sum(logprob(first, e) for e in demonstrations) / num_tokens, rel=1e-5)


class Gradient(NamedTuple):
    loss: float
    flat: Tensor
    skipped: float


def gradient(learner: Learner, examples: list[Example], *, tokens_per_micro_batch: int = 10_000) -> Gradient:
    """Of one optimizer step over these examples, before anything is done with it."""
    learner._config = learner._config.model_copy(update={"tokens_per_micro_batch": tokens_per_micro_batch})
    totals = UpdateTotals()
    learner._compute_gradient(examples, totals)
    flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in learner._policy.trainable.values()]
    metrics = totals.metrics()
    return Gradient(metrics["loss/value"], torch.cat(flat), metrics["learner/skipped_fraction"])


def assert_close(actual: Gradient, expected: Gradient, *, rel: float) -> None:
    assert actual.loss == pytest.approx(expected.loss, rel=rel, abs=rel)
    assert (actual.flat - expected.flat).norm() <= rel * expected.flat.norm()


# Each with its defaults, and with the bounds opened so wide that no row of random numbers is left out.
EXACT = {objective.name: objective for objective in DEFAULTS}
EXACT |= {f"{name} unbounded": o.model_copy(update=UNBOUNDED) for name, o in EXACT.items() if hasattr(o, "sequence_bounds")}
EXACT |= {f"{objective.name} with kl": objective.model_copy(update=UNBOUNDED) for objective in WITH_KL}
# One of each kind in the quick tests: a mean over completions, over tokens, a ratio of sequences, a KL, pairs, a reference point.
QUICK = ("grpo with kl", "dapo", "gspo", "dpo", "orpo", "kto", "sft")


def slow_but(names: Iterable[str], quick: Sequence[str]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def exact_learners(tmp_path_factory) -> dict[str, Learner]:
    """One for each objective, on a model that computes in float64 throughout: GPT-2 has no part that insists on float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2)
    ).save_pretrained(folder)
    learners = {name: make_learner(str(folder), objective=objective) for name, objective in EXACT.items()}
    for learner in learners.values():
        policy = learner._policy
        policy.model.double()
        if policy.reference_weights is not None:
            policy.reference_weights = {name: 1.1 * weight.double() for name, weight in policy.reference_weights.items()}
    return learners


@pytest.mark.parametrize("name", slow_but(EXACT, QUICK))
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), count=st.integers(1, 6), budget=st.integers(1, 120), chance=st.randoms())
def test_micro_batches_and_row_order_and_padding_change_neither_loss_nor_gradient(
    exact_learners, name, seed, count, budget, chance
):
    learner = exact_learners[name]
    examples = learner._with_reference(random_rows(EXACT[name], count, seed=seed))
    one_by_one = gradient(learner, examples, tokens_per_micro_batch=1)  # no padding but between the two of a pair
    size = EXACT[name].rows_per_unit
    units = [examples[i : i + size] for i in range(0, len(examples), size)]
    chance.shuffle(units)
    shuffled = [row for unit in units for row in unit]
    assert_close(gradient(learner, shuffled, tokens_per_micro_batch=budget), one_by_one, rel=1e-12)


@pytest.mark.parametrize(
    "name", slow_but([name for name in EXACT if not EXACT[name].probes(random_rows(EXACT[name], 4))], ("grpo with kl", "dpo"))
)
@settings(max_examples=3)
@given(seed=st.integers(0, 1000), count=st.integers(1, 6), num_ranks=st.integers(2, 5))
def test_what_is_dealt_to_ranks_adds_up_to_the_whole(exact_learners, name, seed, count, num_ranks):
    """Without processes; tests/grpo/test_ranks.py has them, and the objectives that ask the ranks before the gradient."""
    learner = exact_learners[name]
    examples = learner._with_reference(random_rows(EXACT[name], count, seed=seed))
    whole = gradient(learner, examples)
    parts = []
    for rank in range(num_ranks):
        learner._policy.ranks.rank, learner._policy.ranks.count = rank, num_ranks
        parts.append(gradient(learner, examples))
    learner._policy.ranks.rank, learner._policy.ranks.count = 0, 1
    total = Gradient(sum(part.loss for part in parts), torch.stack([part.flat for part in parts]).sum(0), whole.skipped)
    assert_close(total, whole, rel=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_random_rows_do_have_a_gradient(exact_learners, name):
    """Otherwise the property above would say little."""
    learner = exact_learners[name]
    assert gradient(learner, learner._with_reference(random_rows(EXACT[name], 12))).flat.norm() > 1e-3


@pytest.mark.parametrize("objective", [Grpo(**UNBOUNDED), Dpo(), Kto()], ids=lambda objective: objective.name)
def test_in_float32_micro_batches_change_them_by_rounding_only(model_path, objective):
    learner = make_learner(model_path, objective=objective)
    examples = learner._with_reference(random_rows(objective, 9))
    one_by_one = gradient(learner, examples, tokens_per_micro_batch=1)
    assert one_by_one.flat.norm() > 1e-3
    for budget in (20, 50, 1000):
        assert_close(gradient(learner, examples, tokens_per_micro_batch=budget), one_by_one, rel=1e-6)


@pytest.mark.parametrize("name", [f"{name} unbounded" for name in ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo")])
def test_flat_rows_are_not_computed_and_the_gradient_is_that_of_computing_them(exact_learners, name, monkeypatch):
    examples = random_examples(9, advantages=(1.0, 0.0, -0.5))
    skipping = gradient(exact_learners[name], examples)
    monkeypatch.setattr(Learner, "_has_gradient", lambda self, unit: True)
    computing = gradient(exact_learners[name], examples)
    assert (skipping.skipped, computing.skipped) == (pytest.approx(1 / 3), 0)
    assert skipping.flat.norm() > 0
    assert_close(skipping, computing, rel=1e-12)


def away_from_the_reference(learner: Learner) -> None:
    with torch.no_grad():
        for parameter in learner._policy.trainable.values():
            parameter.mul_(1.1)


@pytest.mark.parametrize("objective", [Grpo(kl_coef=0.1), Grpo(kl_coef=0.1, kl_in="reward"), Rloo(kl_coef=0.1)], ids=repr)
def test_with_a_kl_flat_rows_are_learnt_from(model_path, objective):
    learner = make_learner(model_path, objective=objective)
    away_from_the_reference(learner)
    examples = learner._with_reference(sampled(learner, 4, advantages=(0.0,)))
    assert all(example.ref_logprobs is not None for example in examples)
    flat = gradient(learner, examples)
    assert flat.skipped == 0
    assert flat.flat.norm() > 0


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
async def test_a_kl_alone_leads_back_to_the_reference(model_path, kl_in):
    learner = make_learner(model_path, objective=Grpo(kl_coef=1.0, kl_in=kl_in), learning_rate=3e-3)
    away_from_the_reference(learner)
    fixed = random_examples(24, advantages=(0.0,))

    def distance() -> float:
        return learner._scorer.log_ratios(fixed).square().mean().item()

    before = distance()
    for _ in range(6):
        await learner.update(sampled(learner, 24, advantages=(0.0,)))
    assert distance() < 0.7 * before


@pytest.mark.parametrize("objective", [*DEFAULTS, *WITH_KL], ids=repr)
def test_only_an_objective_that_asks_for_it_keeps_a_reference(model_path, objective):
    learner = make_learner(model_path, objective=objective)
    assert (learner._policy.reference_weights is not None) == objective.needs_reference


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
async def test_a_restored_learner_goes_on_as_if_it_had_never_stopped_to_the_bit(model_path, tmp_path, rank):
    options = {"rank": rank, "warmup_steps": 4, "schedule": "cosine", "mini_batches": 2, "weight_decay": 0.1}
    first = make_learner(model_path, **options)
    examples = sampled(first)
    for _ in range(2):
        await first.update(examples)
    await first.save(str(tmp_path))
    second = make_learner(model_path, **options, seed=99)
    await second.restore(str(tmp_path))
    for _ in range(2):
        one, other = await first.update(examples), await second.update(examples)
        assert without_times(one.metrics) == without_times(other.metrics)
    assert same_weights(weights_of(first), weights_of(second))


async def test_a_resumed_run_takes_its_learning_rate_and_decay_from_its_own_config(model_path, tmp_path):
    first = make_learner(model_path, learning_rate=1e-2, weight_decay=0.5)
    examples = sampled(first)
    await first.update(examples)
    await first.save(str(tmp_path))
    second = make_learner(model_path, learning_rate=1e-3, weight_decay=0.0)
    await second.restore(str(tmp_path))
    assert (await second.update(examples)).metrics["policy/learning_rate"] == 1e-3
    assert {group["weight_decay"] for group in second._optimizer.param_groups} == {0.0}


async def test_a_checkpoint_of_another_model_is_refused_by_name_and_shape(model_path, tmp_path):
    await make_learner(model_path, rank=2).save(str(tmp_path))
    with pytest.raises(UserError, match=r"not those of this model: .* Resume with the model"):
        await make_learner(model_path).restore(str(tmp_path))
    other = make_learner(model_path, rank=3)
    before = weights_of(other)
    with pytest.raises(UserError, match=r"shape \(2, 40\) there and \(3, 40\) here"):
        await other.restore(str(tmp_path))
    assert same_weights(before, weights_of(other))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.25, 0.5, 0.75, 1, *(0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6))]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    config = LearnerConfig(warmup_steps=4, schedule=schedule)
    assert [rate_factor(step, config, 10) for step in range(10)] == pytest.approx(expected)
    assert rate_factor(0, LearnerConfig(schedule=schedule), 10) == 1


async def test_the_reported_learning_rate_is_the_one_that_was_used(model_path):
    learner = make_learner(model_path, learning_rate=0.1, warmup_steps=2, schedule="linear", total_steps=4)
    examples = sampled(learner)
    rates = []
    for _ in range(4):
        rates.append((await learner.update(examples)).metrics["policy/learning_rate"])
        assert {group["lr"] for group in learner._optimizer.param_groups} == {rates[-1]}
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05])


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e6])
async def test_gradients_are_scaled_down_to_their_greatest_norm(model_path, max_grad_norm, monkeypatch):
    learner = make_learner(model_path, max_grad_norm=max_grad_norm)
    norms = []
    monkeypatch.setattr(
        learner._optimizer, "step", lambda: norms.append(torch.cat([p.grad.flatten() for p in trainable.values()]).norm().item())
    )
    trainable = learner._policy.trainable
    reported = (await learner.update(sampled(learner))).metrics["policy/grad_norm"]
    assert reported > 1e-2
    assert norms == [pytest.approx(min(reported, max_grad_norm), rel=1e-3)]


def test_only_matrices_decay(model_path):
    groups = make_learner(model_path, weight_decay=0.1)._optimizer.param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.1, {2}), (0.0, {1})]


async def test_mini_batches_use_each_row_once_and_later_ones_move_off_policy_until_the_clip_acts(model_path, monkeypatch):
    learner = make_learner(model_path, mini_batches=3, learning_rate=0.05)
    examples = sampled(learner, 10)
    seen: list[list[Example]] = []
    ratios: list[float] = []
    compute = learner._compute_gradient

    def spy(rows: list[Example], totals: UpdateTotals) -> bool:
        seen.append(rows)
        now = [logprob(learner, row) - sum(row.behavior_logprobs or ()) for row in rows]
        ratios.append(max(abs(x) for x in now))
        return compute(rows, totals)

    monkeypatch.setattr(learner, "_compute_gradient", spy)
    metrics = (await learner.update(examples)).metrics
    assert [row for rows in seen for row in rows] == examples
    assert [len(rows) for rows in seen] == [3, 4, 3]
    assert metrics["learner/optimizer_steps"] == 3
    assert ratios[0] < 1e-4
    assert min(ratios[1:]) > 0.1
    assert metrics["policy/clipped_fraction"] > 0
    assert metrics["mismatch/abs_max"] < 1e-5  # measured before any weight moved


async def test_engine_and_learner_that_disagree_stop_the_run_before_any_weight_moves(model_path):
    learner = make_learner(model_path, max_mismatch=0.05)
    examples = sampled(learner)
    shifted = [dataclasses.replace(e, behavior_logprobs=tuple(x - 0.1 for x in e.behavior_logprobs or ())) for e in examples]
    before = weights_of(learner)
    with pytest.raises(MismatchTooLarge, match=r"differ by 0\.1 .* learner\.max_mismatch = 0\.05"):
        await learner.update(shifted)
    assert same_weights(before, weights_of(learner))
    metrics = (await learner.update(examples)).metrics
    assert metrics["mismatch/abs_mean"] < 1e-5


async def test_a_mismatch_is_found_behind_a_flat_mini_batch_too(model_path):
    learner = make_learner(model_path, max_mismatch=0.05, mini_batches=2)
    flat, taught = random_examples(2, advantages=(0.0, 1.0))
    with pytest.raises(MismatchTooLarge):
        await learner.update([flat, taught])


def poisoned(examples: list[Example]) -> list[Example]:
    """With one row whose engine gave no numbers."""
    return [dataclasses.replace(examples[0], behavior_logprobs=(math.nan,) * len(examples[0].token_ids)), *examples[1:]]


async def test_an_engine_that_gives_no_numbers_on_policy_stops_the_run_before_any_weight_moves(model_path):
    learner = make_learner(model_path, max_mismatch=0.05)
    before = weights_of(learner)
    with pytest.raises(MismatchTooLarge):
        await learner.update(poisoned(sampled(learner)))
    assert same_weights(before, weights_of(learner))


async def test_a_step_that_is_not_finite_is_left_out_and_counted_and_nothing_of_it_stays_behind(model_path):
    learner, other = make_learner(model_path, learning_rate=0.01), make_learner(model_path, learning_rate=0.01)
    examples = sampled(learner)
    before = weights_of(learner)
    metrics = (await learner.update(poisoned(examples))).metrics
    assert same_weights(before, weights_of(learner))
    assert (metrics["learner/nonfinite_steps"], metrics["learner/optimizer_steps"]) == (1, 0)
    assert metrics["loss/value"] == 0
    assert "policy/entropy" not in metrics, "means over a step that was left out"
    await learner.update(examples)
    await other.update(examples)
    assert same_weights(weights_of(other), weights_of(learner))


async def test_one_mini_batch_that_is_not_finite_leaves_the_others_alone(model_path):
    learner = make_learner(model_path, mini_batches=2)
    metrics = (await learner.update(poisoned(sampled(learner, 8)))).metrics
    assert (metrics["learner/nonfinite_steps"], metrics["learner/optimizer_steps"]) == (1, 1)
    assert math.isfinite(metrics["loss/value"])
    assert math.isfinite(metrics["policy/entropy"])


async def test_three_in_a_row_stop_the_run_with_their_rows_in_the_run_folder(model_path, tmp_path):
    learner = make_learner(model_path, fault_folder=str(tmp_path / "faults"))
    examples = sampled(learner)
    bad = poisoned([dataclasses.replace(example, task_id=f"t{i}") for i, example in enumerate(examples)])
    for rows in (bad, bad, examples, bad, bad):  # a step between them starts the count over
        await learner.update(rows)
    before = weights_of(learner)
    with pytest.raises(NotFinite, match=r"update 6: .* in 3 optimizer steps in a row .* lie in .*update-000006\.jsonl"):
        await learner.update(bad)
    assert same_weights(before, weights_of(learner))
    written = [json.loads(line) for line in (tmp_path / "faults" / "update-000006.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in written] == [f"t{i}" for i in range(len(examples))]
    assert math.isnan(written[0]["behavior_logprobs"][0])
    assert written[1]["token_ids"] == list(examples[1].token_ids)


async def test_a_row_longer_than_the_model_is_refused_by_name(model_path):
    learner = make_learner(model_path)  # 64 positions
    fits = Example((5,) * 60, (6,) * 4, (-1.0,) * 4, 1.0)
    await learner.update([fits])
    long = dataclasses.replace(fits, token_ids=(6,) * 5, behavior_logprobs=(-1.0,) * 5, task_id="row 7")
    with pytest.raises(
        UserError, match=r"task row 7: prompt and completion have 60 \+ 5 tokens, and the model has positions for 64"
    ):
        await learner.update([fits, long])


@pytest.mark.parametrize(
    ("examples", "skipped"),
    [
        (random_examples(4, advantages=(0.0,)), 1.0),
        ([Example((5, 6), (), (), 1.0)], 1.0),
        ([], 0.0),
    ],
    ids=["all flat", "an empty completion", "nothing scored"],
)
async def test_a_step_without_anything_to_learn_moves_nothing_and_says_so(model_path, examples, skipped):
    learner = make_learner(model_path, learning_rate=0.1, schedule="linear", max_mismatch=0.01, weight_decay=0.1)
    await learner.update(sampled(learner))
    before = weights_of(learner)
    metrics = without_times((await learner.update(examples)).metrics)
    assert same_weights(before, weights_of(learner))
    assert metrics == {
        "loss/value": 0.0,
        "policy/grad_norm": 0.0,
        "policy/learning_rate": pytest.approx(0.09),  # the second of ten steps: the schedule goes on
        "learner/rows": len(examples),
        "learner/skipped_fraction": skipped,
        "learner/optimizer_steps": 0,
        "learner/nonfinite_steps": 0,
    }


def test_an_empty_completion_beside_others_only_keeps_its_place(model_path):
    learner = make_learner(model_path)
    examples = random_examples(3)
    _, alone, _ = gradient(learner, examples)
    _, beside, _ = gradient(learner, [*examples, Example((5, 6), (), (), 1.0)])
    torch.testing.assert_close(beside, alone * 3 / 4, rtol=1e-5, atol=1e-8)


async def test_more_mini_batches_than_rows_leave_some_without_a_step(model_path):
    learner = make_learner(model_path, mini_batches=5)
    metrics = (await learner.update(sampled(learner, 2))).metrics
    assert metrics["learner/optimizer_steps"] == 2
    assert learner._schedule_step == 5


async def test_entropy_is_a_mean_over_tokens(model_path):
    learner = make_learner(model_path, learning_rate=1e-9, tokens_per_micro_batch=20)
    examples = sampled(learner)
    scores = learner._policy.score(make_batch(examples, [0.0] * len(examples)), temperature=1.0)
    num_tokens = sum(len(e.token_ids) for e in examples)
    assert (await learner.update(examples)).metrics["policy/entropy"] == pytest.approx(scores.entropy.sum().item() / num_tokens)


async def test_the_temperature_divides_the_logits(model_path):
    learner = make_learner(model_path, temperature=0.7, max_mismatch=1e-4)
    examples = on_policy(learner._policy, random_examples(6), temperature=0.7)
    assert (await learner.update(examples)).metrics["mismatch/abs_max"] < 1e-5


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
async def test_an_exported_model_is_the_policy_with_its_tokenizer(model_path, tmp_path, rank):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner = make_learner(model_path, rank=rank)
    for seed in range(3):
        await learner.update(sampled(learner, seed=seed))
    await learner.export(str(tmp_path))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, learner._policy.model(ids).logits, atol=1e-5, rtol=1e-5)
    text = "2 + 2 = 4"
    tokenizer, original = (AutoTokenizer.from_pretrained(path) for path in (tmp_path, model_path))
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
async def test_an_export_that_would_not_be_the_policy_is_refused(model_path, tmp_path, monkeypatch, fault):
    learner = make_learner(model_path)
    weights = dict(learner._policy.engine_weights(torch.float32))
    if fault == "missing":
        del weights["model.norm.weight"]
    else:
        weights["model.layers.9.norm.weight"] = torch.zeros(1)
    monkeypatch.setattr(learner._policy, "engine_weights", lambda dtype: weights.items())
    with pytest.raises(SystemFault, match="differ in 1 weights"):
        await learner.export(str(tmp_path))
    assert not list(tmp_path.iterdir())


async def test_publishing_writes_a_snapshot_of_the_policy(model_path, tmp_path):
    from safetensors.torch import load_file

    learner = make_learner(model_path, snapshot_folder=str(tmp_path), engine_dtype="bfloat16")
    before = await learner.publish(0)
    await learner.update(sampled(learner))
    after = await learner.publish(1)
    verify(before)
    verify(after)
    assert (before.version, after.version) == (0, 1)
    assert before.fingerprint != after.fingerprint
    stored = load_file(after.path)
    for name, tensor in learner._policy.engine_weights(torch.bfloat16):
        assert stored.pop(name).equal(tensor)
    assert not stored
