"""A copy of the code that a run starts from, so that editing on does not change a run that waits in a queue."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from ..config import ConfigError, write_json
from ..config.compose import ROOT
from ..config.folder import SNAPSHOT, git_state

WITHOUT_GIT = ("src", "configs", "hydra_plugins", "pyproject.toml", "requirements.lock")
LARGEST_NEW_FILE = 10_000_000  # bytes; a bigger file that git does not track is data, not code


def take(code: Path) -> list[str]:
    """Copy the project to ``code``: files that git tracks and new ones that it does not ignore; without git, the source folders.

    Of a snapshot, all of it. Returns what was left out: new files for their size, and repositories inside this one. Raises OSError when
    the disk is full.
    """
    files, left_out = project_files()
    code.mkdir(parents=True)
    for name in files:
        target = code / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
        _copy_compiled(ROOT / name, target)
    write_json(code / SNAPSHOT, git_state())
    return left_out


def _copy_compiled(source: Path, target: Path) -> None:
    """What Python and numba made of a source file, which they find again by its time and size; compiling anew takes seconds."""
    for path in (source.parent / "__pycache__").glob(f"{source.stem}.*") if source.suffix == ".py" else ():
        with suppress(FileNotFoundError):  # another process may be replacing it
            if path.stat().st_mtime >= source.stat().st_mtime:
                (target.parent / "__pycache__").mkdir(exist_ok=True)
                shutil.copy2(path, target.parent / "__pycache__" / path.name)


def project_files() -> tuple[list[str], list[str]]:
    """Paths from the project's root: those to copy, and those of new files that are too large and of repositories of their own."""
    tracked, new = _git_files("--cached"), _git_files("--others", "--exclude-standard")
    if tracked is None or new is None or (ROOT / SNAPSHOT).is_file():
        return _all_files(), []
    large = [name for name in new if (ROOT / name).is_file() and (ROOT / name).stat().st_size > LARGEST_NEW_FILE]
    keep = [name for name in {*tracked, *new}.difference(large) if (ROOT / name).is_symlink() or (ROOT / name).is_file()]
    nested = [name for name in {*tracked, *new} if (ROOT / name).is_dir() and not (ROOT / name).is_symlink()]
    return sorted(keep), sorted(large + nested)


def _git_files(*which: str) -> list[str] | None:
    try:
        out = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", *which], capture_output=True)
    except FileNotFoundError:
        return None
    return [os.fsdecode(name) for name in out.stdout.split(b"\0") if name] if out.returncode == 0 else None


def _all_files() -> list[str]:
    names = [path.name for path in ROOT.iterdir()] if (ROOT / SNAPSHOT).is_file() else WITHOUT_GIT
    files = [ROOT / name for name in names if (ROOT / name).is_file()]
    for name in names:
        files += [path for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def diff() -> bytes:
    """What tracked files hold beyond the commit, as a patch; empty outside git."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), "diff", "--binary", "HEAD"], capture_output=True).stdout
    except FileNotFoundError:
        return b""


def check_contains(code: Path, script: str, file: Path) -> None:
    """Raise ConfigError if the module ``script`` lies in the project but not in its snapshot."""
    if file.is_relative_to(ROOT) and not (code / file.relative_to(ROOT)).is_file():
        why = "git ignores it (see .gitignore), or it is in a repository of its own"
        if _git_files("--cached") is None:
            why = f"without git that is {', '.join(WITHOUT_GIT)}"
        raise ConfigError(f"script={script}: the snapshot that runs lacks {file}: {why}")
