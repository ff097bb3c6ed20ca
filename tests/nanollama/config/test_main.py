"""The entry decorator: how each way of ending becomes an exit code and a result.json, and what a run folder promises."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.apps.gssm.config import TRAIN
from src.nanollama.config import ConfigError, Interrupted, Requeue, RunFailed, compose
from src.nanollama.config.folder import git_state, new_folder, open_folder, read_result, write_json
from src.nanollama.config.main import entry_of, expand, run_command

ARGS = ["experiment=debug", "model=tiny", "train.steps=3"]


def command(tmp_path: Path, task, *more: str) -> tuple[int, dict]:
    code = run_command(TRAIN, task, [*ARGS, f"run_dir={tmp_path / 'run'}", *more])
    return code, read_result(tmp_path / "run") or {}


def ends_with(error: BaseException):
    def task(cfg, run):
        run.summary["steps"] = 2
        raise error

    return task


ENDINGS = {
    "ok": (lambda cfg, run: {"loss": 1.5}, 0),
    "invalid": (ends_with(ConfigError("no such corpus")), 2),
    "nan": (ends_with(RunFailed("loss nan", status="nan")), 3),
    "error": (ends_with(ZeroDivisionError("1/0")), 3),
    "oom": (ends_with(MemoryError()), 3),
    "interrupted": (ends_with(Interrupted("saved")), 130),
    "requeue": (ends_with(Requeue("saved")), 85),
}


@pytest.mark.parametrize("status", ENDINGS)
def test_every_ending_has_its_status_and_exit_code(status: str, tmp_path, capsys) -> None:
    task, expected = ENDINGS[status]
    code, result = command(tmp_path, task)
    assert (code, result["status"]) == (expected, status)
    assert result.get("steps", 2) == 2  # what was known before the failure is kept
    if status == "error":
        assert "ZeroDivisionError" in result["message"]
    if status == "invalid":
        assert "Traceback" not in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_a_sentence_and_a_failure(tmp_path, capsys) -> None:
    def task(cfg, run):
        (run.path / "result.json").mkdir()  # what a full disk does, without one

    assert run_command(TRAIN, task, [*ARGS, f"run_dir={tmp_path / 'run'}"]) == 3
    assert "result.json could not be written (Is a directory)" in capsys.readouterr().err


def test_config_and_environment_are_written_before_the_task_starts(tmp_path) -> None:
    seen = {}

    def task(cfg, run):
        seen["config"] = compose(TRAIN, [str(run.path / "config.yaml")])
        seen["env"] = json.loads((run.path / "env.json").read_text())
        assert read_result(run.path) is None
        return {}

    code, _ = command(tmp_path, task)
    assert code == 0 and seen["config"].train.steps == 3
    assert seen["env"]["commit"] == git_state()["commit"] and seen["env"]["packages"]["torch"]
    assert "experiment=debug" in seen["env"]["argv"]


def test_wrong_input_leaves_no_folder(tmp_path, capsys) -> None:
    code = run_command(TRAIN, lambda cfg, run: {}, [*ARGS, f"run_dir={tmp_path / 'run'}", "model.emb_dimm=3"])
    assert code == 2 and not (tmp_path / "run").exists()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("made", [None, "checkpoints/3", "trials/0"])
def test_a_refused_run_leaves_its_folder_free_unless_it_had_made_something(made: str | None, tmp_path, capsys) -> None:
    """Some input can only be found wrong by the task itself, when the folder is there."""
    command(tmp_path, ENDINGS["invalid"][0])
    if made:
        (tmp_path / "run" / made).mkdir(parents=True)
    code, result = command(tmp_path, ENDINGS["ok"][0], "optim.lr=0.5", "resume=never" if made is None else "resume=auto")
    assert (code, result["status"]) == ((0, "ok") if made is None else (2, "invalid"))


def test_a_folder_of_another_config_is_refused_and_left_alone(tmp_path, capsys) -> None:
    command(tmp_path, ENDINGS["ok"][0])
    before = (tmp_path / "run" / "config.yaml").read_text()
    code, result = command(tmp_path, ENDINGS["ok"][0], "optim.lr=0.5")
    assert code == 2 and "optim.lr" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == before and result["status"] == "ok"
    assert command(tmp_path, ENDINGS["ok"][0], "train.steps=9")[0] == 0  # a longer run of the same thing is the same thing


@pytest.mark.parametrize("text", ["a: [1,", "", "[1]", b"\xff\xfe"])
def test_a_damaged_config_in_the_folder_is_named(text: str | bytes, tmp_path, capsys) -> None:
    command(tmp_path, ENDINGS["ok"][0])
    (tmp_path / "run" / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    capsys.readouterr()
    assert command(tmp_path, ENDINGS["ok"][0])[0] == 2
    said = capsys.readouterr().err
    assert "config.yaml is not readable" in said and said.count("\n") == 1


def test_a_damaged_result_counts_as_none(tmp_path) -> None:
    command(tmp_path, ENDINGS["ok"][0])
    (tmp_path / "run" / "result.json").write_text('{"sta')
    assert read_result(tmp_path / "run") is None
    assert command(tmp_path, ENDINGS["ok"][0])[0] == 0


def test_what_is_one_process_is_refused_under_torchrun(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    sweep = entry_of("src.apps.mixbo.sweep")
    assert run_command(sweep, ENDINGS["ok"][0], ["objective=simulator", f"run_dir={tmp_path}/r"]) == 2
    assert "without torchrun" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_two_writers_are_refused(tmp_path, capsys) -> None:
    cfg = compose(TRAIN, [*ARGS, f"run_dir={tmp_path / 'run'}"])
    first = open_folder(TRAIN, cfg, ARGS)
    assert command(tmp_path, ENDINGS["ok"][0])[0] == 2
    assert "another process" in capsys.readouterr().err
    first.close()
    assert command(tmp_path, ENDINGS["ok"][0])[0] == 0


def test_folders_made_in_one_second_differ(tmp_path) -> None:
    paths = {new_folder("run", tmp_path) for _ in range(200)}
    assert len(paths) == 200 and all(path.is_dir() for path in paths)


def test_json_is_replaced_atomically(tmp_path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"status": "ok"})
    with pytest.raises(ValueError):
        write_json(file, (lambda loop: loop.update(self=loop) or loop)({}))  # cannot be written: refers to itself
    assert json.loads(file.read_text()) == {"status": "ok"}


def test_hydra_folder_keys_are_explained(tmp_path, capsys) -> None:
    assert run_command(TRAIN, ENDINGS["ok"][0], [*ARGS, "hydra.run.dir=x"]) == 2
    assert "run_dir=PATH" in capsys.readouterr().err


def test_expand_is_the_product_of_the_choices() -> None:
    jobs = list(expand(["model=tiny,small", "train.seed=0,1", "train.steps=3"]))
    assert len(jobs) == 4 and all("train.steps=3" in job for job in jobs)


def test_entry_of_finds_commands_without_torch() -> None:
    assert entry_of("src.apps.gssm.train") is TRAIN
    with pytest.raises(ConfigError, match=r"src\.apps\.gssm\.trian"):
        entry_of("src.apps.gssm.trian")
    with pytest.raises(ConfigError, match="no command"):
        entry_of("src.apps.gssm.graph")
    code = "import sys; from src.nanollama.config.main import entry_of; entry_of('src.apps.gssm.train'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def python(*argv: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=300, **options)


SMALL = ["experiment=debug", "model=tiny", "data.seq_len=16", "data.batch_size=4", "eval.sequences=4", "metrics.tensorboard=false"]


def test_help_lists_groups_and_keys() -> None:
    out = python("-m", "src.apps.gssm.train", "--help")
    assert out.returncode == 0 and "experiment: " in out.stdout and "low_entropy" in out.stdout and "emb_dim" in out.stdout


def test_multirun_checks_all_jobs_first_and_one_failure_does_not_stop_the_rest(tmp_path) -> None:
    bad = python("-m", "src.apps.gssm.train", "-m", *SMALL, f"run_dir={tmp_path / 'bad'}", "model.nb_heads=2,3")
    assert bad.returncode == 2 and "model.nb_heads" in bad.stderr and not (tmp_path / "bad").exists()
    out = python(
        "-m", "src.apps.gssm.train", "-m", *SMALL, f"run_dir={tmp_path / 'm'}", "train.steps=4", "optim.clip=null", "optim.lr=1e30,1e-3"
    )
    assert out.returncode == 3, out.stderr
    assert [read_result(tmp_path / "m" / n)["status"] for n in "01"] == ["nan", "ok"]
    assert "nan" in out.stdout and "ok" in out.stdout


@pytest.mark.parametrize("ending", ["interrupted", "requeue"])
def test_a_multirun_that_is_told_to_stop_begins_no_further_job(ending: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train"])
    task, code = ENDINGS[ending]
    assert run_command(TRAIN, task, ["-m", *ARGS, "train.seed=0,1", f"run_dir={tmp_path}/m"]) == code
    assert sorted(p.name for p in (tmp_path / "m").glob("[0-9]")) == ["0"]


def test_the_folder_of_a_multirun(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, folder in (("one", tmp_path / "named"), ("two", "~/other")):
        (tmp_path / f"{name}.yaml").write_text(f"run_dir: {folder}\n")

    def sweep(*more: str) -> int:
        return run_command(TRAIN, ENDINGS["ok"][0], ["-m", *ARGS, "train.seed=0,1", *more])

    assert sweep(f"config={tmp_path}/one.yaml") == 0 and read_result(tmp_path / "named" / "1")
    assert sweep(f"config={tmp_path}/two.yaml") == 0 and read_result(tmp_path / "other" / "1")
    assert sweep("run_dir=~/a (b), c") == 0 and read_result(tmp_path / "a (b), c" / "1")
    assert sweep(f"config={tmp_path}/one.yaml,{tmp_path}/two.yaml") == 2 and "name several" in capsys.readouterr().err
    assert sweep(f"config={tmp_path}/one.yaml,{tmp_path}/two.yaml", "run_dir=~/both") == 0 and read_result(tmp_path / "both" / "3")


def test_ctrl_c_saves_and_the_same_command_continues(tmp_path) -> None:
    import signal

    args = [
        sys.executable,
        "-m",
        "src.apps.gssm.train",
        *SMALL,
        f"run_dir={tmp_path / 'run'}",
        "train.log_period=1",
        "optim.schedule=constant",
    ]
    process = subprocess.Popen([*args, "train.steps=100000"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    stopped = read_result(tmp_path / "run")
    assert stopped["status"] == "interrupted" and "Traceback" not in out
    again = subprocess.run([*args, f"train.steps={stopped['steps'] + 5}"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert read_result(tmp_path / "run")["steps"] == stopped["steps"] + 5
