"""`grpo eval` before an endpoint that answers late, not at all, or nonsense; resumed; and what it refuses, in a sentence."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from grpo.cli import main
from grpo.evaluation.journal import Journal, Sample
from grpo.evaluation.policies import EngineSampler, Opened, stretches
from grpo.evaluation.run import judge_unscored
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from sandbox.errors import UserError
from tests.fakes import FakeWorker, make_completion, make_snapshot, make_task, make_verdict
from tests.verifiers.judge_endpoint import Answer, Endpoint, endpoint, said
from verifiers import judge_client

SUMS = {"0+0=": "0", "1+1=": "2", "2+2=": "4"}
WRONG, RIGHT = "It is \\boxed{9}.", "It is \\boxed{%s}."


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"id": prompt[0], "question": prompt, "answer": answer} for prompt, answer in SUMS.items()]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Pupil:
    """Answers sums: always right, right every other time, never right. `faults` are given once each before that."""

    def __init__(self, *faults: Answer) -> None:
        self.faults = list(faults)
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, request: dict[str, Any]) -> Answer | str:
        with self.lock:
            if self.faults:
                return self.faults.pop(0)
            prompt = request["messages"][-1]["content"]
            self.asked[prompt] += 1
            number = list(SUMS).index(prompt)
            is_right = number == 0 or (number == 1 and self.asked[prompt] % 2 == 0)
            return RIGHT % SUMS[prompt] if is_right else WRONG


@pytest.fixture
def served() -> Iterator[Callable[[Any], Endpoint]]:
    open_ones = []

    def serve(answer: Any) -> Endpoint:
        manager = endpoint(answer)
        open_ones.append(manager)
        return manager.__enter__()

    yield serve
    for manager in open_ones:
        manager.__exit__(None, None, None)


def evaluated(server: Endpoint, *arguments: str, url: str | None = None) -> int:
    given = ("--base-url", url or server.base_url, "--model", "m", "--tasks", "sums.jsonl", "-o", "out", *arguments)
    return main(["eval", *given])


def found() -> dict[str, Any]:
    return json.loads(Path("out/results.json").read_text())


def rows() -> list[dict[str, Any]]:
    return pq.read_table("out/completions.parquet").to_pylist()


def test_pass_at_k_with_its_interval_and_every_reason(workplace: Path, served: Any, capsys: pytest.CaptureFixture[str]):
    server = served(Pupil())

    assert evaluated(server, "--max-tokens", "77", "--temperature", "0.5") == 0

    results, printed = found(), capsys.readouterr().out
    # by hand: 4, 2 and 0 of 4 are right; of two, at least one is with 1, 5/6 and 0; of four, 1, 1 and 0
    means = {k: estimate["value"] for k, estimate in results["pass_at_k"].items()}
    assert means == {"1": pytest.approx(1 / 2), "2": pytest.approx((1 + 5 / 6) / 3), "4": pytest.approx(2 / 3)}
    assert all(estimate["low"] < estimate["value"] < estimate["high"] for estimate in results["pass_at_k"].values())
    assert [(task["id"], task["num_scored"], task["num_correct"]) for task in results["tasks"]] == [
        ("0", 4, 4),
        ("1", 4, 2),
        ("2", 4, 0),
    ]
    assert re.search(r"pass@2\W+0\.611\W+0\.\d+ to 0\.\d+\W+3", printed)
    assert len(rows()) == 12
    assert all(row["scores"][0]["reason"] and row["scores"][0]["verifier"] == "math" for row in rows())
    assert {row["seed"] for row in rows()} == {request["seed"] for request in server.requests}
    assert len({request["seed"] for request in server.requests}) == 12
    assert all((request["max_tokens"], request["temperature"], request["model"]) == (77, 0.5, "m") for request in server.requests)


def test_a_model_has_a_folder_for_each_address_that_it_is_asked_at(workplace: Path, served: Any):
    servers = [served(Pupil()), served(Pupil())]
    for server in servers:
        assert main(["eval", "--base-url", server.base_url, "--model", "lab/m", "--tasks", "sums.jsonl", "-n", "1"]) == 0
    ports = [server.server.server_address[1] for server in servers]
    assert {folder.name for folder in Path("evals").iterdir()} == {f"m-at-127.0.0.1-{port}-sums" for port in ports}


def test_no_more_requests_at_a_time_than_asked_for(workplace: Path, served: Any):
    def slow(request: dict[str, Any]) -> Answer:
        return Answer(body=said(WRONG), delay_s=0.05)

    server = served(slow)
    assert evaluated(server, "--concurrency", "3") == 0
    assert server.most_at_once == 3


@pytest.mark.slow
def test_what_passes_is_asked_again_and_nothing_is_counted_wrong(workplace: Path, served: Any):
    pupil = Pupil(
        Answer(429, headers={"Retry-After": "0"}),
        Answer(500, b"<html>oops"),
        Answer(body=b"\x00 not JSON \xff"),
        Answer(body=said("half"), cut=True),
        Answer(body=b'{"choices": []}'),
        Answer(body=said("late"), delay_s=1.5),
    )
    server = served(pupil)
    assert evaluated(server, "--timeout", "1", "--max-retries", "6") == 0
    assert len(server.requests) == 12 + 6
    assert found()["pass_at_k"]["1"]["value"] == pytest.approx(1 / 2)
    assert not any("late" in row["text"] or "half" in row["text"] for row in rows())


def test_an_endpoint_that_dies_loses_nothing(workplace: Path, served: Any, capsys: pytest.CaptureFixture[str]):
    pupil = Pupil()

    def mortal(request: dict[str, Any]) -> Answer | str:
        return pupil(request) if pupil.asked.total() < 5 else Answer(503, b'{"error": {"message": "going down"}}')

    assert evaluated(served(mortal), "--concurrency", "2", "--max-retries", "1") == 1
    told = capsys.readouterr().err
    assert "requests in a row failed" in told
    assert "going down (2 requests). What was answered before is kept: type the same command again to go on." in told
    kept = Path("out/completions.jsonl").read_text().splitlines()
    assert len(kept) == 5

    again = Pupil()
    again.asked = pupil.asked
    server = served(again)
    # another address is another policy; in life the same one comes back
    settings = json.loads(Path("out/settings.json").read_text())
    settings["policy"]["base_url"] = server.base_url
    Path("out/settings.json").write_text(json.dumps(settings))
    assert evaluated(server) == 0
    assert len(server.requests) == 12 - 5
    assert Path("out/completions.jsonl").read_text().splitlines()[:5] == kept
    assert found()["pass_at_k"]["1"]["value"] == pytest.approx(1 / 2)


def test_the_same_command_asks_nothing_twice_and_a_larger_n_only_for_more(workplace: Path, served: Any):
    server = served(Pupil())
    assert evaluated(server, "-n", "2") == 0
    assert evaluated(server, "-n", "2") == 0
    assert len(server.requests) == 6
    assert evaluated(server, "-n", "4") == 0
    assert len(server.requests) == 12
    assert evaluated(server, "-n", "1") == 0
    assert len(server.requests) == 12
    assert [row["index"] for row in rows()] == [0, 0, 0]


def test_another_question_is_not_mixed_with_what_is_there(workplace: Path, served: Any, capsys: pytest.CaptureFixture[str]):
    server = served(Pupil())
    assert evaluated(server) == 0
    assert evaluated(server, "--temperature", "0.7") == 2
    told = capsys.readouterr().err
    assert "out holds another evaluation:\n  sampling: {'temperature': 1.0, 'max_tokens': 512} -> {'temperature': 0.7" in told
    assert len(server.requests) == 12


def test_a_task_that_changed_under_its_id_is_asked_again(workplace: Path, served: Any):
    server = served(Pupil())
    assert evaluated(server) == 0
    changed = Path("sums.jsonl").read_text().replace('"answer": "4"', '"answer": "9"')
    Path("sums.jsonl").write_text(changed)
    assert evaluated(server) == 0
    assert len(server.requests) == 12 + 4
    assert found()["tasks"][2]["num_correct"] == 4


@pytest.mark.parametrize("torn", [b'{"task_id": "0", "ind', b'{"task_id": "0"\n', b"\x00\x00\x00", b"[]\n"])
def test_a_torn_last_line_is_asked_for_again(workplace: Path, served: Any, torn: bytes):
    server = served(Pupil())
    assert evaluated(server) == 0
    journal = Path("out/completions.jsonl")
    whole = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(whole[:-1]) + torn)
    assert evaluated(server) == 0
    assert len(server.requests) == 13
    assert len(journal.read_bytes().splitlines()) == 12


def test_a_wrong_key_is_told_at_once_and_never_shown(workplace: Path, served: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-verysecretvalue")
    server = served(lambda request: Answer(401, b'{"error": {"message": "no such key: sk-verysecretvalue"}}'))
    assert evaluated(server, "--key-variable", "MY_KEY") == 2
    told = "".join(capsys.readouterr())
    assert "answered 401: no such key: ***" in told
    assert "secret" not in told
    assert len(server.requests) == 3
    assert server.headers[0]["Authorization"] == "Bearer sk-verysecretvalue"
    assert "secret" not in "".join(path.read_text() for path in Path("out").iterdir())


def test_a_question_that_is_refused_leaves_the_others_be(workplace: Path, served: Any, capsys: pytest.CaptureFixture[str]):
    pupil = Pupil()

    def strict(request: dict[str, Any]) -> Answer | str:
        too_long = Answer(400, b'{"error": {"message": "too long for me"}}')
        return too_long if request["messages"][-1]["content"] == "0+0=" else pupil(request)

    assert evaluated(served(strict), "-n", "2") == 1
    assert "2 completions are missing: " in (told := capsys.readouterr().err)
    assert "too long for me" in told
    assert (found()["num_missing"], found()["num_completions"]) == (2, 4)
    assert found()["pass_at_k"]["1"]["num_tasks"] == 2


def test_an_address_where_nobody_listens_is_a_fault(workplace: Path, served: Any, capsys: pytest.CaptureFixture[str]):
    with endpoint(Pupil()) as gone:
        url = gone.base_url
    assert evaluated(gone, "--max-retries", "1", url=url) == 1
    assert "no connection to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs/none", "--tasks", "sums.jsonl", "--k", "8"], "pass@8 needs at least 8 completions of each task, and -n is 4."),
        (["m", "--tasks", "sums.jsonl", "--k", "0,1"], "pass@0 needs at least 1"),
        (["m", "--tasks", "sums.jsonl", "-n", "0"], "-n is 0; it must be 1 or more."),
        (["m", "--tasks", "sums.jsonl", "--limit", "0"], "--limit is 0; it must be 1 or more."),
        (["m", "--tasks", "sums.jsonl", "--temperature", "-1"], "--temperature is -1.0; it must be 0 or more."),
        (["m", "--tasks", "sums.jsonl", "--temperature", "0"], "all 4 completions of a task would be equal. Add -n 1."),
        (["m", "--tasks", "none.jsonl"], "none.jsonl: cannot be read: No such file or directory."),
        (["m", "--tasks", "sums.jsonl", "--set", "tasks.reference=gold"], "gold"),
        (["m", "--tasks", "sums.jsonl", "--set", "tasks.rewards=mth"], "Did you mean math?"),
        (["m", "--tasks", "sums.jsonl", "--step", "3"], "m is the folder of none. Leave it out."),
        (["m"], "no tasks were given."),
        (["--tasks", "sums.jsonl"], "no policy was given."),
        (["--base-url", "http://localhost/v1", "--tasks", "sums.jsonl"], "--base-url and --model go together"),
        (["m", "--base-url", "http://localhost/v1", "--model", "m", "--tasks", "sums.jsonl"], "Evaluate one of them."),
        (["--base-url", "localhost", "--model", "m", "--tasks", "sums.jsonl"], "'localhost' is not the address of an API."),
        (
            ["--base-url", "http://localhost", "--model", "m", "--tasks", "sums.jsonl", "--key-variable", "NO_SUCH"],
            "the environment variable 'NO_SUCH' is not set.",
        ),
        (["m", "--config", "none.toml"], "none.toml: cannot be read"),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
):
    assert main(["eval", *arguments]) == 2
    assert told in (error := capsys.readouterr().err)
    assert "Traceback" not in error
    assert not Path("evals").exists()


def test_a_k_that_is_no_number_is_a_sentence(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["eval", "m", "--k", "1,many"])
    assert "argument --k: '1,many' is no list of whole numbers, such as 1,8" in capsys.readouterr().err


def test_a_run_without_checkpoint_is_a_sentence(workplace: Path, capsys: pytest.CaptureFixture[str]):
    Path("runs/new/checkpoints").mkdir(parents=True)
    assert main(["eval", "runs/new", "--tasks", "sums.jsonl"]) == 2
    assert "runs/new has no checkpoint. Train it first" in capsys.readouterr().err


def test_two_processes_do_not_write_into_one_evaluation(tmp_path: Path):
    first = Journal(tmp_path, {})
    with pytest.raises(UserError, match="another process evaluates into this folder"):
        Journal(tmp_path, {})
    first.close()
    Journal(tmp_path, {}).close()


async def test_what_had_no_verdict_is_judged_again_and_not_sampled_again(tmp_path: Path):
    task = make_task()
    journal = Journal(tmp_path, {})
    samples = [Sample(make_completion(index, text=f"text {index}"), 7) for index in range(2)]
    journal.add(task, samples, [make_verdict(1.0), make_verdict(None)])
    journal.close()

    asked = []

    async def judge(task: Any, texts: Any) -> Any:
        asked.extend(texts)
        return tuple(make_verdict(0.0) for _ in texts)

    journal = Journal(tmp_path, {})
    await judge_unscored(Opened(None, judge, (task,), "", 1), journal, 2)  # type: ignore[arg-type]
    assert [text.text for text in asked] == ["text 1"]
    journal.close()
    journal = Journal(tmp_path, {})
    assert [(row["text"], row["reward"]) for row in journal.rows([task], 2)] == [("text 0", 1.0), ("text 1", 0.0)]
    journal.close()


@pytest.mark.parametrize(("indices", "expected"), [([], []), ([0, 1, 2, 5], [(0, 3), (5, 1)]), ([3, 1, 4], [(1, 1), (3, 2)])])
def test_missing_indices_are_asked_for_in_stretches(indices: list[int], expected: list[tuple[int, int]]):
    assert stretches(indices) == expected


async def test_an_interrupted_task_gets_the_completions_it_would_have_had():
    async def start_worker(index: int) -> Any:
        return FakeWorker()

    fleet = Fleet(start_worker, num_workers=1, sampling=Sampling(), run_seed=0, discard=lambda snapshot: None)
    await fleet.start()
    await fleet.load(make_snapshot(0))
    sampler = EngineSampler(fleet, Sampling(), 0)

    async def sampled(indices: list[int]) -> dict[int, tuple[str, int]]:
        found = [sample.completion async for some in sampler.sample(make_task(), indices) for sample in some]
        return {one.index: (one.text, one.seed) for one in found}

    whole, *parts = await asyncio.gather(sampled(list(range(8))), sampled([0, 1, 5]), sampled([2, 3, 4, 6, 7]))
    assert parts[0] | parts[1] == whole
    await fleet.close()
