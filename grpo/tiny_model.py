"""The embedded model: half a million parameters and one token per character, made on the spot. For the quickstart and the tests."""

from __future__ import annotations

import string
from pathlib import Path

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
VOCABULARY = {token: i for i, token in enumerate([PAD, BOS, EOS, UNK, *CHARACTERS])}


def make_tiny_model(folder: Path, *, seed: int, hidden_size: int = 128, num_layers: int = 3, max_length: int = 512) -> Path:
    """Write a randomly initialized Qwen2 with a character tokenizer in Hugging Face form. The same seed makes the same weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=-(-len(VOCABULARY) // 8) * 8,
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3 // 8 * 8,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            pad_token_id=VOCABULARY[PAD],
            bos_token_id=VOCABULARY[BOS],
            eos_token_id=VOCABULARY[EOS],
        )
    )
    model.save_pretrained(folder)
    make_tokenizer(max_length).save_pretrained(folder)
    return folder


def make_tokenizer(max_length: int):
    """One token per printable ASCII character; any other character is unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, model_max_length=max_length
    )
