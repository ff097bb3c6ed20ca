from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.report.format import duration, fixed, plus_minus, si, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.5, "0.5"),
        (999, "999"),
        (999.9, "1 k"),
        (12_345, "12.3 k"),
        (999_999, "1 M"),
        (-1500, "-1.5 k"),
        (2e21, "2000 E"),
    ],
)
def test_si(value: float | None, text: str) -> None:
    assert si(value) == text.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.125, "0.125"), (5e-5, "5e-05"), (6144, "6144"), (31_840, "31,840"), (31_840.5, "3.184e+04"), (3_184_000, "3.184e+06")],
)
def test_significant(value: float | None, text: str) -> None:
    assert significant(value) == text


@given(st.floats(1e-2, 1e17))
def test_si_is_the_number_to_three_digits(value: float) -> None:
    number, _, prefix = si(value).partition("\N{NO-BREAK SPACE}")
    assert float(number) * 1000 ** " kMGTPE".index(prefix or " ") == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(1.23456, 0.0123, "1.235 ± 0.012"), (0.1, 0.1, "0.10 ± 0.10"), (123.4, 12, "123 ± 12"), (1.5, None, "1.5000"), (None, 0.1, "–")],
)
def test_plus_minus(value: float | None, error: float | None, text: str) -> None:
    assert plus_minus(value, error) == text


@pytest.mark.parametrize(("seconds", "text"), [(8.13, "8.1 s"), (59.97, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_fixed() -> None:
    assert fixed(-0.5, 2) == "−0.50" and not math.isnan(float(fixed(1.0)))
