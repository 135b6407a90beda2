"""Whole runs on real parts: Ray, an engine, verifiers, the learner; started, stopped, killed and resumed as a person would."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.integration.runs import ROOT, curve, finish, ours, prepare, run, start, wait_for_step, wait_until_gone, workplace_of

SETTINGS = {"learner.max_mismatch": 1e-3, "checkpoints.every": 2, "checkpoints.keep": 10}

workplace = workplace_of(SETTINGS)


class Undisturbed(NamedTuple):
    """A run that ended by itself: the folder it was typed in, and what it said."""

    place: Path
    output: str


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """The run of an engine that nothing happened to, made when it is first asked for."""

    @cache
    def of(engine: str) -> Undisturbed:
        place = tmp_path_factory.mktemp(engine)
        prepare(place, SETTINGS)
        output = run(place, "train", "tiny.toml", "--set", f"engine.kind={engine}")
        wait_until_gone(place)
        return Undisturbed(place, output)

    return of


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
ENGINES = [pytest.param("vllm", marks=pytest.mark.vllm), "hf"]


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_and_learner_agree_at_every_step(undisturbed: Callable[[str], Undisturbed], engine: str) -> None:
    differences = [line["mismatch/abs_max"] for line in curve(undisturbed(engine).place) if "mismatch/abs_max" in line]
    assert len(differences) >= 4  # a step whose groups are all flat has none
    assert max(differences) < 1e-3


def assert_same_curve(curve: list[dict[str, float]], other: list[dict[str, float]], *, to_the_bit: bool) -> None:
    """The hf engine rounds by who shares a batch, which depends on when requests arrive; what it samples is the same."""
    if to_the_bit:
        assert curve == other
        return
    assert len(curve) == len(other)
    for line, expected in zip(curve, other, strict=True):
        rounded = {name for name in expected if name.startswith(("mismatch/", "loss/", "policy/", "preference/"))}
        assert {name: line[name] for name in line if name not in rounded} == {n: v for n, v in expected.items() if n not in rounded}
        assert {name: line[name] for name in rounded} == pytest.approx({n: expected[n] for n in rounded}, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_leaves_no_process_and_resumes_to_the_same_curve(
    workplace: Path, undisturbed: Callable[[str], Undisturbed], engine: str
) -> None:
    setting, expected = ("--set", f"engine.kind={engine}"), undisturbed(engine).place
    process = start(workplace, "train", "tiny.toml", *setting)
    wait_for_step(workplace, 3, process)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    output = run(workplace, "train", "tiny.toml", *setting)  # at once; that all processes are gone is seen afterwards

    assert "resuming from step 2 of 6" in output or "resuming from step 4 of 6" in output
    assert_same_curve(curve(workplace), curve(expected), to_the_bit=engine == "vllm")
    weights, wanted = (load_file(place / "runs/tiny/model/model.safetensors") for place in (workplace, expected))
    furthest = max(float((weights[name] - tensor).abs().max()) for name, tensor in wanted.items())
    assert furthest == 0 if engine == "vllm" else furthest < 1e-3


def test_ctrl_c_saves_a_checkpoint_leaves_no_process_and_the_run_resumes(workplace: Path) -> None:
    process = start(workplace, "train", "tiny.toml", "--set", "steps=200", "--set", "checkpoints.every=100")
    wait_for_step(workplace, 2, process)
    # As a terminal does it: to every process of the foreground group.
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process)

    assert process.returncode == 130, output
    assert "Type the same command to resume" in output
    wait_until_gone(workplace)
    (checkpoint,) = (workplace / "runs/tiny/checkpoints").iterdir()
    resumed = run(workplace, "train", "tiny.toml", "--set", f"steps={int(checkpoint.name[5:]) + 1}")
    assert f"resuming from step {int(checkpoint.name[5:])}" in resumed


def test_a_finished_run_says_that_it_is_done(undisturbed: Callable[[str], Undisturbed]) -> None:
    place, first = undisturbed("hf")
    second = run(place, "train", "tiny.toml")

    assert "done already, step 6 of 6" in second
    assert first.splitlines()[-1] == second.splitlines()[-1]


def test_a_dead_rollout_worker_is_replaced_and_the_curve_is_the_same(
    workplace: Path, undisturbed: Callable[[str], Undisturbed]
) -> None:
    process = start(workplace, "train", "tiny.toml")
    wait_for_step(workplace, 1, process)
    worker_log = workplace / "runs/tiny/logs/worker-0.log"
    holders = [p for p in ours(workplace) if any(Path(f.path) == worker_log.resolve() for f in p.open_files())]
    holders[0].kill()
    output = finish(process)

    assert process.returncode == 0, output
    disturbed, expected = curve(workplace), curve(undisturbed("hf").place)
    lost = [[line.pop("fleet/lost_workers") for line in lines if "fleet/lost_workers" in line] for lines in (disturbed, expected)]
    assert (lost[0][-1], lost[1][-1]) == (1, 0)
    assert_same_curve(disturbed, expected, to_the_bit=False)


@pytest.mark.vllm
def test_adapters_train_and_reach_the_engine(workplace: Path) -> None:
    settings = ("engine.kind=vllm", "model.lora.rank=4", "learner.learning_rate=1e-2")
    run(workplace, "train", "tiny.toml", *(word for setting in settings for word in ("--set", setting)))

    metrics = [line for line in curve(workplace) if "mismatch/abs_max" in line]
    assert max(line["mismatch/abs_max"] for line in metrics) < 1e-3
    assert any(line["policy/grad_norm"] > 0 for line in metrics)


def test_gsm8k_gives_real_prompts_verdicts_and_reasons(workplace: Path) -> None:
    source = ROOT.parent / "shared/data/gsm8k_train.jsonl"
    if not source.exists():
        pytest.skip(f"{source} is not here")
    (workplace / "gsm8k.toml").write_text(
        f'steps = 2\ngroups_per_step = 2\ngroup_size = 4\n[tasks]\nsource = "{source}"\nheld_out = 4\n'
        '[sampling]\nmax_tokens = 16\n[evaluation]\nevery = 0\n[engine]\nkind = "hf"\n'
    )
    run(workplace, "train", "gsm8k.toml")

    rows = pq.read_table(workplace / "runs/gsm8k/rollouts").to_pylist()
    assert len(rows) == 2 * 2 * 4
    assert all(row["scores"][0]["verifier"] == "math" and row["scores"][0]["reason"] for row in rows)
    assert all("####" in row["reference"] for row in rows)


def test_two_learner_ranks_give_the_curve_of_one_and_one_goes_on_from_their_checkpoint(workplace: Path) -> None:
    setting = ("--set", "learner.learning_rate=1e-4")
    run(workplace, "train", "tiny.toml", *setting, "--run-dir", "runs/alone")
    ranks = ("--set", "learner.num_ranks=2")
    run(workplace, "train", "tiny.toml", *setting, *ranks, "--set", "steps=4")
    assert {path.name for path in (workplace / "runs/tiny/logs").glob("learner*")} == {"learner-0.log", "learner-1.log"}
    assert len(list((workplace / "runs/tiny/checkpoints/step-000004/learner").glob("*.distcp"))) == 2
    output = run(workplace, "train", "tiny.toml", *setting, "--run-dir", "runs/tiny")

    assert "resuming from step 4 of 6" in output
    together, alone = ([line for line in curve(workplace, name) if "loss/value" in line] for name in ("tiny", "alone"))
    for line, expected in zip(together, alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_when_a_learner_rank_dies_it_is_named_with_its_log_and_the_run_goes_on_from_the_newest_checkpoint(workplace: Path) -> None:
    process = start(workplace, "train", "tiny.toml", "--set", "learner.num_ranks=2")
    wait_for_step(workplace, 3, process)
    log = workplace / "runs/tiny/logs/learner-1.log"
    holders = [p for p in ours(workplace) if any(Path(f.path) == log.resolve() for f in p.open_files())]
    holders[0].kill()
    output = finish(process)

    assert process.returncode == 0, output
    assert "the process of learner-1 died: " in output
    assert "logs/learner-1.log" in "".join(output.split())
    assert "Starting again from step " in " ".join(output.split())
