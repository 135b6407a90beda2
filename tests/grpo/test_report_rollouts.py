"""Which rollouts go into a page: counted all, chosen within bounds, streamed as they were stored."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import group, make_run

from grpo.report.rollout_selection import (
    CLIP_HEAD,
    CLIP_TAIL,
    MAX_COMPLETIONS,
    Chosen,
    GroupCount,
    choose,
    chosen_groups,
    clipped,
    count_groups,
)
from grpo.tracking import RolloutStore
from rollout.types import Group
from verifiers.types import Task


def stored(folder: Path, groups: list[Group], *, step: int = 1) -> list[Path]:
    RolloutStore(folder, every=1).write(step, groups)
    return sorted(folder.glob("step-*.parquet"))


def count(step: int, position: int, task: str, num: int = 4) -> GroupCount:
    return GroupCount(step, position, task, num, num, 0, 0.0)


def test_every_group_is_counted_also_the_same_prompt_twice_in_a_step(tmp_path: Path):
    files = stored(tmp_path, [group([1, 0, None]), group([1, 1, 1]), group([0.5], task="u")])
    assert count_groups(files, []) == [
        GroupCount(1, 0, "t", 3, 2, 1, 1.0),
        GroupCount(1, 1, "t", 3, 3, 3, 3.0),
        GroupCount(1, 2, "u", 1, 1, 0, 0.5),
    ]


def test_groups_across_the_borders_of_batches_stay_whole(tmp_path: Path):
    files = stored(tmp_path, [group([1.0] * 100, task=f"t{i}") for i in range(7)])
    assert [(c.position, c.num_completions) for c in count_groups(files, [])] == [(i, 100) for i in range(7)]


def test_a_demonstration_beside_samples_is_not_counted_as_solved(tmp_path: Path):
    with_samples = group([1, 0, 0])
    first, *rest = with_samples.completions
    shown = replace(with_samples, completions=(replace(first, behavior_logprobs=None), *rest))
    (counted,) = count_groups(stored(tmp_path, [shown]), [])
    assert (counted.num_completions, counted.num_scored, counted.num_correct) == (3, 2, 0)


def test_a_damaged_file_is_left_out_and_told_of(tmp_path: Path):
    stored(tmp_path, [group([1, 0])], step=1)
    files = stored(tmp_path, [group([1, 0])], step=2)
    files[0].write_bytes(files[0].read_bytes()[:200])
    problems: list[str] = []
    assert [c.step for c in count_groups(files, problems)] == [2]
    assert "step-000001.parquet cannot be read" in problems[0]


def test_all_are_taken_when_there_is_room():
    counts = [count(step, position, f"{step}/{position}") for step in range(5) for position in range(3)]
    assert choose(counts, per_step=None).num_completions == 60


def test_whole_groups_are_taken_while_they_fit_and_of_the_first_as_much_as_fits():
    counts = [count(1, position, f"t{position}") for position in range(3)]
    assert sorted(choose(counts, per_step=9).groups[1].values()) == [4, 4]
    assert list(choose(counts, per_step=3).groups[1].values()) == [3]


def test_a_prompt_that_comes_again_is_taken_whenever_it_comes():
    counts = [count(step, position, f"only {step}.{position}") for step in range(1, 9) for position in range(5)]
    again = [count(step, 5, "again") for step in (2, 5, 8)]
    chosen = choose([*counts, *again], per_step=4)
    assert [step for step, groups in chosen.groups.items() if 5 in groups] == [2, 5, 8]


def test_too_many_steps_are_spread_evenly_from_the_first_to_the_last():
    counts = [count(step, 0, f"t{step}", 16) for step in range(1, 2001)]
    steps = list(choose(counts, per_step=16).groups)
    assert (steps[0], steps[-1]) == (1, 2000)
    assert len(steps) == MAX_COMPLETIONS // 16
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 4


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 40), st.integers(1, 64)), max_size=300, unique_by=lambda case: case[:2]),
    st.none() | st.integers(1, 100_000),
    st.floats(0, 1e6),
)
def test_a_page_is_bounded_whatever_a_run_stored(cases: list[tuple[int, int, int]], per_step: int | None, text_bytes: float):
    counts = [count(step, position, f"t{position}", num) for step, position, num in cases]
    chosen = choose(counts, per_step=per_step, text_bytes=text_bytes)
    assert chosen.num_completions <= max(MAX_COMPLETIONS, per_step or 0)
    assert all(len(groups) >= 1 for groups in chosen.groups.values())
    everything = choose(counts, per_step=None, take_all=True)
    assert everything.num_completions == sum(num for _, _, num in cases)


def test_the_chosen_come_as_they_were_stored(tmp_path: Path):
    files = stored(tmp_path, [group([1, 0]), group([0, 1], task="u", texts=["no", "yes"]), group([1, 1], task="w")])
    (first, last) = chosen_groups(files, Chosen({1: {1: 2, 2: 1}}, clip=True))
    assert (first["task"], first["position"], first["prompt"], first["reference"]) == ("u", 1, "1+1=", '"2"')
    assert [completion["text"] for completion in first["completions"]] == ["no", "yes"]
    assert [completion["reward"] for completion in first["completions"]] == [0.0, 1.0]
    assert first["completions"][0] | {"scores": None} == {
        "index": 0,
        "text": "no",
        "tokens": 3,
        "finish": "stop",
        "version": 7,
        "reward": 0.0,
        "correct": False,
        "cause": None,
        "scores": None,
    }
    assert first["completions"][0]["scores"][0]["outcome"] == "wrong"
    assert (last["task"], len(last["completions"])) == ("w", 1)


def test_of_a_very_long_text_the_middle_is_left_out():
    text = "a" * CLIP_HEAD + "b" * 1000 + "c" * CLIP_TAIL
    short = clipped(text)
    assert short is not None
    assert short.startswith("a" * CLIP_HEAD)
    assert short.endswith("c" * CLIP_TAIL)
    assert "1000 characters are left out" in short
    assert clipped(text, clip=False) == text
    assert clipped(None) is None


def test_a_conversation_is_a_prompt_as_well(tmp_path: Path):
    from verifiers.types import Message

    talk = replace(group([1, 0]), task=Task("c", (Message("user", "hi"),), {"a": [1]}, "math"))
    (shown,) = chosen_groups(stored(tmp_path, [talk]), Chosen({1: {0: 2}}, clip=True))
    assert '"content": "hi"' in shown["prompt"]
    assert shown["reference"] == '{"a": [1]}'


@pytest.mark.parametrize("take_all", [False, True])
def test_a_run_without_rollouts_has_none_to_choose(tmp_path: Path, take_all: bool):
    make_run(tmp_path / "run")
    assert choose(count_groups([], []), per_step=None, take_all=take_all).num_completions == 0
