"""Recorded pairs, labels and demonstrations, from rows in the forms that datasets have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.errors import TaskError
from rollout.fields import Recorded
from rollout.tasks import TasksConfig, TaskSet, load_tasks
from verifiers.types import Message, Task

PAIRS = {"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"}
LABELS = {"prompt": "{prompt}", "completion": "{completion}", "label": "label"}
MESSAGES = {"prompt": "{messages}", "completion": "{messages}"}


def turns(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def load(folder: Path, rows: list[dict[str, Any]], **config: Any) -> TaskSet:
    """With held-out tasks from a source of their own, which are no business of these tests."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = dict.fromkeys(("prompt", "question"), "held out?")
    conversations = {name: turns("held out?") for name in ("messages", "chosen")}
    (folder / "test.jsonl").write_text(json.dumps(held_out | conversations | {"answer": "1"}))
    return load_tasks(TasksConfig(**{"source": "rows.jsonl", "held_out_source": "test.jsonl"} | config), base=folder)


def only(task_set: TaskSet) -> tuple[Task, tuple[Recorded, ...]]:
    (task,) = task_set.train
    return task, task_set.recorded[task.id]


QUESTION = (Message("user", "1+1?"),)
YES, NO = Recorded("2", 1.0), Recorded("3", 0.0)


@pytest.mark.parametrize(
    ("row", "config", "prompt", "recorded"),
    [
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, PAIRS, "1+1?", (YES, NO)),
        # Hugging Face: conversations with an explicit prompt, and with one that both share
        (
            {
                "prompt": turns("1+1?"),
                "chosen": [{"role": "assistant", "content": "2"}],
                "rejected": [{"role": "assistant", "content": "3"}],
            },
            PAIRS,
            QUESTION,
            (YES, NO),
        ),
        (
            {"chosen": turns("1+1?", "2"), "rejected": turns("1+1?", "3")},
            PAIRS | {"prompt": "{chosen}"},
            QUESTION,
            (YES, NO),
        ),
        ({"prompt": "1+1?", "completion": "2", "label": True}, LABELS, "1+1?", (YES,)),
        ({"prompt": "1+1?", "completion": "3", "label": False}, LABELS, "1+1?", (NO,)),
        ({"prompt": "1+1?", "completion": "3", "label": 0}, LABELS, "1+1?", (NO,)),
        (
            {"prompt": turns("1+1?"), "completion": [{"role": "assistant", "content": "2"}], "label": 1.0},
            LABELS,
            QUESTION,
            (YES,),
        ),
        ({"messages": turns("1+1?", "2"), "answer": "2"}, MESSAGES, QUESTION, (YES,)),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *turns("Hi", "Hello", "1+1?", "2")], "answer": "2"},
            MESSAGES,
            (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"), *QUESTION),
            (YES,),
        ),
    ],
)
def test_a_row_becomes_a_prompt_and_what_was_recorded_of_it(tmp_path: Path, row, config, prompt, recorded):
    task, found = only(load(tmp_path, [row], **config))
    assert task.prompt == prompt
    assert found == recorded


def test_rows_of_a_hugging_face_dataset_are_read_as_they_are(tmp_path: Path):
    import datasets

    rows = [{"chosen": turns("1+1?", "2"), "rejected": turns("1+1?", "3")}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "pairs")  # type: ignore[union-attr]
    task, recorded = only(load(tmp_path, [], source="hf:pairs", **PAIRS | {"prompt": "{chosen}"}))
    assert (task.prompt, recorded) == (QUESTION, (YES, NO))


def test_one_prompt_may_be_compared_many_times_and_only_equal_rows_are_duplicates(tmp_path: Path):
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    task_set = load(tmp_path, [row, row | {"rejected": "4"}, row], **PAIRS)
    assert [recorded[1].text for recorded in task_set.recorded.values()] == ["3", "4"]
    assert task_set.num_duplicates == 1


def test_labels_of_one_prompt_are_all_kept(tmp_path: Path):
    rows = [{"prompt": "1+1?", "completion": text, "label": text == "2"} for text in ("2", "3", "two", "2")]
    task_set = load(tmp_path, rows, **LABELS)
    assert [recorded[0].text for recorded in task_set.recorded.values()] == ["2", "3", "two"]


