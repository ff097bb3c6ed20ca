"""Numbers as people read them. ``None`` (not known) is a dash everywhere."""

from __future__ import annotations

import math

UNKNOWN = "–"


def si(value: float | None, digits: int = 3) -> str:
    """With an SI prefix, which stays on the number's line: 12345 -> ``12.3 k``."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    exponent = min(max(math.floor(math.log10(abs(value)) / 3), 0), 6)
    scaled = float(f"{value / 1000**exponent:.{digits}g}")
    if abs(scaled) >= 1000 and exponent < 6:
        scaled, exponent = scaled / 1000, exponent + 1
    return f"{scaled:g}\N{NO-BREAK SPACE}{' kMGTPE'[exponent]}".rstrip()


def fixed(value: float | None, decimals: int = 4) -> str:
    """With a fixed number of decimals, so that a column lines up."""
    return UNKNOWN if value is None else f"{value:.{decimals}f}".replace("-", "−")


def plus_minus(value: float | None, error: float | None) -> str:
    """Value and standard error, to two digits of the error: ``0.1234 ± 0.0056``."""
    if value is None or not error:
        return fixed(value)
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{fixed(value, decimals)} ± {fixed(error, decimals)}"


def significant(value: float | None, digits: int = 4) -> str:
    """To some significant digits: ``0.125``, ``5e-05``, ``3.2e+09``; counts below a million in full: ``31,840``."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 and float(value).is_integer() else f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """``8.1 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
