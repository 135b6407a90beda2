"""Answers judged by reasoning-gym's scorers: full marks or wrong, whoever's scorer it is, and never a program run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rollout.rows import read_rows
from rollout.tasks import TasksConfig, load_tasks
from verifiers.errors import InvalidReference
from verifiers.hostile_texts import few_hostile_texts
from verifiers.reasoning_gym import MAX_CHARACTERS, ReasoningGym
from verifiers.reasoning_gym_admission import table
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Score, Task

CHAIN = {"dataset": "decimal_chain_sum", "answer": "-4", "metadata": {}}
BOARD = {"dataset": "color_cube_rotation", "answer": "red", "metadata": {}}


@pytest.fixture(scope="module")
def gym() -> Iterator[ReasoningGym]:
    verifier = ReasoningGym(workers=1)
    yield verifier
    asyncio.run(verifier.close())


@pytest.fixture
def judge(gym: ReasoningGym) -> Callable[..., Score]:
    def judge(reference: Any, text: str, verifier: ReasoningGym = gym) -> Score:
        return asyncio.run(verifier.score(Task("t", "", reference, "reasoning_gym"), text))

    return judge


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("<think>hm</think>It is <answer>-4</answer>.", "correct", "full marks"),
        ("<answer>\n -4.0\n</answer>", "correct", "full marks"),
        ("<answer>4</answer>", "wrong", "the scorer gives 0"),
        ("<answer>It is -4</answer>", "wrong", "the scorer gives 0"),
        ("<answer>-4</answer> or <answer>4</answer>", "wrong", "hedged: another answer says -4"),
        ("<answer>-4</answer> <answer> -4 </answer>", "correct", "full marks"),
        ("<answer>4<answer>-4</answer>", "wrong", "hedged: another answer says 4"),
        ("<answer>-4", "unparseable", "no <answer>…</answer> after the reasoning"),
        ("<answer>-4</answer> <answer>", "unparseable", "no <answer>…</answer> after the reasoning"),
        ("-4", "unparseable", "no <answer>…</answer> after the reasoning"),
        ("<think><answer>-4</answer>", "unparseable", "nothing after the reasoning"),
        ("<answer>-4</answer></think>", "unparseable", "nothing after the reasoning"),
        ("<answer></answer>", "wrong", "the scorer gives 0"),
        ("<answer>\x00\ud800</answer>", "wrong", "the scorer gives 0"),
        ("<answer>__import__('os')._exit(0)</answer>", "wrong", "the scorer gives 0"),
    ],
)
def test_the_answer_in_the_tags_is_scored(judge: Callable[..., Score], text: str, outcome: str, reason: str):
    score = judge(CHAIN, text)
    assert (score.outcome, score.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        ("405", "correct", "says what the reference says"),
        ("405.0", "correct", "says what the reference says"),
        ("-405", "wrong", "does not say 405"),  # which its own scorer takes for 405, as it does the next
        ("405 or 7", "wrong", "does not say 405"),
    ],
)
def test_where_a_scorer_is_not_trusted_the_answer_is_compared(judge: Callable[..., Score], answer: str, outcome: str, reason: str):
    score = judge({"dataset": "gsm_symbolic", "answer": "405", "metadata": {}}, f"<answer>{answer}</answer>")
    assert (score.outcome, score.reason) == (outcome, reason)


def test_an_answer_too_large_to_score_is_a_timeout(judge: Callable[..., Score]):
    score = judge(CHAIN, f"<answer>{'9' * (MAX_CHARACTERS + 1)}</answer>")
    assert score.outcome is Outcome.TIMEOUT
    assert score.extracted is not None
    assert len(score.extracted) == 200


def test_partial_credit_counts_only_where_it_is_asked_for(judge: Callable[..., Score]):
    generous = ReasoningGym(partial=True, workers=1)
    try:
        scores = [judge(BOARD, "<answer>blue</answer>"), judge(BOARD, "<answer>blue</answer>", generous)]
    finally:
        asyncio.run(generous.close())
    assert [(score.outcome, score.value) for score in scores] == [("wrong", 0.0), ("partial", 0.01)]


def test_a_box_is_read_where_the_config_says_so(judge: Callable[..., Score]):
    boxed = ReasoningGym(inside="box", workers=1)
    try:
        assert boxed.example(CHAIN) == "\\boxed{-4}"
        assert judge(CHAIN, "so \\boxed{-4}", boxed).outcome is Outcome.CORRECT
        assert judge(CHAIN, "<answer>-4</answer>", boxed).outcome is Outcome.UNPARSEABLE
    finally:
        asyncio.run(boxed.close())


async def judge_hostile(names: list[str], per_kind: int) -> Counter[str]:
    """Hostile answers to one task of each dataset, through the service. None may be right, or nobody's to judge."""
    service, outcomes = VerifierService({}, workers=2), Counter[str]()
    try:
        for name in names:
            source = f"reasoning_gym:{name}?size=2"
            task = load_tasks(TasksConfig.model_validate({"source": source, "held_out": 1})).train[0]
            for kind, text in few_hostile_texts(per_kind):
                (verdict,) = await service.judge(task, [Text(f"<answer>{text}</answer>", None)])
                assert verdict.reward == 0.0, (name, kind, verdict.scores[0].reason)
                outcomes[verdict.scores[0].outcome.value] += 1
            verifier: Any = service.verifiers_of("reasoning_gym")["reasoning_gym"]
            (right,) = await service.judge(task, [Text(verifier.example(task.reference), None)])
            assert right.reward == 1.0, (name, right.scores[0].reason)
    finally:
        await service.close()
    return outcomes


