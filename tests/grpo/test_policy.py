import dataclasses
from pathlib import Path

import pytest
import torch
from learner_cases import make_policy, random_examples, shake_adapters, sharp_model
from torch import Tensor

import grpo.token_scores
from grpo.batch import Batch, Example, make_batch
from grpo.learner_config import LoraConfig
from grpo.policy import Policy, load_model
from rollout.errors import ModelError


def batch_of(examples: list[Example]) -> Batch:
    return make_batch(examples, [1.0] * len(examples))


@pytest.fixture(scope="module")
def policy(model_path) -> Policy:
    return make_policy(model_path)


@pytest.fixture
def adapted(model_path) -> Policy:
    policy = make_policy(model_path, rank=3)
    shake_adapters(policy)
    return policy


def full_logits(model, example: Example) -> Tensor:
    """The logits that predict each completion token, from the whole model over one unpadded row. [T, V]"""
    ids = torch.tensor([example.prompt_ids + example.token_ids])
    return model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_those_of_the_full_logits_row_by_row(policy, temperature):
    examples = random_examples(9)
    scores = policy.score(batch_of(examples), temperature=temperature)
    for i, example in enumerate(examples):
        distribution = torch.distributions.Categorical(logits=full_logits(policy.model, example) / temperature)
        length = len(example.token_ids)
        torch.testing.assert_close(scores.logprobs[i, :length], distribution.log_prob(torch.tensor(example.token_ids)))
        torch.testing.assert_close(scores.entropy[i, :length], distribution.entropy())
        assert not scores.logprobs[i, length:].any()
        assert not scores.entropy[i, length:].any()
    assert scores.logprobs.requires_grad
    assert not scores.entropy.requires_grad


def gradient(policy: Policy, examples: list[Example], *, temperature: float = 1.0) -> Tensor:
    """Of a sum with uneven weights, so that no token's gradient hides another's. All parameters in one vector."""
    policy.model.zero_grad()
    logprobs = policy.score(batch_of(examples), temperature=temperature).logprobs
    (logprobs * torch.linspace(0.5, 2.0, logprobs.numel()).view_as(logprobs)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable.values() if p.grad is not None])


def relative_difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("chunk_rows", [1, 4, 10_000])
def test_logits_made_chunk_by_chunk_give_the_same_scores_and_gradient(policy, monkeypatch, chunk_rows):
    examples = random_examples(5)
    whole, whole_gradient = policy.score(batch_of(examples), temperature=0.7), gradient(policy, examples, temperature=0.7)
    monkeypatch.setattr(grpo.token_scores, "MAX_LOGITS", chunk_rows * policy.model.config.vocab_size)
    chunked = policy.score(batch_of(examples), temperature=0.7)
    torch.testing.assert_close(chunked, whole)
    assert relative_difference(gradient(policy, examples, temperature=0.7), whole_gradient) < 1e-6


def test_activation_checkpointing_gives_the_same_gradient(model_path, policy):
    examples = random_examples(5)
    frugal = make_policy(model_path, activation_checkpointing=True)
    calls = []
    for layer in frugal.model.get_decoder().layers:
        layer.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    assert relative_difference(gradient(frugal, examples), gradient(policy, examples)) < 1e-6
    assert len(calls) == 2 * len(frugal.model.get_decoder().layers)  # computed again in the backward pass


def test_a_policy_never_drops_out(tmp_path):
    path = sharp_model(tmp_path, attention_dropout=0.5)
    examples = random_examples(4)
    for options in ({}, {"activation_checkpointing": True}, {"rank": 2}):
        policy = make_policy(path, **options)
        first, second = (policy.score(batch_of(examples), temperature=1.0).logprobs for _ in range(2))
        assert first.equal(second)


def test_bfloat16_runs_near_the_float32_numbers_with_float32_weights_and_gradients(model_path, policy):
    examples = random_examples(6)
    half = make_policy(model_path, compute_dtype=torch.bfloat16)
    exact, rough = (each.score(batch_of(examples), temperature=1.0).logprobs for each in (policy, half))
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.2  # bfloat16 keeps 8 bits: about 0.4% of logits of up to some tens
    assert relative_difference(gradient(half, examples), gradient(policy, examples)) < 0.1
    assert {p.dtype for p in half.trainable.values()} == {torch.float32}


def test_a_completion_without_tokens_has_no_scores(policy):
    empty = Example((5, 6), (), (), 1.0)
    assert policy.score(batch_of([empty]), temperature=1.0).logprobs.shape == (1, 0)
    both = policy.score(batch_of([empty, *random_examples(1)]), temperature=1.0).logprobs
    assert not both[0].any()


