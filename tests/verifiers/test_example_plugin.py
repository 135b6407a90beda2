"""The plugin that ships as an example works, and the config that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.config import load_config
from grpo.quickstart import worked_sum
from verifiers.audit import audit
from verifiers.registry import load_plugins
from verifiers.service import Text, VerifierService
from verifiers.types import Task

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart_plugin.toml"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
def test_it_passes_its_audit():
    load_plugins([str(ROOT / "configs" / "true_steps.py")])
    assert [finding for finding in audit("true_steps") if finding.passed is False] == []


async def test_the_config_judges_worked_sums_by_answer_and_steps():
    config = load_config(CONFIG)
    service = VerifierService(config.rewards, plugins=config.plugins)
    task = Task("t", "47 + 25 = ", "72", config.tasks.rewards)
    texts = [
        worked_sum("47 + 25"),
        worked_sum("47 + 25", carries=False),
        "<think>7+5=12, 4+2+0=7</think>\\boxed{72}",
        "\\boxed{72}",
    ]
    verdicts = await service.judge(task, [Text(text, None) for text in texts])
    await service.close()
    # By hand: all right; a true thought and a wrong answer; half of the thought and a right answer; no thought at all.
    assert [verdict.reward for verdict in verdicts] == pytest.approx([1.0, 0.5 / 1.5, 1.25 / 1.5, 0.0])
