"""Exported folders: what transformers and peft load from them is the policy; what cannot be exported is a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import config, real_learner
from learner_cases import random_examples, shake_adapters

from grpo.checkpoint import Checkpoints
from grpo.cli import main
from grpo.config import RunConfig
from grpo.export import export, find_checkpoint
from grpo.folder import RunFolder
from grpo.learner_config import LoraConfig, ModelConfig
from grpo.state import Evaluation, RunState
from rollout.prompting import make_prompting
from sandbox.errors import UserError
from tests.fakes import make_task

IDS = torch.arange(5, 25)[None]


def evaluation(step: int, accuracy: float) -> Evaluation:
    return Evaluation(step=step, num_tasks=4, sampled_accuracy=accuracy, greedy_accuracy=0, length_mean=1, seconds=1)


async def make_trained(place: Path, model_path: str, *, rank: int = 0, **changes: Any) -> tuple[Path, Any]:
    """A run folder with checkpoints of steps 2, 4 and 6, evaluated at 2 and 4, and the learner that wrote the last."""
    settings = config(model=ModelConfig(path=model_path, lora=LoraConfig(rank=rank)), **changes)
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    folder.record(settings)
    learner = real_learner(place, settings, model_path, max_mismatch=None)
    if rank:
        shake_adapters(learner._policy)
    state = RunState(evaluations=(evaluation(2, 0.5), evaluation(4, 0.25)))
    for step in (2, 4, 6):
        await learner.update(random_examples(6, seed=step))
        await Checkpoints(folder.checkpoints, keep=9).save(state.model_copy(update={"step": step}), learner)
    return folder.path, learner


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "merged"])
async def test_transformers_loads_the_policy_and_its_tokenizer(model_path: str, tmp_path: Path, rank: int):
    from transformers import AutoModelForCausalLM

    run, learner = await make_trained(tmp_path, model_path, rank=rank)

    exported = export(run)

    assert exported.folder == run / "exports" / f"step-000006-{'merged' if rank else 'full'}"
    loaded = AutoModelForCausalLM.from_pretrained(exported.folder)
    torch.testing.assert_close(logits(loaded), logits(learner._policy.model), atol=1e-5, rtol=1e-5)
    greedy = loaded.generate(IDS, max_new_tokens=8, do_sample=False)
    assert greedy.tolist() == learner._policy.model.generate(IDS, max_new_tokens=8, do_sample=False).tolist()
    assert not list(run.glob("exports/.*")), "nothing half-written is left"


async def test_peft_loads_the_adapters_alone(model_path: str, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, learner = await make_trained(tmp_path, model_path, rank=4)

    exported = export(run, form="adapter", to=tmp_path / "lora")
    merged = export(run, form="merged", to=tmp_path / "merged")

    assert exported.base == model_path
    assert not (exported.folder / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(exported.base), str(exported.folder))
    torch.testing.assert_close(logits(loaded), logits(learner._policy.model), atol=1e-6, rtol=1e-6)
    whole = AutoModelForCausalLM.from_pretrained(merged.folder)
    torch.testing.assert_close(logits(loaded), logits(whole), atol=1e-5, rtol=1e-5)


async def test_bfloat16_is_half_as_large_and_says_so_in_its_config(model_path: str, tmp_path: Path):
    run, _ = await make_trained(tmp_path, model_path)
    large, small = (export(run, to=tmp_path / dtype, dtype=dtype).folder for dtype in ("float32", "bfloat16"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (large, small)]
    assert sizes[1] < 0.6 * sizes[0]
    assert json.loads((small / "config.json").read_text())["dtype"] == "bfloat16"


async def test_a_chat_of_one_turn_is_the_prompt_as_it_was_in_training(model_path: str, tmp_path: Path):
    run, _ = await make_trained(tmp_path, model_path)
    place = str(export(run).folder)
    task = make_task(prompt="3+4=")
    plain = make_prompting(model_path, system=None, chat=None).prompt_ids(task)
    assert make_prompting(place, system=None, chat=True).prompt_ids(task) == plain
    assert make_prompting(place, system=None, chat=False).prompt_ids(task) == plain


async def test_a_model_with_a_chat_template_keeps_it_unless_the_run_did_without(model_path: str, tmp_path: Path):
    import shutil

    from rollout.tasks import TasksConfig

    base = shutil.copytree(model_path, tmp_path / "chat")
    (base / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    for name, chat, prompt in (("with", None, "<user>3+4=<assistant>"), ("without", False, "3+4=")):
        (tmp_path / name).mkdir()
        tasks = TasksConfig(source="unused.jsonl", chat=chat, system="Think." if chat is None else None)
        run, _ = await make_trained(tmp_path / name, str(base), tasks=tasks)
        place = export(run).folder
        prompting = make_prompting(str(place), system=None, chat=True)
        assert prompting.text(prompting.prompt_ids(make_task(prompt="3+4="))) == prompt
        assert ("'Think.'" in (place / "README.md").read_text()) == (chat is None)


async def test_the_checkpoint_is_the_newest_the_best_or_that_of_a_step(model_path: str, tmp_path: Path):
    run, _ = await make_trained(tmp_path, model_path)
    folder = RunFolder(run)
    for step, name in ((None, "step-000006"), ("best", "step-000002"), ("4", "step-000004")):
        assert find_checkpoint(folder, step).name == name


async def test_what_cannot_be_exported_is_a_sentence(model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, _ = await make_trained(tmp_path, model_path)

    def refused(*arguments: str) -> str:
        assert main(["export", *arguments]) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    assert "there is no such folder" in refused(str(tmp_path / "nowhere"))
    assert "holds no run" in refused(str(tmp_path))
    assert "has no checkpoint of step 3. There are 2, 4, 6." in refused(str(run), "--step", "3")
    assert "has no checkpoint of step later" in refused(str(run), "--step", "later")
    assert "trained all weights, so there are no adapters" in refused(str(run), "--form", "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is there already" in refused(str(run), "--to", str(tmp_path / "full"))
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


async def test_a_damaged_checkpoint_is_not_exported(model_path: str, tmp_path: Path):
    run, _ = await make_trained(tmp_path, model_path)
    folder = RunFolder(run)

    def damage(step: int) -> None:
        weights = folder.checkpoints / f"step-{step:06d}" / "state.json"
        weights.write_bytes(weights.read_bytes()[:-3])

    damage(6)
    with pytest.raises(UserError, match=r"step-000006 is damaged: its file state.json is damaged"):
        find_checkpoint(folder, "6")
    assert find_checkpoint(folder, None).name == "step-000004"
    damage(2)
    assert find_checkpoint(folder, "best").name == "step-000004"
    damage(4)
    with pytest.raises(UserError, match="none of its 3 checkpoints is whole"):
        find_checkpoint(folder, None)


def test_a_run_before_its_first_checkpoint_has_nothing_to_export(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.record(config())
    with pytest.raises(UserError, match=r"has no checkpoint\. Train it first"):
        export(tmp_path)


def test_the_config_of_a_run_is_read_back_as_it_was(tmp_path: Path):
    from grpo.config import load_config

    folder = RunFolder(tmp_path)
    root = Path(__file__).parents[2]
    for path in sorted((root / "configs").rglob("*.toml")):
        settings: RunConfig = load_config(path)
        folder.record(settings)
        assert folder.recorded_config() == settings, path


@pytest.mark.parametrize("content", ["{", '{"config": {"steps": 3}}', '{"config": {"tasks.source": "a", "steps": "many"}}'])
def test_a_damaged_record_of_a_run_is_a_sentence(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json"):
        RunFolder(tmp_path).recorded_config()
