"""A run's rollouts judged again: what flipped, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.cli import main
from grpo.config import RunConfig
from grpo.folder import RunFolder, nested_values
from grpo.rescore import rules_of
from grpo.tracking import RolloutStore
from rollout.types import Completion, Group
from sandbox.errors import UserError
from verifiers.types import Task, Verdict, correct, infra, wrong

MIX = {
    "mine": {"math": {"weight": 1.0, "options": {"percent": "number"}}, "format": {"weight": 0.5, "options": {"preset": "boxed"}}}
}
RIGHT, WRONG = r"\boxed{42\%}", r"\boxed{41}"


def named(verdict: Verdict) -> Verdict:
    """As the service names scores: by the component."""
    scores = [
        type(score)(score.outcome, score.value, score.reason, score.extracted, name)
        for name, score in zip(MIX["mine"], verdict.scores, strict=True)
    ]
    return Verdict(verdict.reward, verdict.is_correct, tuple(scores), verdict.cause)


GOOD = named(Verdict(1.0, True, (correct("the same text", "42"), correct("has the form"))))
BAD = named(Verdict(1 / 3, False, (wrong("is not 42", "41"), correct("has the form"))))
LOST = named(Verdict(None, False, (infra("a worker died"), correct("has the form")), "math: a worker died"))


def make_run(folder: Path, stored: Sequence[tuple[str, Verdict]], *, reference: Any = "42", rewards: str = "mine") -> Path:
    config = RunConfig.model_validate({"tasks": {"source": "tasks.jsonl", "rewards": rewards}, "rewards": MIX})
    run = RunFolder(folder)
    run.acquire()
    run.record(config)
    run.release()
    task = Task("t1", "6 * 7?", reference, rewards)
    completions = tuple(Completion(i, (1,), (2, 3), text, "stop", (-0.5, -0.5)) for i, (text, _) in enumerate(stored))
    RolloutStore(run.rollouts, every=1).write(4, [Group(task, completions, tuple(verdict for _, verdict in stored))])
    return folder


def rescored(run: Path, *words: str) -> list[dict[str, Any]]:
    out = run / "flips.jsonl"
    assert main(["rescore", str(run), "-o", str(out), *words]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_what_is_judged_as_it_was_does_not_flip(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", [(RIGHT, GOOD), (WRONG, BAD)])
    assert rescored(run) == []
    assert capsys.readouterr().out == "2 completions judged again, 0 flipped\n"


def test_a_flip_tells_the_scores_before_and_now_with_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", [(RIGHT, BAD), (WRONG, BAD), (RIGHT, LOST)])
    first, second = rescored(run)
    assert (first["step"], first["task_id"], first["index"], first["reference"]) == (4, "t1", 0, "42")
    assert (first["before"], first["after"]) == (1 / 3, 1.0)
    assert [(score["verifier"], score["outcome"]) for score in first["scores_before"]] == [("math", "wrong"), ("format", "correct")]
    assert [(score["verifier"], score["outcome"]) for score in first["scores_after"]] == [
        ("math", "correct"),
        ("format", "correct"),
    ]
    assert (second["before"], second["after"]) == (None, 1.0)
    told = capsys.readouterr().out
    assert "step 4 task t1 completion 0: 0.333333 -> 1: math wrong (is not 42) -> correct (equals the reference (equal))" in told
    assert "3 completions judged again, 2 flipped; 1 from 0.333333 to 1; 1 from unscored to 1\n" in told


def test_another_mix_or_config_may_judge(tmp_path: Path):
    run = make_run(tmp_path / "run", [(RIGHT, GOOD)])
    (flip,) = rescored(run, "--rewards", "math")  # where 42 % is 0.42
    assert flip["after"] == 0.0
    config = tmp_path / "stricter.toml"
    mix = '[rewards.mine]\nmath = {}\nformat = { options = { preset = "think_boxed" } }\n'
    config.write_text(f'[tasks]\nsource = "none.jsonl"\nrewards = "mine"\n{mix}')
    (flip,) = rescored(run, "--config", str(config))
    assert flip["after"] == 0.0


def test_a_plugin_may_judge(tmp_path: Path):
    run = make_run(tmp_path / "run", [(RIGHT, GOOD)])
    plugin = tmp_path / "rescoring_rule.py"
    plugin.write_text(
        "from verifiers.registry import rule\nfrom verifiers.types import wrong\n"
        "@rule('never_right')\ndef never_right(task, text):\n    return wrong('never')\n"
    )
    config = tmp_path / "plugin.toml"
    config.write_text(
        f'plugins = ["{plugin}"]\n[tasks]\nsource = "none.jsonl"\nrewards = "mine"\n[rewards.mine]\nnever_right = {{}}\n'
    )
    (flip,) = rescored(run, "--config", str(config))
    assert flip["scores_after"][0]["reason"] == "never"


def test_a_reference_that_is_refused_today_is_a_flip_to_unscored(tmp_path: Path):
    run = make_run(tmp_path / "run", [(RIGHT, GOOD)], reference="")
    (flip,) = rescored(run)
    assert flip["after"] is None
    assert "states no answer" in flip["cause"]


def test_the_run_itself_is_left_as_it_is(tmp_path: Path):
    run = make_run(tmp_path / "run", [(RIGHT, BAD)])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["rescore", str(run)]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "cannot be read"),
        (lambda run: (run / "config.json").write_text('{"config": {"rewards.mine.math.wieght": 1}}'), "cannot be read"),
        (lambda run: [path.unlink() for path in (run / "rollouts").iterdir()], "there are no rollouts"),
    ],
)
def test_a_run_that_cannot_be_read_says_why(tmp_path: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", [(RIGHT, GOOD)])
    damage(run)
    assert main(["rescore", str(run)]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_mix_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", [(RIGHT, GOOD)])
    assert main(["rescore", str(run), "--rewards", "mins"]) == 2
    assert "Did you mean mine? Say with --config" in capsys.readouterr().err


def test_the_recorded_rules_are_those_of_the_config(tmp_path: Path):
    rules = rules_of(make_run(tmp_path / "run", [(RIGHT, GOOD)]))
    assert rules.mixes["mine"]["math"].options == {"percent": "number"}
    assert nested_values({"a.b": 1, "a.c.d": [2], "e": None}) == {"a": {"b": 1, "c": {"d": [2]}}, "e": None}
    with pytest.raises(UserError, match="cannot be read"):
        rules_of(tmp_path)
