"""A replaced file is the old one or the new one, never a part."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from src.nanollama.config import write_csv, write_json, write_text
from src.nanollama.config.atomic import replacing


def test_a_writer_that_fails_leaves_the_old_file_and_no_scratch(tmp_path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_called_by_its_own_name(tmp_path) -> None:
    path = tmp_path / "nowhere" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)


def test_a_killed_writer_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    code = f"""
from pathlib import Path
from src.nanollama.config.atomic import replacing
with replacing(Path({str(path)!r})) as file:
    file.write("half"), file.flush()
    print("writing", flush=True)
    import time; time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert json.loads(path.read_text()) == {"old": 1}


def test_readers_never_see_a_part(tmp_path) -> None:
    path, size = tmp_path / "a.json", 200_000
    write_json(path, {"v": "x" * size})
    code = f"""
from pathlib import Path
from src.nanollama.config import write_json
for i in range(100): write_json(Path({str(path)!r}), {{"v": "xy"[i % 2] * {size}}})
"""
    writer = subprocess.Popen([sys.executable, "-c", code])
    reads = 0
    while writer.poll() is None:
        assert len(json.loads(path.read_text())["v"]) == size
        reads += 1
        time.sleep(0.001)
    assert writer.returncode == 0 and reads > 10


def test_permissions_follow_the_umask(tmp_path) -> None:
    write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_csv_columns_are_the_union_of_the_rows(tmp_path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1}, {"x": 2, "y": "a,b"}])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"x": "1", "y": ""}, {"x": "2", "y": "a,b"}]
