"""What a judge's verdict is worth, and that nothing of ours is ever a zero."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_endpoint import PRINCIPLES, TASK, Answer, code_of, endpoint, grading, said, verdict

from grpo.config import RunConfig, load_config
from grpo.prepare import check_references
from rollout.collector import Collector
from rollout.errors import TooManyUnscored
from rollout.tasks import TasksConfig, TaskSet, TaskStream
from rollout.types import Group
from sandbox.errors import SystemFault
from tests.fakes import make_completion, make_tasks
from verifiers import judge_client
from verifiers.errors import InvalidReference, VerifierError
from verifiers.judge import Judge
from verifiers.registry import find
from verifiers.reward import RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Message, Outcome, Score, Task

CORRECT, WRONG, PARTIAL, INFRA = Outcome.CORRECT, Outcome.WRONG, Outcome.PARTIAL, Outcome.INFRA


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.001)


async def scored(judge: Judge, text: str = "Light scatters.", task: Task = TASK) -> Score:
    try:
        return await judge.score(task, text)
    finally:
        await judge.close()


# Grades


@pytest.mark.parametrize(("grade", "outcome", "value"), [(10, CORRECT, 1.0), (7, PARTIAL, 0.7), (0, WRONG, 0.0)])
async def test_a_grade_is_a_share_of_the_highest(grade: int, outcome: Outcome, value: float):
    with endpoint(grading(grade)) as api:
        score = await scored(api.judge())
    assert (score.outcome, score.value) == (outcome, value)
    assert score.reason == f"{grade} of 10: It is what it is."
    assert score.extracted == "Light scatters."


@pytest.mark.parametrize(
    ("grades", "outcome", "value"),
    [((4, 4), CORRECT, 1.0), ((4, 1), PARTIAL, 0.625), ((0, 1), PARTIAL, 0.125), ((0, 0), WRONG, 0.0)],
)
async def test_each_principle_has_its_grade_and_the_mean_counts(grades: tuple[int, int], outcome: Outcome, value: float):
    with endpoint(lambda request: verdict(request, grade_1=grades[0], grade_2=grades[1])) as api:
        score = await scored(api.judge(mode="score_each", max_grade=4))
    assert (score.outcome, score.value) == (outcome, value)
    assert score.reason.startswith(f"{grades[0]}, {grades[1]} of 4: ")


PREFERENCES = [
    ("A", "B", CORRECT, 1.0, "better than the reference in both orders"),
    ("B", "A", WRONG, 0.0, "worse than the reference in both orders"),
    ("tie", "tie", PARTIAL, 0.5, "as good as the reference"),
    ("A", "A", PARTIAL, 0.5, "no preference, as it changes with the order (A, then A)"),
    ("B", "B", PARTIAL, 0.5, "no preference, as it changes with the order (B, then B)"),
    ("A", "tie", PARTIAL, 0.5, "no preference, as it changes with the order (A, then tie)"),
    ("tie", "A", PARTIAL, 0.5, "no preference, as it changes with the order (tie, then A)"),
]


@pytest.mark.parametrize(("first", "second", "outcome", "value", "reason"), PREFERENCES)
async def test_a_preference_counts_only_when_both_orders_agree(
    first: str, second: str, outcome: Outcome, value: float, reason: str
):
    def answer(request: dict[str, Any]) -> str:
        material = request["messages"][1]["content"]
        is_first = material.index("Light scatters.") < material.index("Because of scattering.")
        return verdict(request, better=first if is_first else second)

    with endpoint(answer) as api:
        judge = api.judge(mode="pairwise")
        score = await scored(judge)
        assert (score.outcome, score.value) == (outcome, value)
        assert score.reason.startswith(reason)
        assert len(api.requests) == 2
        assert judge.counters().get("disagreed", 0) == reason.startswith("no preference")


async def test_half_a_comparison_is_none():
    with endpoint(lambda request: verdict(request, better="A") if len(api.requests) == 1 else Answer(400)) as api:
        score = await scored(api.judge(mode="pairwise"))
    assert score.outcome is INFRA


@pytest.mark.parametrize("reference", [None, 3, "", " \n", ["a text"], {"text": "a"}])
def test_a_comparison_needs_a_text_as_reference(reference: Any):
    with pytest.raises(InvalidReference, match="give a text to compare with"):
        Judge(principles=PRINCIPLES, base_url="http://127.0.0.1:9/v1", model="m", mode="pairwise").prepare(reference)
    Judge(principles=PRINCIPLES, base_url="http://127.0.0.1:9/v1", model="m").prepare(reference)


# What is judged


async def test_the_judge_reads_principles_prompt_and_answer_and_not_the_thought():
    task = dataclasses.replace(TASK, prompt=(Message("system", "You are a sailor."), Message("user", "Why blue?")))
    with endpoint(grading(5)) as api:
        await scored(api.judge(), "<think>hm, red?</think>Light scatters.", task)
        await scored(api.judge(whole=True), "<think>hm, red?</think>Light scatters.", task)
    system, user = (message["content"] for message in api.requests[0]["messages"])
    assert "1. Be brief.\n2. Be kind." in system
    assert "system: You are a sailor.\nuser: Why blue?" in user
    assert "Light scatters." in user
    assert "red" not in user
    assert "hm, red?" in api.requests[1]["messages"][1]["content"]
    assert "scattering" not in str(api.requests)  # the reference is for comparisons


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", Outcome.UNPARSEABLE),
        ("<think>so", Outcome.UNPARSEABLE),
        ("<think>so</think>\n", Outcome.UNPARSEABLE),
        ("a" * 101, Outcome.TIMEOUT),
    ],
)
async def test_what_cannot_be_judged_is_the_models_fault_and_asks_nobody(text: str, outcome: Outcome):
    with endpoint(grading(10)) as api:
        score = await scored(api.judge(max_characters=100), text)
    assert (score.outcome, score.value, api.requests) == (outcome, 0.0, [])


async def test_a_request_holds_what_the_options_say():
    with endpoint(grading(5)) as api:
        await scored(api.judge(max_tokens=77))
        await scored(api.judge(extra={"max_completion_tokens": 88, "temperature": 1, "chat_template_kwargs": {"a": False}}))
    first, second = api.requests
    assert {name: first[name] for name in first if name != "messages"} == {"model": "judge-1", "temperature": 0, "max_tokens": 77}
    assert (second["temperature"], second["max_completion_tokens"]) == (1, 88)
    assert second["chat_template_kwargs"] == {"a": False}
    assert "max_tokens" not in second
    assert set(api.paths) == {"/v1/chat/completions"}


async def test_a_structured_verdict_is_asked_for_by_its_schema_and_is_the_whole_answer():
    with endpoint(lambda request: f'\n{{"code":\n"{code_of(request)}", "grade": 3}} ') as api:
        score = await scored(api.judge(structured=True, max_grade=4))
    assert (score.value, score.reason) == (0.75, "3 of 4")
    wanted = api.requests[0]["response_format"]
    assert (wanted["type"], wanted["json_schema"]["strict"]) == ("json_schema", True)
    assert wanted["json_schema"]["schema"] == {
        "type": "object",
        "properties": {
            "code": {"type": "string", "enum": [code_of(api.requests[0])]},
            "grade": {"type": "integer", "enum": [0, 1, 2, 3, 4]},
        },
        "required": ["code", "grade"],
        "additionalProperties": False,
    }
    with endpoint(grading(3)) as api:  # with a sentence before it
        assert (await scored(api.judge(structured=True))).outcome is INFRA


# What is no verdict


NO_VERDICTS: list[Any] = [
    lambda request: "I would say 10/10.",
    lambda request: "",
    lambda request: Answer(body=said(None)),
    lambda request: Answer(body=said(verdict(request, grade=10), finish_reason="length")),
    lambda request: verdict(request, grade=11),
    lambda request: verdict(request, grade=-1),
    lambda request: verdict(request, grade=10.0),
    lambda request: verdict(request, grade=True),
    lambda request: verdict(request, grade="10"),
    lambda request: verdict(request, grade=10, sure=True),
    lambda request: verdict(request),
    lambda request: verdict(request, grade=10) + "\nOr 9.",
    lambda request: f"```json\n{verdict(request, grade=10)}\n```",
    lambda request: '{"grade": 10}',
    lambda request: '{"code": "0123456789abcdef", "grade": 10}',
    lambda request: f'{{"code": "{code_of(request)}", "grade": 1, "grade": 10}}',
    lambda request: "[" * 100_000,
    lambda request: '{"grade": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("answer", NO_VERDICTS)
async def test_what_is_no_verdict_is_asked_for_once_more_and_then_unscored(answer: Any):
    with endpoint(answer) as api:
        judge = api.judge()
        score = await scored(judge)
        assert (score.outcome, score.value) == (INFRA, None)
        assert len(api.requests) == 2
        assert judge.counters()["unreadable"] == 2
    assert "gave no verdict" in score.reason
    assert ", twice. It ended with" in score.reason


async def test_an_answer_that_needed_a_reminder_counts():
    with endpoint(lambda request: verdict(request, grade=10) if len(request["messages"]) == 4 else "Ten!</s>") as api:
        score = await scored(api.judge())
    assert score.outcome is CORRECT
    asked, reply, reminder = api.requests[1]["messages"][1:]
    assert asked == api.requests[0]["messages"][1]
    assert reply == {"role": "assistant", "content": "Ten!< /s>"}
    assert "the last line is no JSON object" in reminder["content"]


# What is known


async def test_equal_questions_are_asked_once_and_others_are_not():
    tasks = [TASK, dataclasses.replace(TASK, prompt="Why not?"), dataclasses.replace(TASK, reference="else")]
    with endpoint(grading(4)) as api:
        judge = api.judge()
        for _ in range(2):
            for task in tasks:
                for text in ("one", "<think>differently</think>one", "two"):
                    assert (await judge.score(task, text)).value == 0.4
        await judge.close()
        assert len(api.requests) == 4  # two texts after two prompts; the reference is not looked at
        assert judge.counters() == {"calls": 4, "tokens": 400, "known": 14}
        assert judge.counters() == {"known": 0}


async def test_what_was_not_judged_is_not_remembered():
    with endpoint(lambda request: Answer(400) if len(api.requests) == 1 else verdict(request, grade=10)) as api:
        judge = api.judge()
        assert [(await judge.score(TASK, "a")).outcome for _ in range(2)] == [INFRA, CORRECT]
        await judge.close()


# Options


def made(**options: Any) -> None:
    find("judge").build({"principles": PRINCIPLES, "base_url": "http://127.0.0.1:9/v1", "model": "m"} | options, where="here")


MISTAKES = [
    ({"principles": []}, "here.principles: there is no principle to judge by"),
    ({"principles": "no_such.txt"}, "here.principles: 'no_such.txt' cannot be read: No such file or directory. Give sentences, or"),
    ({"principles": "\0"}, "here.principles: '\\x00' cannot be read"),
    ({"base_url": "127.0.0.1:8000/v1"}, "here.base_url: '127.0.0.1:8000/v1' is not the address of an API. Give one such as http"),
    ({"base_url": "http://[/v1"}, "is not the address of an API"),
    ({"base_url": "http://h:99999/v1"}, "is not the address of an API"),
    ({"base_url": "http://h/v1 "}, "is not the address of an API"),
    ({"base_url": "http://me:secret@h/v1"}, "here.base_url: the address holds a user or a password"),
    ({"base_url": "http://h/v1/chat/completions"}, "goes too far: give the part before /chat/completions"),
    (
        {"key_variable": "NO_SUCH_KEY"},
        "here.key_variable: the environment variable 'NO_SUCH_KEY' is not set. Put the endpoint's key",
    ),
    ({"key_variable": "BAD_KEY"}, "here.key_variable: the environment variable 'BAD_KEY' holds no key, but spaces, line ends"),
    ({"extra": {"messages": []}}, "here.extra: messages cannot be set here"),
    ({"mode": "pairs"}, "here.mode is 'pairs', which is not one of score, score_each, pairwise."),
    ({"max_cals": 1}, "here.max_cals is not an option of judge. Did you mean max_calls?"),
    ({"max_grade": 0}, "here.max_grade is 0, but it should be 1 or more."),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_in_the_options_is_one_clear_sentence(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BAD_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(VerifierError) as caught:
        made(**options)
    assert message in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "sk-secret" not in str(caught.value)


async def test_principles_may_stand_in_a_file(tmp_path: Path):
    (tmp_path / "constitution.txt").write_text("# Ours\nBe true.\n\n  Be brief.  \n")
    with endpoint(grading(5)) as api:
        await scored(api.judge(principles=str(tmp_path / "constitution.txt")))
    assert "Principles:\n1. Be true.\n2. Be brief.\n\n" in api.requests[0]["messages"][0]["content"]


async def test_the_key_is_sent_and_told_to_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    repeated = b'{"error": {"message": "' + b"x" * 295 + b'sk-secret is no key"}}'
    with endpoint(lambda request: Answer(401, repeated)) as api:
        options = api.options(key_variable="JUDGE_KEY")
        service = VerifierService({"judged": RewardMix.model_validate({"judge": {"options": options}})})
        (judged,) = await service.judge(TASK, [Text("a", None)])
        await service.close()
    assert api.headers[0]["Authorization"] == "Bearer sk-secret"
    assert judged.reward is None
    assert "sk-" not in f"{judged} {caplog.text} {find('judge').validated(options)}"


async def test_a_key_that_is_no_secret_leaves_answers_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "1")
    with endpoint(grading(10)) as api:
        assert (await scored(api.judge(key_variable="JUDGE_KEY"))).outcome is CORRECT


# In the service


def in_service(*, deadline_s: float = 10.0, **options: Any) -> VerifierService:
    return VerifierService({"judged": RewardMix.model_validate({"judge": {"options": options}})}, deadline_s=deadline_s)


async def test_a_judge_that_is_gone_leaves_completions_unscored_and_says_why():
    with endpoint(grading(5)) as api:
        options = api.options(max_retries=1)
    service = in_service(**options)
    (judged,) = await service.judge(TASK, [Text("a", None)])
    assert judged.reward is None
    assert "judge: the judge judge-1 gave no verdict: no connection to http://127.0.0.1:" in str(judged.cause)
    assert "Start the server, or mend base_url (2 requests)." in str(judged.cause)
    assert (await service.metrics())["verify/judge_infra"] == 1
    await service.close()


async def test_completions_wait_for_a_busy_judge_where_no_clock_runs():
    def slowly(request: dict[str, Any]) -> Answer:
        return Answer(body=said(verdict(request, grade=10)), delay_s=0.1)

    with endpoint(slowly) as api:
        service = in_service(deadline_s=0.5, **api.options(max_concurrent=2))
        judged = await service.judge(TASK, [Text(f"text {n}", None) for n in range(16)])  # 0.8 s
        await service.close()
        assert api.most_at_once == 2
    assert [verdict.reward for verdict in judged] == [1.0] * 16


async def test_a_judge_is_tried_before_a_run():
    with endpoint(lambda request: "It need not be a verdict.") as api:
        service = in_service(**api.options())
        await service.probe("judged")
        await service.close()
        assert len(api.requests) == 1
    with endpoint(lambda request: Answer(404, b'{"error": {"message": "No model judge-1."}}')) as api:
        service = in_service(**api.options())
        with pytest.raises(
            SystemFault, match=r"rewards.judged.judge: the judge judge-1 does not answer: .*404: No model judge-1\."
        ):
            await service.probe("judged")
        await service.probe("math")
        await service.close()


async def test_a_run_whose_judge_is_gone_is_refused_before_it_begins():
    with endpoint(grading(5)) as api:
        mix = {"judge": {"options": api.options(max_retries=0)}}
    config = RunConfig(
        tasks=TasksConfig(source="unused.jsonl", rewards="judged"), rewards={"judged": RewardMix.model_validate(mix)}
    )
    with pytest.raises(SystemFault, match="no connection to"):
        await check_references(config, TaskSet((TASK,), (TASK,), {}, 0))


async def test_a_run_stops_and_names_the_budget_that_is_used_up():
    with endpoint(grading(5)) as api:
        service = in_service(**api.options(max_calls=4))

        async def rollout(task: Task) -> Group:
            task = dataclasses.replace(task, rewards="judged")
            completions = tuple(make_completion(n, text=f"answer {n}") for n in range(2))
            return Group(task, completions, await service.verify(task, completions))

        collector = Collector(rollout, TaskStream(make_tasks(4), seed=0), max_unscored=0.1)
        with pytest.raises(TooManyUnscored) as caught:
            await collector.take(4, keep=lambda group: True, version=0)
        await service.close()
    assert "4 of 8 completions" in str(caught.value)
    assert str(caught.value).endswith(
        "judge: the judge judge-1 gave no verdict: the budget of 4 calls is used up. Raise max_calls to go on."
    )


def test_another_loop_serves_as_well():
    uvloop = pytest.importorskip("uvloop")  # which Ray's actors run on, where it is installed
    with endpoint(grading(10)) as api:
        assert uvloop.run(scored(api.judge())).outcome is CORRECT


async def test_the_example_config_makes_a_judge_that_asks_what_it_says():
    config = load_config(Path(__file__).parents[2] / "configs" / "judge.toml")
    with endpoint(lambda request: verdict(request, grade_1=4, grade_2=4, grade_3=1)) as api:
        mix = config.rewards[config.tasks.rewards].model_dump()
        assert mix["judge"]["options"].pop("base_url") == "http://127.0.0.1:8001/v1"
        mix["judge"]["options"]["base_url"] = api.base_url
        service = VerifierService({"explained": RewardMix.model_validate(mix)})
        (judged,) = await service.judge(Task("t", "2 + 2?", "4", "explained"), [Text(r"Two and two. \boxed{4}", None)])
        await service.close()
    assert judged.reward == pytest.approx((1.0 + 0.3 * 0.75) / 1.3)  # the answer, and 9 of 12 points
    assert judged.is_correct


def test_importing_the_judge_loads_no_client():
    code = "import sys, verifiers.judge; print([m for m in ('aiohttp', 'openai', 'httpx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
