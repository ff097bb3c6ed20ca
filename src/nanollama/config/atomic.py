"""Files that are replaced as a whole: a reader sees the old one or the whole new one, also after a crash."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A file to write (``mode`` and ``options`` as for ``open``) that takes the place of ``path`` once the block has ended well.

    Several processes may write the same path at once; the last one wins.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with scratch.open(mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(scratch):
            error.filename = str(path)  # what was asked for, not the name that nobody knows
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file."""
    with replacing(path, encoding="utf-8") as file:
        file.write(text)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Replace a CSV file. Columns: those named, else all keys in the order in which they first appear."""
    with replacing(path, newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
