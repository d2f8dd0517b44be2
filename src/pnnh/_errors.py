"""The two ways a command can say no; `pnnh` turns each into one line and an exit code."""


class UsageError(ValueError):
    """The request cannot be meant: unknown name, impossible value. Exit code 2.

    The message names the value, the rule it breaks and the way out.
    """


class RunError(RuntimeError):
    """The request was sound and the work failed: unreadable data, a full disk, a diverged run. Exit code 1."""
