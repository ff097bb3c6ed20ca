"""Small commands that need no run folder: paths and ``option=value`` words in, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import ConfigError, Interrupted, RunFailed
from .explain import nearest


def run_tool(argv: Sequence[str], doc: str | None, task: Callable[[Sequence[str]], int | None]) -> int:
    """Call ``task(argv)`` and turn what it raises into a message; returns the exit code. Asked for help, or for nothing: print ``doc``."""
    if not argv or any(arg in ("-h", "--help") for arg in argv):
        print((doc or "").strip())
        return 0 if argv else ConfigError.exit_code
    try:
        return task(argv) or 0
    except (ConfigError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code


def split(argv: Sequence[str], options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The paths on a command line and its ``option=value`` words. Raises ConfigError for an option that there is not."""
    given = dict(arg.split("=", 1) for arg in argv if "=" in arg and arg.partition("=")[0] in options)
    paths = [arg for arg in argv if "=" not in arg or arg.partition("=")[0] not in options]
    for path in paths:
        key, equals, _ = path.partition("=")
        if path.startswith("-") or (equals and not Path(path).exists()):
            raise ConfigError(f"command line: {path}: no such option; {nearest(key, options)}")
    return paths, given
