"""Rows whose numbers stay bytes until they are read are the rows that they were."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.batch import Example
from grpo.metrics import group_metrics
from grpo.objectives.grpo import Grpo
from grpo.tracking import rollout_rows, rollout_table
from rollout.packed import PackedRow
from rollout.types import Completion, Group, VersionSpan
from verifiers.types import Task, Verdict, correct, wrong

R = TypeVar("R")

TASK = Task("t", "1 + 1 = ", "2", "math")
VERDICTS = (Verdict(1.0, True, (correct("equal"),)), Verdict(0.0, False, (wrong("not equal"),)))


def travelled(row: R) -> R:
    return pickle.loads(pickle.dumps(row, protocol=5))


def is_packed(row: PackedRow) -> bool:
    """Whether nobody has read its numbers."""
    try:
        return object.__getattribute__(row, "token_ids") is None
    except AttributeError:
        return True


def completion(index: int, token_ids: tuple[int, ...], logprobs: tuple[float, ...] | None) -> Completion:
    spans = () if logprobs is None else (VersionSpan(3, len(token_ids)),)
    return Completion(index, (5, 6), token_ids, "text", "stop", logprobs, spans, seed=7 + index)


def some_group() -> Group:
    return Group(TASK, (completion(0, (8, 9, 2), (-0.5, -1e-9, -3.25)), completion(1, (2,), (-0.1,))), VERDICTS)


@given(
    numbers=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(allow_nan=False))),
    is_sampled=st.booleans(),
)
def test_a_completion_that_has_travelled_is_the_one_that_was_sent(numbers: list[tuple[int, float]], is_sampled: bool):
    token_ids = tuple(token for token, _ in numbers)
    sent = completion(0, token_ids, tuple(logprob for _, logprob in numbers) if is_sampled else None)
    twice = travelled(travelled(sent))
    assert is_packed(twice)
    assert (twice.num_completion_tokens, twice.has_logprobs) == (len(token_ids), is_sampled)
    assert is_packed(twice)
    assert twice == sent
    assert (hash(twice), repr(twice), dataclasses.replace(twice, index=1)) == (
        hash(sent),
        repr(sent),
        dataclasses.replace(sent, index=1),
    )


def test_a_group_goes_through_the_driver_without_being_unpacked():
    sent = some_group()
    group = travelled(sent)

    metrics = group_metrics([group])
    table = rollout_table(4, [group])
    examples = Grpo().credit([group])
    arrived = travelled(examples)

    assert all(map(is_packed, (*group.completions, *examples, *arrived)))
    assert metrics == group_metrics([sent])
    assert table.equals(rollout_table(4, [sent]))
    assert examples == arrived == Grpo().credit([sent])
    assert [row.num_tokens for row in arrived] == [5, 3]
    assert examples[0].behavior_logprobs == (-0.5, -1e-9, -3.25)


def test_a_file_of_packed_rows_holds_what_the_rows_hold():
    group = Group(TASK, (*some_group().completions, completion(2, (), ()), completion(3, (4,), None)), VERDICTS * 2)
    table = rollout_table(4, [travelled(group)]).to_pylist()
    for row, wanted in zip(table, rollout_rows(4, [group]), strict=True):
        assert row["token_ids"] == list(wanted["token_ids"])
        assert row["behavior_logprobs"] == (
            None if wanted["behavior_logprobs"] is None else pytest.approx(list(wanted["behavior_logprobs"]))
        )


def test_what_a_packed_row_does_not_have_is_named():
    with pytest.raises(AttributeError, match="'Completion' object has no attribute 'tokens'"):
        travelled(some_group()).completions[0].tokens  # noqa: B018  # type: ignore[attr-defined]


def test_a_changed_example_keeps_its_numbers():
    example = Example((5, 6), (8, 9), (-0.5, -0.25), 0.0, reward=1.0, group=2, task_id="t")
    assert (
        travelled(example).changed(advantage=0.5) == example.changed(advantage=0.5) == dataclasses.replace(example, advantage=0.5)
    )
