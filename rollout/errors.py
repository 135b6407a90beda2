"""What can go wrong between a task and its completions."""

from sandbox.errors import SystemFault, UserError


class TaskError(UserError):
    """A task file or dataset that cannot be read, or a task without prompt or reference."""


class ModelError(UserError):
    """A model folder or name that cannot be loaded: no weights, no tokenizer, no chat template."""


class PromptError(UserError):
    """A prompt that no engine can continue: too long for the model, empty, or with token ids outside its vocabulary."""


class PromptTooLong(PromptError):
    """A prompt that leaves no room for a completion of one token."""


class WorkerLost(SystemFault):
    """A rollout worker died, or its engine did. The fleet replaces it, pushes the weights and runs the group again."""


class TooManyLosses(SystemFault):
    """Rollout workers keep dying, or none is left: starting them again does not help."""


class SyncFailed(SystemFault):
    """A weight update did not reach an engine whole. The worker that raised it must not sample before a full update succeeds."""


class SnapshotGone(SyncFailed):
    """The learner has moved on, and cannot send the weights of this version any more; those of the next will come."""


class NoSignal(SystemFault):
    """Too many groups were sampled without one that the objective can learn from."""


class TooManyUnscored(SystemFault):
    """More completions of a step than allowed have no reward, because something of ours failed."""
