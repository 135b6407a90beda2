"""From a Task to the tokens a policy continues, and back to text; with and without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo.tiny_model import make_tiny_model
from rollout.errors import ModelError
from rollout.prompting import Prompting, load_tokenizer, make_prompting, stop_token_ids
from tests.fakes import make_task
from verifiers.types import Message

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0, hidden_size=32, num_layers=1))


@pytest.fixture
def tokenizer(model_path: str) -> Any:
    """One token per character; puts a beginning-of-sequence token before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = load_tokenizer(model_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    assert tokenizer("1")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def chat(tokenizer: Any, *, system: str | None = None, enabled: bool | None = None) -> Prompting:
    tokenizer.chat_template = TEMPLATE
    return Prompting(tokenizer, [tokenizer.eos_token_id], system=system, chat=enabled)


def plain(tokenizer: Any, **options: Any) -> Prompting:
    return Prompting(tokenizer, [tokenizer.eos_token_id], **{"system": None, "chat": None} | options)


def test_a_prompt_without_template_is_its_text_after_the_tokenizers_own_beginning(tokenizer: Any):
    assert tokenizer.decode(plain(tokenizer).prompt_ids(make_task(prompt="1+1="))) == "<bos>1+1="


@pytest.mark.parametrize(
    ("system", "prompt", "rendered"),
    [
        (None, "1+1?", "<user>1+1?<assistant>"),
        ("Be brief.", "1+1?", "<system>Be brief.<user>1+1?<assistant>"),
        ("Be brief.", (Message("user", "1+1?"),), "<system>Be brief.<user>1+1?<assistant>"),
        ("Be brief.", (Message("system", "Be long."), Message("user", "1?")), "<system>Be long.<user>1?<assistant>"),
        (
            None,
            (Message("user", "1?"), Message("assistant", "1"), Message("user", "2?")),
            "<user>1?<assistant>1<user>2?<assistant>",
        ),
    ],
)
def test_a_chat_template_is_applied_once_and_begins_once(tokenizer: Any, system: str | None, prompt: Any, rendered: str):
    ids = chat(tokenizer, system=system).prompt_ids(make_task(prompt=prompt))
    assert tokenizer.decode(ids) == "<bos>" + rendered
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_template_is_left_out_when_asked_to(tokenizer: Any):
    assert tokenizer.decode(chat(tokenizer, enabled=False).prompt_ids(make_task(prompt="1+1?"))) == "<bos>1+1?"


def test_text_ends_before_the_stop_token_and_shows_all_others(tokenizer: Any):
    prompting = plain(tokenizer)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = tokenizer("4  2 .", add_special_tokens=False)["input_ids"]
    assert prompting.text([*ids, eos]) == "4  2 ."
    assert prompting.text(ids) == "4  2 ."
    assert prompting.text([*ids, eos, eos]) == "4  2 .<eos>"
    assert prompting.text([*ids, pad, eos]) == "4  2 .<pad>"
    assert prompting.text([eos]) == prompting.text([]) == ""


def test_a_recorded_completion_is_ended_and_not_begun(tokenizer: Any):
    completion = plain(tokenizer).recorded(make_task(prompt="1+1="), "2")
    assert tokenizer.decode(completion.prompt_ids + completion.token_ids) == "<bos>1+1=2<eos>"
    assert (completion.text, completion.finish_reason, completion.behavior_logprobs) == ("2", "stop", None)


def test_every_stop_token_of_the_generation_config_is_known(model_path: str, tmp_path: Path):
    from transformers import GenerationConfig

    tokenizer: Any = load_tokenizer(model_path)
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(tmp_path)
    assert stop_token_ids(str(tmp_path), tokenizer) == tuple(sorted({tokenizer.eos_token_id, 7, 9}))
    GenerationConfig(eos_token_id=7).save_pretrained(tmp_path)
    assert stop_token_ids(str(tmp_path), tokenizer) == tuple(sorted({tokenizer.eos_token_id, 7}))
    assert stop_token_ids(str(tmp_path / "none"), tokenizer) == (tokenizer.eos_token_id,)


def test_what_needs_a_template_says_so(tokenizer: Any):
    with pytest.raises(ModelError, match=r"tasks\.chat is true, but the tokenizer has no chat template\. Set it to false"):
        plain(tokenizer, chat=True)
    with pytest.raises(ModelError, match=r"tasks\.system is set, but no chat template is applied\. Put its text into"):
        plain(tokenizer, system="Be brief.")
    with pytest.raises(ModelError, match=r"task a: its prompt is a conversation, but no chat template is applied\. Give it as"):
        plain(tokenizer).prompt_ids(make_task("a", prompt=(Message("user", "1"),)))


def test_a_conversation_that_the_template_refuses_is_named(tokenizer: Any):
    with pytest.raises(ModelError, match=r"task a: the tokenizer's chat template refuses a conversation of tool: no tools here\."):
        chat(tokenizer).prompt_ids(make_task("a", prompt=(Message("tool", "1"),)))


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"]])
def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path: Path, kept: list[str]):
    """transformers would make an empty tokenizer of the model's family, and every prompt would be empty."""
    folder = make_tiny_model(tmp_path / "model", seed=0, hidden_size=32, num_layers=1)
    for path in folder.glob("tokenizer*"):
        if path.name not in kept:
            path.unlink()
    with pytest.raises(ModelError) as caught:
        make_prompting(str(folder), system=None, chat=None)
    assert str(caught.value).startswith(f"{folder}: no tokenizer can be loaded (")
    assert "Expected a model folder with tokenizer.json" in str(caught.value)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"^/nowhere: no tokenizer can be loaded \("):
        load_tokenizer("/nowhere")
    with pytest.raises(ModelError, match=r"^nobody/nothing: no tokenizer can be loaded \(OSError"):
        load_tokenizer("nobody/nothing")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, tokenizer: Any):
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the tokenizer names no end-of-sequence token\. Set eos_token in its"):
        load_tokenizer(str(tmp_path))
