"""`grpo check`: what a run would do, and what its references score, before anything costly starts."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grpo.cli import main
from grpo.commands.check import arithmetic, check
from grpo.config import load_config
from rollout.tasks import TasksConfig, load_tasks

ROOT = Path(__file__).parents[2]
CONFIG = """
steps = 10
groups_per_step = 4
group_size = 8
[tasks]
source = "{source}"
held_out = 8
rewards = "boxed"
[rewards.boxed]
math = {{ weight = 1.0 }}
format = {{ weight = 0.0, gate = true, options = {{ preset = "think_boxed" }} }}
[sampling]
max_tokens = 100
[learner]
mini_batches = 3
tokens_per_micro_batch = 450
"""


def write(folder: Path, rows: list[dict[str, Any]] | None = None, *, extra: str = "") -> Path:
    rows = rows if rows is not None else [{"question": f"{i}+1?", "answer": f"It is.\n#### {i + 1}"} for i in range(40)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "my.toml"
    path.write_text(CONFIG.format(source=folder / "tasks.jsonl") + extra)
    return path


def checked(path: Path, *overrides: str, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    assert check(load_config(path, overrides), path, console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_value_of_the_resolved_config_is_told_on_one_line(tmp_path: Path):
    path = write(tmp_path)
    told = checked(path).splitlines()
    assert f"  tasks.source = '{tmp_path}/tasks.jsonl'" in told
    assert "  rewards.boxed.format.options.preset = 'think_boxed'" in told
    assert "  learner.learning_rate = 1e-06" in told
    assert f"{path}: resolved, with what differs from the defaults in bold; hash {load_config(path).fingerprint}" in told


def test_square_brackets_are_not_taken_for_markup(tmp_path: Path):
    assert "  tasks.prompt = '[bold]{question}'" in checked(write(tmp_path), "tasks.prompt=[bold]{question}").splitlines()


def test_the_batch_arithmetic_is_told_in_numbers(tmp_path: Path):
    config = load_config(write(tmp_path))
    assert arithmetic(config, load_tasks(config.tasks)).splitlines() == [
        "batch arithmetic",
        "  4 prompts a step x 8 completions = 32 completions, at most 3,200 completion tokens",
        "  32 rows / 3 mini-batches = 3 optimizer steps of 11",
        "  a micro-batch holds 450 tokens, prompts and padding included: about 4 rows when completions are as long as they may be "
        "(100)",
        "  10 steps = 30 optimizer steps, 320 completions, 1.25 passes over 32 training tasks (0 duplicates left out)",
        "  evaluation: 8 held-out tasks, sampled and greedy, every 20 steps",
    ]


def test_recorded_demonstrations_are_one_completion_each(tmp_path: Path):
    told = checked(write(tmp_path), "tasks.completion={answer}", "objective.name=sft", "evaluation.every=0")
    assert "  4 prompts a step x 1 completion = 4 completions, at most 400 completion tokens" in told
    assert "  evaluation: 8 held-out tasks, sampled and greedy, at the start and the end" in told


@pytest.mark.parametrize(
    ("overrides", "completions", "rows"),
    [
        (("objective.name=dpo",), "4 prompts a step x 8 completions = 32 completions", "8 rows / 3 mini-batches"),
        (
            ("objective.name=dpo", "tasks.chosen=a", "tasks.rejected=b"),
            "x 2 completions = 8 completions",
            "8 rows / 3 mini-batches",
        ),
        (("objective.name=spin", "tasks.completion=a"), "x 8 completions = 32 completions", "64 rows / 3 mini-batches"),
        (("objective.name=kto",), "x 8 completions = 32 completions", "32 rows / 3 mini-batches"),
    ],
)
def test_preferences_learn_from_two_rows_for_each_pair(tmp_path: Path, overrides, completions, rows):
    told = arithmetic(
        load_config(write(tmp_path), overrides), load_tasks(TasksConfig(source=f"{tmp_path}/tasks.jsonl", held_out=8))
    )
    assert completions in told
    assert rows in told


def test_references_are_judged_by_the_verifiers_of_their_mix(tmp_path: Path):
    assert checked(write(tmp_path)).splitlines()[-3:] == [
        "references: the verifiers of the mix 'boxed' understand all 40",
        "  math: 40 of 40 get full marks when they are given as the answer",
        "  format: judges the form, not the answer",
    ]


PLUGIN = '''
from verifiers.registry import verifier
from verifiers.types import correct, wrong

@verifier("picky")
class Picky:
    """Right is what is even."""

    def prepare(self, reference): ...
    def example(self, reference): return reference
    async def score(self, task, text, *, num_tokens=None):
        return correct("even") if int(text) % 2 == 0 else wrong(f"{text} is odd")
    async def close(self): ...
'''


def test_references_without_full_marks_are_counted_and_the_first_are_shown_with_their_reasons(tmp_path: Path):
    (tmp_path / "picky.py").write_text(PLUGIN)
    rows = [{"id": f"task {i}", "question": f"{i}?", "answer": str(i)} for i in range(20)]
    path = write(tmp_path, rows)
    told = checked(path, f"plugins=['{tmp_path}/picky.py']", "rewards.boxed={picky={}}").splitlines()
    assert "  picky: 10 of 20 get full marks when they are given as the answer" in told
    shown = [line for line in told if "is odd" in line]
    assert len(shown) == 5
    assert all(line.startswith("    task task ") and ": wrong, " in line for line in shown)
    assert told[-1] == "    and 5 more"


CODE = """
[tasks]
source = "{folder}/tasks.jsonl"
held_out = 1
rewards = "code"
[sandbox]
level = "none"
trusted = true
"""


def code_tasks(folder: Path, *solutions: str | None) -> Path:
    answers = [{"entry_point": "f", "cases": [{"args": [1], "expected": 2}], "canonical_solution": code} for code in solutions]
    path = write(folder, [{"id": f"t{i}", "question": f"{i}?", "answer": answer} for i, answer in enumerate(answers)])
    path.write_text(CODE.format(folder=folder))
    return path


def test_solutions_of_code_tasks_are_run_in_the_sandbox(tmp_path: Path):
    right, off, none = "def f(x): return x + 1", "def f(x): return x", None
    told = checked(code_tasks(tmp_path, right, right, off, none)).splitlines()
    assert told[-3:] == [
        "  unit_tests: 2 of 3 get full marks when they are given as the answer",
        "    1 hold no solution to judge",
        "    task t2: wrong, case 1 of 1: f(1) returned 1, expected 2 (the last code block that defines f)",
    ]


def test_code_tasks_without_solutions_need_no_sandbox(tmp_path: Path):
    told = checked(code_tasks(tmp_path, None, None), "sandbox.level=warm", "sandbox.image=none-of-this-name")
    assert told.splitlines()[-1] == "  unit_tests: the references hold no solution to judge"


# The command, and what it refuses


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["check", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


BAD_ROWS = [
    (
        {"question": "?", "answer": "   "},
        "TaskError: tasks.jsonl:41: the reference field 'answer' is empty. Give every",
    ),
    ({"question": "?"}, "TaskError: tasks.jsonl:41: the row has no field 'answer'; it has question."),
    (
        {"id": "odd", "question": "?", "answer": "((1"},
        "InvalidReference: task odd: math: the reference '((1' has brackets that",
    ),
    (
        {"question": "?", "answer": ["a"]},
        "InvalidReference: task tasks.jsonl:41: math: the reference is ['a'], but",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_task_is_the_users_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str):
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(40)]
    code, _, told = run(capsys, str(write(tmp_path, [*rows, row])))
    assert code == 2
    assert told.startswith(message)
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.boxed.matth={}"], "VerifierError: rewards.boxed.matth: 'matth' is not a verifier. Did you mean math?"),
        (["rewards.boxed.format.options.preset=box"], "rewards.boxed.format.options.preset is 'box', which is not one of"),
        (["rewards.boxed.math.options.tolerence=1"], "tolerence is not an option of math. Did you mean tolerance?"),
        (["plugins=['no/such.py']"], "VerifierError: plugin no/such.py: there is no file"),
        (["tasks.source=none.jsonl"], "TaskError: none.jsonl: cannot be read: No such file or directory."),
        (["tasks.held_out=100"], "no task is left for training: 40 distinct prompts, 40 of them held out."),
        (["steps=many"], "ConfigError: "),
    ],
)
def test_a_bad_config_is_the_users_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str):
    arguments = [part for override in overrides for part in ("--set", override)]
    code, _, told = run(capsys, str(write(tmp_path)), *arguments)
    assert code == 2
    assert message in told
    assert "Traceback" not in told


def test_a_line_that_is_not_json_is_told_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path)
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write('{"question": "broken\n')
    code, _, told = run(capsys, str(path))
    assert code == 2
    assert told.startswith(f"TaskError: {tmp_path}/tasks.jsonl:41: this line is not JSON: Invalid control character")


@pytest.mark.parametrize("name", ["quickstart.toml", "quickstart_sft.toml"])
def test_the_quickstart_passes_its_own_check(name: str):
    told = checked(ROOT / "configs" / name)
    (line,) = (line for line in told.splitlines() if line.startswith("  math: "))
    right, total = line.removeprefix("  math: ").split(" get")[0].split(" of ")
    assert right == total


def test_checking_starts_neither_ray_nor_an_engine(tmp_path: Path):
    check_it = f"import sys; from grpo.cli import main; code = main(['check', {str(write(tmp_path))!r}])"
    program = f"{check_it}; print(code, *(name for name in ('ray', 'vllm', 'transformers') if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0"
