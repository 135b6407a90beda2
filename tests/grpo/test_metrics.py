import ast
import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from grpo.metric_table import METRICS, meaning_of
from grpo.metrics import group_metrics, mismatch_metrics
from rollout.types import Completion, Group
from verifiers.types import Task, Verdict, correct, infra, partial, unparseable, wrong

PACKAGES = Path(__file__).parents[2]
OTHERS = ["rollout/collector.py", "rollout/fleet.py", "verifiers/service.py", "verifiers/service_pool.py", "sandbox/pool.py"]
ONLY_SHOW = ("progress.py", "watch.py", "chart_specs.py", "training_estimates.py", "recorded_run.py", "summary.py")
EMITTING = [*sorted((PACKAGES / "grpo").rglob("*.py")), *(PACKAGES / name for name in OTHERS)]


def strings(tree: ast.AST) -> list[str]:
    """Every string in the code, `{}` for what is filled in; the table of metrics left out."""
    found: list[str] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name) and child.target.id == "METRICS":
            continue
        if isinstance(child, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in child.values))
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            found.append(child.value)
        else:
            found.extend(strings(child))
    return found


def names_in_the_code() -> set[tuple[str, str]]:
    """Strings that have the form of a metric's name, each with a file that holds it."""
    areas = "|".join({name.partition("/")[0] for name in METRICS})
    form = re.compile(rf"({areas})/[a-z0-9_{{}}]+")
    return {(text, path.name) for path in EMITTING for text in strings(ast.parse(path.read_text())) if form.fullmatch(text)}


def stands_for(text: str, name: str) -> bool:
    """Whether a string of the code can be the name of the table, either of which may leave something to be filled in."""
    return text == re.sub(r"\{\w+\}", "{}", name) or bool(re.fullmatch(re.escape(text).replace(r"\{\}", ".+"), name))


def test_every_name_in_the_code_stands_in_the_table():
    assert {(text, file) for text, file in names_in_the_code() if not any(stands_for(text, name) for name in METRICS)} == set()


def test_every_name_in_the_table_is_emitted_by_some_code():
    emitted = {text for text, file in names_in_the_code() if file not in ONLY_SHOW}
    assert {name for name in METRICS if re.sub(r"\{\w+\}", "{}", name) not in emitted} == set()


def test_names_have_an_area_and_meanings_are_not_empty():
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9_{}]+", name) for name in METRICS)
    assert all(METRICS.values())


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("reward/mean", METRICS["reward/mean"]),
        ("reward/math", METRICS["reward/{verifier}"]),
        ("outcome/unit_tests_timeout", METRICS["outcome/{verifier}_{outcome}"]),
        ("verify/math_p50_s", METRICS["verify/{verifier}_p50_s"]),
        ("mine/own", ""),
    ],
)
def test_the_table_knows_a_name_with_its_verifier_filled_in(name, meaning):
    assert meaning_of(name) == meaning


def verdict(math_score, format_score) -> Verdict:
    scores = (dataclasses.replace(math_score, verifier="math"), dataclasses.replace(format_score, verifier="format"))
    if math_score.value is None:
        return Verdict(None, False, scores, cause="math: down")
    return Verdict(math_score.value * format_score.value, math_score.value == 1, scores)


def make_group(*verdicts: Verdict, lengths: tuple[int, ...], truncated: int = 0) -> Group:
    completions = tuple(
        Completion(i, (1,), (2,) * length, "x", "length" if i < truncated else "stop") for i, length in enumerate(lengths)
    )
    return Group(Task("t", "p", "r", "math"), completions, verdicts)


def test_group_metrics_by_hand():
    right, good = correct("equal"), correct("in form")
    first = make_group(
        verdict(right, good), verdict(wrong("no"), good), verdict(infra("down"), good), lengths=(3, 5, 7), truncated=1
    )
    second = make_group(verdict(unparseable("none"), partial(0.5, "half")), verdict(wrong("no"), good), lengths=(1, 4))
    metrics = group_metrics([first, second])
    assert metrics == pytest.approx(
        {
            "group/flat_fraction": 1 / 2,  # the second: 0 and 0
            "completion/length_mean": 20 / 5,
            "completion/length_max": 7,
            "completion/truncated_fraction": 1 / 5,
            "completion/tokens": 20,
            "reward/mean": 1 / 4,  # 1, 0, 0, 0; the unscored one is no zero
            "reward/std": math.sqrt(3 / 16),
            "group/accuracy": 1 / 4,
            "reward/math": 1 / 4,
            "outcome/math_correct": 1 / 5,
            "outcome/math_wrong": 2 / 5,
            "outcome/math_unparseable": 1 / 5,
            "outcome/math_infra": 1 / 5,
            "reward/format": 4.5 / 5,
            "outcome/format_correct": 4 / 5,
            "outcome/format_partial": 1 / 5,
        }
    )


def test_a_demonstration_beside_samples_is_no_sample():
    right, good = correct("equal"), correct("in form")
    group = make_group(verdict(wrong("no"), good), verdict(right, good), lengths=(3, 50))
    sample = dataclasses.replace(group.completions[0], behavior_logprobs=(-1.0,) * 3)
    metrics = group_metrics([dataclasses.replace(group, completions=(sample, group.completions[1]))])
    assert (metrics["reward/mean"], metrics["completion/length_max"], metrics["completion/tokens"]) == (0, 3, 3)


def test_where_nothing_was_scored_there_is_no_reward_to_report():
    metrics = group_metrics([make_group(verdict(infra("down"), correct("in form")), lengths=(3,))])
    assert not {"reward/mean", "reward/std", "group/accuracy", "reward/math"} & metrics.keys()
    assert metrics["outcome/math_infra"] == 1
    assert all(math.isfinite(value) for value in metrics.values())


def test_mismatch_metrics_by_hand():
    differences = torch.linspace(-0.5, 0.5, 101)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    ratios = [math.exp(d) for d in differences.tolist()]
    assert mismatch_metrics(differences) == pytest.approx(
        {
            "mismatch/abs_mean": 2 * sum(k / 100 for k in range(51)) / 101,
            "mismatch/abs_max": 0.5,
            "mismatch/ratio_p01": math.exp(-0.49),
            "mismatch/ratio_p99": math.exp(0.49),
            "mismatch/ess_fraction": sum(ratios) ** 2 / sum(r * r for r in ratios) / 101,
        },
        rel=1e-5,
    )


def test_the_effective_sample_size_is_all_tokens_on_policy_and_one_where_one_ratio_rules():
    assert mismatch_metrics(torch.zeros(10))["mismatch/ess_fraction"] == pytest.approx(1.0)
    assert mismatch_metrics(torch.tensor([2000.0, 0.0, 0.0, 0.0]))["mismatch/ess_fraction"] == pytest.approx(1 / 4)


def test_no_sampled_token_leaves_no_mismatch_to_report():
    assert mismatch_metrics(torch.tensor([])) == {}
