"""The run folder: one process at a time, and never two runs in one."""

from __future__ import annotations

import json
import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from grpo import folder as folder_module
from grpo.cli import main
from grpo.config import CheckpointConfig, ConfigError, EvaluationConfig, RunConfig, flatten
from grpo.folder import HARMLESS, RunFolder, code_fingerprint
from grpo.learner_config import LearnerConfig
from rollout.engine import EngineConfig
from rollout.tasks import TasksConfig
from sandbox.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = RunConfig(tasks=TasksConfig(source="tasks.jsonl"))


def folder(path: Path, config: RunConfig | None = None) -> RunFolder:
    made = RunFolder(path)
    made.acquire()
    if config is not None:
        made.record(config)
    return made


# One process at a time


def _hold(path: Path, ready: Event) -> None:
    held = folder(path)
    ready.set()
    time.sleep(60)
    held.release()


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UserError) as caught:
            RunFolder(tmp_path).acquire()
        assert str(caught.value) == (
            f"{tmp_path}: process {other.pid} is training in this folder. Wait for it, end it, or use another --run-dir."
        )
    finally:
        other.kill()
        other.join()
    folder(tmp_path)  # a killed process leaves no lock


def test_the_command_refuses_it_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held = folder(tmp_path / "run")
    code = main(["train", str(ROOT / "configs" / "quickstart_sft.toml"), "--run-dir", str(tmp_path / "run")])
    told = capsys.readouterr().err
    held.release()
    assert code == 2
    assert told.startswith(f"UserError: {tmp_path}/run: process ")
    assert "Traceback" not in told


def test_a_released_folder_is_free(tmp_path: Path):
    for _ in range(2):
        held = folder(tmp_path)
        held.release()
        held.release()


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"/file: cannot be used as a run folder: File exists\. Use another --run-dir\."):
        RunFolder(tmp_path / "file").acquire()
    with pytest.raises(UserError, match=r"/file/run: cannot be used as a run folder: Not a directory\."):
        RunFolder(tmp_path / "file" / "run").acquire()


# One run in it


def test_a_folder_holds_a_run_once_its_config_is_recorded(tmp_path: Path):
    made = folder(tmp_path)
    assert not made.holds_a_run
    made.record(CONFIG)
    assert made.holds_a_run
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["tasks.source"] == "tasks.jsonl"
    assert record["config_hash"] == CONFIG.fingerprint
    assert record["packages"]["torch"]
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_config_resumes_silently(tmp_path: Path):
    assert folder(tmp_path, CONFIG).check_config(CONFIG, allow_changes=False) == []
    assert RunFolder(tmp_path / "new").check_config(CONFIG, allow_changes=False) == []


def test_harmless_changes_pass_and_are_told(tmp_path: Path):
    changed = CONFIG.model_copy(
        update={
            "steps": 200,
            "evaluation": EvaluationConfig(every=5),
            "checkpoints": CheckpointConfig(keep=9),
            "engine": EngineConfig(num_workers=4),
        }
    )
    assert folder(tmp_path, CONFIG).check_config(changed, allow_changes=False) == [
        "checkpoints.keep: 2 -> 9",
        "engine.num_workers: 1 -> 4",
        "evaluation.every: 20 -> 5",
        "steps: 100 -> 200",
    ]


def test_every_harmless_field_is_one(tmp_path: Path):
    names = flatten(CONFIG)
    assert all(any(name.startswith(harmless) for name in names) for harmless in HARMLESS)
    told = (ROOT / "docs" / "operating.md").read_text()
    assert all(f"`{harmless.replace('.', '.*') if harmless.endswith('.') else harmless}`" in told for harmless in HARMLESS)


def test_the_hash_of_the_code_changes_with_any_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("sandbox", "grpo"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("x = 1")
    monkeypatch.setattr(folder_module, "__file__", str(tmp_path / "grpo" / "folder.py"))
    hash_of = code_fingerprint.__wrapped__
    before = hash_of()
    assert hash_of() == before
    (tmp_path / "sandbox" / "a.py").write_text("x = 2")
    assert hash_of() != before


def test_other_changes_are_refused_with_what_differs_and_the_ways_out(tmp_path: Path):
    changed = CONFIG.model_copy(update={"steps": 200, "seed": 1, "learner": LearnerConfig(learning_rate=1e-5)})
    made = folder(tmp_path, CONFIG)
    with pytest.raises(ConfigError) as caught:
        made.check_config(changed, allow_changes=False)
    assert str(caught.value) == (
        f"{tmp_path} holds a run with another config:\n  learner.learning_rate: 1e-06 -> 1e-05\n  seed: 0 -> 1\n"
        "Use another --run-dir, start over with --fresh --overwrite, or resume with the new values with --allow-changes."
    )
    assert len(made.check_config(changed, allow_changes=True)) == 3


def test_a_setting_that_came_later_had_its_default_before(tmp_path: Path):
    made = folder(tmp_path, CONFIG)
    record = json.loads((tmp_path / "config.json").read_text())
    for name in ("max_lag", "learner.max_grad_norm"):
        del record["config"][name]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert made.check_config(CONFIG, allow_changes=False) == []
    with pytest.raises(ConfigError, match=r"max_lag: 0 -> 1"):
        made.check_config(CONFIG.model_copy(update={"max_lag": 1}), allow_changes=False)


@pytest.mark.parametrize("content", ["", '{"config": {"ste', "[]", "{}"])
def test_a_damaged_record_is_told_and_not_overlooked(tmp_path: Path, content: str):
    made = folder(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged .*Use another --run-dir, or start over with --fresh"):
        made.check_config(CONFIG, allow_changes=False)


def test_clearing_removes_everything_but_the_lock(tmp_path: Path):
    made = folder(tmp_path / "run", CONFIG)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    made.checkpoints.mkdir()
    (made.checkpoints / "step-000001").mkdir()
    (made.path / "link").symlink_to(outside)
    made.clear()
    assert [path.name for path in made.path.iterdir()] == ["lock"]
    assert (outside / "kept").exists()
    with pytest.raises(UserError):
        RunFolder(tmp_path / "run").acquire()
