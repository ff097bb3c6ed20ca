"""Against a real Slurm of two nodes on this machine; skipped, with the reason, where none can be started (see make test-slurm)."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.nanollama.config import ConfigError, read_result
from src.nanollama.config.schema import ClusterConfig
from src.nanollama.launcher import slurm, slurm_pool
from src.nanollama.launcher.__main__ import main as launcher
from src.nanollama.launcher.cancel import cancel
from src.nanollama.launcher.job import launches
from src.nanollama.launcher.pool import Job
from src.nanollama.launcher.slurm_pool import SlurmPool
from src.nanollama.launcher.status import states

sys.path.insert(0, str(Path(__file__).parent))
import slurm_here

SCRIPT = "script=tests.nanollama.launcher.toy"


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    if why := slurm_here.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    yield slurm_here.start(folder)
    slurm_here.stop(folder)


@pytest.fixture(autouse=True)
def cluster(conf, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"waited in vain\n{subprocess.run(['squeue'], capture_output=True, text=True).stdout}"
        time.sleep(0.2)
    return value


def ended(run):
    return all(not state.is_active for state in states(run))


def status_of(run):
    return [state.status for state in states(run)]


def test_default_is_sbatch_where_slurm_answers(tmp_path, capfd):
    run = tmp_path / "a run"
    assert launcher([SCRIPT, f"run_dir={run}", "text='$(x) ; y'", "cluster.gpus=2", "cluster.mem=1G", "+cluster.env.MARKER='a b'"]) == 0
    out = capfd.readouterr().out
    assert "launcher: sbatch (Slurm answers, partitions debug, short)" in out
    job = re.search(r"job: (\d+)", out)[1]
    wait_for(lambda: ended(run))
    result = read_result(run)
    assert (result["status"], result["text"], result["marker"]) == ("ok", "$(x) ; y", "a b")
    assert (result["devices"], result["threads"]) == ("0,1", "2")
    assert Path(result["file"]).is_relative_to(run / "launch/0/code")
    assert "starting at 0" in (run / f"logs/slurm-{job}.out").read_text()
    assert json.loads((run / "env.json").read_text())["slurm_job_id"] == job
    directives = (run / "launch/0/run.sh").read_text()
    assert "#SBATCH --gpus-per-node=2" in directives and "#SBATCH --mem=1G" in directives


def test_waiting_job_is_seen_and_cancelled(tmp_path):
    """A time beyond the partition's is accepted and waits for ever."""
    assert launcher([SCRIPT, f"run_dir={tmp_path}/r", "cluster.partition=short", "cluster.time='30'"]) == 0
    assert status_of(tmp_path / "r") == ["pending"]
    assert launcher(["cancel", f"{tmp_path}/r"]) == 0
    assert status_of(tmp_path / "r") == ["missing"]


@pytest.mark.parametrize("bad", ["cluster.partition=nosuch", "cluster.mem=9000G"])
def test_what_slurm_refuses_leaves_nothing(tmp_path, capfd, bad):
    assert launcher([SCRIPT, f"run_dir={tmp_path}/r", "launcher=sbatch", bad]) == 2
    assert "sbatch refused the job" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_array_of_a_grid(tmp_path, capfd):
    command = [SCRIPT, f"run_dir={tmp_path}/g", "-m", "text=a,bb", "end=ok,raise", "cluster.cpus=1", "cluster.slots=2"]
    assert launcher(command) == 0
    job = re.search(r"job: (\d+), 4 tasks", capfd.readouterr().out)[1]
    wait_for(lambda: ended(tmp_path / "g"))
    assert status_of(tmp_path / "g") == ["ok", "error", "ok", "error"]
    assert {p.name for p in (tmp_path / "g/logs").iterdir()} == {f"slurm-{job}_{n}.out" for n in range(4)}
    assert launcher(command) == 0
    assert "2 tasks" in capfd.readouterr().out
    assert "#SBATCH --array=1,3%2" in (tmp_path / "g/launch/1/run.sh").read_text()
    wait_for(lambda: ended(tmp_path / "g"))
    launcher(["status", f"{tmp_path}/g"])
    assert "4 runs: 2 ok, 2 error" in capfd.readouterr().out


