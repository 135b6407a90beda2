"""Rows in one, each prompt once: the same log-probabilities and gradients as row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import make_policy, sharp_model
from torch import Tensor

import grpo.packing
from grpo.batch import Batch, Example, make_batch, micro_packs
from grpo.packing import pack
from grpo.policy import Policy

# Two groups, a row that shares its prompt with nobody, a completion of one token and one of none.
ROWS = [
    Example((5, 6, 7), (8, 9, 10, 11), None, 1.0),
    Example((12,), (13, 14), None, 1.0),
    Example((5, 6, 7), (15,), None, 1.0),
    Example((5, 6, 7), (), None, 1.0),
    Example((16, 17), (18, 19, 20, 21, 22, 23, 24), None, 1.0),
    Example((12,), (25, 26, 27), None, 1.0),
]


def batch_of(rows: list[Example]) -> Batch:
    return make_batch(rows, [1.0] * len(rows))


def scores_and_gradient(policy: Policy, rows: list[Example], *, is_packed: bool) -> tuple[Tensor, Tensor]:
    """The gradient is that of a sum with uneven weights, so that no token's hides another's."""
    assert policy.is_packed
    policy.is_packed = is_packed
    policy.model.zero_grad()
    logprobs = policy.score(batch_of(rows), temperature=0.7).logprobs
    (logprobs * torch.linspace(0.5, 2.0, logprobs.numel(), dtype=logprobs.dtype).view_as(logprobs)).sum().backward()
    policy.is_packed = True
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.trainable.values() if p.grad is not None])


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Policy:
    """GPT-2 in float64: it has no part that insists on float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    policy = make_policy(str(folder))
    policy.model.double()
    return policy


@pytest.mark.parametrize("table_tokens", [1, 12, 2048])
def test_packing_changes_neither_scores_nor_gradient(exact, monkeypatch, table_tokens):
    monkeypatch.setattr(grpo.packing, "TABLE_TOKENS", table_tokens)
    packed, padded = (scores_and_gradient(exact, ROWS, is_packed=each) for each in (True, False))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-12, atol=1e-12)
    assert (packed[1] - padded[1]).norm() <= 1e-12 * padded[1].norm()


@settings(max_examples=15)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=8),
    prompts=st.lists(st.integers(1, 6), min_size=3, max_size=3),
)
def test_rows_of_any_lengths_in_any_order(exact, lengths, prompts):
    made = [tuple(range(10 * i, 10 * i + length)) for i, length in enumerate(prompts)]
    rows = [Example(made[which], tuple((7 * which + 3 * j) % 48 for j in range(length)), None, 1.0) for which, length in lengths]
    packed, padded = (scores_and_gradient(exact, rows, is_packed=each) for each in (True, False))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-12, atol=1e-12)
    assert (packed[1] - padded[1]).norm() <= 1e-12 * padded[1].norm()


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"activation_checkpointing": True}], ids=["full", "lora", "checkpointing"])
def test_heads_that_share_keys_agree_to_rounding(model_path, options):
    policy = make_policy(model_path, **options)
    packed, padded = (scores_and_gradient(policy, ROWS, is_packed=each) for each in (True, False))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-5, atol=1e-5)  # float32, sums in another order
    assert (packed[1] - padded[1]).norm() <= 1e-6 * padded[1].norm()


def test_a_packing_by_hand():
    packing = pack(batch_of(ROWS[:3]))
    assert packing.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 12, 13]]  # each prompt once, no last token
    assert packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1]]
    assert packing.before.tolist() == [2, 3, 4, 5, 6, 7, 2]
    assert [table.tolist() for table in packing.sight.tables] == [[[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0], [6, 7, 0, 0, 0, 0]]]
    assert packing.sight.places.tolist() == [6, 7, 8, 3, 4, 5, 12, 13]  # of its many places, a prompt's last