def score_reference(policy: Policy, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    with policy.as_reference():
        return policy.score(batch, temperature=temperature).logprobs


def move(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.mul_(1.1)


def test_the_reference_of_adapters_is_the_base_model(adapted, policy):
    batch = batch_of(random_examples(4))
    reference = score_reference(adapted, batch, temperature=0.7)
    assert reference.equal(policy.score(batch, temperature=0.7).logprobs)
    moved = adapted.score(batch, temperature=0.7).logprobs
    assert (moved - reference).abs().max() > 0.1
    assert moved.requires_grad  # the adapters learn again afterwards
    assert not reference.requires_grad


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_reference_of_full_weights_stays_where_the_policy_began(model_path, policy, device):
    batch = batch_of(random_examples(4))
    moving = make_policy(model_path, keep_reference=True, reference_device=device)
    move(moving)
    before = {name: weight.clone() for name, weight in moving.trainable.items()}
    assert score_reference(moving, batch).equal(policy.score(batch, temperature=1.0).logprobs)
    assert all(weight.equal(before[name]) for name, weight in moving.trainable.items())
    assert not moving.score(batch, temperature=1.0).logprobs.equal(policy.score(batch, temperature=1.0).logprobs)


def test_a_policy_that_needs_no_reference_holds_none(model_path):
    assert make_policy(model_path).reference_weights is None
    assert make_policy(model_path, rank=2, keep_reference=True).reference_weights is None  # its adapters switched off
    with pytest.raises(AssertionError, match="not told to keep its reference"), make_policy(model_path).as_reference():
        pass


@pytest.mark.parametrize("rank", [0, 3], ids=["full", "lora"])
def test_a_refreshed_reference_is_the_policy_of_that_moment(model_path, rank):
    batch = batch_of(random_examples(4))
    policy = make_policy(model_path, rank=rank, keep_reference=True)
    shake_adapters(policy)
    move(policy)
    then = policy.score(batch, temperature=1.0).logprobs.detach()
    policy.refresh_reference()
    move(policy)
    assert score_reference(policy, batch).equal(then)
    assert not policy.score(batch, temperature=1.0).logprobs.equal(then)
    other = make_policy(model_path, rank=rank)
    assert policy.reference_weights is not None
    other.reference_weights = policy.reference_weights
    assert score_reference(other, batch).equal(then)


def test_weights_come_back_when_scoring_fails(model_path):
    policy = make_policy(model_path, keep_reference=True)
    move(policy)
    before = {name: weight.clone() for name, weight in policy.trainable.items()}
    with pytest.raises(ZeroDivisionError), policy.as_reference():
        raise ZeroDivisionError
    assert all(weight.equal(before[name]) for name, weight in policy.trainable.items())
    policy.score(batch_of(random_examples(2)), temperature=1.0).logprobs.sum().backward()
    assert all(weight.grad is not None for weight in policy.trainable.values())


def test_adapters_freeze_the_base_weights(adapted):
    assert adapted.trainable
    assert all(".lora_" in name for name in adapted.trainable)


def plain_model(path: str, weights: dict[str, Tensor]):
    """A model of transformers alone with these weights, loaded as strictly as its tied weights allow."""
    model = load_model(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # nothing may be left from the file
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    return model


@pytest.mark.parametrize("rank", [0, 3], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["model_path", "untied_model_path"])
def test_engine_weights_make_a_plain_model_that_is_the_policy(request, kind, rank):
    path = request.getfixturevalue(kind)
    policy = make_policy(path, rank=rank)
    shake_adapters(policy)
    weights = dict(policy.engine_weights(torch.float32))
    assert ("lm_head.weight" in weights) == (kind == "untied_model_path")  # a tied weight goes out once
    example = random_examples(1)[0]
    published = full_logits(plain_model(path, weights), example)
    torch.testing.assert_close(published, full_logits(policy.model, example), atol=1e-5, rtol=1e-5)
    if rank:
        assert (published - full_logits(load_model(path), example)).abs().max() > 0.1


def test_publishing_leaves_the_weights_as_they_were_to_the_bit(adapted):
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    first, second = (dict(adapted.engine_weights(torch.float32)) for _ in range(2))
    after = adapted.model.state_dict()
    assert all(before[name].equal(after[name]) for name in before)
    assert all(first[name].equal(second[name]) for name in first)


def test_engine_weights_come_in_the_engines_dtype(policy):
    assert {tensor.dtype for _, tensor in policy.engine_weights(torch.bfloat16)} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_adapters_on_a_tied_head_are_refused_and_on_a_head_of_its_own_they_are_merged(model_path, untied_model_path):
    lora = LoraConfig(rank=2, target_modules=("lm_head",))
    with pytest.raises(ModelError, match="serves in two places"):
        Policy(model_path, lora=lora, compute_dtype=torch.float32, device="cpu")
    policy = Policy(untied_model_path, lora=lora, compute_dtype=torch.float32, device="cpu")
    shake_adapters(policy)
    example = random_examples(1)[0]
    published = plain_model(untied_model_path, dict(policy.engine_weights(torch.float32)))
    torch.testing.assert_close(full_logits(published, example), full_logits(policy.model, example), atol=1e-5, rtol=1e-5)


def test_adapters_on_a_head_of_its_own_score_and_learn(untied_model_path):
    policy = Policy(
        untied_model_path, lora=LoraConfig(rank=2, target_modules=("lm_head",)), compute_dtype=torch.float32, device="cpu"
    )
    shake_adapters(policy)
    example = random_examples(1)[0]
    logprobs = policy.score(batch_of([example]), temperature=1.0).logprobs
    expected = full_logits(policy.model, example).log_softmax(-1)[range(len(example.token_ids)), list(example.token_ids)]
    torch.testing.assert_close(logprobs[0], expected)
    logprobs.sum().backward()
    ours = {name: weight.grad.clone() for name, weight in policy.trainable.items() if weight.grad is not None}
    policy.model.zero_grad()
    expected.sum().backward()
    assert ours.keys() == policy.trainable.keys()
    for name, weight in policy.trainable.items():
        torch.testing.assert_close(ours[name], weight.grad)
    base = Policy(untied_model_path, lora=LoraConfig(), compute_dtype=torch.float32, device="cpu")
    assert score_reference(policy, batch_of([example])).equal(base.score(batch_of([example]), temperature=1.0).logprobs)


def test_layers_that_the_model_lacks_are_refused(model_path):
    with pytest.raises(ModelError, match=r"model\.lora\.target_modules = \['no_such_layer'\]"):
        Policy(model_path, lora=LoraConfig(rank=2, target_modules=("no_such_layer",)), compute_dtype=torch.float32, device="cpu")


SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("family", "changes", "is_plain"),
    [
        ("Gemma2", {"final_logit_softcapping": 30.0}, False),
        ("Gemma2", {"final_logit_softcapping": None}, True),
        ("Granite", {"logits_scaling": 8.0}, False),
        ("Cohere", {"logit_scale": 0.0625}, False),
        ("Llama", {}, True),
        ("Qwen3", {}, True),
    ],
)
def test_a_model_that_does_more_than_apply_its_head_is_refused(tmp_path, family, changes, is_plain):
    import transformers

    config = getattr(transformers, f"{family}Config")(**SMALL, **changes)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    if is_plain:
        load_model(str(tmp_path))
    else:
        with pytest.raises(ModelError, match="plain output head"):
            load_model(str(tmp_path))


def test_a_folder_without_a_whole_model_is_refused(model_path, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelError, match="no causal language model"):
        load_model(str(tmp_path))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(model_path) / name).read_bytes())
    load_model(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights of Qwen2ForCausalLM are not in its files, first model\.norm\.weight"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="no causal language model"):
        load_model(str(tmp_path))


def test_the_gradient_is_that_of_the_full_logits_row_by_row(policy):
    examples = random_examples(5)
    actual = gradient(policy, examples)
    policy.model.zero_grad()
    width = max(len(example.token_ids) for example in examples)
    weights = torch.linspace(0.5, 2.0, len(examples) * width).view(-1, width)
    for i, example in enumerate(examples):
        logits = full_logits(policy.model, example)
        chosen = logits.log_softmax(-1)[range(len(example.token_ids)), list(example.token_ids)]
        (chosen * weights[i, : len(chosen)]).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in policy.trainable.values() if p.grad is not None])
    assert relative_difference(actual, expected) < 1e-6


def test_nothing_beyond_a_row_is_seen(policy):
    examples = random_examples(3)
    batch = batch_of(examples)
    inside = torch.arange(batch.input_ids.shape[1]) < torch.tensor([example.num_tokens for example in examples])[:, None]
    other = dataclasses.replace(batch, input_ids=batch.input_ids.masked_fill(~inside, 17))
    assert policy.score(batch, temperature=1.0).logprobs.equal(policy.score(other, temperature=1.0).logprobs)
