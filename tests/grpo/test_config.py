"""From a TOML file to a RunConfig: every mistake is one clear sentence."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, RootModel

from grpo.config import ConfigError, RunConfig, check_together, flatten, load_config
from grpo.learner_config import LearnerConfig
from rollout.tasks import TasksConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
MAX_FIELDS = 100


def write(folder: Path, text: str = "") -> Path:
    path = folder / "my.toml"
    path.write_text(text + '\n[tasks]\nsource = "tasks.jsonl"\n')
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# Files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_project_loads(path: Path):
    config = load_config(path)
    check_together(config, str(path))
    if config.model.start_from is not None:
        load_config(path.parent / config.model.start_from)


def test_there_are_configs():
    assert {"quickstart.toml", "quickstart_sft.toml", "gsm8k_grpo.toml"} <= {path.name for path in CONFIGS}


def test_a_file_says_only_what_differs_from_the_defaults(tmp_path: Path):
    config = load_config(write(tmp_path, 'steps = 7\n[objective]\nname = "dapo"\nclip_low = 0.1'))
    assert (config.steps, config.groups_per_step) == (7, 16)
    assert (config.objective.name, config.objective.clip_low, config.objective.clip_high) == ("dapo", 0.1, 0.28)  # type: ignore[union-attr]


def test_an_objective_without_name_is_grpo(tmp_path: Path):
    assert load_config(write(tmp_path, "[objective]\nclip_low = 0.1")).objective.name == "grpo"


MISTAKES = [
    ("stpes = 7", "stpes is not a field of the config. Did you mean steps?"),
    ("[learner]\nlr = 1", "learner.lr is not a field of learner. It has learning_rate, warmup_steps,"),
    ('[objective]\nname = "dapo"\nclip_hihg = 0.2', "objective.clip_hihg is not a field of dapo. Did you mean clip_high?"),
    ('[objective]\nname = "gropo"', "objective.name is 'gropo', which is not one of grpo, dapo, dr_grpo,"),
    ('objective = "dapo"', "objective is 'dapo', but it should be a table."),
    ('steps = "many"', "steps is 'many', but it should be a whole number."),
    ('steps = "7"', "steps is '7', but it should be a whole number."),
    ("steps = 7.5", "steps is 7.5, but it should be a whole number."),
    ("steps = true", "steps is true, but it should be a whole number."),
    ("steps = 0", "steps is 0, but it should be 1 or more."),
    ("[learner]\nlearning_rate = -1e-6", "learner.learning_rate is -1e-06, but it should be greater than 0."),
    ("[learner]\nlearning_rate = inf", "learner.learning_rate is inf, but it should be a finite number."),
    ("[learner]\nlearning_rate = nan", "learner.learning_rate is nan, but it should be a finite number."),
    ("[learner]\nbetas = [0.9]", "learner.betas"),
    ('[engine]\nkind = "vlm"', "engine.kind is 'vlm', which is not one of vllm, hf. Did you mean vllm?"),
    ("[rewards.mine.math]\nwieght = 1", "rewards.mine.math.wieght is not a field of rewards.mine.math. Did you mean weight?"),
    ("[rewards.mine.math]\nweight = 0", "all weights of this reward mix are 0"),
    ("group_size = 1", "group_size is 1, but grpo compares completions within a group. Set group_size to 2 or more, or use sft."),
    ("[sampling]\ntemperature = 0", "sampling.temperature is 0, so all completions of a group would be equal. Set it above 0"),
    ('[sampling]\nstop = ["###"]', "engines see token ids alone, so no text can stop them."),
    ('publish = "waits"', "publish is 'waits', which is not one of wait, inflight. Did you mean wait?"),
    (
        "[sampling]\nmax_tokens = 64\n[engine]\nmax_model_len = 64",
        "leaves no room for a prompt in engine.max_model_len = 64.",
    ),
    ('engine = { transport = "adapter" }', "model.lora.rank is 0: all weights are trained. Set it, or use auto."),
    (
        'engine = { transport = "adapter", kind = "hf" }\nmodel.lora.rank = 4',
        'engine.kind is "hf". Use vllm, or auto, which merges them.',
    ),
    (
        'max_lag = 1\nengine.transport = "adapter"\nmodel.lora.rank = 4',
        'a completion keeps the adapter it began with. Set publish = "wait"',
    ),
    ("[learner]\nmini_batches = 300", "learner.mini_batches is 300, but a step has 256 rows to divide. Lower it"),
    (
        '[model]\npath = "a"\nstart_from = "b.toml"',
        "model.path is 'a' and model.start_from is 'b.toml', but a policy starts from one",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_told_with_file_field_value_and_remedy(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    told = refused(path)
    assert told.startswith(f"{path}: ")
    assert message in told
    assert "pydantic" not in told


def test_several_mistakes_are_told_together_a_line_each(tmp_path: Path):
    path = write(tmp_path, 'stpes = 1\ngroup_size = "x"')
    lines = refused(path).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_an_unknown_reward_mix_is_told_with_those_there_are(tmp_path: Path):
    path = tmp_path / "my.toml"
    path.write_text('[tasks]\nsource = "x.jsonl"\nrewards = "sums"\n[rewards.sum]\nmath = {}\n')
    assert refused(path) == (
        f"{path}: tasks.rewards names the mix 'sums', which is not defined. Did you mean sum? Add [rewards.sums], or use one of "
        "math, math_lenient, code, format, reasoning_gym, countdown, sum."
    )


def test_recorded_demonstrations_are_for_objectives_that_learn_from_them(tmp_path: Path):
    path = write(tmp_path)
    assert "but grpo learns from sampled groups. Leave tasks.completion out to sample" in refused(path, "tasks.completion={answer}")
    assert not load_config(path, ["tasks.completion={answer}", "objective.name=sft", "group_size=1"]).is_live


PAIRS = ("tasks.chosen={a}", "tasks.rejected={b}")
LABELS = ("tasks.completion={a}", "tasks.label=good")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "dpo",
            ("tasks.completion={a}",),
            "the tasks give recorded demonstrations, but dpo learns from sampled groups or pairs. Leave tasks.completion out to "
            'sample groups, or set tasks.chosen and tasks.rejected to record pairs, or set objective.name = "sft", which learns '
            "from demonstrations.",
        ),
        ("dpo", LABELS, "the tasks give recorded labels, but dpo learns from sampled groups or pairs."),
        (
            "grpo",
            PAIRS,
            "the tasks give recorded pairs, but grpo learns from sampled groups. Leave tasks.chosen and tasks.rejected out",
        ),
        ("kto", ("tasks.completion={a}",), "but kto learns from sampled groups or pairs or labels."),
        ("spin", (), "groups are sampled, but spin learns from samples beside a demonstration. Set tasks.completion to record"),
        ("spin", PAIRS, "the tasks give recorded pairs, but spin learns from samples beside a demonstration."),
    ],
)
def test_an_objective_whose_groups_have_the_wrong_form_is_told_what_to_set(tmp_path: Path, name, overrides, message):
    assert message in refused(write(tmp_path), f"objective.name={name}", *overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "source"),
    [
        *((name, (), "samples") for name in ("gspo", "cispo", "rloo", "reinforce_plus_plus", "dpo", "ipo", "simpo", "orpo", "kto")),
        *((name, PAIRS, "pairs") for name in ("dpo", "ipo", "simpo", "orpo", "kto", "sft")),
        *((name, LABELS, "labels") for name in ("kto", "sft")),
        ("spin", ("tasks.completion={a}",), "samples beside a demonstration"),
        ("sft", ("tasks.completion={a}",), "demonstrations"),
    ],
)
def test_objectives_and_sources_are_chosen_apart(tmp_path: Path, name, overrides, source):
    config = load_config(write(tmp_path), [f"objective.name={name}", *overrides])
    assert config.group_source == source
    assert config.is_live == source.startswith("samples")


def test_self_play_and_unpaired_labels_need_one_completion_only(tmp_path: Path):
    load_config(write(tmp_path), ["objective.name=spin", "tasks.completion={a}", "group_size=1"])
    load_config(write(tmp_path), ["objective.name=kto", "group_size=1"])
    load_config(write(tmp_path), ["objective.name=reinforce_plus_plus", "group_size=1"])
    load_config(write(tmp_path), ["objective.name=dpo", *PAIRS, "group_size=1"])
    assert "dpo compares completions within a group" in refused(write(tmp_path), "objective.name=dpo", "group_size=1")


def test_a_reference_is_refreshed_where_there_is_one_to_refresh(tmp_path: Path):
    path = write(tmp_path)
    assert "but grpo has none. Leave it out." in refused(path, "learner.reference_every=5")
    assert "but spin moves it with every sync, which publish_every sets." in refused(
        path, "objective.name=spin", "tasks.completion={a}", "learner.reference_every=5"
    )
    load_config(path, ["objective.kl_coef=0.1", "learner.reference_every=5"])


def test_pairs_are_not_parted_into_more_mini_batches_than_there_are(tmp_path: Path):
    overrides = ("objective.name=dpo", "groups_per_step=4", "learner.mini_batches=5")
    assert "learner.mini_batches is 5, but a step has 4 pairs to divide." in refused(write(tmp_path), *overrides)


def test_a_step_gives_groups_up_only_when_it_waits_for_all(tmp_path: Path):
    path = write(tmp_path, "over_sample = 1.5\n")
    assert load_config(path).over_sample == 1.5
    with pytest.raises(ConfigError, match=r"over_sample is 1.5 and max_lag is 2, .* Leave over_sample out, or set max_lag to 0"):
        load_config(path, ["max_lag=2"])


def test_bounds_may_be_opened_wide(tmp_path: Path):
    config = load_config(write(tmp_path), ["objective.sequence_bounds=[0, inf]", "objective.max_ratio=inf"])
    assert config.objective.sequence_bounds == (0, float("inf"))  # type: ignore[union-attr]
    assert "the ratio is 1 on policy. Give a number" in refused(write(tmp_path), "objective.sequence_bounds=[2, 3]")


def test_a_template_that_cannot_be_meant_is_told_with_its_field(tmp_path: Path):
    assert "tasks.prompt: '\\\\boxed{}' has the braces {}, which name no field of a row." in refused(
        write(tmp_path), "tasks.prompt='\\boxed{}'"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory. Give a TOML file; configs/ holds examples."),
        (b"steps = \n", "is not valid TOML: Invalid value (at line 1, column 9)."),
        (b"\xff\xfe", "is not valid TOML: 'utf-8' codec can't decode"),
        (b"steps = 1\nsteps = 2", "is not valid TOML: Cannot overwrite a value"),
        (b"steps = 1", "tasks is missing: the config needs it."),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    told = refused(path)
    assert told.startswith(f"{path}: ")
    assert message in told


def test_a_folder_is_no_config(tmp_path: Path):
    assert "cannot be read: Is a directory." in refused(tmp_path)


# Overrides


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("steps=7", "steps", 7),
        ("steps = 7", "steps", 7),
        ("steps=1_000", "steps", 1000),
        ("learner.learning_rate=1e-5", "learner.learning_rate", 1e-5),
        ("learner.learning_rate=1", "learner.learning_rate", 1.0),
        ("learner.activation_checkpointing=true", "learner.activation_checkpointing", True),
        ("learner.betas=[0.9, 0.95]", "learner.betas", [0.9, 0.95]),
        ("plugins=['a.b', 'c.py']", "plugins", ["a.b", "c.py"]),
        ("engine.kind=hf", "engine.kind", "hf"),
        ('engine.kind="hf"', "engine.kind", "hf"),
        ("model.lora.rank=16", "model.lora.rank", 16),
        ("objective.clip_high=0.28", "objective.clip_high", 0.28),
        ("rewards.mine={math = {weight = 2.0}}", "rewards.mine.math.weight", 2.0),
        ("rewards.mine.math.weight=2", "rewards.mine.math.weight", 2.0),
        ("tasks.source=/data/a=b.jsonl", "tasks.source", "/data/a=b.jsonl"),
        ("tasks.source=reasoning_gym:chain_sum?size=5", "tasks.source", "reasoning_gym:chain_sum?size=5"),
        ("tasks.system=Answer:\nsteps = 9", "tasks.system", "Answer:\nsteps = 9"),
        ("tasks.system=1\nsteps = 9", "tasks.system", "1\nsteps = 9"),
        ("model.path=", "model.path", "tiny"),
    ],
)
def test_an_override_is_a_toml_value_or_plain_text(tmp_path: Path, override: str, name: str, value: Any):
    config = load_config(write(tmp_path, '[model]\npath = "x"'), [override])
    assert flatten(config)[name] == value


def test_the_last_override_wins_and_the_objective_may_change(tmp_path: Path):
    path = write(tmp_path, '[objective]\nname = "grpo"')
    assert load_config(path, ["objective.name=dapo", "steps=1", "steps=2"]).steps == 2
    assert load_config(path, ["objective.name=dapo"]).objective.clip_high == 0.28  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set steps: expected name=value with dots for tables, such as --set learner.learning_rate=1e-5."),
        ("=7", "expected name=value"),
        ("learner.=7", "expected name=value"),
        (".steps=7", "expected name=value"),
        ("steps.each=7", "--set steps.each=7: steps is a value in the config, not a table that could hold each."),
        ("steps=many", "my.toml --set steps=many: steps is 'many', but it should be a whole number."),
        ("lerner.learning_rate=1", "lerner is not a field of the config. Did you mean learner?"),
        ("model.lora.rank=-1", "model.lora.rank is -1, but it should be 0 or more."),
    ],
)
def test_an_override_that_cannot_be_meant_is_told(tmp_path: Path, override: str, message: str):
    assert message in refused(write(tmp_path, "steps = 3"), override)


# The whole


def leaf_fields(annotation: Any, path: str = "") -> set[str]:
    """The dotted names of everything that can be set; the members of a union count together. A mix counts as one component."""
    if get_origin(annotation) is Annotated:
        return leaf_fields(get_args(annotation)[0], path)
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(leaf_fields(member, path) for member in get_args(annotation) if member is not type(None)))
    if get_origin(annotation) is dict:
        return leaf_fields(get_args(annotation)[1], f"{path}.*")
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        return leaf_fields(annotation.model_fields["root"].annotation, path)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        hints = typing.get_type_hints(annotation, include_extras=True)
        return set().union(*(leaf_fields(hints[name], f"{path}.{name}".strip(".")) for name in annotation.model_fields))
    return {path}


def test_the_config_stays_within_its_budget_of_fields():
    """A new knob argues for itself, or replaces one."""
    fields = leaf_fields(RunConfig)
    assert {"objective.clip_high", "objective.kl_coef", "rewards.*.*.weight", "model.lora.rank", "sampling.max_tokens"} <= fields
    assert len(fields) <= MAX_FIELDS, f"{len(fields)} fields: {sorted(fields)}"


def models(annotation: Any) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found.add(annotation)
        for field in annotation.model_fields.values():
            found |= models(field.annotation)
    for member in get_args(annotation):
        found |= models(member)
    return found


def test_every_field_is_described_and_nothing_unknown_or_changed_passes():
    for model in models(RunConfig):
        assert model.model_config.get("frozen"), model
        if not issubclass(model, RootModel):
            assert model.model_config.get("extra") == "forbid", model
            assert all(field.description for field in model.model_fields.values()), model


def test_the_fingerprint_tells_configs_apart_and_is_the_same_again(tmp_path: Path):
    path = write(tmp_path)
    assert load_config(path).fingerprint == load_config(path).fingerprint
    assert load_config(path).fingerprint != load_config(path, ["seed=1"]).fingerprint


def test_flatten_names_every_value():
    flat = flatten(RunConfig(tasks=TasksConfig(source="x"), learner=LearnerConfig(betas=(0.5, 0.6))))
    assert flat["learner.betas"] == [0.5, 0.6]
    assert flat["tasks.completion"] is None
    assert flat["rewards"] == {}
