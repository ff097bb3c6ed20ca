"""Finite data: what is written is what would be drawn, whole or not at all; epochs are permutations; a resume continues mid-epoch."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from debug_sampler import sampler

from src.apps.gssm import files
from src.apps.gssm.config import DATA, TRAIN
from src.apps.gssm.data import data
from src.apps.gssm.source import Files, Law, OnFly
from src.nanollama.config import ROOT, ConfigError, compose, read_result
from src.nanollama.config.main import run_command

CONFIGS = "src/apps/gssm/configs/experiment1"
SMALL = ["data.seq_len=16", "data.sequences=20", "eval.sequences=6"]


def config(path: Path, *more: str):
    return compose(TRAIN, ["experiment=debug", "data.source=files", f"data.path={path}", "data.seq_len=16", "eval.sequences=6", *more])


@pytest.fixture(scope="module")
def data_set(tmp_path_factory) -> Path:
    """20 + 6 sequences of 17 tokens of the debug graph."""
    path = tmp_path_factory.mktemp("data") / "set"
    law = Law(compose(TRAIN, ["experiment=debug"]))
    files.write(path, law.sampler, 17, 20, 6)
    return path


def test_files_hold_the_first_sequences_of_the_streams_drawn_on_the_fly(data_set) -> None:
    cfg = config(data_set)
    law = Law(cfg)
    stored, drawn = Files(cfg, law), OnFly(cfg, law)
    assert np.array_equal(stored.data.train, drawn.batch("train", 0, 20))
    assert np.array_equal(stored.batch("valid", 0, 6), drawn.batch("valid", 0, 6))
    assert stored.data.train.dtype == np.uint8 and not stored.data.train.flags.writeable
    floors = stored.held_out(6)["valid"].floor, drawn.held_out(6)["valid"].floor
    assert floors[0] is not None and np.array_equal(*floors)  # the exact filter on the very test sequences


def test_one_byte_a_token_and_nothing_more_than_borders_and_a_header(data_set) -> None:
    assert (data_set / "train" / "tokens.bin").stat().st_size == 20 * 17
    header = json.loads((data_set / "header.json").read_text())
    assert header["kernels_sha256"] == Law(config(data_set)).kernels.fingerprint
    assert header["graph_seed"] == 0 and header["data_seed"] == 0 and len(header["graph"]) == 5


def test_every_epoch_is_another_permutation_and_a_function_of_the_index(data_set) -> None:
    cfg = config(data_set, "data.sequences=15")
    source = Files(cfg, Law(cfg))
    rows = {bytes(row): i for i, row in enumerate(source.data.train[:15])}
    assert len(rows) == 15
    seen = np.array([rows[bytes(row)] for row in source.batch("train", 0, 60)]).reshape(4, 15)
    assert all(sorted(epoch) == list(range(15)) for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == 4
    fresh = Files(cfg, Law(cfg))
    assert np.array_equal(fresh.batch("train", 28, 9), source.batch("train", 0, 60)[28:37])  # across a border of epochs, from scratch
    other = Files(replace(cfg, train=replace(cfg.train, seed=1)), Law(cfg))
    assert not np.array_equal(other.order(0), source.order(0))


def test_a_failed_writer_leaves_nothing_that_a_reader_accepts(tmp_path, monkeypatch) -> None:
    count = 0

    def fail_late(self, tokens):
        nonlocal count
        count += 1
        if count > 25:  # in the second file
            raise KeyboardInterrupt
        real(self, tokens)

    real = files.TokenWriter.add
    monkeypatch.setattr(files.TokenWriter, "add", fail_late)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "set", sampler(), 17, 20, 6)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no data set there"):
        files.open_data_set(tmp_path / "set", sampler().kernels)


def test_a_killed_writer_leaves_no_data_set(tmp_path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from debug_sampler import sampler; from src.apps.gssm import files\n"
        "files._equal_sequences = lambda *a: os.kill(os.getpid(), 9)\n"
        "files.write(Path(sys.argv[1]), sampler(), 17, 20, 6)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], cwd=ROOT, env=_path(), capture_output=True)
    assert run.returncode == -9 and not (tmp_path / "set").exists()
    files.write(tmp_path / "set", sampler(), 17, 20, 6)  # what the killed one left does not stand in the way
    assert len(files.open_data_set(tmp_path / "set", sampler().kernels).train) == 20


def test_a_disk_that_fills_up_is_a_clear_failure(tmp_path) -> None:
    """The operating system refuses the file half-way, by its size limit, as a full disk does."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from debug_sampler import sampler; from src.apps.gssm import files\n"
        "made = sampler(); made.sample('train', 0, 1, 4)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "files.write(Path(sys.argv[1]), made, 129, 400, 6)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], cwd=ROOT, env=_path(), capture_output=True, text=True)
    assert "RunFailed" in run.stderr and "the disk is full" in run.stderr and "Nothing was left behind" in run.stderr, run.stderr
    assert list(tmp_path.iterdir()) == []


