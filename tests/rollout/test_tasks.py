"""From rows to tasks, the held-out split, and the resumable order."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.errors import TaskError
from rollout.fields import Recorded
from rollout.rows import read_rows
from rollout.tasks import Cursor, TasksConfig, TaskSet, TaskStream, load_tasks
from tests.fakes import make_tasks
from verifiers.types import Message

ROWS = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "tasks.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(folder: Path, rows: list[dict[str, Any]], **config: Any) -> TaskSet:
    write(folder, rows)
    return load_tasks(TasksConfig(**{"source": "tasks.jsonl", "held_out": 4} | config), base=folder)


def prompts(tasks: Any) -> set[Any]:
    return {task.prompt for task in tasks}


# The split


def test_held_out_prompts_are_never_trained_on(tmp_path: Path):
    task_set = load(tmp_path, ROWS)
    assert len(task_set.train) == 36
    assert len(task_set.held_out) == 4
    assert not prompts(task_set.train) & prompts(task_set.held_out)


def test_the_split_depends_on_neither_order_nor_duplicates(tmp_path: Path):
    one = load(tmp_path, ROWS)
    other = load(tmp_path, [*reversed(ROWS), *ROWS])
    assert prompts(one.held_out) == prompts(other.held_out)
    assert (one.num_duplicates, other.num_duplicates) == (0, 40)


def test_more_rows_move_few_tasks_between_the_two(tmp_path: Path):
    """A held-out task can only leave for one whose prompt hashes lower: none becomes held out that was not among the new."""
    one, other = load(tmp_path, ROWS[:30]), load(tmp_path, ROWS)
    assert prompts(other.held_out) - prompts(one.held_out) <= {row["question"] for row in ROWS[30:]}


def test_held_out_tasks_from_another_source_are_kept_out_of_training_too(tmp_path: Path):
    write(tmp_path, [*ROWS[:3], {"question": "new?", "answer": "1"}], "test.jsonl")
    task_set = load(tmp_path, ROWS, held_out_source="test.jsonl")
    assert prompts(task_set.held_out) == {"0 + 1?", "1 + 1?", "2 + 1?", "new?"}
    assert len(task_set.train) == 37


def test_a_source_of_which_nothing_is_left_is_refused(tmp_path: Path):
    with pytest.raises(TaskError, match=r"no task is left for training: 3 distinct prompts, 3 of them held out\. Give more rows"):
        load(tmp_path, ROWS[:3])
    write(tmp_path, [], "test.jsonl")
    with pytest.raises(TaskError, match=r"test\.jsonl: holds no task"):
        load(tmp_path, ROWS, held_out_source="test.jsonl")


# Fields


def test_a_dot_takes_the_whole_row_as_the_reference(tmp_path: Path):
    rows = [{"id": f"HumanEval/{i}", "prompt": f"def f{i}():", "entry_point": "f", "test": "..."} for i in range(8)]
    task_set = load(tmp_path, rows, prompt="{prompt}", reference=".", rewards="code")
    assert {task.id: task.reference for task in (*task_set.train, *task_set.held_out)} == {row["id"]: row for row in rows}


def test_a_row_becomes_a_task_by_the_configs_templates(tmp_path: Path):
    rows = [{"id": i, "metadata": {"expression": f"{i}+1", "solution": {"value": i + 1}}} for i in (1, 7)]
    task_set = load(tmp_path, rows, prompt="{metadata[expression]} =", reference="metadata.solution.value", held_out=1)
    (task,) = (task for task in (*task_set.train, *task_set.held_out) if task.id == "7")
    assert (task.id, task.prompt, task.reference, task.rewards) == ("7", "7+1 =", 8, "math")


def test_a_row_without_id_is_named_by_its_line(tmp_path: Path):
    assert {task.id for task in load(tmp_path, ROWS).train} < {f"tasks.jsonl:{i}" for i in range(1, 41)}


def test_a_conversation_is_taken_as_it_is(tmp_path: Path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rows = [{"messages": turns, "answer": "2"}, {"messages": turns[1:], "answer": "2"}]
    task_set = load(tmp_path, rows, prompt="{messages}", held_out=1)
    question = Message("user", "1+1?")
    assert prompts((*task_set.train, *task_set.held_out)) == {(Message("system", "Be brief."), question), (question,)}


def test_a_recorded_completion_comes_from_its_template(tmp_path: Path):
    task_set = load(tmp_path, ROWS, completion="<think></think>\\boxed{{{answer}}}")
    task = task_set.train[0]
    assert task_set.recorded[task.id] == (Recorded(f"<think></think>\\boxed{{{task.reference}}}", 1.0),)
    assert task_set.recorded.keys() == {task.id for task in task_set.train}


def test_one_id_for_two_prompts_is_refused(tmp_path: Path):
    rows = [{"id": "a", "question": "1?", "answer": "1"}, {"id": "b", "question": "2?", "answer": "1"}]
    with pytest.raises(TaskError, match=r"tasks\.jsonl:3: its id 'a' is also that of tasks\.jsonl:1, whose prompt is another"):
        load(tmp_path, [*rows, {"id": "a", "question": "3?", "answer": "1"}])
    assert load(tmp_path, [*rows, rows[0]], held_out=1).num_duplicates == 1


ROW_MISTAKES = [
    ({"answer": "1"}, {}, "'{question}' cannot be filled: the row has no field 'question'; it has answer."),
    ({"qestion": "1?", "answer": "1"}, {}, "it has qestion, answer. Did you mean qestion?"),
    ({"m": {"expr": "1"}, "answer": "1"}, {"prompt": "{m[expression]}"}, "no field 'expression'; it has m (expr), answer."),
    ({"m": {"expr": "1"}, "answer": "1"}, {"prompt": "{m.expr}"}, "cannot be filled: 'dict' object has no attribute 'expr'"),
    ({"question": "1?"}, {}, "the row has no field 'answer'; it has question."),
    ({"question": "1?", "answer": ""}, {}, "the reference field 'answer' is empty. Give every task a reference"),
    ({"question": "1?", "answer": None}, {}, "the reference field 'answer' is empty."),
    ({"question": "1?", "answer": " \n"}, {}, "the reference field 'answer' is empty."),
    ({"messages": [{"role": "user"}], "answer": "1"}, {"prompt": "{messages}"}, "expected messages of the form"),
]


@pytest.mark.parametrize(("row", "config", "message"), ROW_MISTAKES)
def test_a_mistake_in_a_row_names_its_line(tmp_path: Path, row: dict[str, Any], config: dict[str, Any], message: str):
    with pytest.raises(TaskError) as caught:
        load(tmp_path, [*ROWS, row] if not config else [row], **config)
    assert message in str(caught.value)
    assert str(caught.value).startswith("tasks.jsonl:1:" if config else "tasks.jsonl:41:")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"prompt": "Put it in \\boxed{}: {question}"},
            "has the braces {}, which name no field of a row. Write {{ and }}",
        ),
        ({"prompt": "\\frac{1}{2}"}, "has the braces {1}, which name no field"),
        ({"prompt": "{question"}, "is not a template: expected '}' before end of string. Write {{ and }}"),
        ({"completion": "\boxed{answer}"}, "it holds the control character that \\b stands for between double quotes."),
        ({"system": "\frac"}, "Use single quotes, or \\\\f for a backslash."),
        ({"held_out": 0}, "greater than or equal to 1"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(config: dict[str, Any], message: str):
    with pytest.raises(ValidationError) as caught:
        TasksConfig.model_validate({"source": "x.jsonl"} | config)
    assert message in str(caught.value)


# Sources


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', ":2: this line is not JSON: Expecting value"),
        (b'{"a": 1}\n\n\n{a: 1}\n', ":4: this line is not JSON: Expecting property name"),
        (b'\n{"a": "\xff"}', ":2: this line is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, ":1: this line is not JSON: "),
        (b"[1, 2]", ":1: expected a JSON object with named fields, found list. Mend the line."),
    ],
)
def test_a_line_that_is_not_a_json_object_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError) as caught:
        list(read_rows("x.jsonl", base=tmp_path))
    assert f"{path}{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jsonl", "cannot be read: No such file or directory. Expected a JSONL file, or a source that begins with hf:"),
        (".", "cannot be read: Is a directory."),
        ("reasoning-gym:chain_sum", "'reasoning-gym' is no kind of source, and there is no such file. Did you mean reasoning_gym?"),
        ("reasoning_gym:chain_som", "reasoning_gym has no dataset 'chain_som'. Did you mean chain_sum?"),
        ("reasoning_gym:chain_sum?min_trems=2", "does not take these options"),
        ("hf:nobody/nothing", "hf:nobody/nothing: the dataset cannot be loaded (ConnectionError: "),
        ("python:nowhere.rows", "cannot be imported: No module named 'nowhere'. Expected python:package.module.function."),
        ("python:json.rows", "cannot be imported: module 'json' has no attribute 'rows'."),
        ("python:rows", "cannot be imported: Empty module name."),
        ("python:my_rows.failing?colour=red", "failed with TypeError: failing() got an unexpected keyword argument 'colour'"),
        ("python:my_rows.failing", "failed with ZeroDivisionError: division by zero. Mend the function or its options."),
        ("python:my_rows.numbers", "row 0 is int. Yield mappings with named fields."),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, source: str, message: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rows.py").write_text("def failing():\n    yield {'a': 1 / 0}\n\ndef numbers():\n    yield 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rows", raising=False)
    with pytest.raises(TaskError) as caught:
        list(read_rows(source, base=tmp_path))
    assert message in str(caught.value)


def test_a_python_function_beside_the_config_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "squares_rows.py").write_text("def squares(count):\n    for i in range(count):\n        yield {'n': i * i}\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    rows = list(read_rows("python:squares_rows.squares?count=3", base=tmp_path))
    assert [tuple(row) for row in rows] == [("squares:0", {"n": 0}), ("squares:1", {"n": 1}), ("squares:2", {"n": 4})]


def test_reasoning_gym_makes_the_same_rows_again():
    source = 'reasoning_gym:basic_arithmetic?min_terms=2&max_terms=2&operators=["%2B"]&size=5'
    rows = list(read_rows(source))
    assert len(rows) == 5
    assert [row.fields["question"] for row in rows] == [row.fields["question"] for row in read_rows(source)]
    assert all("+" in row.fields["metadata"]["expression"] for row in rows)
    other = list(read_rows(source + "&seed=1"))
    assert [row.where for row in other[:2]] == ["basic_arithmetic:1:0", "basic_arithmetic:1:1"]
    assert other[0].fields["question"] != rows[0].fields["question"]


def test_hugging_face_datasets_are_read_from_local_folders_and_files(tmp_path: Path):
    import datasets

    data: Any = datasets.Dataset.from_list(ROWS[:3])
    data.save_to_disk(tmp_path / "disk")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "splits")
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "train.parquet")
    write(tmp_path, ROWS[:3])
    for source in ("hf:disk", "hf:splits", "hf:parquet", f"hf:json?data_files={tmp_path}/tasks.jsonl"):
        assert [row.fields for row in read_rows(source, base=tmp_path)] == ROWS[:3], source
    assert [row.fields for row in read_rows("hf:splits?split=test", base=tmp_path)] == ROWS[:1]
    with pytest.raises(TaskError, match=r"hf:splits\?split=dev: the dataset cannot be loaded"):
        list(read_rows("hf:splits?split=dev", base=tmp_path))


# The stream


def ids(stream: TaskStream, count: int) -> list[str]:
    return [stream.next()[1].id for _ in range(count)]


def test_each_epoch_visits_every_task_once_in_an_order_of_its_own():
    stream = TaskStream(make_tasks(10), seed=1)
    first, second = ids(stream, 10), ids(stream, 10)
    assert set(first) == set(second) == {f"t{i}" for i in range(10)}
    assert first != second
    assert first == ids(TaskStream(make_tasks(10), seed=1), 10)
    assert first != ids(TaskStream(make_tasks(10), seed=2), 10)


def test_a_rewound_stream_goes_on_as_if_never_stopped():
    steady, broken = TaskStream(make_tasks(10), seed=1), TaskStream(make_tasks(10), seed=1)
    for stream in (steady, broken):
        for _ in range(13):
            stream.finish(stream.next()[0])
    resumed = TaskStream(make_tasks(10), seed=1)
    resumed.rewind(broken.cursor)
    assert ids(resumed, 20) == ids(steady, 20)


def test_unfinished_tasks_come_first_after_a_rewind_and_stay_unfinished():
    stream = TaskStream(make_tasks(10), seed=1)
    handed_out = [stream.next() for _ in range(6)]
    for position, _ in (handed_out[0], handed_out[3]):
        stream.finish(position)
    assert stream.cursor == Cursor(6, (1, 2, 4, 5))
    resumed = TaskStream(make_tasks(10), seed=1)
    resumed.rewind(stream.cursor)
    again = [resumed.next() for _ in range(4)]
    assert again == [handed_out[i] for i in (1, 2, 4, 5)]
    assert resumed.cursor == stream.cursor
    assert resumed.next()[0] == 6


def test_positions_of_an_earlier_epoch_keep_their_task():
    tasks = make_tasks(3)
    whole = dict(itertools.islice(iter(TaskStream(tasks, seed=5).next, None), 9))
    stream = TaskStream(tasks, seed=5)
    stream.rewind(Cursor(7, (1, 4)))
    assert [stream.next() for _ in range(3)] == [(1, whole[1]), (4, whole[4]), (7, whole[7])]
