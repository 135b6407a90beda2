"""What can be wrong with a reward before training starts."""

from sandbox.errors import UserError


class VerifierError(UserError):
    """An unknown verifier, options it does not take, two of one name, or a plugin that cannot be loaded."""


class InvalidReference(UserError):
    """A task's reference that its verifier cannot parse. Found when tasks are loaded, never during training."""
