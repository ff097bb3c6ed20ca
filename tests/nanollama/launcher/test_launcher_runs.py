"""Single runs on this machine, with real processes."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from src.nanollama.config import ConfigError, read_result
from src.nanollama.config.compose import ROOT
from src.nanollama.launcher import snapshot
from src.nanollama.launcher.__main__ import main as launcher
from src.nanollama.launcher.status import progress

SCRIPT = "script=tests.nanollama.launcher.toy"


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return value


def spawn(*argv, **options):
    return subprocess.Popen([sys.executable, "-m", "src.nanollama.launcher", *map(str, argv)], cwd=ROOT, text=True, **options)


def test_foreground_run_leaves_everything_needed_to_repeat_it(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    run = tmp_path / "a run"
    variables = ["+cluster.env.MARKER='x y'", "+cluster.env.OMP_NUM_THREADS='3'"]
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={run}", "text=hi", *variables]) == 0
    assert "launcher: bash (as asked)" in capfd.readouterr().out
    result = read_result(run)
    assert (result["status"], result["text"], result["marker"], result["threads"]) == ("ok", "hi", "x y", "3")
    assert Path(result["file"]).is_relative_to(run / "launch/0/code") and result["cwd"] == os.getcwd()
    launch = json.loads((run / "launch/0/launch.json").read_text())
    assert launch["module"] == "tests.nanollama.launcher.toy" and launch["commit"] and launch["packages"]["torch"]
    assert "s3cret" not in "".join(p.read_text() for p in (run / "launch/0").glob("*.*"))
    env = json.loads((run / "env.json").read_text())
    assert env["commit"] == launch["commit"]  # the snapshot knows where it came from
    assert yaml.safe_load((run / "config.yaml").read_text())["text"] == "hi"
    assert subprocess.run(["bash", run / "launch/0/run.sh"], cwd="/", env={"PATH": os.environ["PATH"]}).returncode == 0


@pytest.mark.parametrize("end, code", [("raise", 3), ("diverge", 3), ("exit", 7), ("kill", 137)])
def test_exit_code_of_the_run(tmp_path, end, code):
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/r", f"end={end}"]) == code


def test_values_never_reach_a_shell(tmp_path):
    nasty = "a b; touch PWNED $(touch PWNED) `touch PWNED` ' \" \\ \n # ${x} & | > PWNED"
    file = tmp_path / "my config.yaml"
    value = nasty.replace("${", "\\${")
    file.write_text(json.dumps({"text": value, "cluster": {"script": SCRIPT[7:], "env": {"MARKER": value}}}))
    assert launcher([str(file), "launcher=bash", f"run_dir={tmp_path}/r $(touch PWNED); x"]) == 0
    result = read_result(tmp_path / "r $(touch PWNED); x")
    assert result["text"] == nasty and result["marker"] == nasty
    assert not list(tmp_path.rglob("PWNED")) and not Path("PWNED").exists()


def test_default_folder_is_made_where_the_launcher_is_called(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert launcher([SCRIPT, "launcher=bash", "name=../my name"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"my-name-\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    assert read_result(run)["cwd"] == str(tmp_path)


def test_detached_run_status_and_cancel(tmp_path, capfd):
    run = tmp_path / "r"
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={run}", "detach=True", "steps=2000", "step_s=0.01"]) == 0
    out = capfd.readouterr().out
    assert f"status: python -m src.nanollama.launcher status '{run}'" in out
    assert launcher(["status", str(run)]) == 0
    assert re.search("starting|running", capfd.readouterr().out)
    wait_for((run / "checkpoint").exists)
    launcher(["status", str(run)])
    assert "running" in capfd.readouterr().out
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={run}", "steps=2000", "step_s=0.01"]) == 2
    assert "under way" in capfd.readouterr().err
    assert launcher(["cancel", str(run)]) == 0
    assert "cancelled" in capfd.readouterr().out
    assert read_result(run)["status"] == "interrupted"
    steps = int((run / "checkpoint").read_text())
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={run}", f"steps={steps + 1}", "resume=must"]) == 0
    assert read_result(run)["started_at"] == steps
    launcher(["status", str(run)])
    assert " ok " in capfd.readouterr().out
    launcher(["cancel", str(run)])
    assert "nothing is running" in capfd.readouterr().out


def test_killed_run_is_told_from_a_running_one(tmp_path, capfd):
    run = tmp_path / "r"
    launcher([SCRIPT, "launcher=bash", f"run_dir={run}", "detach=True", "steps=2000", "step_s=0.01"])
    wait_for((run / "checkpoint").exists)
    os.killpg(json.loads((run / "launch/0/launch.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: launcher(["status", str(run)]) == 0 and "killed" in capfd.readouterr().out)


def test_what_a_snapshot_holds(tmp_path, monkeypatch):
    """Also a snapshot of a snapshot, as when a launched sweep submits its trainings."""
    root = tmp_path / "project"
    for name in ("src/a.py", "mine/new é\n.py", "data.bin", "ignored.py", "other/b.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    os.truncate(root / "data.bin", snapshot.LARGEST_NEW_FILE + 1)
    (root / ".gitignore").write_text("ignored.py\n")
    for folder in (root, root / "other"):
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
    monkeypatch.setattr(snapshot, "ROOT", root)
    assert snapshot.take(tmp_path / "one") == ["data.bin", "other/"]
    with pytest.raises(ConfigError, match="git ignores it"):
        snapshot.check_contains(tmp_path / "one", "ignored", root / "ignored.py")

    def held(code):
        return {str(file.relative_to(code)) for file in code.rglob("*") if file.is_file()}

    assert held(tmp_path / "one") == {"src/a.py", "mine/new é\n.py", ".gitignore", snapshot.SNAPSHOT}
    monkeypatch.setattr(snapshot, "ROOT", tmp_path / "one")
    snapshot.take(tmp_path / "two")
    assert held(tmp_path / "two") == held(tmp_path / "one")


def test_a_snapshot_needs_no_compiling_again(tmp_path):
    code = """
