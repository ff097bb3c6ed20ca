"""The frame of small commands: options, messages, exit codes."""

import pytest

from src.nanollama.config import ConfigError, RunFailed
from src.nanollama.config.tool import run_tool, split


def test_paths_and_options(tmp_path) -> None:
    odd = tmp_path / "a=b"  # a path may hold an equals sign
    odd.touch()
    assert split(["x", "out=p=q", str(odd)], ("out",)) == (["x", str(odd)], {"out": "p=q"})


@pytest.mark.parametrize("word", ["oot=x", "--out", "-v"])
def test_an_option_that_there_is_not(word: str) -> None:
    with pytest.raises(ConfigError, match=r"no such option.*out"):
        split(["x", word], ("out",))


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ConfigError("bad"), 2, "error: bad\n"),
        (RunFailed("sad"), 3, "error: sad\n"),
        (PermissionError(13, "Permission denied", "f"), 2, "error: [Errno 13] Permission denied: 'f'\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, said: str, capsys) -> None:
    def task(argv):
        raise error

    assert run_tool(["x"], "doc", task) == code
    assert capsys.readouterr().err == said


def test_help_is_asked_for_or_needed(capsys) -> None:
    def task(argv):
        raise AssertionError

    assert run_tool(["x", "--help"], "doc", task) == 0 and run_tool([], "doc", task) == 2
    assert capsys.readouterr().out == "doc\ndoc\n"
    assert run_tool(["x"], "doc", lambda argv: None) == 0 and run_tool(["x"], "doc", lambda argv: 85) == 85
