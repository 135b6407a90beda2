"""What is refused or left out before anything costly starts."""

import logging
from pathlib import Path

import pytest

from grpo.config import RunConfig
from grpo.folder import RunFolder
from grpo.prepare import check_references, fitting, prepare_model
from grpo.tiny_model import make_tiny_model
from rollout.engine import EngineConfig
from rollout.errors import ModelError
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