@torch.no_grad()
def test_flex_attention_sees_what_the_tables_show(model_path, monkeypatch):
    """On a CPU, where it has no gradient: the mask is ours, the kernels are torch's."""
    policy = make_policy(model_path)
    by_tables = policy.score(batch_of(ROWS), temperature=0.7).logprobs
    monkeypatch.setattr(grpo.packing, "pack", lambda batch, flex: pack(batch, flex=True))
    monkeypatch.setattr(grpo.packing, "_tables", None)
    by_flex = policy.score(batch_of(ROWS), temperature=0.7).logprobs
    torch.testing.assert_close(by_flex, by_tables, rtol=1e-5, atol=1e-5)


@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5),
    lengths=st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_the_mask_of_blocks_is_that_of_the_rows(prompts, lengths):
    rows = [Example(tuple(prompt), (9,) * length, None, 1.0) for prompt, length in zip(prompts, lengths, strict=False)]
    flex, tables = (pack(batch_of(rows), flex=each).sight for each in (True, False))
    num_tokens = len(tables.places)
    expected = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for row in (row for table in tables.tables for row in table.tolist()):
        tokens = row[: next((i for i in range(1, len(row)) if row[i] <= row[i - 1]), len(row))]
        for i, query in enumerate(tokens):
            expected[query, tokens[: i + 1]] = True
    place = torch.arange(num_tokens)
    assert flex.mask_mod(None, None, place[:, None], place[None, :]).equal(expected)


def test_every_layer_gets_a_prompt_once_and_no_padding(model_path):
    policy = make_policy(model_path)
    seen: list[int] = []
    mlp = policy.model.get_submodule("model.layers.0.mlp")
    mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    policy.score(batch_of(ROWS), temperature=1.0)
    prompts = {row.prompt_ids for row in ROWS}
    assert seen == [sum(map(len, prompts)) + sum(max(0, len(row.token_ids) - 1) for row in ROWS)]


SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("family", "changes", "is_packed"),
    [
        ("Llama", {}, True),
        ("Qwen3", {}, True),
        ("Mistral", {"sliding_window": None}, True),
        ("Mistral", {"sliding_window": 4096}, False),
        ("Gemma2", {"final_logit_softcapping": None}, False),  # caps its attention, in a window
        ("Mamba", {}, False),  # has none
    ],
)
def test_a_model_whose_tokens_mix_in_another_way_is_padded(tmp_path: Path, family, changes, is_packed):
    import transformers

    config = getattr(transformers, f"{family}Config")(**SMALL, **changes)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    policy = make_policy(str(tmp_path))
    assert policy.is_packed is is_packed
    assert policy.score(batch_of(ROWS), temperature=1.0).logprobs.isfinite().all()


def test_dropout_in_the_config_does_not_stand_in_the_way(tmp_path):
    assert make_policy(sharp_model(tmp_path, attention_dropout=0.5)).is_packed


@given(
    rows=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30)), max_size=20).map(
        lambda each: [Example((which,) * which, (9,) * length, None, 1.0) for which, length in each]
    ),
    budget=st.integers(1, 100),
    size=st.sampled_from([1, 2]),
)
def test_micro_packs_hold_every_unit_once_within_the_budget(rows, budget, size):
    rows = rows[: len(rows) // size * size]
    packs = micro_packs(rows, tokens_per_micro_batch=budget, rows_per_unit=size)
    units = [pack[i : i + size] for pack in packs for i in range(0, len(pack), size)]
    assert sorted(units) == [list(range(i, i + size)) for i in range(0, len(rows), size)]
    for each in packs:
        prompts = {rows[i].prompt_ids for i in each}
        assert len(each) == size or sum(map(len, prompts)) + sum(len(rows[i].token_ids) for i in each) <= budget


def test_rows_of_one_prompt_are_packed_together():
    rows = [Example((1 + i % 3,), (9,) * 4, None, 1.0) for i in range(9)]
    assert micro_packs(rows, tokens_per_micro_batch=13) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
