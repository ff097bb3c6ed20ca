"""What can go wrong from the outside, and the exit code each becomes."""


class ConfigError(ValueError):
    """The user's input is wrong: says what was given, what is allowed and what to do. Exit code 2."""

    exit_code = 2


class RunFailed(RuntimeError):
    """The run itself failed. ``status`` is the word written to ``result.json``. Exit code 3."""

    exit_code = 3

    def __init__(self, message: str, status: str = "error") -> None:
        super().__init__(message)
        self.status = status


class Interrupted(RuntimeError):
    """The user asked the run to stop (Ctrl-C); it saved what it had. Exit code 130."""

    exit_code = 130


class Requeue(RuntimeError):
    """The run was told to make room and left a checkpoint: start it again. Exit code 85."""

    exit_code = 85
