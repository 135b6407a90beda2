"""A run's checkpoint as a model that other programs load: the work of `grpo export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from grpo.checkpoint import Checkpoints, find_problem, read_state
from grpo.config import RunConfig
from grpo.folder import RunFolder
from grpo.prepare import prepare_model
from sandbox.errors import SystemFault, UserError

if TYPE_CHECKING:
    from grpo.policy import Policy

Form = Literal["full", "adapter", "merged"]
# For a policy that was trained on prompts as plain text: a chat of one turn is that text again.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Exported(NamedTuple):
    """What was written, and of which step."""

    folder: Path
    form: Form
    step: int
    base: str


def export(
    run: Path, *, to: Path | None = None, form: Form | None = None, step: str | None = None, dtype: str = "float32"
) -> Exported:
    """Write the weights of a run's checkpoint in Hugging Face form. The folder appears when it is whole.

    `step` is a number, "best" by held-out accuracy, or None for the newest. Raises UserError for what is not there, or is already.
    """
    folder = RunFolder(run)
    config = folder.recorded_config()
    form = chosen_form(form, config, run)
    checkpoint = find_checkpoint(folder, step)
    number = read_state(checkpoint).step
    place = to or run / "exports" / f"step-{number:06d}-{form}"
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} is there already. Remove it, or export to another folder with --to.")
    beside = place.with_name(f".{place.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        base = write_export(beside, config, folder, checkpoint, form=form, dtype=dtype)
        (beside / "README.md").write_text(model_card(Exported(place, form, number, base), config, run), encoding="utf-8")
        if place.exists():
            place.rmdir()
        beside.rename(place)
    except OSError as error:
        raise SystemFault(f"{place} could not be written: {error}. Make room, or give another place with --to.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(place, form, number, base)


def chosen_form(asked: Form | None, config: RunConfig, run: Path) -> Form:
    """The form to write, where the run can give it; the whole model when none is asked for."""
    has_adapters = config.model.lora.rank > 0
    possible: tuple[Form, ...] = ("merged", "adapter") if has_adapters else ("full",)
    if asked is not None and asked not in possible:
        trained = f"adapters of rank {config.model.lora.rank}" if has_adapters else "all weights, so there are no adapters"
        raise UserError(f"{run} trained {trained}: its form cannot be {asked}. Use --form {' or --form '.join(possible)}.")
    return asked or possible[0]


def find_checkpoint(folder: RunFolder, step: str | None) -> Path:
    """The folder of a whole checkpoint: of a step, "best", or None for the newest. Raises UserError when there is no such one."""
    paths = Checkpoints(folder.checkpoints, keep=1).paths()
    if not paths:
        raise UserError(f"{folder.path} has no checkpoint. Train it first, or wait for its first checkpoint.")
    by_step = {int(path.name.removeprefix("step-")): path for path in paths}
    if step is not None and step != "best":
        path = by_step.get(int(step)) if step.isdecimal() else None
        if path is None:
            there = ", ".join(map(str, by_step))
            raise UserError(f"{folder.path} has no checkpoint of step {step}. There are {there}.")
        if problem := find_problem(path):
            raise UserError(f"{path} is damaged: {problem}. Choose another step of {', '.join(map(str, by_step))}.")
        return path
    whole = {number: path for number, path in by_step.items() if find_problem(path) is None}
    if not whole:
        raise UserError(f"{folder.path}: none of its {len(paths)} checkpoints is whole; of {paths[-1]}: {find_problem(paths[-1])}.")
    if step is None:
        return whole[max(whole)]
    evaluations = read_state(whole[max(whole)]).evaluations
    accuracy = {each.step: each.sampled_accuracy for each in evaluations if each.step in whole}
    if not accuracy:
        raise UserError(
            f"{folder.path}: no checkpoint that is there was evaluated, so none is the best. Choose a step of "
            f"{', '.join(map(str, whole))}."
        )
    return whole[max(accuracy, key=lambda number: (accuracy[number], number))]


def load_policy(config: RunConfig, folder: RunFolder, checkpoint: Path) -> tuple[Policy, str]:
    """The policy of a checkpoint, on the CPU in float32, and where its base model lies."""
    import torch

    from grpo.learner_state import LEARNER
    from grpo.model_files import restore_weights
    from grpo.policy import Policy

    base = prepare_model(config, folder)
    policy = Policy(base, lora=config.model.lora, compute_dtype=torch.float32, device="cpu")
    try:
        restore_weights(policy, checkpoint / LEARNER)
    except FileNotFoundError:
        raise UserError(f"{checkpoint} is gone: the run goes on, and made room for a newer one. Try again.") from None
    return policy, base


def write_export(place: Path, config: RunConfig, folder: RunFolder, checkpoint: Path, *, form: Form, dtype: str) -> str:
    """Weights, tokenizer and chat template, into an existing folder. -> the base model"""
    import torch

    from grpo.model_files import write_model
    from rollout.prompting import load_tokenizer

    policy, base = load_policy(config, folder, checkpoint)
    if form == "adapter":
        policy.adapters.save_pretrained(str(place))
    else:
        write_model(policy, base, place, dtype=getattr(torch, dtype))
    tokenizer = load_tokenizer(base)
    if not getattr(tokenizer, "chat_template", None) or config.tasks.chat is False:
        ids = tokenizer("")["input_ids"]
        tokenizer.chat_template = tokenizer.decode(ids) + PLAIN_TEMPLATE  # type: ignore[arg-type]
    tokenizer.save_pretrained(place)
    return base


def model_card(exported: Exported, config: RunConfig, run: Path) -> str:
    """What a finder of the folder wants to know: where it comes from, how it was prompted, how to load it."""
    front = {"base_model": exported.base} | ({"library_name": "peft"} if exported.form == "adapter" else {})
    header = "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items())
    system = f"Its prompts began with this system message: {config.tasks.system!r}\n\n" if config.tasks.system else ""
    return (
        f"---\n{header}---\n\n# {run.resolve().name}, step {exported.step}, {exported.form}\n\n"
        f"Trained with the objective `{config.objective.name}` on `{config.tasks.source}`, from `{exported.base}`; the config has "
        f"the hash {config.fingerprint}. Prompts were made by the template {config.tasks.prompt!r} and sampled at temperature "
        f"{config.sampling.temperature:g}; the chat template in this folder renders them as they were in training.\n\n{system}"
        f"    {how_to_serve(exported)}\n"
    )


def how_to_serve(exported: Exported) -> str:
    """The command that serves what was exported."""
    if exported.form == "adapter":
        return f"vllm serve {exported.base} --enable-lora --lora-modules policy={exported.folder}"
    return f"vllm serve {exported.folder}"
