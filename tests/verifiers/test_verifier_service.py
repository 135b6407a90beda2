"""The service: mixes applied, faults turned into unscored verdicts, nothing lost."""

from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import registry
from verifiers.errors import InvalidReference, VerifierError
from verifiers.registry import entries, rule, verifier
from verifiers.reward import RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Score, Task, correct, partial

TASK = Task("t7", "prompt", "42", "mine")


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def completion(text: str, num_tokens: int = 3) -> SimpleNamespace:
    return SimpleNamespace(text=text, num_completion_tokens=num_tokens)


def service(**components: dict[str, Any]) -> VerifierService:
    return VerifierService({"mine": RewardMix.model_validate(components)})


def raising(error: BaseException) -> Callable[..., Score]:
    def fault(task: Task, text: str) -> Score:
        raise error

    return fault


async def test_verdicts_come_back_in_the_order_of_the_completions():
    made = service(math={}, length={"weight": 0.5, "options": {"max_tokens": 4, "buffer_tokens": 2}})
    verdicts = await made.verify(TASK, [completion(r"\boxed{42}", 3), completion(r"\boxed{41}", 1), completion("42", 5)])
    # (1 + 0.5 * 0.5) / 1.5, (0 + 0.5 * 1) / 1.5, 0
    assert [verdict.reward for verdict in verdicts] == pytest.approx([1.25 / 1.5, 0.5 / 1.5, 0.0])
    assert [verdict.is_correct for verdict in verdicts] == [True, False, False]
    assert [score.verifier for score in verdicts[0].scores] == ["math", "length"]
    assert all(score.seconds >= 0 for score in verdicts[0].scores)


async def test_equal_texts_of_one_length_are_judged_once():
    judged: list[tuple[str, int | None]] = []

    @rule("watching")
    def watching(task: Task, text: str, *, num_tokens: int | None) -> Score:
        judged.append((text, num_tokens))
        return correct("")

    made = service(watching={})
    verdicts = await made.verify(TASK, [completion("a"), completion("b"), completion("a"), completion("a", 4)])
    assert judged == [("a", 3), ("b", 3), ("a", 4)]
    assert len(verdicts) == 4
    assert (await made.metrics())["verify/watching_correct"] == 4  # counted for each completion all the same


FAULTS = [
    (raising(RuntimeError("no judge")), "RuntimeError: no judge"),
    (raising(RecursionError()), "RecursionError"),
    (raising(SystemExit(0)), "SystemExit: 0"),
    (raising(MemoryError()), "MemoryError"),
    (lambda task, text: 1.0, "returned float"),
    (lambda task, text: None, "returned NoneType"),
    (lambda task, text: partial(float("nan"), ""), "cannot have the value nan"),
    (lambda task, text: partial(1.5, ""), "cannot have the value 1.5"),
]


@pytest.mark.parametrize(("fault", "cause"), FAULTS)
async def test_a_verifier_that_fails_leaves_the_completion_unscored_and_never_at_zero(
    fault: Callable[..., Any], cause: str, caplog: pytest.LogCaptureFixture
):
    calls: list[str] = []

    @rule("faulty")
    def faulty(task: Task, text: str) -> Score:
        calls.append(text)
        return fault(task, text) if text == "bad" else correct("")

    with caplog.at_level(logging.WARNING):
        bad, good = await service(faulty={}).verify(TASK, [completion("bad"), completion("good")])
    assert (bad.reward, bad.scores[0].outcome) == (None, Outcome.INFRA)
    assert cause in str(bad.cause)
    assert good.reward == 1.0
    assert calls.count("bad") == 2
    assert any(record.exc_info for record in caplog.records)


async def test_a_fault_that_passes_is_retried_and_leaves_no_trace():
    calls: list[str] = []

    @rule("flaky")
    def flaky(task: Task, text: str) -> Score:
        calls.append(text)
        if len(calls) == 1:
            raise ConnectionError
        return correct("")

    (verdict,) = await service(flaky={}).verify(TASK, [completion("a")])
    assert verdict.reward == 1.0


