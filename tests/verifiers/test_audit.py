"""The conformance kit passes what is sound, and finds what is not."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.cli import main
from sandbox.config import SandboxConfig
from sandbox.errors import UserError
from verifiers import audit_samples, registry
from verifiers.audit import Finding, audit
from verifiers.audit_samples import Sample, missing_options, mutants, sample
from verifiers.errors import InvalidReference
from verifiers.hostile_texts import few_hostile_texts, hostile_texts
from verifiers.math_answer import MathAnswer
from verifiers.math_hacks import math_hacks
from verifiers.registry import entries, rule, verifier
from verifiers.scaffold import write_scaffold
from verifiers.types import Score, Task, correct, wrong


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(audit_samples, "_samples", {name: list(known) for name, known in audit_samples._samples.items()})


def failed(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.detail for finding in findings if finding.passed is False}


BUILT_IN = [entry.name for entry in entries() if "sandbox" not in entry.provided and not missing_options(entry)]
SLOW = {"math", "reasoning_gym"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in BUILT_IN])
def test_every_built_in_passes(name: str):
    findings = audit(name)
    assert failed(findings) == {}
    assert sum(finding.passed is True for finding in findings) >= 7


def test_what_needs_a_sandbox_says_so_without_one():
    assert audit("unit_tests") == [Finding("builds", None, "it needs a sandbox, and none was given")]


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_needs_a_sandbox_passes_in_one():
    assert failed(audit("unit_tests", sandbox=SandboxConfig())) == {}


def judged(text: str) -> Score:
    return correct("") if text == "right" else wrong("")


def test_a_rule_that_likes_everything_is_found():
    @rule("generous")
    def generous(task: Task, text: str) -> Score:
        return correct("")

    sample("generous", right=["right"], wrong=["wrong", "right"])
    assert failed(audit("generous")) == {"wrong answers and hacks do not": "2 of 2: 'wrong': correct, ; 'right': correct, "}


def test_a_rule_that_rejects_its_own_answer_is_found():
    @rule("harsh")
    def harsh(task: Task, text: str) -> Score:
        return wrong("no")

    sample("harsh", right=["right"])
    assert "right answers get full marks" in failed(audit("harsh"))


def test_a_rule_that_some_text_breaks_is_found():
    @rule("brittle")
    def brittle(task: Task, text: str) -> Score:
        text.encode()
        return judged(text)

    sample("brittle", right=["right"], wrong=["wrong"])
    (detail,) = failed(audit("brittle")).values()
    assert "it raised UnicodeEncodeError" in detail


def test_a_rule_that_throws_dice_is_found():
    @rule("dice")
    def dice(task: Task, text: str) -> Score:
        return wrong("", str(random.random()))

    sample("dice", wrong=["wrong"] * 3)
    assert "the same text gets the same score, in any order" in failed(audit("dice"))


class Answers:
    """Judges numbers by a rule that a subclass states."""

    def prepare(self, reference: Any) -> None:
        if not str(reference):
            raise InvalidReference("nothing")

    def example(self, reference: Any) -> str:
        return f"it is {reference}"

    def says(self, wanted: str, found: str) -> bool:
        return wanted == found

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        return correct("") if self.says(str(task.reference), text.rpartition(" ")[2]) else wrong("")

    async def close(self) -> None: ...


def test_a_verifier_that_only_looks_at_the_first_digit_is_found():
    @verifier("hasty")
    class Hasty(Answers):
        def says(self, wanted: str, found: str) -> bool:
            return wanted[:1] == found[:1]

    findings = audit("hasty", samples=[Sample("42", {}, (), ())])
    assert list(failed(findings)) == ["mutants of the reference do not"]


@pytest.mark.slow
def test_a_verifier_that_takes_a_dead_worker_for_a_wrong_answer_is_found():
    @verifier("careless")
    class Careless(Answers):
        def __init__(self) -> None:
            self._process: subprocess.Popen[bytes] | None = None

        def pids(self) -> list[int]:
            return [self._process.pid] if self._process is not None else []

        async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(0.05); print('right')"], stdout=subprocess.PIPE
            )
            said, _ = await asyncio.to_thread(self._process.communicate)
            self._process = None
            return correct("") if said.strip() == b"right" and str(task.reference) in text else wrong("")

    findings = audit("careless", samples=[Sample("42", {}, (), ("it is 41",))])
    assert "a killed worker is never a zero" in failed(findings)


def test_a_verifier_that_takes_none_of_its_samples_says_what_to_give():
    assert "max_tokens is missing" in failed(audit("length", samples=[Sample(None, {}, (), ())]))["builds"]


def test_a_rule_without_samples_is_tried_all_the_same():
    @rule("bare")
    def bare(task: Task, text: str) -> Score:
        return judged(text)

    findings = {finding.check: finding for finding in audit("bare")}
    assert findings["any text gets a score in time"].passed is True
    assert "nothing says what is right" in findings["builds"].detail


@pytest.mark.parametrize("number", [2, 7, 10, 42, 100, 144, 999, 1000, 123456])
async def test_no_hack_of_a_number_is_right(math: MathAnswer, number: int):
    for text in math_hacks(number):
        score = await math.score(Task("t", "", str(number), "math"), text)
        assert score.value == 0.0, (text, score.reason)


def test_mutants_differ_and_come_only_from_text_and_numbers():
    assert list(mutants("4x")) == ["5x"]
    assert list(mutants(9)) == ["0", "97", "-9", "9.5", "90"]
    assert list(mutants({"cases": []})) == list(mutants(None)) == list(mutants(True)) == []


def test_there_are_a_thousand_hostile_texts_with_names_of_their_own():
    names = [name for name, _ in hostile_texts()]
    assert len(names) == len(set(names)) > 1000
    assert {name.split()[0] for name, _ in few_hostile_texts()} == {name.split()[0] for name in names}


@pytest.mark.slow
def test_a_scaffold_passes_its_own_test_at_once(tmp_path: Path):
    files = write_scaffold("few_words", tmp_path / "mine")
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", str(files.test)], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 passed" in ran.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [("few words", "cannot be the name"), ("class", "cannot be the name"), ("math", "there is a verifier math")],
)
def test_a_scaffold_of_no_use_is_refused(tmp_path: Path, name: str, message: str):
    with pytest.raises(UserError, match=message):
        write_scaffold(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scaffold_overwrites_nothing(tmp_path: Path):
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        write_scaffold("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]


def test_the_command_line_lists_begins_and_audits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verifiers"]) == 0
    listed = capsys.readouterr().out
    assert "math  (built in: verifiers/math_answer.py)" in listed
    assert "max_tokens: whole number, must be given\n        Length at which the value reaches 0, in tokens." in listed

    assert main(["verifiers", "new", "kept_short", "--folder", str(tmp_path)]) == 0
    plugin = str(tmp_path / "kept_short.py")
    assert f"grpo audit kept_short --plugin {plugin}" in capsys.readouterr().out

    assert main(["verifiers", "kept_short", "--plugin", plugin]) == 0
    assert "in worker processes)\n    Whether the answer, without its reasoning," in capsys.readouterr().out

    assert main(["audit", "kept_short", "--plugin", plugin]) == 0
    report = capsys.readouterr().out
    assert "ok      right answers get full marks: 2 tried" in report
    assert report.endswith("1 audited, 0 failed\n")


def test_a_failed_audit_ends_with_another_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plugin = tmp_path / "lenient_rule.py"
    plugin.write_text(
        "from verifiers.audit_samples import sample\nfrom verifiers.registry import rule\nfrom verifiers.types import correct\n"
        "@rule('lenient_rule')\ndef lenient_rule(task, text):\n    return correct('')\nsample('lenient_rule', wrong=['anything'])\n"
    )
    assert main(["audit", "lenient_rule", "--plugin", str(plugin)]) == 1
    assert "FAILED  wrong answers and hacks do not: 1 of 1: 'anything': correct" in capsys.readouterr().out
    assert main(["audit", "no_such"]) == 2
