"""What a run's ``result.json`` means to whoever started it: an exit code, and whether to start it again.

``python -m src.nanollama.launcher.outcome RUN`` ends with that exit code; batch scripts ask it, since torchrun flattens codes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..config.folder import read_result

EXIT_CODES = {"ok": 0, "invalid": 2, "nan": 3, "oom": 3, "timeout": 3, "killed": 3, "error": 3, "interrupted": 130, "requeue": 85}
RESTARTABLE = ("killed", "interrupted", "requeue")  # nothing is wrong with the run itself


def exit_code(run_dir: Path, returncode: int = 3) -> int:
    """The code that the run deserves; without a result, what its process returned (a signal as the shell counts it)."""
    result = read_result(run_dir)
    if result is not None:
        return EXIT_CODES.get(result["status"], 3)
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    sys.exit(exit_code(Path(sys.argv[1])))
