"""General-purpose compressors as a floor to read byte-level losses against."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable

import numpy as np

from ..config import ConfigError

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, compresslevel=9, mtime=0),
    "xz": lzma.compress,  # the xz tool's default, preset 6
}


def bits_per_byte(data: bytes | np.ndarray, method: str) -> float:
    """Compressed bits per byte of ``data`` (container header included) by ``"gzip"`` (level 9) or ``"xz"`` (preset 6).

    A byte-level loss of x nats per token is x / ln 2 bits per byte. Both compressors learn from the data as they go, a language model
    has learned before but sees only its context.
    """
    if method not in COMPRESSORS:
        raise ConfigError(f"no compressor {method!r}; there are {', '.join(COMPRESSORS)}")
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            raise ConfigError(f"compressors are compared on bytes, these are tokens of type {data.dtype}")
        data = data.tobytes()
    if not data:
        raise ConfigError("there are no bytes to compress")
    return 8 * len(COMPRESSORS[method](data)) / len(data)