import numpy as np
from src.apps.gssm.particles_native import row_of
zeros = np.zeros(2, np.int64)
row_of(0, 0, np.zeros((1, 1), np.int64), zeros, zeros, zeros, zeros)
"""
    command, env = [sys.executable, "-c", code], {**os.environ, "NUMBA_DEBUG_CACHE": "1"}
    subprocess.run(command, cwd=ROOT, check=True)
    snapshot.take(tmp_path / "code")
    said = subprocess.run(command, cwd=tmp_path / "code", env=env, check=True, capture_output=True, text=True).stdout
    assert f"data loaded from '{tmp_path}" in said and "data saved" not in said


@pytest.mark.parametrize("loss, said", [(1.25, "step 7, loss 1.2500"), (None, "step 7, loss not finite")])
def test_progress_is_the_newest_whole_training_record(tmp_path, loss, said):
    record = {"step": 7, "split": "train", "loss": loss}
    lines = [json.dumps(r) for r in ({**record, "step": 6, "loss": 3.0}, record, {**record, "split": "valid"})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 8, "spl')
    assert progress(tmp_path) == said


def test_run_of_another_machine(tmp_path, capfd):
    run = tmp_path / "r"
    launcher([SCRIPT, "launcher=bash", f"run_dir={run}"])
    file = run / "launch/0/launch.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
    assert launcher(["status", str(run)]) == 0 and " ok " in capfd.readouterr().out
    (run / "result.json").unlink()
    assert launcher(["status", str(run)]) == 0 and "started on elsewhere: ask there" in capfd.readouterr().out
    assert launcher(["cancel", str(run)]) == 2 and "cancel it there" in capfd.readouterr().err


@pytest.mark.parametrize(
    "number, code, status", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 85, "requeue"), (signal.SIGHUP, 85, "requeue")]
)
def test_signals_reach_the_run_once(tmp_path, number, code, status):
    process = spawn(SCRIPT, "launcher=bash", f"run_dir={tmp_path}/r", "steps=2000", "step_s=0.01", stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "r/checkpoint").exists)
    process.send_signal(number)
    assert process.wait(20) == code
    assert read_result(tmp_path / "r")["status"] == status


# --- what must be refused, with nothing left behind ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "nothing to start"),
        (["script=src.apps.gssm.trian"], "no module of that name"),
        (["script=os"], "no command"),
        (["script=.toy"], "no module name"),
        (["script=src/apps/gssm/train.py"], "no module name"),
        (["script=a; touch PWNED"], "no module name"),
        ([SCRIPT, "config=no/such.yaml"], "no such file"),
        ([SCRIPT, "txet=a"], "did you mean text?"),
        ([SCRIPT, "steps=many"], "steps = 'many'"),
        ([SCRIPT, "launcher=sbach"], "did you mean sbatch?"),
        ([SCRIPT, "torchrun=perhaps"], "cluster.torchrun"),
        ([SCRIPT, "resume=always"], "must be one of auto, never, must"),
        ([SCRIPT, "detach=yes"], "must be one of true, false"),
        ([SCRIPT, "cluster.mem=much"], "cluster.mem"),
        ([SCRIPT, "launcher=bash", "cluster.nodes=2", "torchrun=True"], "several nodes need Slurm"),
        ([SCRIPT, "torchrun=True", "cluster.nproc=3"], "does not divide over 3 ranks"),
        ([SCRIPT, "resume=must", "run_dir=nowhere"], "holds no run to continue"),
        ([SCRIPT, "run_dir='a,b'"], "cannot be in it"),
        ([SCRIPT, "-m", "steps=1,many"], "steps = 'many'"),
        ([SCRIPT, "cluster.partition=a,b"], "add -m"),
        ([SCRIPT.replace("tests.nanollama.launcher.toy", "src.apps.mixbo.sweep"), "torchrun=True"], "is one process"),
        ([SCRIPT, "-m", "cluster.cpus=1,2"], "must be the same for all runs"),
        (["status"], "name one or more run folders"),
        (["status", "nowhere"], "no run was started here"),
        (["cancel", "nowhere"], "no run was started here"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert launcher(argv or ["launcher=bash"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launcher([SCRIPT, "launcher=sbatch"]) == 2
    assert "launcher=sbatch: sbatch is not installed here; use launcher=bash" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_the_default_is_bash_and_it_says_why(tmp_path, monkeypatch, capfd):
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("bash", "git"):
        (bin_dir / name).symlink_to(subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip())
    monkeypatch.setenv("PATH", str(bin_dir))
    assert launcher([SCRIPT, f"run_dir={tmp_path}/r"]) == 0
    assert "launcher: bash (sbatch is not installed here)" in capfd.readouterr().out


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "3"])
def test_damaged_records(tmp_path, capsys, text):
    (tmp_path / "launch/0").mkdir(parents=True)
    (tmp_path / "launch/0/launch.json").write_text(text)
    (tmp_path / "result.json").write_text(text)
    assert read_result(tmp_path) is None
    assert launcher(["status", str(tmp_path)]) == 2 and "launch.json is damaged" in capsys.readouterr().err


def test_folder_of_another_config(tmp_path, capsys):
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/r", "text=one"]) == 0
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/r", "text=two"]) == 2
    assert "holds a run of another config: text (one there, two asked)" in capsys.readouterr().err
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/r", "text=one", "resume=never"]) == 2
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/r", "-m", "text=one,two"]) == 2
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before and read_result(tmp_path / "r")["text"] == "one"


def test_unwritable_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/file/r"]) == 2
    assert "cannot write there: Not a directory" in capsys.readouterr().err


def test_full_disk_leaves_an_earlier_run_as_it_was(tmp_path, capsys):
    """A limit on file size makes writes fail half-way, as a full disk does."""
    assert launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/old"]) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        codes = [launcher([SCRIPT, "launcher=bash", f"run_dir={tmp_path}/{name}"]) for name in ("old", "new")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert codes == [2, 2] and "cannot write there: File too large" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_checks_load_no_torch():
    code = "import sys\nfrom src.nanollama.launcher.__main__ import main\nassert main(sys.argv[1:]) == 2\nassert 'torch' not in sys.modules"
    argv = ["script=src.apps.gssm.train", "config=src/apps/gssm/configs/debug.yaml", "optim.lr=-1"]
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "optim.lr" in done.stderr, done.stderr