def test_rows_of_one_prompt_may_share_its_id(tmp_path: Path):
    rows = [{"id": "p", "prompt": "1+1?", "chosen": "2", "rejected": bad} for bad in ("3", "4", "5")]
    task_set = load(tmp_path, rows, **PAIRS)
    assert [task.id for task in task_set.train] == ["p", "p#2", "p#3"]
    with pytest.raises(TaskError, match="its id 'p' is also that of"):
        load(tmp_path, [*rows, {"id": "p", "prompt": "2+2?", "chosen": "4", "rejected": "5"}], **PAIRS)


def test_demonstrations_of_one_prompt_count_once(tmp_path: Path):
    rows = [{"question": "1+1?", "answer": "2", "text": text} for text in ("2", "two")]
    task_set = load(tmp_path, rows, completion="{text}")
    assert only(task_set)[1] == (Recorded("2", 1.0),)
    assert task_set.num_duplicates == 1


def test_a_held_out_prompt_is_in_no_pair_that_is_learnt_from(tmp_path: Path):
    rows = [
        {"prompt": f"{i % 5}?", "chosen": "2", "rejected": str(10 + i), "answer": "2"} for i in range(20)
    ]  # five prompts, compared four times each
    task_set = load(tmp_path, rows, **PAIRS, held_out_source=None, held_out=2)
    assert len(task_set.held_out) == 2
    assert len(task_set.train) == 12
    assert not {task.prompt for task in task_set.train} & {task.prompt for task in task_set.held_out}


def test_a_reference_is_kept_where_there_is_one_and_not_asked_for_where_nothing_is_judged_again(tmp_path: Path):
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    assert only(load(tmp_path, [row], **PAIRS))[0].reference is None
    assert only(load(tmp_path, [row | {"answer": "2"}], **PAIRS))[0].reference == "2"
    with pytest.raises(TaskError, match="the reference field 'answer' is empty"):
        load(tmp_path, [row | {"answer": ""}], **PAIRS)
    with pytest.raises(TaskError, match="the row has no field 'answer'"):  # demonstrations are evaluated on
        load(tmp_path, [{"messages": turns("1+1?", "2")}], **MESSAGES)


@pytest.mark.parametrize(
    ("row", "config", "message"),
    [
        ({"prompt": "?", "chosen": "2", "rejected": "2"}, PAIRS, "{chosen} and {rejected} are the same text, so neither can be"),
        ({"prompt": "?", "chosen": "", "rejected": "2"}, PAIRS, "the completion {chosen} is empty, so nothing could be learnt"),
        ({"prompt": "?", "chosen": "2", "rejected": " \n"}, PAIRS, "the completion {rejected} is empty"),
        ({"prompt": "?", "chosen": "2"}, PAIRS, "the row has no field 'rejected'; it has answer, prompt, chosen."),
        ({"prompt": "?", "completion": "2", "label": "yes"}, LABELS, "the label 'label' is 'yes'. Give true or 1 for desirable"),
        ({"prompt": "?", "completion": "2", "label": "1"}, LABELS, "the label 'label' is '1'."),
        ({"prompt": "?", "completion": "2", "label": 0.5}, LABELS, "the label 'label' is 0.5."),
        ({"prompt": "?", "completion": "2", "label": None}, LABELS, "the label 'label' is None."),
        ({"messages": turns("1+1?")}, MESSAGES, "{messages} ends with a turn of the user. End it with what the assistant"),
        (
            {"chosen": turns("1+1?", "2"), "rejected": turns("1+2?", "2")},
            PAIRS | {"prompt": "{chosen}"},
            "the conversation in {rejected} is not the prompt before its last turn.",
        ),
    ],
)
def test_a_mistake_in_a_row_names_it_and_says_how_to_mend_it(tmp_path: Path, row, config, message):
    with pytest.raises(TaskError) as caught:
        load(tmp_path, [{"answer": "1"} | row], **config)
    assert str(caught.value).startswith("rows.jsonl:1: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chosen": "{a}"}, "a recorded pair needs both chosen and rejected. Give the other one too."),
        ({"rejected": "{a}"}, "a recorded pair needs both"),
        ({"chosen": "{a}", "rejected": "{b}", "completion": "{c}"}, "completion and chosen are both set"),
        ({"label": "good"}, "label says what a recorded completion is worth, but completion is not set."),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict[str, str], message: str):
    with pytest.raises(ValidationError) as caught:
        TasksConfig.model_validate({"source": "x.jsonl"} | config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "form"),
    [({}, None), (PAIRS, "pairs"), (LABELS, "labels"), (MESSAGES, "demonstrations")],
)
def test_the_settings_say_what_is_recorded(config: dict[str, str], form: str | None):
    assert TasksConfig.model_validate({"source": "x.jsonl"} | config).recorded_form == form
