import shutil
import subprocess

import numpy as np
import pytest

from src.nanollama.config import ConfigError
from src.nanollama.data import bits_per_byte


@pytest.mark.parametrize("method", ["gzip", "xz"])
def test_rates_lie_just_above_the_entropy(method: str) -> None:
    rng = np.random.default_rng(0)
    assert 8 <= bits_per_byte(rng.bytes(100_000), method) < 8.05
    assert 2 <= bits_per_byte(rng.integers(0, 4, 200_000).astype(np.uint8), method) < 2.5
    assert bits_per_byte(bytes(1_000_000), method) < 0.02


@pytest.mark.parametrize(("method", "command"), [("gzip", ["gzip", "-9", "-n"]), ("xz", ["xz", "--check=crc64"])])
def test_rates_are_those_of_the_command_line_tools(method: str, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    data = b"".join(b"%d: a line of text, %x\n" % (i, i * i * 7919) for i in range(20_000))
    tool = subprocess.run([*command, "-c"], input=data, capture_output=True, check=True).stdout
    assert bits_per_byte(data, method) == pytest.approx(8 * len(tool) / len(data), rel=0.01)


def test_wrong_input_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'zip'; there are gzip, xz"):
        bits_per_byte(b"text", "zip")
    with pytest.raises(ConfigError, match="no bytes"):
        bits_per_byte(b"", "gzip")
    with pytest.raises(ConfigError, match="uint16"):
        bits_per_byte(np.zeros(4, np.uint16), "gzip")
