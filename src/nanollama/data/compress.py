"""General-purpose compressors as a floor to read byte-level losses against."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import numpy as np

from ..config import ConfigError


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=9, mtime=0)


def _xz(data: bytes) -> bytes:
    try:
        import lzma
    except ImportError:  # a Python that was built on a machine without liblzma's headers
        raise ConfigError("this Python was built without lzma, so there is no xz; use gzip or another Python") from None
    return lzma.compress(data, preset=6)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gzip": _gzip, "xz": _xz}


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