def _path() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}


def test_too_little_room_is_refused_before_anything_is_drawn(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"are needed and .* are free"):
        files.write(tmp_path / "set", sampler(), 2**20, 2**40, 6)
    assert list(tmp_path.iterdir()) == []


def test_other_tables_damage_and_overlap_are_refused(data_set, tmp_path) -> None:
    with pytest.raises(ConfigError, match="drawn from another graph"):
        files.open_data_set(data_set, sampler(alpha=0.4).kernels)
    with pytest.raises(ConfigError, match="has only 20"):
        cfg = config(data_set, "data.sequences=21")
        Files(cfg, Law(cfg))
    made = sampler()
    files.write(tmp_path / "set", made, 17, 20, 6)
    header = tmp_path / "set" / "header.json"
    good = json.loads(header.read_text())
    good["files"]["test"] = {"stream": "train", "first": 19, "sequences": 6}
    header.write_text(json.dumps(good))
    with pytest.raises(ConfigError, match="overlap"):
        files.open_data_set(tmp_path / "set", made.kernels)
    with (tmp_path / "set" / "train" / "tokens.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="do not fit together"):
        files.open_data_set(tmp_path / "set", made.kernels)


def test_writing_again_is_a_no_op_and_never_an_overwrite(tmp_path) -> None:
    first = files.write(tmp_path / "set", sampler(), 17, 20, 6)
    assert files.write(tmp_path / "set", sampler(), 17, 20, 6) == first
    with pytest.raises(ConfigError, match="data_seed differ"):
        files.write(tmp_path / "set", sampler(seed=4), 17, 20, 6)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_the_slower_of_two_writers_takes_what_the_other_wrote(data_set, tmp_path, monkeypatch) -> None:
    def meanwhile(*rows: np.ndarray) -> int:
        shutil.copytree(data_set, tmp_path / "set")
        return 0

    monkeypatch.setattr(files, "_equal_sequences", meanwhile)
    drawn = Law(compose(TRAIN, ["experiment=debug"])).sampler
    assert files.write(tmp_path / "set", drawn, 17, 20, 6) == json.loads((data_set / "header.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_equal_sequences_are_counted_on_a_deterministic_graph(tmp_path) -> None:
    assert files.write(tmp_path / "a", sampler(alpha=1e-6), 2, 40, 30)["equal_sequences"] > 0
    made = sampler()
    train, test = made.sample("train", 0, 400, 3), made.sample("valid", 0, 50, 3)
    expected = sum(any((row == other).all() for other in train) for row in test)
    assert 0 < expected < 50 and files._equal_sequences(train, test) == expected


def test_the_data_command_writes_each_setup_and_the_training_reads_it(tmp_path, capsys) -> None:
    args = [f"{CONFIGS}/data.yaml", f"data.path={tmp_path}", f"run_dir={tmp_path / 'run'}", *SMALL]
    assert run_command(DATA, data.__wrapped__, args) == 0
    assert set(read_result(tmp_path / "run")["data_sets"]) == {str(tmp_path / "small_X"), str(tmp_path / "small_Z")}
    assert "20 + test 6 sequences of 17 tokens" in capsys.readouterr().out
    for name in ("small_X", "small_Z"):
        cfg = compose(TRAIN, [f"{CONFIGS}/{name}.yaml", f"data.path={tmp_path / name}", *SMALL])
        assert Files(cfg, Law(cfg)).batch("train", 0, 2).shape == (2, 17)
        assert Files(cfg, Law(cfg)).floor().mean > 0
    setup = compose(TRAIN, [f"{CONFIGS}/data.yaml", "setup=small_Z", "data.source=files", f"data.path={tmp_path}", *SMALL])
    assert (setup.alpha_Z, setup.data.path) == (1e-3, str(tmp_path / "small_Z"))
    with pytest.raises(ConfigError, match=r"choose one with setup=NAME"):
        compose(TRAIN, [f"{CONFIGS}/data.yaml"])
    with pytest.raises(ConfigError, match="did you mean small_X"):
        compose(TRAIN, [f"{CONFIGS}/data.yaml", "setup=smal_X"])
