"""Running config files: which stages, in which order, with which overrides, and what is refused."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from grpo import stages
from grpo.checkpoint import Checkpoints
from grpo.config import ConfigError
from grpo.folder import HARMLESS, RunFolder
from grpo.learner_group import LearnerLost
from grpo.plan import MACHINE_SETTINGS, Stage, plan
from grpo.stages import clear_folder, outliving_learners, run_stages
from grpo.state import RunState
from rollout.errors import ModelError
from sandbox.errors import UserError
from verifiers.errors import VerifierError

BASE = '[tasks]\nsource = "tasks.jsonl"\n'


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    (tmp_path / "first.toml").write_text(BASE)
    (tmp_path / "second.toml").write_text(BASE + '[model]\nstart_from = "first.toml"\n')
    return tmp_path


def test_a_stage_runs_after_the_one_it_starts_from_and_takes_its_model(configs: Path) -> None:
    first, second = plan(configs / "second.toml", [], Path("runs/mine"))
    assert [first.folder.path, second.folder.path] == [Path("runs/first"), Path("runs/mine")]
    assert second.config.model.path == "runs/first/model"


def test_where_a_run_happens_holds_for_earlier_stages_and_what_it_learns_does_not(configs: Path) -> None:
    first, second = plan(configs / "second.toml", ["engine.kind=hf", "model.lora.rank=4", "device=cpu"], None)
    assert [stage.config.engine.kind for stage in (first, second)] == ["hf", "hf"]
    assert [stage.config.device for stage in (first, second)] == ["cpu", "cpu"]
    assert [stage.config.model.lora.rank for stage in (first, second)] == [0, 4]


def test_stages_in_a_circle_are_refused(configs: Path) -> None:
    (configs / "first.toml").write_text(BASE + '[model]\nstart_from = "second.toml"\n')
    with pytest.raises(ConfigError, match="leads back to this file"):
        plan(configs / "second.toml", [], None)


def test_a_finished_stage_may_have_used_another_engine_but_not_another_model(configs: Path) -> None:
    (first,) = plan(configs / "first.toml", [], configs / "run")
    first.folder.path.mkdir()
    first.folder.record(first.config)
    (other_engine,) = plan(configs / "first.toml", ["engine.kind=hf"], configs / "run")
    (other_model,) = plan(configs / "first.toml", ["model.path=other"], configs / "run")

    with pytest.raises(ConfigError, match=r"engine\.kind: 'vllm' -> 'hf'"):
        first.folder.check_config(other_engine.config, allow_changes=False)
    changes = first.folder.check_config(other_engine.config, allow_changes=False, harmless=HARMLESS + MACHINE_SETTINGS)
    assert changes == ["engine.kind: 'vllm' -> 'hf'"]
    with pytest.raises(ConfigError, match=r"model\.path"):
        first.folder.check_config(other_model.config, allow_changes=False, harmless=HARMLESS + MACHINE_SETTINGS)


def test_a_learner_that_dies_is_started_again_from_the_newest_checkpoint_until_that_gets_nowhere(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = plan(configs / "first.toml", [], configs / "run")
    console, lives = Console(file=io.StringIO()), iter([4, 4, 8, 8, 8, 99])  # the newest checkpoint when each of them dies
    newest = [0]

    async def die(stage: Stage, console: Console) -> RunState:
        newest[0] = next(lives)
        raise LearnerLost("the process of learner died: killed.")

    monkeypatch.setattr(stages, "run_stage", die)
    monkeypatch.setattr(Checkpoints, "latest", lambda self: RunState(step=newest[0]))
    with pytest.raises(LearnerLost):
        outliving_learners(stage, console)
    assert next(lives) == 99
    assert isinstance(console.file, io.StringIO)
    again = [line[-26:] for line in console.file.getvalue().splitlines()]
    assert again == ["Starting again from step 4."[-26:]] * 2 + ["Starting again from step 8."[-26:]] * 2


def test_starting_over_deletes_a_run_only_when_told_to(configs: Path) -> None:
    (stage,) = plan(configs / "first.toml", [], configs / "run")
    folder = RunFolder(configs / "run")
    folder.path.mkdir()
    folder.record(stage.config)
    (folder.path / "metrics.jsonl").write_text("{}")

    with pytest.raises(UserError, match=r"holds a run already\. Add --overwrite"):
        clear_folder(folder, overwrite=False)
    assert folder.metrics.exists()
    clear_folder(folder, overwrite=True)
    assert not folder.holds_a_run
    assert not folder.metrics.exists()


def test_a_config_may_be_mended_after_a_run_that_failed_before_its_first_checkpoint(
    configs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{"question": "1+2", "answer": "3"}\n')
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO())

    def run(*overrides: str) -> None:
        stages = plan(configs / "first.toml", ["tasks.held_out=1", *overrides], None)
        run_stages(stages, fresh=False, overwrite=False, allow_changes=False, console=console)

    with pytest.raises(VerifierError, match="mth"):
        run("rewards.x.mth.weight=1", "tasks.rewards=x")
    with pytest.raises(ModelError, match="nowhere"):
        run("engine.kind=hf", "model.path=nowhere/none")
