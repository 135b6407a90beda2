"""The run's own engine as a judge: asked over a real connection, by those who have the key, with what it understands."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from grpo.engine_api import EngineApi, engine_judges
from rollout.errors import PromptTooLong, WorkerLost
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from tests.fakes import FakeWorker, make_snapshot, make_task
from verifiers import judge_client
from verifiers.judge import Judge
from verifiers.judge_options import ENGINE_KEY, ENGINE_URL
from verifiers.reward import Component, RewardMix
from verifiers.types import Outcome, Task

QUESTION = {"model": "policy", "messages": [{"role": "user", "content": "Why?"}], "temperature": 0, "max_tokens": 9}


def grade(task: Task, chance: random.Random) -> str:
    """The policy as a judge: as many points as the completion has letters e."""
    asked = task.prompt[1].content if len(task.prompt) > 1 else ""
    found = re.search(r"The code is ([0-9a-f]+)", str(asked))
    return json.dumps({"code": found[1], "grade": str(asked).count("EEE")}) if found else f"{task.prompt}"


async def make_fleet(worker: FakeWorker) -> Fleet:
    async def start(index: int) -> FakeWorker:
        return worker

    fleet = Fleet(start, num_workers=1, sampling=Sampling(), run_seed=0, discard=lambda snapshot: None)
    await fleet.start()
    await fleet.load(make_snapshot(0))
    return fleet


@pytest.fixture
async def worker() -> FakeWorker:
    return FakeWorker(grade)


@pytest.fixture
async def engine(worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, str]]:
    async with EngineApi(await make_fleet(worker)).serve() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables


def judge(**options: Any) -> Judge:
    return Judge(principles=("Be brief.",), base_url="engine", model="policy", max_grade=3, **options)


async def post(engine: dict[str, str], body: Any, *, key: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {engine[ENGINE_KEY] if key is None else key}"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine[ENGINE_URL]}/chat/completions", data=data, headers=headers) as response,
    ):
        return response.status, await response.json()


async def test_the_policy_judges(engine: dict[str, str], worker: FakeWorker):
    made = judge(max_tokens=64)
    task = Task("t", "Why is the sky blue?", None, "judged")
    scores = [await made.score(task, text) for text in ("EEE EEE EEE", "EEE", "no")]
    assert [(score.outcome, score.value) for score in scores] == [
        (Outcome.CORRECT, 1.0),
        (Outcome.PARTIAL, pytest.approx(1 / 3)),
        (Outcome.WRONG, 0.0),
    ]
    num_asked = len(worker.sampled)
    await made.score(task, "EEE")
    assert len(worker.sampled) == num_asked + 1, "it may think otherwise by now"
    assert made.counters()["tokens"] > 0
    await made.close()


async def test_the_same_question_has_the_same_seed_and_another_if_it_names_one(engine: dict[str, str], worker: FakeWorker):
    for body in (QUESTION, QUESTION, QUESTION | {"seed": 5}):
        status, answer = await post(engine, body)
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"] > 0
    seeds = [seed for _, _, seed in worker.sampled]
    assert seeds[0] == seeds[1] != seeds[2] == 5


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"\xff", "body: Invalid JSON"),
        ({}, "messages: Field required"),
        ({"messages": []}, "messages: Tuple should have at least 1 item"),
        (QUESTION | {"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        (QUESTION | {"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        (QUESTION | {"temperature": "hot"}, "temperature: Input should be a valid number"),
        (QUESTION | {"response_format": {"type": "json_schema"}}, "response_format: Extra inputs are not permitted"),
        (QUESTION | {"n": 2}, "n: Extra inputs are not permitted"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_it_does_not_understand_is_refused(engine: dict[str, str], worker: FakeWorker, body: Any, told: str):
    status, answer = await post(engine, body)
    assert (status, worker.sampled) == (400, [])
    assert told in answer["error"]["message"]


@pytest.mark.parametrize("key", ["", "x", "é"])
async def test_without_the_key_nothing_is_sampled(engine: dict[str, str], worker: FakeWorker, key: str):
    status, _ = await post(engine, QUESTION, key=key)
    assert (status, worker.sampled) == (401, [])


@pytest.mark.parametrize(
    ("error", "status"), [(PromptTooLong("the prompt has 900 tokens"), 400), (WorkerLost("its process is gone"), 503)]
)
async def test_a_failure_of_the_engine_has_a_status_and_leaves_a_completion_unscored(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
):
    class Failing:
        async def sample(self, task: Task, **options: Any):
            raise error

    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.001)
    async with EngineApi(Failing()).serve() as engine:
        for name, value in engine.items():
            monkeypatch.setenv(name, value)
        assert (await post(engine, QUESTION))[0] == status
        made = judge()
        score = await made.score(make_task(), "EEE")
        await made.close()
    assert score.outcome is Outcome.INFRA
    assert f"answered {status}: {error}" in score.reason


async def test_without_a_run_references_are_checked_and_scores_say_what_is_missing():
    made = judge()
    made.prepare("anything")
    await made.probe()
    score = await made.score(make_task(), "EEE")
    await made.close()
    assert score.outcome is Outcome.INFRA
    assert "no run is here whose engine could judge. Give the address of an API" in score.reason


def test_only_a_mix_that_asks_for_it_opens_a_port():
    own = RewardMix({"style": Component(verifier="judge", options={"base_url": "engine"})})
    other = RewardMix({"judge": Component(options={"base_url": "http://127.0.0.1:1/v1"}), "math": Component()})
    assert engine_judges({"a": other, "b": own})
    assert not engine_judges({"a": other})
