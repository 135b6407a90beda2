"""Code judged in the real sandbox: HumanEval as it stands, the whole matrix of hacks, lost containers, recorded cases."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from code_cases import CALLS, FORMS, SCRIPT

from sandbox.config import SandboxConfig
from sandbox.ownership import LABEL_OWNER, Owner
from sandbox.types import Limits
from verifiers import code_hacks
from verifiers.code_hacks import in_block, right_programs, wrong_programs
from verifiers.recorded import verify_file
from verifiers.reward import RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Task, Verdict

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval.jsonl"
MODELS_FAULTS = {Outcome.WRONG, Outcome.CRASH, Outcome.TIMEOUT}


@pytest.fixture(scope="session", autouse=True)
def _image() -> None:
    """The image of this very code, built when it is missing."""
    from rich.console import Console

    from sandbox.build import build
    from sandbox.docker import connect

    client = connect()
    build(client, Console(file=io.StringIO()))
    client.close()


def service(limits: Limits) -> VerifierService:
    options = {"limits": limits.model_dump(exclude_unset=True)}
    return VerifierService({"code": RewardMix.model_validate({"unit_tests": {"options": options}})})


async def judged(judge: VerifierService, cases: Iterable[tuple[str, Any, str]]) -> AsyncIterator[tuple[str, Verdict]]:
    """The verdict on each (name, reference, text), a few hundred under way at a time."""
    turn = asyncio.Semaphore(200)

    async def one(name: str, reference: Any, text: str) -> tuple[str, Verdict]:
        async with turn:
            (verdict,) = await judge.judge(Task(name, "", reference, "code"), [Text(text, None)])
            return name, verdict

    try:
        for done in asyncio.as_completed([one(*case) for case in cases]):
            yield await done
    finally:
        await judge.close()


def humaneval() -> list[dict[str, Any]]:
    if not HUMANEVAL.is_file():
        pytest.skip(f"there is no {HUMANEVAL}: HumanEval is not part of the project")
    return [json.loads(line) for line in HUMANEVAL.read_text().splitlines()]


async def test_the_solutions_of_humaneval_pass_as_they_stand_and_in_a_block():
    rows = humaneval()
    texts = {"continued": "{canonical_solution}", "in a block": "```python\n{prompt}{canonical_solution}\n```"}
    cases = [(f"{row['task_id']} {way}", row, text.format(**row)) for row in rows for way, text in texts.items()]
    failed = [
        (name, verdict.scores[0].reason) async for name, verdict in judged(service(Limits(cpu_s=20)), cases) if verdict.reward != 1
    ]
    assert failed == []
    assert len(cases) == 2 * 164


async def test_humaneval_with_emptied_bodies_fails():
    cases = [(row["task_id"], row, "    pass\n") for row in humaneval()]
    outcomes = Counter([verdict.scores[0].outcome async for _, verdict in judged(service(Limits()), cases)])
    assert outcomes == {Outcome.WRONG: 164}


async def test_every_right_program_passes_in_every_form():
    programs = list(right_programs())
    cases = [(f"{made.parts} ({form})", ref, in_block(made)) for made in programs for form, ref in code_hacks.FORMS.items()]
    limits = Limits(cpu_s=10)
    failed = [(name, v.scores[0].reason) async for name, v in judged(service(limits), cases) if v.reward != 1]
    assert failed == []
    print(f"{len(cases)} right programs")


async def test_no_wrong_program_passes_in_any_form():
    programs = list(wrong_programs(walls=True))
    cases = [(f"{made.parts} ({form})", ref, in_block(made)) for made in programs for form, ref in code_hacks.FORMS.items()]
    limits = Limits(cpu_s=0.5, wall_s=1.5)
    passed = [
        (name, v.cause or v.scores[0].reason)
        async for name, v in judged(service(limits), cases)
        if v.scores[0].outcome not in MODELS_FAULTS
    ]
    assert passed == []
    print(f"{len(cases)} wrong programs")


async def test_containers_killed_in_mid_batch_cost_no_verdict():
    from sandbox.docker import connect

    client, ours = connect(), {"label": f"{LABEL_OWNER}={Owner.current()}"}
    right, wrong = "import time\ntime.sleep(0.05)\ndef f(x): return x + 1", "import time\ntime.sleep(0.05)\ndef f(x): return x"
    cases = [(f"{n}", CALLS, wrong if n % 2 else right) for n in range(60)]
    verdicts: dict[int, float | None] = {}
    async for name, verdict in judged(service(Limits()), cases):
        verdicts[int(name)] = verdict.reward
        if len(verdicts) in (10, 30):
            for container in client.containers.list(filters=ours):
                container.kill()
    assert verdicts == {n: float(n % 2 == 0) for n in range(60)}
    client.close()


def test_recorded_programs_are_verified_from_end_to_end(tmp_path: Path):
    lines = []
    for form, reference in [*FORMS.items(), ("script", SCRIPT)]:
        for name, body in (("right", "+ 1"), ("wrong", "- 1")):
            program = f"print(int(input()) {body})" if form == "script" else f"def f(x): return x {body}"
            lines.append(
                {"id": f"{form} {name}", "reference": reference, "rewards": "code", "completion": f"```python\n{program}\n```"}
            )
    lines.append({"id": "no cases", "reference": {"cases": []}, "rewards": "code", "completion": ""})
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = verify_file(tmp_path / "cases.jsonl", tmp_path / "out.jsonl", progress=False, sandbox=SandboxConfig(slots=2))
    out = {line["id"]: line for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    rewards = {f"{form} {name}": reward for form in [*FORMS, "script"] for name, reward in (("right", 1.0), ("wrong", 0.0))}
    assert {name: line["reward"] for name, line in out.items()} == rewards | {"no cases": None}
    assert "cases is empty" in out["no cases"]["cause"]
    assert summary.num_correct == 5