async def test_hostile_answers_are_wrong_and_break_nothing():
    outcomes = await judge_hostile(["rearc", "power_function", "game_of_life"], 1)
    assert outcomes["wrong"] > 50
    assert outcomes["infra"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_hostile_answers_to_every_trusted_dataset_are_wrong_and_break_nothing():
    outcomes = await judge_hostile([name for name, admission in table().items() if admission.is_safe], 3)
    assert outcomes["wrong"] > 4000
    assert outcomes["infra"] == 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("-4", "expected an entry of a reasoning-gym dataset, found '-4'. Take tasks from the source reasoning_gym:NAME"),
        ({"dataset": "chain_sum", "answer": "-4"}, "metadata is missing"),
        (CHAIN | {"dataset": "chain_som"}, "reasoning-gym has no dataset 'chain_som'. Did you mean chain_sum?"),
        (CHAIN | {"dataset": "puzzle24"}, "puzzle24 is not trusted: its scorer evaluates texts as Python"),
        (CHAIN | {"dataset": "countdown"}, "countdown is not trusted: .*; the verifier countdown judges this one"),
        (CHAIN | {"answer": None}, "answer is nothing"),
        (CHAIN | {"answer": ""}, "its answer is empty"),
        (CHAIN | {"answer": "four"}, "its own answer 'four' does not get full marks"),
        (CHAIN | {"metadata": {"a": {1, 2}}}, "its metadata and options are not plain JSON"),
        (CHAIN | {"options": {"a": b""}}, "its metadata and options are not plain JSON"),
        (CHAIN | {"options": {"min_trems": 2}}, "not trusted with the options .*min_trems"),
        (
            {"dataset": "figlet_font", "answer": "A", "metadata": {}, "options": {"min_word_len": 12, "max_word_len": 14}},
            "figlet_font is not trusted with the options .* gets 1, where",  # ten letters of twelve are enough for its scorer
        ),
    ],
)
def test_a_reference_of_no_use_is_refused_before_training(gym: ReasoningGym, reference: Any, message: str):
    with pytest.raises(InvalidReference, match=message):
        gym.prepare(reference)


def test_a_broken_scorer_is_not_taken_for_a_wrong_answer(judge: Callable[..., Score]):
    with pytest.raises(Exception, match="does not give its own reference full marks"):
        judge({"dataset": "sudoku", "answer": "1", "metadata": {}}, "<answer>2</answer>")


@pytest.mark.parametrize("name", ["decimal_chain_sum", "rearc", "knights_knaves"])
def test_a_run_can_train_on_a_trusted_dataset_by_its_name_alone(gym: ReasoningGym, judge: Callable[..., Score], name: str):
    tasks = load_tasks(TasksConfig.model_validate({"source": f"reasoning_gym:{name}?size=4", "held_out": 1})).train
    for task in tasks:
        gym.prepare(task.reference)
        assert json.loads(json.dumps(task.reference)) == task.reference
        assert judge(task.reference, gym.example(task.reference)).outcome is Outcome.CORRECT
        other = next(other for other in tasks if other.reference["answer"] != task.reference["answer"])
        assert judge(task.reference, gym.example(other.reference)).outcome is Outcome.WRONG
        assert task.rewards == "reasoning_gym"
        assert str(task.prompt).endswith("\n\nState your final answer between <answer> and </answer>.")


def test_who_names_rewards_keeps_the_ordinary_defaults():
    config = TasksConfig.model_validate({"source": "reasoning_gym:chain_sum", "rewards": "math"})
    assert (config.prompt, config.reference, config.rewards) == ("{question}", "answer", "math")
    assert TasksConfig(source="mine.jsonl").rewards == "math"


def test_rows_of_one_seed_are_the_same_and_carry_their_options():
    rows = list(read_rows("reasoning_gym:chain_sum?size=2&min_terms=3"))
    assert rows == list(read_rows("reasoning_gym:chain_sum?size=2&min_terms=3"))
    assert rows[0].fields["entry"]["options"] == {"seed": 0, "size": 2, "min_terms": 3}


def test_the_library_is_loaded_in_the_workers_alone():
    probe = "import sys, verifiers.reasoning_gym; print('reasoning_gym' in sys.modules, 'sympy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert said == "False False\n"
