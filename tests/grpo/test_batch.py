import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.batch import Example, deal, make_batch, micro_batches, token_weights
from rollout.errors import PromptError

lengths_of = st.lists(st.integers(0, 30), min_size=1, max_size=20)


def example(prompt: int, completion: int, *, sampled: bool = True) -> Example:
    token_ids = tuple(range(50, 50 + completion))
    return Example(tuple(range(10, 10 + prompt)), token_ids, tuple(-float(i) for i in token_ids) if sampled else None, 1.5)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("sequence", [1 / (3 * 1), 1 / (3 * 2), 1 / (3 * 5)]),  # GRPO, equation 3: 1/G, then 1/|o_i|
        ("token", [1 / 8, 1 / 8, 1 / 8]),  # DAPO, equation 8: 1 / sum of |o_i|
        ("constant", [1 / (3 * 16)] * 3),  # Dr. GRPO, section 3.2: 1/G, then 1 / the budget
        ("sum", [1 / 3] * 3),  # RLOO, section 3.3: 1/k, for the log-probability of a whole completion
    ],
)
def test_token_weights_by_hand(average, expected):
    assert token_weights(torch.tensor([1, 2, 5]), average, max_tokens=16).tolist() == pytest.approx(expected, rel=1e-15)


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=50), average=st.sampled_from(["sequence", "token"]))
def test_an_average_has_weights_that_sum_to_1(lengths, average):
    weights = token_weights(torch.tensor(lengths), average, max_tokens=1)
    assert (weights * torch.tensor(lengths)).sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("average", ["sequence", "token", "constant", "sum"])
def test_an_empty_completion_weighs_nothing_and_keeps_its_place(average):
    weights = token_weights(torch.tensor([0, 4]), average, max_tokens=8)
    assert weights.tolist() == pytest.approx([0.0, {"sequence": 1 / 8, "token": 1 / 4, "constant": 1 / 16, "sum": 1 / 2}[average]])
    assert token_weights(torch.tensor([0, 0]), average, max_tokens=8).tolist() == [0.0, 0.0]
    assert token_weights(torch.tensor([], dtype=torch.long), average, max_tokens=8).tolist() == []


@given(lengths=lengths_of, budget=st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    rows = [example(1, length) for length in lengths]
    batches = micro_batches(rows, tokens_per_micro_batch=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        longest = max(rows[index].num_tokens for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(lengths=lengths_of, budget=st.integers(1, 200), size=st.integers(2, 3))
def test_micro_batches_never_part_a_unit(lengths, budget, size):
    rows = [example(1, length) for length in lengths for _ in range(size - 1)] + [example(1, length) for length in lengths]
    batches = micro_batches(rows, tokens_per_micro_batch=budget, rows_per_unit=size)
    units = [batch[i : i + size] for batch in batches for i in range(0, len(batch), size)]
    assert sorted(units) == [list(range(i, i + size)) for i in range(0, len(rows), size)]
    for batch in batches:
        assert len(batch) == size or len(batch) * max(rows[i].num_tokens for i in batch) <= budget


@given(lengths=lengths_of)
def test_micro_batches_take_the_longest_rows_first_so_that_little_is_padding(lengths):
    rows = [example(1, length) for length in lengths]
    order = [index for batch in micro_batches(rows, tokens_per_micro_batch=64) for index in batch]
    assert [rows[index].num_tokens for index in order] == sorted((row.num_tokens for row in rows), reverse=True)


def test_a_batch_by_hand():
    rows = [Example((7, 8), (1, 2, 3), (-0.1, -0.2, -0.3), 0.5), Example((9,), (4,), (-0.4,), -1.0)]
    batch = make_batch(rows, [0.25, 0.75])
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.token_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.weights.tolist() == [[0.25] * 3, [0.75, 0.0, 0.0]]
    assert batch.advantages.tolist() == [0.5, -1.0]
    assert batch.behavior_logprobs is not None
    assert batch.behavior_logprobs.flatten().tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, 0.0, 0.0])
    assert batch.ref_logprobs is None


def test_an_advantage_for_each_token_makes_a_table_of_them():
    rows = [Example((1,), (2, 3), None, (0.5, -0.5)), Example((1,), (2, 3, 4), None, 2.0)]
    batch = make_batch(rows, [1.0, 1.0], reference_point=0.25)
    assert batch.advantages.tolist() == [[0.5, -0.5, 0.0], [2.0, 2.0, 2.0]]
    assert batch.reference_point == 0.25
    assert [row.is_flat for row in rows] == [False, False]
    assert Example((1,), (2, 3), None, (0.0, 0.0)).is_flat


def test_reference_logprobs_come_with_their_rows():
    rows = [Example((1,), (2, 3), None, 1.0, ref_logprobs=(-0.5, -0.25)), Example((1,), (2,), None, 1.0, ref_logprobs=(-1.0,))]
    batch = make_batch(rows, [1.0, 1.0])
    assert batch.ref_logprobs is not None
    assert batch.ref_logprobs.tolist() == [[-0.5, -0.25], [-1.0, 0.0]]


def test_recorded_rows_have_no_behavior_logprobs():
    assert make_batch([example(2, 3, sampled=False)], [1.0]).behavior_logprobs is None


def test_sampled_and_recorded_rows_do_not_mix():
    with pytest.raises(AssertionError, match="not both"):
        make_batch([example(2, 3), example(2, 3, sampled=False)], [1.0, 1.0])


def test_each_completion_token_has_one_behavior_logprob():
    with pytest.raises(AssertionError, match="one behavior log-probability"):
        Example((1,), (2, 3), (-0.5,), 1.0)


def test_an_empty_prompt_is_refused_with_the_remedy():
    with pytest.raises(PromptError, match="Give every task a prompt"):
        Example((), (2, 3), None, 1.0)


def test_a_batch_of_empty_completions_has_no_columns():
    batch = make_batch([example(2, 0), example(3, 0)], [0.0, 0.0])
    assert batch.mask.shape == batch.weights.shape == (2, 0)
    assert batch.input_ids.shape == (2, 3)


rows_of = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40)), max_size=16)


@given(shapes=rows_of, count=st.integers(1, 5), rows_per_unit=st.integers(1, 2))
def test_each_row_is_dealt_to_one_rank_in_whole_units_and_no_rank_has_more_than_a_unit_above_its_part(shapes, count, rows_per_unit):
    rows = [example(prompt, completion) for prompt, completion in shapes for _ in range(rows_per_unit)]
    dealt = deal(rows, count, rows_per_unit=rows_per_unit)
    assert len(dealt) == count
    assert sorted(i for share in dealt for i in share) == list(range(len(rows)))
    starts = [share[first : first + rows_per_unit] for share in dealt for first in range(0, len(share), rows_per_unit)]
    assert all(unit == list(range(unit[0], unit[0] + rows_per_unit)) and unit[0] % rows_per_unit == 0 for unit in starts)
    tokens = [sum(rows[i].num_tokens for i in share) for share in dealt]
    largest = max((rows_per_unit * row.num_tokens for row in rows), default=0)
    assert max(tokens) <= sum(tokens) / count + largest


def test_rows_of_one_prompt_go_to_one_rank():
    rows = [example(prompt, 5) for prompt in (3, 4, 3, 4)]
    assert deal(rows, 2) == [[0, 2], [1, 3]]


def test_one_rank_takes_the_rows_as_they_come():
    assert deal([example(prompt, 5) for prompt in (3, 4, 3)], 1) == [[0, 1, 2]]
