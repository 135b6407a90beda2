"""What is refused or left out before anything costly starts."""

import logging
from pathlib import Path

import pytest

from grpo.config import RunConfig
from grpo.folder import RunFolder
from grpo.objectives import Dpo
from grpo.prepare import check_references, fitting, judged_tasks, prepare_model
from grpo.tiny_model import make_tiny_model
from rollout.engine import EngineConfig
from rollout.errors import ModelError, TaskError
from rollout.fields import Recorded
from rollout.tasks import TasksConfig, TaskSet
from verifiers.errors import InvalidReference
from verifiers.types import Task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0))


def tasks(*prompts: str, reference: str = "1") -> tuple[Task, ...]:
    return tuple(Task(prompt[:8], prompt, reference, "math") for prompt in prompts)


def config(max_model_len: int = 20) -> RunConfig:
    return RunConfig(tasks=TasksConfig(source="unused.jsonl"), engine=EngineConfig(max_model_len=max_model_len))


def test_prompts_that_leave_no_room_are_left_out_and_counted(model: str, caplog: pytest.LogCaptureFixture) -> None:
    task_set = TaskSet(tasks("a" * 19, "b" * 20), tasks("c" * 5, "d" * 30), {}, 0)
    with caplog.at_level(logging.WARNING):
        fit = fitting(task_set, config(), model)

    assert [task.prompt[0] for task in (*fit.train, *fit.held_out)] == ["a", "c"]
    assert "2 of 4 tasks are left out" in caplog.text


def test_prompts_that_leave_no_room_are_refused_by_name_where_they_shall_be(model: str) -> None:
    settings = RunConfig(tasks=TasksConfig(source="unused.jsonl", too_long="refuse"), engine=EngineConfig(max_model_len=20))
    assert fitting(TaskSet(tasks("a" * 19), tasks("c"), {}, 0), settings, model).train
    with pytest.raises(TaskError, match=r'2 tasks .* 20 tokens: bbbbbbbb, dddddddd\. .* or set tasks\.too_long = "skip"'):
        fitting(TaskSet(tasks("a" * 19, "b" * 20), tasks("c" * 5, "d" * 30), {}, 0), settings, model)


def test_a_recorded_completion_longer_than_the_model_is_refused_by_name(tmp_path: Path) -> None:
    short_model = str(make_tiny_model(tmp_path, seed=0, hidden_size=16, num_layers=1, max_length=24))  # one token per byte

    def rows(completion: str, prompt: str = "p" * 10) -> TaskSet:
        return TaskSet(tasks(prompt, "other"), tasks("c"), {prompt[:8]: (Recorded(completion, 1.0),)}, 0)

    assert fitting(rows("x" * 13), config(), short_model).train  # 10 + 13 and the end of the sequence
    with pytest.raises(TaskError, match=r"task p{8}: its prompt and recorded completion have 10 \+ 15 tokens, .* positions for 24"):
        fitting(rows("x" * 14), config(), short_model)
    assert len(fitting(rows("x" * 14, "p" * 30), config(), short_model).train) == 1  # left out like any prompt too long


def test_recorded_rows_without_a_reference_are_not_judged() -> None:
    recorded = RunConfig(tasks=TasksConfig(source="x", chosen="{a}", rejected="{b}"), objective=Dpo())
    task_set = TaskSet(tasks("a", reference=""), tasks("b"), {}, 0)
    assert judged_tasks(recorded, task_set) == task_set.held_out
    assert judged_tasks(config(), task_set) == (*task_set.train, *task_set.held_out)


def test_when_no_prompt_fits_it_says_which_and_how_to_mend_it(model: str) -> None:
    with pytest.raises(ModelError, match=r"no training task fits into 20 tokens\. Raise engine\.max_model_len"):
        fitting(TaskSet(tasks("a" * 50), tasks("b"), {}, 0), config(), model)


async def test_a_reference_that_nothing_understands_is_refused_with_its_task() -> None:
    with pytest.raises(InvalidReference, match="task a: math"):
        await check_references(config(), TaskSet(tasks("a", reference=""), tasks("b"), {}, 0))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    settings = config().model_copy(update={"model": config().model.model_copy(update={"path": str(tmp_path)})})
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        prepare_model(settings, RunFolder(tmp_path / "run"))
