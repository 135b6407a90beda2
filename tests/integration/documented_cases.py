"""What somebody notices who types the commands of the documents.

test_documented_commands.py types them; tests/test_docs.py sees that each has a case here, and that no case is of none.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from tests.documents import commands, section


class Case(NamedTuple):
    """Sentences that a command says, and files that it makes, each with something that stands in it; both as patterns.

    Before it `given` is written into files and `after` is typed; `shorter` is typed behind it, to make seconds of hours.
    """

    says: tuple[str, ...]
    makes: Mapping[str, str] = {}
    shorter: str = ""
    after: tuple[str, ...] = ()
    given: Mapping[str, Any] = {}
    exit_codes: tuple[int, ...] = (0,)


# Typed by tests of their own.
ELSEWHERE = {
    "tests/integration/test_jobs.py": [*section("README.md", "On a cluster"), *section("docs/operating.md", "On a cluster")],
    "tests/integration/test_quickstart.py": ["grpo train configs/quickstart_code.toml"],
}

QUICKSTART = "grpo train configs/quickstart.toml"  # what `make quickstart` types
DR, ENGINE, LORA, RANKS = (line for line in commands("grpo") if line.startswith(f"{QUICKSTART} --run-dir"))
BEST = "grpo export runs/quickstart --step best --to my-model"
BUILD = "grpo sandbox build"  # what `make sandbox` types
ENDPOINT = "grpo eval --base-url http://127.0.0.1:8000/v1 --model my-model --tasks"
LABELLED = "grpo verify math_cases_dev.jsonl -o verdicts.jsonl --field reference={gold} --field"

HERE = " --set engine.kind=hf --set ray_address=CLUSTER"
OWN_TASKS = " --set tasks.source=tasks.jsonl --set tasks.held_out_source= --set tasks.held_out=8"
# The reward is one that an untrained model gets now and then.
SHORT = (
    f"{HERE}{OWN_TASKS} --set steps=2 --set groups_per_step=2 --set group_size=4 --set sampling.max_tokens=8"
    " --set evaluation.every=0 --set evaluation.num_tasks=4 --set tasks.rewards=digits"
    r" --set 'rewards.digits.format.options.pattern=[\s\S]*[0-4][\s\S]*'"
)
TINY = f"{SHORT} --set model.start_from= --set tasks.prompt={{question}}"  # on the model that is made on the spot
FEW = f"{HERE} --limit 4 --max-tokens 8"
OWN_MODEL = " --set model.path=my-model --set engine.max_model_len=512 --set sampling.max_tokens=8"

SUMS = [{"question": f"{a}+{b}=", "answer": f"It is {a + b}.\n#### {a + b}"} for a in range(8) for b in range(8)]  # as in GSM8K
ANSWERS = [{"id": 1, "gold": "1/2", "answer": "0.5"}, {"id": 2, "gold": "1/2", "answer": "2"}]
RIGHT = {"id": "right", "prompt": "6 * 7?", "reference": "42", "rewards": "math", "completion": r"So \boxed{42}"}
WRONG = RIGHT | {"id": "wrong", "completion": r"\boxed{41}"}
TERSE, LONG = (RIGHT | {"rewards": "few_words"} | changed for changed in ({}, {"completion": "so " * 99}))
PROGRAM = RIGHT | {
    "rewards": "code",
    "reference": {"cases": [{"stdin": "2 3", "stdout": "5"}]},
    "completion": "```python\nprint(sum(map(int, input().split())))\n```",
}
PROGRAMS = {"answer.py": "print(int(input()) + 1)", "my_program.py": "print(int(input()) + 1)", "case.txt": "41\n"}


def training(run_dir: str, *, recorded: str = "", shorter: str = TINY, after: tuple[str, ...] = ()) -> Case:
    """Two steps, with all that a run leaves behind; `recorded` stands in its config."""
    made = {"config.json": recorded, "metrics.jsonl": "reward/mean", "model/config.json": "model_type", "report.html": "<title>"}
    says = (r"step 2  reward \d\.\d\d \(format", rf"held-out accuracy \(T=1\): .* \| {run_dir}$")
    return Case(says, {f"{run_dir}/{name}": text for name, text in made.items()}, shorter, after)


def evaluation(*says: str, of: str, after: tuple[str, ...] = (), shorter: str = "") -> Case:
    return Case(says, {f"{of}/results.json": "pass_at_k"}, shorter, after)


def judging(says: str, *, verdicts: str = r'"reward": 1\.0.*\n.*"reward": 0\.0', after: tuple[str, ...] = (), **rows: Any) -> Case:
    return Case((says,), {"verdicts.jsonl": verdicts}, after=after, given={f"{name}.jsonl": value for name, value in rows.items()})


BEFORE = {QUICKSTART: training("runs/quickstart"), BUILD: Case(("grpo-sandbox:",))}
RUN = (QUICKSTART,)
OF_RUN = "runs/quickstart/evals/step-000002-tasks"

TYPED = {
    "grpo doctor": Case((r"^works +ports", r"^the quickstart can(not)? run here"), exit_codes=(0, 1)),
    "grpo doctor configs/gsm8k_grpo.toml": Case(
        (r"^works +ports", r"^configs/gsm8k_grpo.toml can(not)? run here"), exit_codes=(0, 1)
    ),
    "grpo check configs/gsm8k_grpo.toml": Case(
        ("128 prompts a step x 8 completions = 1,024", "math: 64 of 64 get full marks"), shorter=OWN_TASKS
    ),
    "grpo train configs/gsm8k_grpo.toml": training("runs/gsm8k_grpo", shorter=f"{SHORT}{OWN_MODEL}", after=(BEST,)),
    LORA: training("runs/lora", recorded='"model.lora.rank": 16'),
    ENGINE: training("runs/hf", recorded='"engine.kind": "hf"'),
    DR: training("runs/dr", recorded='"objective.name": "dr_grpo"'),
    RANKS: training("runs/ranks", recorded='"learner.num_ranks": 2'),
    "grpo watch runs/quickstart": Case((r"^quickstart  done, step \d of \d", "^mean reward", "^format +█"), after=RUN),
    "grpo report runs/quickstart": Case(
        ("completions that the run stored", "-> runs/quickstart/report.html"), {"runs/quickstart/report.html": "digits"}, after=RUN
    ),
    "grpo compare runs/quickstart runs/dr": Case(("-> comparison.html",), {"comparison.html": "dr_grpo"}, after=(*RUN, DR)),
    "grpo rescore runs/quickstart": Case(("^16 completions judged again, 0 flipped",), after=RUN),
    "grpo export runs/quickstart": Case(
        ("full -> runs/quickstart/exports/step-000002-full", "vllm serve runs/quickstart/exports/step-000002-full"),
        {"runs/quickstart/exports/step-000002-full/config.json": "Qwen2"},
        after=RUN,
    ),
    BEST: Case(
        ("^step [02] of runs/quickstart, full -> my-model", "vllm serve my-model"), {"my-model/config.json": "Qwen2"}, after=RUN
    ),
    "grpo export runs/lora --form adapter": Case(
        ("adapter -> runs/lora/exports/step-000002-adapter", "vllm serve .* --enable-lora"),
        {"runs/lora/exports/step-000002-adapter/adapter_config.json": r'"r": 16'},
        after=(LORA,),
    ),
    "grpo eval runs/quickstart": evaluation("pass@4", "16 completions of 4 tasks", of=OF_RUN, shorter=FEW, after=RUN),
    "grpo eval runs/quickstart -n 8": evaluation("pass@8", "32 completions of 4 tasks", of=OF_RUN, shorter=FEW, after=RUN),
    "grpo eval runs/quickstart --step best -n 16 --k 1,8": evaluation(
        "pass@1 .*\n.*pass@8 ", "64 completions of 4 tasks", of="runs/quickstart/evals/step-00000[02]-tasks", shorter=FEW, after=RUN
    ),
    "grpo eval my-model --tasks tasks.jsonl --config configs/gsm8k_grpo.toml --temperature 0 -n 1": evaluation(
        "pass@1", "4 completions of 4 tasks", "^math: 4 ", of="evals/my-model-tasks", shorter=f"{FEW}{OWN_MODEL}", after=(BEST,)
    ),
    f"{ENDPOINT} tasks.jsonl": evaluation(
        "pass@4 +│ 1.000", "256 completions of 64 tasks", "^math: 256 correct", of="evals/my-model-at-127.0.0.1-*-tasks"
    ),
    f"{ENDPOINT} 'reasoning_gym:chain_sum?size=200'": evaluation(
        "pass@4 +│ 1.000",
        "800 completions of 200 tasks",
        "^reasoning_gym: 800 correct",
        of="evals/my-model-at-127.0.0.1-*-chain_sum",
    ),
    "grpo verify CASES.jsonl -o OUT.jsonl": judging("2 lines, 2 judged, 1 correct, mean reward 0.5", cases=[RIGHT, WRONG]),
    "grpo verify cases.jsonl -o verdicts.jsonl --plugin my_rules.py": judging(
        "3 lines, 3 judged, 2 correct", cases=[RIGHT, TERSE, LONG]
    ),
    "grpo verify cases.jsonl -o verdicts.jsonl": judging(
        "1 lines, 1 judged, 1 correct", verdicts='"unit_tests", "outcome": "correct"', cases=[PROGRAM], after=(BUILD,)
    ),
    f"{LABELLED} rewards=math_lenient --field completion={{answer}}": judging("2 judged, 1 correct", math_cases_dev=ANSWERS),
    rf"{LABELLED} rewards=math --field 'completion=\boxed{{{{{{answer}}}}}}'": judging(
        "2 judged, 1 correct", math_cases_dev=ANSWERS
    ),
    "grpo verifiers": Case((r"^math +\(built in", r"^unit_tests +\(built in", r"^judge +\(built in")),
    "grpo verifiers math": Case((r"\Amath +\(built in: verifiers/math_answer.py\)", "tolerance: number, default 0.0")),
    "grpo audit math": Case((r"ok +wrong answers and hacks do not: \d+ tried", "^1 audited, 0 failed")),
    "grpo audit judge --config configs/judge.toml": Case(
        (r"ok +wrong answers and hacks do not: \d+ tried", "^1 audited, 0 failed")
    ),
    "grpo tasks": Case((r"^chain_sum$", r"^\d+ of \d+ datasets of reasoning-gym \S+ are safe to train on")),
    "grpo tasks --all": Case(("puzzle24 +│ nobody: not safe", "chain_sum +│ our comparison")),
    "grpo tasks chain_sum": Case((r"^reference: -?\d+$", "^Safe to train on", '^source = "reasoning_gym:chain_sum')),
    "grpo tasks sudoku": Case(("^--- sudoku:0:1$", "^Safe to train on", '^source = "reasoning_gym:sudoku')),
    "grpo tasks --admit": Case(("^chain_sum: our comparison: ", "^puzzle24: nobody: not safe: its scorer", "^1 of 2 datasets")),
    "grpo sandbox build --packages python3-numpy python3-sympy": Case(('sandbox.image = "grpo-sandbox:',)),
    "grpo sandbox doctor": Case(("warm .*10 of 10 claims held",), after=(BUILD,)),
    "grpo sandbox doctor --level bubblewrap": Case(("bubblewrap .*10 of 10 claims held",)),
    "grpo sandbox run my_program.py --stdin case.txt --seconds 2": Case((r'"stdout": "42\\n"',), given=PROGRAMS, after=(BUILD,)),
    "grpo sandbox run answer.py --stdin case.txt --seconds 2": Case((r'"stdout": "42\\n"',), given=PROGRAMS, after=(BUILD,)),
    "grpo sandbox clean": Case((r"^nothing was left behind|^\d+ removed",)),
    # Last: it goes one step further than the run that the others look at.
    "grpo resume runs/quickstart": Case(
        ("resuming from step 2 of 3", r"^step 3  reward \d"), {"runs/quickstart/report.html": "<title>"}, " --set steps=3", RUN
    ),
}
ADMIT = "grpo tasks --admit"  # tries every dataset, and writes into the package


def marks_of(line: str) -> list[pytest.MarkDecorator]:
    """What the machine must have for a command."""
    if "bubblewrap" in line:
        return [pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")]
    needs_docker = line.startswith("grpo sandbox ") or BUILD in TYPED[line].after
    return [pytest.mark.docker, pytest.mark.timeout(900)] if needs_docker else []
