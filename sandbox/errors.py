"""The exceptions that every package shares. They carry one sentence each, so they survive pickling between processes."""


class UserError(Exception):
    """A mistake in what the person gave us: a config, a file, a plugin, a command line. The command line exits with 2.

    The message says what was wrong, what was expected and how to mend it, in that order, with the values.
    """


class SystemFault(Exception):
    """Something of ours or of the machine failed: a dead worker, a full disk. The command line exits with 1."""
