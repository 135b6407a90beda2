"""An endpoint that is slow, full, broken, gone or wrong: what may pass is waited for, the rest is said at once, nothing is a 0."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from judge_endpoint import TASK, Answer, Endpoint, endpoint, said, verdict

from verifiers import judge, judge_client
from verifiers.judge_client import backoff_s, retry_after_s
from verifiers.types import Outcome, Score

CORRECT, INFRA = Outcome.CORRECT, Outcome.INFRA
OFFLINE = b'{"error": {"message": "The server is overloaded.", "type": "server_error", "code": 503}}'
UNKNOWN = b'{"error": {"message": "The model `judge-1` does not exist.", "type": "NotFoundError", "code": 404}}'
NO_QUOTA = b'{"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}'
TOO_LONG = b'{"error": {"message": "This model\'s maximum context length is 8192 tokens."}}'


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.001)


async def scored(api: Endpoint, **options: Any) -> Score:
    made = api.judge(**options)
    try:
        return await made.score(TASK, "Light scatters.")
    finally:
        await made.close()


def first(num_faults: int, fault: Answer) -> Callable[[dict[str, Any]], Answer | str]:
    """`fault` to the first requests, full marks to the others."""
    answered = iter(range(num_faults))
    return lambda request: fault if next(answered, None) is not None else verdict(request, grade=10)


PASSING = {
    "rate limit": Answer(429, OFFLINE, {"Retry-After": "0"}),
    "rate limit without a hint": Answer(429),
    "request timeout": Answer(408),
    "internal error": Answer(500, b"<html>oops</html>"),
    "bad gateway": Answer(502),
    "overloaded": Answer(529, OFFLINE),
    "no JSON": Answer(200, b"<html>Welcome!</html>"),
    "half a JSON": Answer(200, said("ten")[:40]),
    "no choices": Answer(200, b'{"choices": []}'),
    "null": Answer(200, b"null"),
    "other types": Answer(200, b'{"choices": {"0": 1}}'),
    "deep JSON": Answer(200, b"[" * 200_000),
    "not UTF-8": Answer(200, b"\xff\xfe\x00"),
    "empty": Answer(200),
    "cut off": Answer(200, said("ten" * 1000), cut=True),
    "cut off at once": Answer(200, b"", {"Content-Length": "10"}, cut=True),
    "broken chunks": Answer(200, b"zz\r\nnonsense", {"Transfer-Encoding": "chunked"}),
    "broken compression": Answer(200, b"no zip", {"Content-Encoding": "gzip"}),
    "slow": Answer(200, said("ten"), delay_s=3.0),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
async def test_what_may_pass_is_tried_again_and_then_unscored(fault: Answer):
    timeout_s = fault.delay_s / 4 or 30.0  # only what is slow is waited for
    with endpoint(first(2, fault)) as api:
        assert (await scored(api, max_retries=2, timeout_s=timeout_s)).outcome is CORRECT
        assert len(api.requests) == 3
    with endpoint(first(9, fault)) as api:
        score = await scored(api, max_retries=1, timeout_s=timeout_s)
    assert (score.outcome, score.value) == (INFRA, None)
    assert score.reason.endswith("(2 requests).")
    assert len(score.reason) < 1000


REFUSING = {
    "no key": (Answer(401, b'{"error": "No key."}'), "answered 401: No key. Name the variable with the key: key_variable."),
    "forbidden": (Answer(403, b"<b>no</b>"), "answered 403: '<b>no</b>'. Name the variable"),
    "unknown model": (Answer(404, UNKNOWN), "answered 404: The model `judge-1` does not exist. Either it has no such model, or"),
    "wrong path": (Answer(404, b'{"detail": "Not Found"}'), "base_url is wrong (most end in /v1)."),
    "too long": (Answer(400, TOO_LONG), "answered 400: This model's maximum context length is 8192 tokens."),
    "unprocessable": (Answer(422, b'{"error": "no such field"}'), "answered 422: no such field."),
    "no quota": (Answer(429, NO_QUOTA), "answered 429: You exceeded your current quota."),
    "redirect": (Answer(307, b"", {"Location": "/else"}), "sends on elsewhere, which is not followed. Give the right base_url."),
    "huge": (Answer(200, b" " * (5 * 2**20)), "its answer has more than 4 MiB."),
    "busy for an hour": (Answer(429, OFFLINE, {"Retry-After": "3600"}), "; it asks to wait 3600 s, which is too long."),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "reason"), REFUSING.values(), ids=REFUSING.keys())
async def test_what_does_not_pass_is_said_at_once(fault: Answer, reason: str):
    with endpoint(first(9, fault)) as api:
        score = await scored(api)
    assert (score.outcome, score.value) == (INFRA, None)
    assert reason in score.reason
    assert len(api.requests) == 1


async def test_a_wrong_key_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    with endpoint(first(9, Answer(401, b"no"))) as api:
        assert "Does the variable of key_variable hold the right key." in (await scored(api, key_variable="JUDGE_KEY")).reason


async def test_a_wait_that_the_endpoint_asks_for_is_kept():
    with endpoint(first(1, Answer(429, OFFLINE, {"Retry-After": "1"}))) as api:
        started = time.monotonic()
        assert (await scored(api)).outcome is CORRECT
    assert time.monotonic() - started >= 1.0


async def test_nobody_there_is_unscored_with_the_address():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        made = judge.Judge(principles=("Be kind.",), base_url=url, model="m", max_retries=1)
        score = await made.score(TASK, "a")
        await made.close()
    assert score.outcome is INFRA
    assert f"no connection to {url}/chat/completions" in score.reason
    assert score.reason.endswith("Start the server, or mend base_url (2 requests).")


async def test_patience_ends_before_the_services(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge, "PATIENCE_S", 0.4)
    with endpoint(first(99, Answer(200, said("ten"), delay_s=0.25))) as api:
        started = time.monotonic()
        score = await scored(api, timeout_s=0.2, max_retries=50)
    assert score.outcome is INFRA
    assert time.monotonic() - started < 2
    assert len(api.requests) <= 3


async def test_no_more_requests_are_under_way_than_allowed():
    def slowly(request: dict[str, Any]) -> Answer:
        return Answer(body=said(verdict(request, grade=10)), delay_s=0.02)

    with endpoint(slowly) as api:
        made = api.judge(max_concurrent=3)
        scores = await asyncio.gather(*(made.score(TASK, f"text {n}") for n in range(12)))
        await made.close()
        assert {score.outcome for score in scores} == {CORRECT}
        assert api.most_at_once == 3


# The budget


async def test_a_budget_of_calls_ends_and_says_so():
    with endpoint(lambda request: verdict(request, grade=10)) as api:
        made = api.judge(max_calls=3)
        scores = [await made.score(TASK, f"text {n}") for n in range(5)]
        assert (await made.score(TASK, "text 0")).outcome is CORRECT  # known
        await made.close()
        assert len(api.requests) == 3
    assert [score.outcome for score in scores] == [CORRECT] * 3 + [INFRA] * 2
    assert scores[4].reason == (
        "the judge judge-1 gave no verdict: the budget of 3 calls is used up. Raise max_calls to go on."
    )  # fmt: skip


async def test_repeated_requests_are_paid_for_too():
    with endpoint(first(9, Answer(500))) as api:
        score = await scored(api, max_calls=2, max_retries=5)
        assert len(api.requests) == 2
    assert "the budget of 2 calls is used up" in score.reason


async def test_a_budget_of_tokens_ends_by_the_endpoints_count():
    with endpoint(lambda request: verdict(request, grade=10)) as api:  # 100 tokens each
        made = api.judge(max_total_tokens=250)
        scores = [await made.score(TASK, f"text {n}") for n in range(5)]
        await made.close()
    assert [score.outcome for score in scores] == [CORRECT] * 3 + [INFRA] * 2
    assert "the budget of 250 tokens is used up. Raise max_total_tokens to go on." in scores[4].reason


async def test_tokens_that_nobody_counts_cannot_be_kept_to():
    with endpoint(lambda request: Answer(body=said(verdict(request, grade=10), tokens=None))) as api:
        assert (await scored(api)).outcome is CORRECT
        assert "does not say how many tokens it used" in (await scored(api, max_total_tokens=10)).reason


# Waits


@given(st.integers(0, 60))
def test_waits_double_up_to_half_a_minute_with_jitter(attempt: int):
    longest = min(30.0, 0.001 * 2**attempt)
    assert longest / 2 <= backoff_s(attempt) <= longest


def test_what_an_endpoint_asks_to_wait_is_read_as_seconds_or_a_date():
    soon = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after_s(soon) == pytest.approx(60, abs=2)
    assert [retry_after_s(header) for header in ("7", " 0 ", "Wed, 21 Oct 2015 07:28:00 GMT")] == [7, 0, 0]
    assert [retry_after_s(header) for header in (None, "", "soon", "-1", "nan", "1e9", "\u0663")] == [None] * 7


@example("0\x1f")  # white space to str, and not to float
@given(st.text())
def test_any_wish_to_wait_is_a_time_or_nothing(header: str):
    wait_s = retry_after_s(header)
    assert wait_s is None or wait_s >= 0
