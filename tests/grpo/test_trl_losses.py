"""The same numbers through the losses of TRL, where it has them: they agree, or a sentence says which side follows the paper.

TRL is no dependency. With it installed (`pip install -e .[bench]`) these tests run; otherwise they are skipped.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objective_cases import BUDGET, UNBOUNDED, Step, close
from torch import Tensor

from grpo.objectives import Cispo, Dapo, Dpo, DrGrpo, Grpo, Gspo, Ipo, Kto, Objective, Orpo, Rloo, Sft, Simpo

pytest.importorskip("trl", reason="TRL is not installed: pip install -e .[bench]")

# Ours computes with weights, advantages and other policies' log-probabilities in float32.
REL = 1e-6


def accelerator() -> Any:
    def same(x: Tensor, **_: Any) -> Tensor:
        return x

    return SimpleNamespace(gather=same, gather_for_metrics=same, reduce=same, num_processes=1, device="cpu")


def trainer(**settings: Any) -> Any:
    """What stands for a trainer: the settings that its loss reads."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator(),
        _metrics=defaultdict(lambda: defaultdict(list)),
        aux_loss_enabled=False,
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def tables(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """The policy's log-probabilities as a leaf, 0 on padding, and the other tensors of the step."""
    batch = step.batch(list(range(len(step.lengths))))
    width = batch.mask.shape[1]
    logprobs = step.table()[:, :width].nan_to_num(0.0).requires_grad_()
    others = {"mask": batch.mask, "advantages": batch.advantages.double()}
    if batch.behavior_logprobs is not None:
        others["behavior"] = batch.behavior_logprobs.double()
    if batch.ref_logprobs is not None:
        others["ref"] = batch.ref_logprobs.double()
    return logprobs, others


def ours(step: Step) -> tuple[float, Tensor]:
    value, gradient = step.loss_and_gradient()
    return value, gradient[:, : max(step.lengths)]


def assert_agree(step: Step, loss: Tensor, logprobs: Tensor) -> None:
    value, gradient = ours(step)
    assert value == pytest.approx(loss.item(), rel=REL)
    (theirs,) = torch.autograd.grad(loss, logprobs)
    assert close(gradient, theirs, REL)


# From samples


def grpo_loss(step: Step, logprobs: Tensor, others: dict[str, Tensor], **settings: Any) -> Tensor:
    from trl.trainer.grpo_trainer import GRPOTrainer

    objective: Any = step.objective
    stub = trainer(
        **{
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": objective.kl_coef,
            # The correction makes TRL differentiate the ratio too, as we do; without it the gradient is that of another KL.
            "args": SimpleNamespace(delta=None, use_bias_correction_kl=True, steps_per_generation=1),
            "epsilon_low": getattr(objective, "clip_low", None),
            "epsilon_high": objective.clip_high,
            "use_vllm": False,
            "vllm_importance_sampling_correction": False,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": BUDGET,
            "_entropy_bonus_enabled": False,
            "_get_per_token_logps_and_entropies": lambda *args, **options: (logprobs, torch.zeros_like(logprobs), None),
        }
        | settings
    )
    num_rows = len(logprobs)
    inputs = {
        "prompt_ids": torch.ones(num_rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(num_rows, 1, dtype=torch.long),
        "completion_ids": torch.ones_like(logprobs, dtype=torch.long),
        "completion_mask": others["mask"].long(),
        "advantages": others["advantages"],
        "old_per_token_logps": others["behavior"],
        "num_items_in_batch": others["mask"].sum(),
    }
    if "ref" in others:
        inputs["ref_per_token_logps"] = others["ref"]
    return GRPOTrainer._compute_loss(stub, None, inputs)


OPEN = UNBOUNDED | {"max_ratio": float("inf")}


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (Grpo(**OPEN), {"loss_type": "grpo"}),
        (Grpo(**OPEN, kl_coef=0.04), {"loss_type": "grpo"}),
        (Dapo(**OPEN), {"loss_type": "dapo"}),
        (DrGrpo(**OPEN), {"loss_type": "dr_grpo"}),
        (Gspo(**OPEN), {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
        # TRL's epsilon_high is the largest weight itself, ours what it may exceed 1 by.
        (Cispo(**UNBOUNDED, clip_high=4.0), {"loss_type": "cispo", "epsilon_high": 5.0}),
    ],
    ids=lambda each: repr(each) if isinstance(each, Objective) else "",
)
@pytest.mark.parametrize("drift", [0.01, 0.5])
def test_objectives_from_samples_agree(objective, settings, drift):
    step = Step(11, 9, objective, drift=drift)
    logprobs, others = tables(step)
    assert_agree(step, grpo_loss(step, logprobs, others, **settings), logprobs)


def test_a_truncated_ratio_has_trls_value_and_keeps_the_gradient_that_trl_cuts():
    """TRL's delta is a clip, so a bad token that became far likelier is no longer pushed down; the paper has neither."""
    step = Step(11, 9, Grpo(**UNBOUNDED, max_ratio=1.5), drift=0.5)
    logprobs, others = tables(step)
    loss = grpo_loss(
        step,
        logprobs,
        others,
        loss_type="grpo",
        args=SimpleNamespace(delta=1.5, use_bias_correction_kl=True, steps_per_generation=1),
    )
    value, gradient = ours(step)
    (theirs,) = torch.autograd.grad(loss, logprobs)
    assert value == pytest.approx(loss.item(), rel=REL)
    differs = (gradient - theirs).abs() > 1e-9
    far = ((logprobs - others["behavior"]).exp() > 1.5) & (others["advantages"][:, None] < 0) & others["mask"]
    assert far.any()
    assert differs.equal(far)


def test_rloo_agrees_on_policy_in_its_gradient():
    """The paper's surrogate is log pi times the advantage, TRL's a clipped ratio of whole completions: on policy one gradient."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    step = Step(11, 9, Rloo(), drift=0.0)
    logprobs, others = tables(step)
    stub = trainer(
        epsilon_low=0.2,
        epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *args, **options: (logprobs, torch.zeros_like(logprobs), None),
    )
    ones = torch.ones(9, 1, dtype=torch.long)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": torch.ones_like(logprobs, dtype=torch.long),
        "completion_mask": others["mask"].long(),
        "old_logps": logprobs.detach().sum(1),
        "advantages": others["advantages"],
    }
    (theirs,) = torch.autograd.grad(RLOOTrainer._compute_loss(stub, None, inputs), logprobs)
    assert close(ours(step)[1], theirs, REL)


# From preferences


def outputs(logprobs: Tensor, mask: Tensor) -> Any:
    """What TRL's fused head returns, for one prompt token before the completions: 0 where no token is."""
    zeros = torch.zeros_like(logprobs)
    return SimpleNamespace(log_probs=logprobs * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def dpo_loss(step: Step, logprobs: Tensor, others: dict[str, Tensor], **settings: Any) -> Tensor:
    """TRL takes all chosen rows first, then all rejected ones."""
    from trl.trainer.dpo_trainer import DPOTrainer

    halves = [*range(0, len(logprobs), 2), *range(1, len(logprobs), 2)]
    mask = torch.nn.functional.pad(others["mask"][halves].long(), (1, 0))
    stub = trainer(
        **{
            "beta": getattr(step.objective, "beta", 0.1),
            "loss_weights": [1.0],
            "ld_alpha": None,
            "precompute_ref_logps": True,
            "f_divergence_type": "reverse_kl",
            "use_weighting": False,
        }
        | settings
    )
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    ref = others.get("ref", torch.zeros_like(logprobs))[halves].sum(1)
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = ref.chunk(2)
    return DPOTrainer._compute_loss(stub, lambda **_: outputs(logprobs[halves], others["mask"][halves]), inputs, False)


def test_dpo_agrees():
    step = Step(11, 6, Dpo(beta=0.3))
    logprobs, others = tables(step)
    assert_agree(step, dpo_loss(step, logprobs, others, loss_types=["sigmoid"]), logprobs)


def test_ipo_follows_the_paper_with_sums_where_trl_takes_means_over_tokens():
    """2310.12036, equation 17, is about pi(y|x), the probability of the whole completion."""
    step = Step(11, 6, Ipo(beta=0.3))
    logprobs, others = tables(step)
    theirs = dpo_loss(step, logprobs, others, loss_types=["ipo"])
    assert ours(step)[0] != pytest.approx(theirs.item(), rel=0.01)
    lengths = others["mask"].sum(1)
    means = (logprobs - others["ref"]).masked_fill(~others["mask"], 0.0).sum(1) / lengths
    by_means = Ipo(beta=0.3).pair_loss(means[0::2], means[1::2]).mean()
    assert by_means.item() == pytest.approx(theirs.item(), rel=REL)


def test_sft_agrees():
    step = Step(11, 6, Sft())
    logprobs, others = tables(step)
    pairs = logprobs.repeat_interleave(2, 0)  # each row as the chosen one of a pair whose rejected one is not looked at
    mask = others["mask"].repeat_interleave(2, 0)
    assert_agree(step, dpo_loss(step, pairs, {"mask": mask}, loss_types=["sft"]), logprobs)


def test_kto_agrees_given_the_same_reference_point():
    from trl.trainer.kto_trainer import KTOTrainer

    step = Step(11, 12, Kto(beta=0.3, desirable_weight=1.25, undesirable_weight=0.75))
    logprobs, others = tables(step)
    mask = torch.nn.functional.pad(others["mask"].long(), (1, 0))
    kl_logps = torch.full((12,), step.reference_point, dtype=torch.float64)
    stub = trainer(
        beta=0.3,
        desirable_weight=1.25,
        undesirable_weight=0.75,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        _compute_kl_logps=lambda model, batch: kl_logps,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor([example.reward == 1 for example in step.examples]),
        "ref_logps": others["ref"].sum(1),
        "ref_KL_logps": torch.zeros(12, dtype=torch.float64),
    }
    assert_agree(step, KTOTrainer._compute_loss(stub, lambda **_: outputs(logprobs, others["mask"]), inputs, False), logprobs)


def mean_logprobs(logprobs: Tensor, others: dict[str, Tensor]) -> Tensor:
    return (logprobs * others["mask"]).sum(1) / others["mask"].sum(1)


def test_simpo_agrees():
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    step = Step(11, 6, Simpo(beta=2.0, margin=0.8))
    logprobs, others = tables(step)
    stub = trainer(alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.8, label_smoothing=0.0)
    means = mean_logprobs(logprobs, others)
    losses, _, _ = CPOTrainer.cpo_loss(stub, means[0::2], means[1::2])
    assert_agree(step, losses.mean(), logprobs)


def test_orpo_agrees_in_its_odds_ratio_and_takes_the_likelihood_of_the_completion_as_the_paper_does():
    """TRL's likelihood term is over prompt and completion, and over all tokens of the batch at once; 2403.07691 has neither."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    step = Step(11, 6, Orpo(odds_weight=0.2))
    logprobs, others = tables(step)
    means = mean_logprobs(logprobs, others)
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.2), means[0::2], means[1::2])
    value, gradient = ours(step)
    whole = -means[0::2].mean() - losses.mean()
    (theirs,) = torch.autograd.grad(whole, logprobs)
    # TRL computes the odds in float32.
    assert value == pytest.approx(whole.item(), rel=REL)
    assert close(gradient, theirs, 1e-5)
