"""The embedded model is small, the same every time, and its tokenizer loses nothing."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from grpo.tiny_model import make_tiny_model
from rollout.prompting import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(folder))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_loaded_from_its_folder_the_tokenizer_gives_back_every_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    # transformers normalizes to NFC, as Qwen2's own tokenizer does.
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


def test_a_character_of_ascii_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer("47 + 25 = ")["input_ids"]) == 10


def test_it_has_about_half_a_million_parameters_and_holds_every_token(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 450_000 < sum(parameter.numel() for parameter in model.parameters()) < 650_000
    assert model.config.vocab_size >= len(tokenizer)


def test_the_same_seed_makes_the_same_weights(folder: Path, tmp_path: Path) -> None:
    again = make_tiny_model(tmp_path / "again", seed=0)
    other = make_tiny_model(tmp_path / "other", seed=1)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()
