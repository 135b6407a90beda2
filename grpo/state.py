"""What a run knows about itself beside the learner's weights: how far it is, and what it measured on the way."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from rollout.tasks import Cursor


class Evaluation(BaseModel):
    """Held-out accuracy under the weights of one step: one completion per task at the training temperature, and greedy."""

    model_config = ConfigDict(frozen=True)

    step: int
    num_tasks: int
    sampled_accuracy: float
    greedy_accuracy: float
    length_mean: float
    seconds: float

    def metrics(self) -> dict[str, float]:
        return {
            "eval/sampled_accuracy": self.sampled_accuracy,
            "eval/greedy_accuracy": self.greedy_accuracy,
            "eval/num_tasks": self.num_tasks,
            "eval/length_mean": self.length_mean,
            "time/evaluate_s": self.seconds,
        }


class RunState(BaseModel):
    """Everything a resumed run needs that is not in the learner.

    `step` is the number of updates done, and so the policy version. `wandb_id` is None when W&B is not used. The
    hashes are those of the config and of our own source code; None in checkpoints that are older than the fields.
    """

    model_config = ConfigDict(frozen=True)

    step: int = 0
    cursor: Cursor = Cursor()
    evaluations: tuple[Evaluation, ...] = ()
    elapsed_s: float = 0.0
    wandb_id: str | None = None
    config_hash: str | None = None
    code_hash: str | None = None

    def advance(self, cursor: Cursor, *, elapsed_s: float) -> RunState:
        """One more update done."""
        return self.model_copy(update={"step": self.step + 1, "cursor": cursor, "elapsed_s": elapsed_s})

    def evaluated(self, evaluation: Evaluation) -> RunState:
        kept = tuple(e for e in self.evaluations if e.step != evaluation.step)
        return self.model_copy(update={"evaluations": (*kept, evaluation)})

    @property
    def last_evaluation(self) -> Evaluation | None:
        return self.evaluations[-1] if self.evaluations else None

    @property
    def is_evaluated(self) -> bool:
        """Whether the current weights have been evaluated."""
        return self.last_evaluation is not None and self.last_evaluation.step == self.step