def test_warned_run_saves_is_requeued_and_goes_on(tmp_path):
    run = tmp_path / "r"
    assert launcher([SCRIPT, f"run_dir={run}", "steps=200", "step_s=0.05"]) == 0
    wait_for((run / "checkpoint").exists)
    job = json.loads((run / "launch/0/launch.json").read_text())["job_id"]
    slurm.cancel(job, signal="USR1")  # the signal that Slurm sends before the time limit
    wait_for(lambda: (read_result(run) or {}).get("status") == "requeue")
    wait_for(lambda: status_of(run) == ["pending"])
    wait_for(lambda: ended(run))
    result = read_result(run)
    assert result["status"] == "ok" and 0 < result["started_at"] < 200
    assert (run / f"logs/slurm-{job}.out").read_text().count("starting at") == 2


@pytest.mark.parametrize("how", [[], ["torchrun=True", "cluster.nproc=2", "cluster.cpus=1"]], ids=["alone", "torchrun"])
def test_cancel_saves_and_does_not_requeue(tmp_path, capfd, how):
    run = tmp_path / "r"
    assert launcher([SCRIPT, f"run_dir={run}", "steps=2000", "step_s=0.05", *how]) == 0
    wait_for((run / "checkpoint").exists)
    assert launcher([SCRIPT, f"run_dir={run}", "steps=2000", "step_s=0.05", *how]) == 2
    assert "under way" in capfd.readouterr().err
    launcher(["cancel", str(run)])
    wait_for(lambda: ended(run))
    result = read_result(run)
    assert result["status"] == "interrupted" and "saved step" in result["message"]
    wait_for(lambda: not slurm.states(json.loads((run / "launch/0/launch.json").read_text())["job_id"]))


def test_cancelling_twice_kills(tmp_path):
    run = tmp_path / "r"
    assert launcher([SCRIPT, f"run_dir={run}", "steps=1", "step_s=1000"]) == 0
    wait_for(lambda: status_of(run) == ["running"])
    for _ in range(2):
        cancel(run, wait_s=1)
    wait_for(lambda: ended(run))
    assert not slurm.states(json.loads((run / "launch/0/launch.json").read_text())["job_id"])


def test_torchrun_over_two_nodes(tmp_path):
    run = tmp_path / "r"
    assert launcher([SCRIPT, f"run_dir={run}", "torchrun=True", "cluster.nodes=2", "cluster.nproc=1", "text=hi"]) == 0
    wait_for(lambda: ended(run), seconds=120)
    result = read_result(run)
    assert (result["status"], result["world"], result["text"]) == ("ok", 2, "hi")
    wait_for(lambda: {p.name for p in (run / "logs").glob("rank*")} == {"rank_0.log", "rank_1.log"})  # rank 1 may begin last


def test_several_nodes_need_torchrun(tmp_path, capsys):
    assert launcher([SCRIPT, f"run_dir={tmp_path}/r", "cluster.nodes=2"]) == 2
    assert "needs torchrun=True" in capsys.readouterr().err


def test_slurm_that_does_not_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")
    assert launcher([SCRIPT, "launcher=sbatch", f"run_dir={tmp_path}/r"]) == 2
    assert "Slurm does not answer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_evaluations_beside_a_training_as_jobs(tmp_path):
    """The same records as those of an evaluation in the loop."""
    small = ["model.emb_dim=16", "model.nb_layers=1", "model.nb_heads=1", "data.seq_len=16", "data.batch_size=2", "eval.sequences=4"]
    train = [sys.executable, "-m", "src.apps.gssm.train", "src/apps/gssm/configs/debug.yaml", *small, "train.steps=4", "eval.period=2"]
    for name, how in (("beside", ["eval.asynchronous=true", "eval.launcher=sbatch", "cluster.mem=1G"]), ("inside", [])):
        subprocess.run([*train, *how, f"run_dir={tmp_path}/{name}"], check=True, capture_output=True)
    records = {}
    for name in ("beside", "inside"):
        found = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        records[name] = [{key: record[key] for key in ("step", "loss", "excess_loss")} for record in found if record["split"] == "valid"]
    assert [record["step"] for record in records["inside"]] == [2, 4]
    assert sorted(records["beside"], key=lambda record: record["step"]) == records["inside"]
    launched = json.loads((tmp_path / "beside/checkpoints/2/eval/launch/0/launch.json").read_text())
    assert launched["launcher"] == "sbatch" and launched["job_id"].isdigit()


