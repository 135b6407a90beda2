"""TRL's GRPOTrainer as a way that takes turns, at the settings that are best for it on two cores of a CPU.

float32 (bf16 autocast, its default, is slower here), no gradient checkpointing (its default), fused AdamW, no logging, no workers
for the data, plain `generate` with a cache, one generation for each optimizer step. `TrlSettings` holds what was tried: its
defaults are the best. Its vLLM mode knows neither vLLM 0.32 nor a CPU, and transformers' continuous batching is many times slower
than `generate` there.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own
sys.path.append(str(Path(__file__).resolve().parent))

from turns import EVALUATION_SEEDS, Turns


class TrlSettings(NamedTuple):
    """What is TRL's to choose."""

    rows: int = 64
    threads: int = 2
    bf16: bool = False


def follow_trl(turns: Turns, config_file: str, overrides: Sequence[str], folder: str, settings: TrlSettings) -> None:
    """TRL's trainer on the tasks, rewards and sizes of a config of ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    from grpo.config import load_config
    from rollout.tasks import load_tasks
    from verifiers.service import Text, VerifierService

    torch.set_num_threads(settings.threads)
    config = load_config(Path(config_file), overrides)
    task_set = load_tasks(config.tasks)
    tasks = {task.id: task for task in (*task_set.train, *task_set.held_out)}
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    service, loop = VerifierService(config.rewards), asyncio.new_event_loop()

    def rewards(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], task: list[str], **_: Any
    ) -> list[float]:
        async def judged() -> list[Any]:
            values: list[Any] = []
            for first in range(0, len(completions), config.group_size):
                rows = slice(first, first + config.group_size)
                texts = [Text(text, len(ids)) for text, ids in zip(completions[rows], completion_ids[rows], strict=True)]
                values += [verdict.reward for verdict in await service.judge(tasks[task[first]], texts)]
            return values

        return loop.run_until_complete(judged())

    class Follow(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not turns.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            metrics = trainer._metrics["train"]
            facts = {
                "completion/length_mean": metrics["completions/mean_length"][-1],
                "group/flat_fraction": metrics["frac_reward_zero_std"][-1],
                "reward/mean": metrics["reward"][-1],
            }
            if not turns.step_ended(facts):
                control.should_training_stop = True

    num_rows = config.groups_per_step * config.group_size
    arguments = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=settings.rows,
        gradient_accumulation_steps=num_rows // settings.rows,
        num_generations=config.group_size,
        max_completion_length=config.sampling.max_tokens,
        temperature=config.sampling.temperature,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        max_steps=config.steps,
        learning_rate=config.learner.learning_rate,
        lr_scheduler_type=config.learner.schedule if config.learner.schedule == "linear" else "constant_with_warmup",
        warmup_steps=config.learner.warmup_steps,
        weight_decay=0.0,
        adam_beta1=config.learner.betas[0],
        adam_beta2=config.learner.betas[1],
        max_grad_norm=config.learner.max_grad_norm,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        bf16=settings.bf16,
        use_cpu=True,
        seed=config.seed,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": task.prompt, "task": task.id} for task in task_set.train]),
        callbacks=[Follow()],
    )

    def accuracy() -> float:
        held_out = task_set.held_out[: config.evaluation.num_tasks] * EVALUATION_SEEDS
        ids, _ = trainer._generate_single_turn([tokenizer(task.prompt)["input_ids"] for task in held_out], None, {}, 1)
        model.train()
        texts = [Text(tokenizer.decode(each, skip_special_tokens=True), len(each)) for each in ids]

        async def judged() -> list[bool]:
            return [(await service.judge(task, [text]))[0].is_correct for task, text in zip(held_out, texts, strict=True)]

        return statistics.mean(loop.run_until_complete(judged()))

    turns.evaluate = accuracy
    trainer.train()
