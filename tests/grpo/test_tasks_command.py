"""`grpo tasks` says what can be trained on, why the rest cannot, and how a config asks for it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from grpo.cli import main
from rollout.rows import OF_REASONING_GYM
from rollout.tasks import TasksConfig
from verifiers import reasoning_gym_admission
from verifiers.reasoning_gym_admission import Admission, table


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["tasks", *arguments]) == 0
    return capsys.readouterr().out


def test_it_lists_what_is_safe_and_with_all_why_the_rest_is_not(capsys: pytest.CaptureFixture[str]):
    lines = said(capsys).splitlines()
    safe = [name for name, admission in table().items() if admission.is_safe]
    assert lines[:-1] == safe
    assert lines[-1].startswith(
        f"{len(safe)} of {len(table())} datasets of reasoning-gym 0.1.25 are safe to train on. --all says why"
    )

    everything = said(capsys, "--all")
    assert all(name in everything for name in table())
    assert re.search(r"puzzle24 +│ nobody: not safe │ its scorer evaluates", everything)


def test_it_shows_tasks_and_a_config_that_trains_on_them(capsys: pytest.CaptureFixture[str]):
    shown = said(capsys, "gcd?max_value=50", "-n", "3")
    assert len(re.findall(r"^--- gcd:0:\d$", shown, re.MULTILINE)) == 3
    config, _, defaults = shown.partition("Safe to train on.")[2].partition("[tasks]")[2].partition("# which means")
    tasks = TasksConfig.model_validate(tomllib.loads(config))
    assert tasks.source == "reasoning_gym:gcd?max_value=50&size=8000"
    assert tasks.rewards == "reasoning_gym"
    stated = tomllib.loads("\n".join(line.removeprefix("# ") for line in defaults.splitlines()[1:]))
    assert stated == OF_REASONING_GYM


def test_a_dataset_that_is_not_safe_comes_without_a_config(capsys: pytest.CaptureFixture[str]):
    shown = said(capsys, "reasoning_gym:complex_arithmetic")
    assert "Not safe to train on. reasoning-gym's dataset complex_arithmetic is not trusted: 'nan' gets 1." in shown
    assert "[tasks]" not in shown


def test_a_dataset_that_we_judge_says_why(capsys: pytest.CaptureFixture[str]):
    shown = said(capsys, "reasoning_gym:gsm_symbolic")
    assert "Judged by our own comparison with the reference, because of its scorer: '-405' (a sign changed) gets 1" in shown
    assert 'source = "reasoning_gym:gsm_symbolic?size=8000"' in shown


@pytest.mark.slow
def test_options_that_make_a_dataset_unsafe_are_found_when_it_is_shown(capsys: pytest.CaptureFixture[str]):
    shown = said(capsys, "figlet_font?min_word_len=12&max_word_len=14", "-n", "1")
    assert "is not trusted with the options {'min_word_len': 12, 'max_word_len': 14}" in shown


def test_it_shows_the_rows_of_any_other_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"question": "1 + 1?\x1b[2J", "answer": {"value": 2}, "long": "x" * 5000}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    shown = said(capsys, str(tmp_path / "mine.jsonl"))
    assert 'answer: {"value": 2}' in shown
    assert "question: 1 + 1?\ufffd[2J" in shown
    assert "… (5,000 characters)" in shown


def test_what_is_no_source_is_the_users_mistake(capsys: pytest.CaptureFixture[str]):
    assert main(["tasks", "chain_som"]) == 2
    assert "reasoning_gym has no dataset 'chain_som'. Did you mean chain_sum?" in capsys.readouterr().err


def test_admitting_writes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    found = [("aa", Admission("scorer", "", 0.5)), ("bb", Admission("nobody", "it is not good"))]
    monkeypatch.setattr(reasoning_gym_admission, "admit_all", lambda: iter(found))
    monkeypatch.setattr(reasoning_gym_admission, "TABLE", tmp_path / "table.json")
    shown = said(capsys, "--admit")
    assert "aa: its own scorer\nbb: nobody: not safe: it is not good\n1 of 2 datasets of reasoning-gym 0.1.25 are safe" in shown
    assert table() == dict(found)
    table.cache_clear()
