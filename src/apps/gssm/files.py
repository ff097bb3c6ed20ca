"""A finite data set on disk: the first sequences of the streams that a training on the fly would draw.

    NAME/header.json   graph, seeds, fingerprint of the kernel tables, and which sequences of which stream each file holds
    NAME/train         token file (``src.nanollama.data.token_file``), one document a sequence
    NAME/test          the same, of sequences held out

The folder appears in one piece. Training and held-out sequences come from different streams, so no sample is in both; on an almost
deterministic graph two samples may still read the same, which is counted in the header.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from src.nanollama.config import ConfigError, RunFailed
from src.nanollama.data.source import token_dtype
from src.nanollama.data.token_file import TokenWriter, open_token_file

from .kernels import Kernels
from .sampler import Sampler

FORMAT = 1
STREAMS = {"train": "train", "test": "valid"}  # file -> stream of the sampler
CHUNK = 2**22  # tokens drawn at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class DataSet:
    """An open data set; ``train`` and ``test`` are memory-mapped, shape (sequences, length)."""

    header: Mapping[str, Any]
    train: Tokens
    test: Tokens


def identity(kernels: Kernels, seed: int, length: int, train: int, test: int) -> dict[str, Any]:
    """What a data set is, known before it is drawn: equal identities mean equal tokens."""
    sizes = {"train": train, "test": test}
    return {
        "format": FORMAT,
        "graph": json.loads(json.dumps(kernels.graph.describe())),
        "graph_seed": kernels.seed,
        "kernels_sha256": kernels.fingerprint,
        "vocab_size": kernels.graph.vocab_size,
        "data_seed": seed,
        "length": length,
        "files": {name: {"stream": STREAMS[name], "first": 0, "sequences": size} for name, size in sizes.items()},
    }


def write(path: Path, sampler: Sampler, length: int, train: int, test: int) -> dict[str, Any]:
    """Draw ``train`` and ``test`` sequences of ``length`` tokens and write the data set ``path``; returns its header.

    Raises ConfigError if something else is at ``path`` or the disk has too little room, RunFailed if the disk fills up meanwhile. In
    both cases nothing is left behind.
    """
    about = identity(sampler.kernels, sampler.seed, length, train, test)
    if path.exists():
        return _same(path, about)
    _check_disjoint(about["files"])
    need = (train + test) * (length * token_dtype(sampler.vocab_size).itemsize + 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path.parent, need)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise ConfigError(f"data.path={path}: cannot write there: {error.strerror}") from error
    try:
        for name in STREAMS:
            _write_file(scratch / name, sampler, about["files"][name], length)
        header = {**about, "equal_sequences": _equal_sequences(*(_open(scratch / name, length) for name in ("train", "test")))}
        (scratch / "header.json").write_text(json.dumps(header, indent=1) + "\n")
        scratch.chmod(0o755)  # mkdtemp keeps it from others
        scratch.rename(path)
    except OSError as error:
        if path.exists():  # another process was faster
            return _same(path, about)
        if error.errno not in FULL:
            raise
        raise RunFailed(f"{path}: the disk is full ({error.strerror}); {size(need)} are needed. Nothing was left behind") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return header


def open_data_set(path: Path, kernels: Kernels) -> DataSet:
    """The data set ``path``. Raises ConfigError if it is not there, damaged, or drawn from other tables than ``kernels``."""
    try:
        header = json.loads((path / "header.json").read_text())
        length, files = header["length"], header["files"]
        found = DataSet(header, _open(path / "train", length), _open(path / "test", length))
    except FileNotFoundError as error:
        raise ConfigError(f"data.path={path}: no data set there") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"data.path={path}: not readable as a data set ({error}); delete it and write it anew") from error
    _check_disjoint(files)
    wanted = identity(kernels, header["data_seed"], length, len(found.train), len(found.test))
    if differ := [key for key in ("graph", "graph_seed") if header[key] != wanted[key]]:
        shown = "; ".join(f"{key} there: {header[key]}, asked: {wanted[key]}" for key in differ)
        raise ConfigError(f"data.path={path}: drawn from another {' and '.join(differ)}; take another data.path, or its config. {shown}")
    if differ := [key for key in wanted if header[key] != wanted[key]]:
        raise ConfigError(
            f"data.path={path}: {', '.join(differ)} do not fit what this program draws from the same graph: it was written by another "
            "version, or on a machine whose logarithm rounds differently; delete it and write it anew"
        )
    return found


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _same(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    try:
        header = json.loads((path / "header.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.path={path}: something else is there; choose another folder") from error
    if differ := [key for key in about if header.get(key) != about[key]]:
        raise ConfigError(f"data.path={path} holds another data set ({', '.join(differ)} differ); delete it, or choose another folder")
    return header


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ConfigError(f"{folder}: {size(need)} are needed and {size(free)} are free; give another data.path or fewer data.sequences")


def _check_disjoint(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise unless no sample (stream, index) is in both files."""
    a, b = files["train"], files["test"]
    apart = a["first"] + a["sequences"] <= b["first"] or b["first"] + b["sequences"] <= a["first"]
    if a["stream"] == b["stream"] and not apart:
        raise ConfigError(f"training and test files overlap: both hold samples of stream {a['stream']!r} ({a} and {b})")


def _write_file(path: Path, sampler: Sampler, about: Mapping[str, Any], length: int) -> None:
    step = max(1, CHUNK // length)
    with TokenWriter(path, sampler.vocab_size) as writer, tqdm(total=about["sequences"], desc=path.name, unit="seq", disable=None) as bar:
        for first in range(0, about["sequences"], step):
            count = min(step, about["sequences"] - first)
            for row in sampler.sample(about["stream"], about["first"] + first, count, length):
                writer.add(row)
            bar.update(count)


def _open(path: Path, length: int) -> Tokens:
    ids = np.asarray(open_token_file(path)[0].ids)  # a plain view of the mapped file
    if len(ids) % length:
        raise ValueError(f"{path} has {len(ids)} tokens, which are no sequences of {length}")
    return ids.reshape(-1, length)


def _equal_sequences(train: Tokens, test: Tokens) -> int:
    """How many test sequences read exactly as some training sequence."""
    order = np.argsort(hashes := _row_hashes(train), kind="stable")
    hashes = hashes[order]
    wanted = _row_hashes(test)
    first, last = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
    return sum(any(np.array_equal(train[order[k]], test[i]) for k in range(first[i], last[i])) for i in np.flatnonzero(last > first))


def _row_hashes(rows: Tokens) -> NDArray[np.uint64]:
    """A 64-bit hash of each row: its inner product with random odd numbers, modulo 2^64."""
    factors = np.random.Generator(np.random.Philox(0)).integers(2**64, size=rows.shape[1], dtype=np.uint64) | np.uint64(1)
    step = max(1, CHUNK // rows.shape[1])
    parts = [rows[first : first + step].astype(np.uint64) @ factors for first in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
