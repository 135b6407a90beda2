"""From a Task to the tokens a policy continues, and back from tokens to text. The only place that tokenizes.

Tokenizers come from transformers, which is imported inside the function that loads one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rollout.errors import ModelError
from rollout.types import Completion
from verifiers.types import Message, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name. Raises ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    # transformers raises OSError, ValueError, KeyError, ImportError and others for one cause: it is not there
    except Exception as error:
        raise ModelError(_no_tokenizer(model_path, f"{type(error).__name__}: {_first_line(error)}")) from None
    # Where the files are missing, transformers may make the tokenizer of the model's family, without any words.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(_no_tokenizer(model_path, "there is no vocabulary"))
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{model_path}: the tokenizer names no end-of-sequence token. Set eos_token in its tokenizer_config.json.")
    return tokenizer


def _no_tokenizer(model_path: str, cause: str) -> str:
    return (
        f"{model_path}: no tokenizer can be loaded ({cause}). Expected a model folder with tokenizer.json or the vocabulary files "
        "of its family, or a name on the Hugging Face hub that can be reached."
    )


def stop_token_ids(model_path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a completion: the tokenizer's end-of-sequence and those of the model's generation config."""
    from transformers import GenerationConfig

    ids = {int(tokenizer.eos_token_id)}  # type: ignore[arg-type]
    try:
        named = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # a model without a generation config has only its tokenizer's
        named = None
    ids.update([named] if isinstance(named, int) else named or [])
    return tuple(sorted(ids))


class Prompting:
    """Renders tasks for one tokenizer.

    `chat` applies the tokenizer's chat template; None means when it has one. `system` needs it, and stands before every prompt that
    does not begin with a system message of its own. The prompt of a model without a template is its text, tokenized with the
    special tokens the tokenizer puts before a text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int], *, system: str | None, chat: bool | None
    ) -> None:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat and not has_template:
            raise ModelError(
                "tasks.chat is true, but the tokenizer has no chat template. Set it to false, or use an instruction model."
            )
        self._chat = has_template if chat is None else chat
        if system is not None and not self._chat:
            raise ModelError("tasks.system is set, but no chat template is applied. Put its text into tasks.prompt instead.")
        self._tokenizer = tokenizer
        self._stop_token_ids = frozenset(stop_token_ids)
        self._system = system

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """The tokens that stand before the completion."""
        if not self._chat:
            if not isinstance(task.prompt, str):
                raise ModelError(f"task {task.id}: its prompt is a conversation, but no chat template is applied. Give it as text.")
            return tuple(self._tokenizer(task.prompt)["input_ids"])  # type: ignore[arg-type]
        text = self._rendered(task)
        # A template writes its special tokens itself: adding them here would begin the sequence twice.
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def _rendered(self, task: Task) -> str:
        from jinja2 import TemplateError

        turns = (Message("user", task.prompt),) if isinstance(task.prompt, str) else task.prompt
        if self._system is not None and (not turns or turns[0].role != "system"):
            turns = (Message("system", self._system), *turns)
        messages = [turn._asdict() for turn in turns]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ModelError(
                f"task {task.id}: the tokenizer's chat template refuses a conversation of {roles}: {error}. Leave tasks.system "
                "out, or set tasks.chat to false."
            ) from None

    def text(self, token_ids: Sequence[int]) -> str:
        """What verifiers read: the decoded completion without its stop token. Other special tokens stay visible."""
        ids = list(token_ids)
        if ids and ids[-1] in self._stop_token_ids:
            ids.pop()
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def recorded(self, task: Task, text: str) -> Completion:
        """A recorded completion of the task, ended by the tokenizer's end-of-sequence token."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        token_ids = (*ids, int(self._tokenizer.eos_token_id))  # type: ignore[misc,arg-type]
        return Completion(index=0, prompt_ids=self.prompt_ids(task), token_ids=token_ids, text=text, finish_reason="stop")


def make_prompting(model_path: str, *, system: str | None, chat: bool | None) -> Prompting:
    """Prompting with the tokenizer and stop tokens of a model."""
    tokenizer = load_tokenizer(model_path)
    return Prompting(tokenizer, stop_token_ids(model_path, tokenizer), system=system, chat=chat)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
