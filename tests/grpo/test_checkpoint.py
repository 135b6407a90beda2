"""Checkpoints are whole or not there, whatever happens to the disk."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpo.batch import Example
from grpo.checkpoint import COMPLETE, STATE, CheckpointFailed, Checkpoints, _mark_complete, find_problem
from grpo.state import Evaluation, RunState
from rollout.tasks import Cursor, TaskStream
from rollout.transports import WeightPlacement
from tests.fakes import FakeLearner, make_tasks


def state(step: int, *, accuracy: dict[int, float] | None = None) -> RunState:
    evaluations = tuple(
        Evaluation(step=s, num_tasks=4, sampled_accuracy=a, greedy_accuracy=a, length_mean=1, seconds=0)
        for s, a in (accuracy or {}).items()
    )
    return RunState(step=step, cursor=Cursor(10 * step, (1, 2)), evaluations=evaluations, elapsed_s=0.1 + 0.2, wandb_id="w")


def stream() -> TaskStream:
    return TaskStream(make_tasks(10), seed=0)


async def save(checkpoints: Checkpoints, *steps: int) -> FakeLearner:
    learner = FakeLearner()
    for step in steps:
        learner.weight = step + 0.5
        await checkpoints.save(state(step), learner)
    return learner


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_what_was_saved_comes_back(tmp_path: Path):
    await save(Checkpoints(tmp_path, keep=3), 1, 2)
    learner, tasks = FakeLearner(), stream()
    assert await Checkpoints(tmp_path, keep=3).restore(learner, tasks) == state(2)
    assert learner.weight == 2.5
    assert tasks.cursor == Cursor(20, (1, 2))
    assert Checkpoints(tmp_path, keep=3).latest() == state(2)


async def test_a_new_run_starts_at_step_0_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert await Checkpoints(tmp_path / "none", keep=1).restore(FakeLearner(), stream()) == RunState()
    assert Checkpoints(tmp_path / "none", keep=1).latest() is None
    assert not caplog.records


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights with a flipped bit": (lambda folder: flip_a_bit(folder / "weight.json"), "its file weight.json is damaged"),
    "weights cut short": (lambda folder: truncate(folder / "weight.json"), "its file weight.json is damaged"),
    "weights missing": (lambda folder: (folder / "weight.json").unlink(), "its file weight.json cannot be read (No such file"),
    "weights a folder": (
        lambda folder: _into_folder(folder / "weight.json"),
        "its file weight.json cannot be read (Is a directory)",
    ),
    "state with a flipped bit": (lambda folder: flip_a_bit(folder / STATE), f"its file {STATE} is damaged"),
    "state missing": (lambda folder: (folder / STATE).unlink(), f"its file {STATE} cannot be read"),
    "state missing, and no word of it": (lambda folder: _forget(folder, STATE), f"its file {COMPLETE} is damaged"),
    "mark missing": (lambda folder: (folder / COMPLETE).unlink(), "it was never finished"),
    "mark empty": (lambda folder: (folder / COMPLETE).write_text(""), f"its file {COMPLETE} is damaged"),
    "mark cut short by a line": (lambda folder: _keep_lines(folder / COMPLETE, 1), f"its file {COMPLETE} is damaged"),
    "mark cut short by a letter": (lambda folder: truncate(folder / COMPLETE), "is damaged"),
    "mark without words": (lambda folder: (folder / COMPLETE).write_bytes(b"\xff\n\x00"), f"its file {COMPLETE} is damaged"),
    "a file more": (lambda folder: (folder / "more").write_text(""), f"its file {COMPLETE} is damaged"),
    "nothing in it": (lambda folder: _empty(folder), "it was never finished"),
}


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _keep_lines(path: Path, count: int) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:count]))


def _forget(folder: Path, name: str) -> None:
    (folder / name).unlink()
    lines = (folder / COMPLETE).read_text().splitlines()
    (folder / COMPLETE).write_text("\n".join(line for line in lines if not line.startswith(name)))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
):
    await save(Checkpoints(tmp_path, keep=3), 1, 2)
    hurt, message = DAMAGES[damage]
    hurt(tmp_path / "step-000002")
    learner = FakeLearner()
    assert (await Checkpoints(tmp_path, keep=3).restore(learner, stream())).step == 1
    assert learner.weight == 1.5
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{tmp_path}/step-000002 is skipped: ")
    assert message in warning
    assert warning.endswith("The checkpoint before it is used.")
    latest = Checkpoints(tmp_path, keep=3).latest()
    assert latest is not None
    assert latest.step == 1


async def test_a_state_of_another_version_is_skipped(tmp_path: Path):
    await save(Checkpoints(tmp_path, keep=3), 1)
    folder = tmp_path / "step-000001"
    (folder / COMPLETE).unlink()
    (folder / STATE).write_text(json.dumps({"step": "one"}))
    _mark_complete(folder)
    assert find_problem(folder) == f"its file {STATE} is not one that this version reads"


async def test_when_none_is_whole_the_run_starts_over_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    await save(Checkpoints(tmp_path, keep=3), 1, 2)
    for folder in tmp_path.iterdir():
        (folder / COMPLETE).unlink()
    assert await Checkpoints(tmp_path, keep=3).restore(FakeLearner(), stream()) == RunState()
    assert caplog.records[-1].getMessage() == f"no checkpoint in {tmp_path} is whole: starting from step 0"


async def test_a_damaged_checkpoint_makes_way_for_the_resumed_runs_own(tmp_path: Path):
    """Also one of a step that the resumed run does not stop at: it must not count among those that are kept."""
    await save(Checkpoints(tmp_path, keep=2), 1, 2, 3)
    flip_a_bit(tmp_path / "step-000003" / "weight.json")
    await save(Checkpoints(tmp_path, keep=2), 3)
    assert find_problem(tmp_path / "step-000003") is None
    flip_a_bit(tmp_path / "step-000003" / "weight.json")
    await save(Checkpoints(tmp_path, keep=2), 2)
    assert names(tmp_path) == ["step-000002"]


# What is kept


async def test_the_newest_and_the_best_are_kept(tmp_path: Path):
    checkpoints, accuracy = Checkpoints(tmp_path, keep=2), {}
    for step, value in enumerate((0.1, 0.7, 0.3, 0.7, 0.2, 0.4, 0.5), 1):
        accuracy[step] = value
        await checkpoints.save(state(step, accuracy=accuracy), FakeLearner())
    assert names(tmp_path) == ["step-000004", "step-000006", "step-000007"]


async def test_checkpoints_of_steps_without_evaluation_are_never_the_best(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3):
        await checkpoints.save(state(step, accuracy={0: 0.9, 2: 0.1}), FakeLearner())
    assert names(tmp_path) == ["step-000002", "step-000003"]


async def test_order_is_by_number_and_other_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "step-000001-copy").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    await save(checkpoints, 999_999, 1_000_000)
    assert names(tmp_path) == ["step-000001-copy", "step-1000000"]


# Failures while writing


async def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    learner = await save(checkpoints, 1)
    learner.full_disk = True
    with pytest.raises(CheckpointFailed) as caught:
        await checkpoints.save(state(2), learner)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path}/step-000002: the checkpoint could not be written: [Errno 28] No space left on device. ")
    assert " MiB are free. " in told
    assert told.endswith(f"before it is {tmp_path}/step-000001. Make room, and start the run again to resume from there.")
    assert names(tmp_path) == ["step-000001"]
    assert find_problem(tmp_path / "step-000001") is None


async def test_a_folder_that_cannot_be_made_is_a_failure_too(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointFailed, match=r"Not a directory.* The checkpoint before it is none"):
        await Checkpoints(tmp_path / "file" / "checkpoints", keep=1).save(state(1), FakeLearner())


@pytest.mark.parametrize("error", [RuntimeError("PytorchStreamWriter failed writing file"), OSError(5, "Input/output error")])
async def test_every_way_to_report_a_bad_disk_is_one_failure(tmp_path: Path, error: Exception):
    learner = FakeLearner()

    async def fail(folder: str) -> None:
        raise error

    learner.save = fail  # type: ignore[method-assign]
    with pytest.raises(CheckpointFailed):
        await Checkpoints(tmp_path, keep=1).save(state(1), learner)


async def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    learner = await save(checkpoints, 1)
    under_way = asyncio.Event()

    async def slow(folder: str) -> None:
        (Path(folder) / "half").write_text("")
        under_way.set()
        await asyncio.sleep(60)

    learner.save = slow  # type: ignore[method-assign]
    saving = asyncio.create_task(checkpoints.save(state(2), learner))
    await under_way.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert names(tmp_path) == ["step-000001"]


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Lets this process write no file beyond a size: to torch and safetensors that looks like a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.1, 0.99])
async def test_a_real_learners_write_that_stops_half_way_leaves_the_checkpoint_before(
    tmp_path: Path, small_files: Callable[[int], None], share: float
):
    from grpo.config import RunConfig
    from grpo.learner import Learner
    from grpo.objectives import Sft
    from grpo.parts import learner_spec
    from grpo.tiny_model import make_tiny_model
    from rollout.tasks import TasksConfig

    model_path = str(make_tiny_model(tmp_path / "model", seed=0, hidden_size=32, num_layers=1))
    config = RunConfig(tasks=TasksConfig(source="unused.jsonl", completion="{x}"), objective=Sft())
    learner = Learner(learner_spec(config, model_path, WeightPlacement("cpu"), snapshots=tmp_path / "snapshots"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    await learner.update([Example((5, 6), (7, 8), None, advantage=1.0)])
    await checkpoints.save(state(1), learner)
    (written,) = (tmp_path / "checkpoints" / "step-000001" / "learner").glob("*.distcp")
    small_files(int(share * written.stat().st_size))
    with pytest.raises(CheckpointFailed, match="step-000002: the checkpoint could not be written: "):
        await checkpoints.save(state(2), learner)
    assert names(tmp_path / "checkpoints") == ["step-000001"]
    assert find_problem(tmp_path / "checkpoints" / "step-000001") is None


def test_what_a_killed_write_left_is_swept_away(tmp_path: Path):
    (tmp_path / ".step-000002.123.partial").mkdir()
    (tmp_path / ".step-000002.123.partial" / "weights").write_text("half")
    (tmp_path / "step-000001").mkdir()
    Checkpoints(tmp_path, keep=1).sweep()
    assert names(tmp_path) == ["step-000001"]


def _kill_while_saving(folder: str, learner_file: str) -> None:
    class Deadly(FakeLearner):
        async def save(self, folder: str) -> None:
            (Path(folder) / learner_file).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(Checkpoints(Path(folder), keep=1).save(state(2), Deadly()))


async def test_a_process_killed_while_writing_leaves_the_checkpoint_before(tmp_path: Path):
    await save(Checkpoints(tmp_path, keep=1), 1)
    process = multiprocessing.get_context("fork").Process(target=_kill_while_saving, args=(str(tmp_path), "weight.json"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    latest = Checkpoints(tmp_path, keep=1).latest()
    assert latest is not None
    assert latest.step == 1
    Checkpoints(tmp_path, keep=1).sweep()
    assert names(tmp_path) == ["step-000001"]