# --- a pool whose jobs are Slurm jobs --------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(slurm_pool, "ASK_S", 0.3)


def toy_job(run: Path, *overrides: str) -> Job:
    return Job((sys.executable, "-m", "tests.nanollama.launcher.toy", *overrides, f"run_dir='{run}'"), run)


def jobs_of(folder: Path) -> set[str]:
    """In the queue; other tests may have left some there that are about to end."""
    return {job for job, (_, script) in slurm.mine().items() if script.startswith(f"{folder}/")}


def drain(pool: SlurmPool) -> dict[str, dict]:
    found = {}
    while ended := pool.poll(60.0):
        found[ended.job.run_dir.name] = ended.result | {"attempts": ended.attempts}
    return found


def test_every_end_of_a_job_is_booked_as_on_this_machine(tmp_path, soon):
    ends = {
        "fine": ("text='$(x) ; y'",), "raised": ("end=raise",), "diverged": ("end=diverge",), "killed once": ("end=kill_once",),
        "killed": ("end=kill",), "refused": ("nonsense=1",),
    }  # fmt: skip
    cluster = ClusterConfig(cpus=1, mem="1G", env={"MARKER": "a b"})
    with SlurmPool(3, tmp_path, cluster, retries=1) as pool:
        for name, overrides in ends.items():
            pool.submit(toy_job(tmp_path / "trials" / name, *overrides))
        assert len(pool) == len(ends) and len(jobs_of(tmp_path)) <= 3
        found = drain(pool)
    assert {name: (result["status"], result["attempts"]) for name, result in found.items()} == {
        "fine": ("ok", 1), "raised": ("error", 1), "diverged": ("nan", 1), "killed once": ("ok", 2), "killed": ("killed", 2),
        "refused": ("invalid", 1),
    }  # fmt: skip
    assert "unknown key nonsense" in found["refused"]["message"]
    fine = found["fine"]
    assert (fine["text"], fine["marker"]) == ("$(x) ; y", "a b")
    assert Path(fine["file"]).is_relative_to(tmp_path / "launch/0/code")  # one snapshot for all
    assert "#SBATCH --mem=1G" in (tmp_path / "trials/fine/launch/0/run.sh").read_text()
    assert all(read_result(tmp_path / "trials" / name)["status"] == found[name]["status"] for name in ends)


def test_jobs_of_several_processes(tmp_path, soon):
    """Torchrun ends with 1 whatever its ranks did; a stop reaches them by Slurm and by torchrun, and they save all the same."""
    ends = {"fine": ("text=hi",), "diverged": ("end=diverge",), "refused": ("nonsense=1",), "stopped": ("steps=2000", "step_s=0.05")}
    with SlurmPool(2, tmp_path, ClusterConfig(cpus=1, torchrun=True, nproc=2)) as pool:
        for name, overrides in ends.items():
            pool.submit(toy_job(tmp_path / name, *overrides))
        found = {}
        while len(found) < 3:
            if ended := pool.poll(60.0):
                found[ended.job.run_dir.name] = ended.result
        wait_for((tmp_path / "stopped/checkpoint").exists)
        pool.stop(signal.SIGINT)
        found |= drain(pool)
    assert {name: result["status"] for name, result in found.items()} == {
        "fine": "ok", "diverged": "nan", "refused": "invalid", "stopped": "interrupted"
    }  # fmt: skip
    assert (found["fine"]["world"], found["fine"]["text"]) == (2, "hi") and "unknown key nonsense" in found["refused"]["message"]
    assert "saved step" in found["stopped"]["message"]
    assert {p.name for p in (tmp_path / "fine/logs").glob("rank*")} == {"rank_0.log", "rank_1.log"}
    assert "--cpus-per-task=2" in (tmp_path / "fine/launch/0/run.sh").read_text()


def test_a_job_that_takes_too_long_is_ended(tmp_path, soon):
    with SlurmPool(1, tmp_path, ClusterConfig(cpus=1), timeout_s=0.5) as pool:
        pool.submit(toy_job(tmp_path / "late", "steps=1000", "step_s=0.1"))
        assert drain(pool)["late"]["status"] == "timeout"
    assert read_result(tmp_path / "late")["status"] == "timeout"
    wait_for(lambda: not jobs_of(tmp_path))


