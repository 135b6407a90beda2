"""Every objective moves what it should: on a game so small that a policy learns it within the test.

Each prompt asks for two tokens; even ones are right. The policy samples them itself, from the very probabilities it learns on.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from _pytest.mark import ParameterSet
from learner_cases import make_learner
from objective_cases import FROM_PAIRS, FROM_SAMPLES

from grpo.learner import Learner
from grpo.objectives import Cispo, Dpo, Grpo, Gspo, Kto, Objective, ReinforcePlusPlus, Sft, Spin
from grpo.tiny_model import make_tiny_model
from rollout.types import Completion, Group
from verifiers.types import Task, Verdict

PROMPTS = [(10,), (20, 21), (30,), (40, 41, 42)]
GROUP_SIZE = 8


def sample(learner: Learner, prompt: tuple[int, ...], count: int) -> list[Completion]:
    rows = torch.tensor([prompt] * count)
    logprobs = []
    with torch.no_grad():
        for _ in range(2):
            distribution = torch.distributions.Categorical(logits=learner._policy.model(rows).logits[:, -1])
            tokens = distribution.sample()
            logprobs.append(distribution.log_prob(tokens))
            rows = torch.cat([rows, tokens[:, None]], 1)
    scores = torch.stack(logprobs, 1).tolist()
    return [
        Completion(i, prompt, tuple(row[-2:]), "", "stop", behavior_logprobs=tuple(scores[i]))
        for i, row in enumerate(rows.tolist())
    ]


def judged(prompt: tuple[int, ...], completions: list[Completion]) -> Group:
    """1 when both tokens are even, else 0."""
    rewards = [float(all(token % 2 == 0 for token in completion.token_ids)) for completion in completions]
    return Group(Task(str(prompt), "", "", "even"), tuple(completions), tuple(Verdict(r, r == 1, ()) for r in rewards))


def accuracy(learner: Learner) -> float:
    torch.manual_seed(99)
    groups = [judged(prompt, sample(learner, prompt, 200)) for prompt in PROMPTS]
    return sum(group.num_correct for group in groups) / 800


async def play(learner: Learner, objective: Objective, steps: int) -> list[dict[str, float]]:
    metrics = []
    for step in range(steps):
        torch.manual_seed(step)
        sampled = [(prompt, sample(learner, prompt, 2 * GROUP_SIZE)) for prompt in PROMPTS]
        groups = [judged(prompt, half) for prompt, both in sampled for half in (both[:GROUP_SIZE], both[GROUP_SIZE:])]
        kept = [group for group in groups if objective.keep(group)]
        metrics.append((await learner.update(objective.credit(kept))).metrics)
    return metrics


OFF_POLICY = [Grpo(), Gspo(), Cispo(), ReinforcePlusPlus(group_baseline=True)]
LIVE = [*FROM_SAMPLES, *(o for o in FROM_PAIRS if not isinstance(o, Spin)), Kto(), Sft()]
REGULARIZED = [Grpo(kl_coef=0.01), Grpo(kl_coef=0.01, kl_in="reward"), ReinforcePlusPlus(kl_coef=0.01)]
QUICK = {"grpo", "dpo", "kto"}  # one of each kind of group; the others are as important, and slow together


def cases(objectives: list[Objective], *, quick: set[str] = QUICK) -> list[ParameterSet]:
    return [pytest.param(o, id=repr(o), marks=() if o.name in quick else pytest.mark.slow) for o in objectives]


@pytest.mark.parametrize("objective", [*cases(LIVE), *cases(REGULARIZED, quick=set())])
async def test_what_is_rewarded_becomes_more_frequent(model_path, objective):
    learner = make_learner(model_path, objective=objective, learning_rate=1e-2, max_mismatch=1e-4, max_tokens=2)
    before = accuracy(learner)
    assert before < 0.4
    metrics = await play(learner, objective, 25 if objective.name in QUICK else 40)
    assert accuracy(learner) > before + 0.25
    preferred = [step["preference/accuracy"] for step in metrics if "preference/accuracy" in step][-5:]  # none where all are right
    if preferred and objective.name != "kto":
        assert sum(preferred) / len(preferred) > 0.6
    if objective.name == "kto":
        assert metrics[-1]["preference/chosen"] > metrics[-1]["preference/rejected"]


@pytest.mark.parametrize("objective", cases(OFF_POLICY))
async def test_several_mini_batches_of_one_step_learn_too(model_path, objective):
    learner = make_learner(model_path, objective=objective, learning_rate=3e-3, mini_batches=4, max_tokens=2)
    before = accuracy(learner)
    await play(learner, objective, 15)
    assert accuracy(learner) > before + 0.15


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="the extra adamw-8bit is not installed")
async def test_moments_of_8_bits_learn_as_much(tmp_path):
    """64 wide, so that there are blocks; `accuracy` after each, from the same start, on what each has sampled itself."""
    model_path = str(make_tiny_model(tmp_path, seed=0, hidden_size=64, num_layers=2, max_length=64))
    reached = {}
    for optimizer in ("adamw", "adamw_8bit"):
        learner = make_learner(model_path, optimizer=optimizer, learning_rate=2e-3, max_mismatch=1e-4, max_tokens=2)
        before = accuracy(learner)
        await play(learner, Grpo(), 25)
        reached[optimizer] = accuracy(learner)
        assert reached[optimizer] > before + 0.25
    assert reached["adamw_8bit"] > reached["adamw"] - 0.1


@pytest.mark.slow
async def test_self_play_ends_where_the_policy_writes_what_was_demonstrated(model_path):
    """The demonstrator always answers 50 52; each iteration is one step long, so the policy is always its own reference."""
    learner = make_learner(model_path, objective=Spin(), learning_rate=5e-3, reference_every=1)
    demonstration = (50, 52)

    def share() -> float:
        torch.manual_seed(99)
        return sum(c.token_ids == demonstration for prompt in PROMPTS for c in sample(learner, prompt, 100)) / 400

    before = share()
    for step in range(60):
        torch.manual_seed(step)
        groups = []
        for prompt in PROMPTS:
            shown = Completion(2, prompt, demonstration, "", "stop")
            group = judged(prompt, [*sample(learner, prompt, 2), shown])
            if Spin().keep(group):
                groups.append(group)
        await learner.update(Spin().credit(groups))
    assert before < 0.05
    assert share() > 0.5


async def test_dpo_follows_recorded_preferences_and_stays_near_its_reference(model_path):
    pairs = [
        Group(
            Task(str(i), "", "", "even"),
            tuple(Completion(j, PROMPTS[i % 4], tokens, "", "stop") for j, tokens in enumerate([(50 + i, 52), (51 + i, 53)])),
            (Verdict(1.0, True, ()), Verdict(0.0, False, ())),
        )
        for i in range(8)
    ]
    margins, metrics = {}, {}
    for beta in (0.1, 1.0):
        objective = Dpo(beta=beta)
        learner = make_learner(model_path, objective=objective, learning_rate=2e-3)
        rows = objective.credit(pairs)
        for _ in range(30):
            metrics = (await learner.update(rows)).metrics
        assert metrics["preference/accuracy"] == 1
        margins[beta] = metrics["preference/margin"] / beta  # in nats of log-ratio
    assert margins[1.0] < margins[0.1], "the harder the policy is held, the less far it goes"
