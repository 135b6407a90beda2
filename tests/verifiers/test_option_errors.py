"""pydantic's errors as sentences."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, ValidationError, model_validator

from verifiers.options import did_you_mean, explain


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Strict):
    rank: int = 8


class Model(Strict):
    path: str
    lora: Lora | None = None


class Grpo(Strict):
    name: Literal["grpo"] = "grpo"
    clip_low: float = Field(default=0.2, gt=0)


class Dapo(Strict):
    name: Literal["dapo"] = "dapo"
    clip_high: float = 0.28


class Part(Strict):
    weight: float = 1.0


class Mix(RootModel[dict[str, Part]]):
    pass


class Config(Strict):
    model_config = ConfigDict(title="the config")
    objective: Annotated[Grpo | Dapo, Field(discriminator="name")] = Grpo()
    model: Model = Model(path="tiny")
    steps: int = Field(default=1, ge=1)
    engine: Literal["vllm", "hf"] = "vllm"
    rewards: dict[str, Mix] = {}
    plugins: tuple[str, ...] = ()
    seed: int | list[int] | None = None
    parts: list[Part] = []

    @model_validator(mode="after")
    def _odd(self) -> Config:
        if self.steps == 7:
            raise ValueError("steps is 7, but tests want an even number. Use 8.")
        return self


CASES = [
    ({"objective": {"name": "dapo", "clip_hihg": 1}}, "objective.clip_hihg is not a field of dapo. Did you mean clip_high?"),
    ({"objective": {"name": "dpao"}}, "objective.name is 'dpao', which is not one of grpo, dapo. Did you mean dapo?"),
    ({"objective": {"clip_low": 1}}, "objective.name is missing. Set it to one of grpo, dapo."),
    ({"objective": 3}, "objective is 3, but it should be a table."),
    ({"objective": {"name": "grpo", "clip_low": "x"}}, "objective.clip_low is 'x', but it should be a number."),
    ({"objective": {"name": "grpo", "clip_low": -1}}, "objective.clip_low is -1, but it should be greater than 0."),
    ({"model": {"path": "a", "lora": {"rnak": 3}}}, "model.lora.rnak is not a field of model.lora. Did you mean rank?"),
    ({"model": {}}, "model.path is missing: model needs it."),
    ({"stesp": 3}, "stesp is not a field of the config. Did you mean steps?"),
    ({"steps": 2.5}, "steps is 2.5, but it should be a whole number."),
    ({"steps": 0}, "steps is 0, but it should be 1 or more."),
    ({"steps": 7}, "steps is 7, but tests want an even number. Use 8."),
    ({"engine": "vlm"}, "engine is 'vlm', which is not one of vllm, hf. Did you mean vllm?"),
    ({"rewards": {"m": {"math": {"wieght": 1}}}}, "rewards.m.math.wieght is not a field of rewards.m.math. Did you mean weight?"),
    ({"plugins": "a"}, "plugins is 'a', but it should be a list."),
    ({"plugins": ["a", 3]}, "plugins[1] is 3, but it should be text."),
    ({"seed": "a"}, "seed is 'a', but it should be a whole number or a list."),
    ({"parts": [{}, {"weight": None}]}, "parts[1].weight is nothing, but it should be a number."),
]


@pytest.mark.parametrize(("given", "sentence"), CASES)
def test_each_mistake_becomes_one_sentence(given: dict[str, Any], sentence: str):
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(given)
    assert explain(caught.value, Config) == sentence


def test_several_mistakes_take_a_line_each():
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"steps": "many", "engine": "tpu", "modle": {}})
    lines = explain(caught.value, Config).splitlines()
    assert lines == [
        "steps is 'many', but it should be a whole number.",
        "engine is 'tpu', which is not one of vllm, hf.",
        "modle is not a field of the config. Did you mean model?",
    ]


def test_a_name_like_none_of_the_fields_gets_the_list_of_them():
    with pytest.raises(ValidationError) as caught:
        Lora.model_validate({"zzz": 1})
    assert explain(caught.value, Lora, "model.lora") == "model.lora.zzz is not a field of model.lora. It has rank."


def test_a_union_may_be_explained_without_a_model_around_it():
    union = Annotated[Grpo | Dapo, Field(discriminator="name")]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(union).validate_python({"name": "grpo", "clip_lwo": 1})
    assert explain(caught.value, union, "objective") == "objective.clip_lwo is not a field of grpo. Did you mean clip_low?"


def test_long_values_are_cut():
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"steps": "x" * 1000})
    assert len(explain(caught.value, Config)) < 150


@pytest.mark.parametrize(
    ("word", "hint"), [("clip_hihg", "Did you mean clip_high?"), ("CLIP_HIGH", "Did you mean clip_high?"), ("q", "")]
)
def test_a_hint_is_given_only_when_a_name_is_near(word: str, hint: str):
    assert did_you_mean(word, ["clip_high", "clip_low"]) == hint
