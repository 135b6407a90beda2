"""The embedded model: half a million parameters and one token per byte, made on the spot. For the quickstart and the tests."""

from __future__ import annotations

from pathlib import Path

SPECIAL = PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def make_tiny_model(folder: Path, *, seed: int, hidden_size: int = 128, num_layers: int = 3, max_length: int = 512) -> Path:
    """Write a randomly initialized Qwen2 with a byte tokenizer in Hugging Face form. The same seed makes the same weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of shards, of which there is one
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=-(-len(vocabulary()) // 8) * 8,
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3 // 8 * 8,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            pad_token_id=SPECIAL.index(PAD),
            bos_token_id=SPECIAL.index(BOS),
            eos_token_id=SPECIAL.index(EOS),
        )
    )
    model.save_pretrained(folder)
    make_tokenizer(max_length).save_pretrained(folder)
    return folder


def make_tokenizer(max_length: int):
    """One token per byte of UTF-8: byte-level BPE without merges, which is what Qwen2's own tokenizer class expects to load."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=max_length
    )


def vocabulary() -> dict[str, int]:
    """The special tokens, then the 256 bytes in the characters that stand for them."""
    from tokenizers import pre_tokenizers

    return {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
