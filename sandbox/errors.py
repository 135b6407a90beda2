"""The exceptions that every package shares, and the sandbox's own. They carry one sentence each, so they survive pickling."""


class UserError(Exception):
    """A mistake in what the person gave us: a config, a file, a plugin, a command line. The command line exits with 2.

    The message says what was wrong, what was expected and how to mend it, in that order, with the values.
    """


class SystemFault(Exception):
    """Something of ours or of the machine failed: a dead worker, a full disk. The command line exits with 1."""


class ProgramError(UserError):
    """A program that may not be run as it was given: a file outside its folder, an entry point that is no name."""


class SandboxUnavailable(SystemFault):
    """No sandbox of the wanted level could be had: no daemon, no image, no permission. The message says what to type."""


class SandboxLost(SystemFault):
    """The sandbox that held a program is gone, or no longer to be trusted, so nothing is known about that program."""