async def test_a_verifier_that_does_not_answer_is_infra_within_the_deadline():
    @verifier("silent")
    class Silent:
        def prepare(self, reference: Any) -> None: ...
        async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
            await asyncio.sleep(60)
            return correct("")

        async def close(self) -> None: ...

    made = VerifierService({"mine": RewardMix.model_validate({"silent": {}})}, deadline_s=0.05)
    (verdict,) = await made.verify(TASK, [completion("a")])
    assert verdict.cause == "silent: verifier silent failed: no answer within 0.05 s"


async def test_cancelling_a_verification_is_no_fault():
    made = service(math={})
    task = Task("t", "", r"\sqrt{2}", "mine")
    verifying = asyncio.create_task(made.verify(task, [completion(rf"\boxed{{\sqrt{{8}}+{i}}}") for i in range(4)]))
    await asyncio.sleep(0.05)
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    assert set(await made.metrics()) <= {"verify/math_asked", "verify/math_killed"}  # no outcome and no time is counted
    await made.close()


async def test_prepare_reports_the_task_and_the_verifier():
    made = service(math={})
    await made.prepare([TASK])
    with pytest.raises(InvalidReference, match=r"task t9: math: the reference '' states no answer"):
        await made.prepare([TASK, Task("t9", "", "", "mine")])
    with pytest.raises(VerifierError, match=r"task t9: its rewards are 'mins', which is not a reward mix. Did you mean mine\?"):
        await made.prepare([Task("t9", "", "1", "mins")])


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"mth": {}}, "rewards.mine.mth: 'mth' is not a verifier. Did you mean math?"),
        (
            {"math": {"options": {"tolerence": 1}}},
            "rewards.mine.math.options.tolerence is not an option of math. Did you mean tolerance?",
        ),
        (
            {"a": {"verifier": "format", "options": {"pattern": "("}}},
            "rewards.mine.a.options.pattern: '(' is not a regular expression",
        ),
    ],
)
def test_a_mix_that_cannot_work_is_refused_when_the_service_is_made(components: dict[str, Any], message: str):
    with pytest.raises(VerifierError) as caught:
        service(**components)
    assert message in str(caught.value)


async def test_components_may_share_a_verifier_under_their_own_names():
    made = service(
        tags={"verifier": "format", "options": {"preset": "think_boxed"}},
        box={"verifier": "format", "options": {"preset": "boxed"}},
    )
    (verdict,) = await made.verify(TASK, [completion(r"\boxed{1}")])
    assert [(score.verifier, score.value) for score in verdict.scores] == [("tags", 0.0), ("box", 1.0)]


async def test_metrics_count_outcomes_and_time_and_start_anew():
    made = service(math={})
    await made.verify(TASK, [completion(text) for text in (r"\boxed{42}", r"\boxed{42}", r"\boxed{1}", "?")])
    metrics = await made.metrics()
    assert metrics["verify/math_correct"] == 2
    assert metrics["verify/math_wrong"] == metrics["verify/math_unparseable"] == 1
    assert 0 < metrics["verify/math_p50_s"] <= metrics["verify/math_p99_s"]
    assert metrics["verify/math_mean_s"] > 0
    assert await made.metrics() == {}


def test_what_makes_a_service_can_be_sent_to_another_process():
    mixes = {"mine": RewardMix.model_validate({"math": {"options": {"tolerance": 0.1}}})}
    assert pickle.loads(pickle.dumps(mixes)) == mixes


@given(st.lists(st.sampled_from([r"\boxed{42}", r"\boxed{41}", "42", r"\boxed{42} \boxed{41}"]), max_size=12))
def test_as_many_verdicts_as_completions_and_each_as_if_alone(texts: list[str]):
    made = service(math={})
    together = asyncio.run(made.judge(TASK, [Text(text, None) for text in texts]))
    assert [verdict.reward for verdict in together] == [1.0 if text == r"\boxed{42}" else 0.0 for text in texts]


def test_importing_the_packages_loads_nothing_heavy():
    code = "import sys, verifiers, verifiers.service, verifiers.math_answer, verifiers.recorded\n"
    code += "print([m for m in ('sympy', 'torch', 'ray', 'vllm', 'docker', 'transformers', 'numpy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