def test_a_job_that_slurm_starts_again_is_not_submitted_again(tmp_path, soon):
    run = tmp_path / "r"
    with SlurmPool(1, tmp_path, ClusterConfig(cpus=1)) as pool:
        pool.submit(toy_job(run, "steps=2000", "step_s=0.05"))
        wait_for((run / "checkpoint").exists)
        (job,) = jobs_of(tmp_path)
        slurm.cancel(job, signal="USR1")  # as before the time limit
        wait_for(lambda: (read_result(run) or {}).get("status") == "requeue")
        wait_for(lambda: slurm.mine().get(job, ("",))[0] == "PENDING")
        assert pool.poll(2.0) is None and len(pool) == 1 and jobs_of(tmp_path) == {job}


def test_what_a_pool_refuses(tmp_path, monkeypatch):
    with SlurmPool(1, tmp_path, ClusterConfig(partition="nosuch")) as pool, pytest.raises(ConfigError, match="sbatch refused"):
        pool.submit(toy_job(tmp_path / "r"))
    with pytest.raises(ConfigError, match="on one node"):
        SlurmPool(1, tmp_path, ClusterConfig(nodes=2, torchrun=True))
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")
    with pytest.raises(ConfigError, match="Slurm does not answer"):
        SlurmPool(1, tmp_path, ClusterConfig())


def test_a_job_submitted_by_a_pool_that_died_before_it_knew_the_id(tmp_path, soon):
    run = tmp_path / "r"
    first = SlurmPool(1, tmp_path, ClusterConfig(cpus=1))
    first.submit(toy_job(run, "steps=30", "step_s=0.1"))
    (launch,) = launches(run)
    job = launch.record.pop("job_id")
    launch.note()
    with SlurmPool(1, tmp_path, ClusterConfig(cpus=1)) as second:
        second.submit(toy_job(run, "steps=30", "step_s=0.1"))
        assert launches(run)[0].record["job_id"] == job
        assert drain(second)["r"]["status"] == "ok"
    assert len(launches(run)) == 1


def test_a_sweep_whose_trials_are_jobs(tmp_path):
    """Killed while its jobs wait: they are found again. Ctrl-C: they save and leave the queue. Then it ends, nothing trained twice."""
    for domain in ("letters", "digits"):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "texts" / domain / f"{i}.txt").write_text(f"{domain} {i} " * 100)
    small = ["data.seq_len=16", "data.batch_size=4", "eval.sequences=4", f"data.corpus={tmp_path}/texts", f"data.cache={tmp_path}/cache"]
    command = [
        sys.executable, "-m", "src.apps.mixbo.sweep", "strategy=random", "fidelity.model_size=[pico]", "fidelity.steps=[800]",
        f"training.overrides=[{','.join(repr(one) for one in small)}]", "pool.launcher=sbatch",
        "cluster.cpus=1", "metrics.tensorboard=false", f"run_dir={tmp_path}/sweep",
    ]  # fmt: skip
    block = ["sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600"]
    blocker = subprocess.run(block, check=True, capture_output=True, text=True).stdout.strip()

    def trials() -> set[str]:
        return jobs_of(tmp_path)

    process = subprocess.Popen([*command, "pool.slots=1", "budget.trials=1"], stderr=subprocess.DEVNULL)
    (job,) = wait_for(trials, 120)
    process.kill()
    process.wait()
    command += ["pool.slots=2", "budget.trials=2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: trials() > {job}, 120)  # it asks for the second trial once it has taken up the first
    slurm.cancel(blocker)
    wait_for(lambda: all((tmp_path / f"sweep/trials/{n}/metrics.jsonl").exists() for n in (0, 1)), 120)
    assert len(trials()) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_for(lambda: not trials())
    assert [read_result(tmp_path / f"sweep/trials/{n}")["status"] for n in (0, 1)] == ["requeue"] * 2

    subprocess.run(command, check=True, capture_output=True, timeout=240)
    assert [row["status"] for row in csv.DictReader((tmp_path / "sweep/trials.csv").read_text().splitlines())] == ["ok", "ok"]
    for number in (0, 1):
        run = tmp_path / "sweep/trials" / str(number)
        assert len(launches(run)) == 2  # one before Ctrl-C, one after it
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and steps[-1] == 800
