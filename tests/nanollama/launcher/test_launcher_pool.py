"""The pool with real processes: no barrier, no lost job, no second writer, nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from src.nanollama.config import read_result
from src.nanollama.config.compose import ROOT
from src.nanollama.launcher.pool import Job, Pool, devices, run_all
from src.nanollama.launcher.signals import stop_flag

# Stands for a run: waits, then writes its result; keeps the lock and the env.json of a real one.
CHILD = textwrap.dedent(
    """
    import fcntl, json, os, signal, subprocess, sys, time
    run, seconds, how = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    os.chdir(run)
    lock = open(".lock", "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(2)
    starts = int(open("starts").read()) + 1 if os.path.exists("starts") else 1
    open("starts", "w").write(str(starts))
    json.dump({"pid": os.getpid(), "host": os.uname()[1]}, open("env.json", "w"))
    def end(status):
        json.dump({"status": status, "starts": starts, "env": dict(os.environ), "end": time.monotonic()}, open("r", "w"))
        os.replace("r", "result.json")
        sys.exit(0)
    if how != "stubborn":
        signal.signal(signal.SIGTERM, lambda *_: end("requeue"))
        signal.signal(signal.SIGINT, lambda *_: end("interrupted"))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "family":
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        open("grandchild", "w").write(str(child.pid))
    open("ready", "w").close()
    time.sleep(seconds)
    while how == "until_go" and not os.path.exists("go"):
        time.sleep(0.02)
    if how == "killed" or (how == "killed_once" and starts == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    end("nan" if how == "nan" else "requeue" if how == "requeue_once" and starts == 1 else "ok")
    """
)


@pytest.fixture
def job(tmp_path):
    def make(name, seconds=0.0, how="ok", **options):
        run = tmp_path / str(name)
        run.mkdir(exist_ok=True)
        return Job((sys.executable, "-c", CHILD, str(run), str(seconds), how), run, **options)

    return make


def drain(pool):
    ended = []
    while len(pool):
        ended.append(pool.poll())
    return ended


def wait_for(path):
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def gone(pid):
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_free_slot_is_filled_at_once(job):
    """Of a long and three short jobs on two slots, all the short ones end before the long one."""
    with Pool(2) as pool:
        for name in ("long", "a", "b", "c"):
            pool.submit(job(name, how="until_go" if name == "long" else "ok"))
        ended = [pool.poll() for _ in range(3)]
        (job("long").run_dir / "go").touch()
        ended += drain(pool)
    assert [e.job.run_dir.name for e in ended] == ["a", "b", "c", "long"]
    assert {e.slot for e in ended[:3]} == {1} and all(e.result["status"] == "ok" and e.attempts == 1 for e in ended)


def test_poll_waits_no_longer_than_told(job):
    with Pool(1) as pool:
        assert pool.poll() is None
        pool.submit(job("a", 60))
        assert pool.poll(0.05) is None and len(pool) == 1


@pytest.mark.parametrize(
    "how, status, starts", [("killed_once", "ok", 2), ("requeue_once", "ok", 2), ("killed", "killed", 3), ("nan", "nan", 1)]
)
def test_only_jobs_stopped_from_outside_start_again(job, how, status, starts):
    with Pool(1, retries=2) as pool:
        pool.submit(job("a", how=how))
        (ended,) = drain(pool)
    assert ended.result["status"] == status == read_result(ended.job.run_dir)["status"]
    assert ended.attempts == starts == int((ended.job.run_dir / "starts").read_text())


@pytest.mark.parametrize("how", ["ok", "stubborn"])
def test_timeout(job, how):
    with Pool(1, timeout_s=1.0, grace_s=0.5) as pool:
        pool.submit(job("a", 60, how))
        (ended,) = drain(pool)
    assert read_result(ended.job.run_dir)["status"] == ended.result["status"] == "timeout" and ended.attempts == 1


def test_a_job_that_ended_in_time_is_not_late_because_nobody_asked(job):
    with Pool(1, timeout_s=2.0) as pool:
        pool.submit(job("a"))
        running = pool._running[0]
        running.process.wait()
        running.began -= 60  # who owns the pool was busy meanwhile
        (ended,) = drain(pool)
    assert ended.result["status"] == "ok" == read_result(ended.job.run_dir)["status"]


def test_commands_that_cannot_run_are_no_reason_to_stop(job, tmp_path):
    with Pool(1) as pool:
        pool.submit(Job(("/no/such/program",), tmp_path / "x"))
        pool.submit(Job((sys.executable, "-c", "import nonsense"), tmp_path / "y"))
        pool.submit(job("z"))
        ended = {e.job.run_dir.name: e for e in drain(pool)}
    assert [ended[name].result["status"] for name in "xyz"] == ["error", "error", "ok"]
    assert "No such file" in ended["x"].result["message"] and "nonsense" in ended["y"].result["message"] and ended["y"].attempts == 1


def test_result_of_an_earlier_start_is_not_this_one(job):
    a = job("a", how="killed")
    (a.run_dir / "result.json").write_text('{"status": "ok"}')
    with Pool(1, retries=0) as pool:
        pool.submit(a)
        (ended,) = drain(pool)
    assert ended.result["status"] == "killed"


def test_leaving_the_pool_ends_whole_families(job, tmp_path):
    with Pool(2) as pool:
        pool.submit(job("a", 60, "family"))
        pool.submit(job("b", 60, "stubborn"))
        wait_for(tmp_path / "a" / "ready")
        wait_for(tmp_path / "b" / "ready")
    pids = [json.loads((tmp_path / name / "env.json").read_text())["pid"] for name in "ab"]
    assert all(gone(pid) for pid in [*pids, int((tmp_path / "a" / "grandchild").read_text())])


def test_stop_lets_jobs_save(job, tmp_path):
    with Pool(1) as pool:
        pool.submit(job("a", 60))
        pool.submit(job("b", 60))
        wait_for(tmp_path / "a" / "ready")
        pool.stop()
        ended = drain(pool)
    assert [(e.job.run_dir.name, e.result["status"]) for e in ended] == [("a", "requeue")]
    assert not (tmp_path / "b" / "starts").exists()


def test_slots_share_threads_and_devices(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    cpus = len(os.sched_getaffinity(0))
    assert Pool(1).share(0) == {"OMP_NUM_THREADS": str(cpus), "NUMBA_NUM_THREADS": str(cpus)}
    assert Pool(cpus, processes=2).share(0)["OMP_NUM_THREADS"] == "1"
    pool = Pool(2, devices=["0", "1", "2", "3"])
    assert [pool.share(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["0,1", "2,3"]
    pool = Pool(3, devices=["0", "1", "2", "3"], processes=2)
    assert [pool.share(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0,1", "2,3", "0,1"]  # torchrun's ranks never share one
    pool = Pool(3, devices=["a", "b"])
    assert [pool.share(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["a", "b", "a"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in Pool(1).share(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x, GPU-y")
    assert devices() == ["GPU-x", "GPU-y"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices() == []


def test_job_reaches_its_environment_and_folder(job, tmp_path):
    with Pool(1, devices=["5"]) as pool:
        pool.submit(job("a", env={"MARKER": "a b$(x)"}))
        (ended,) = drain(pool)
    assert ended.result["env"]["MARKER"] == "a b$(x)" and ended.result["env"]["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_job_left_by_a_killed_pool_is_waited_for(job, tmp_path):
    """SIGKILL of the process that owns the pool: its job goes on, and the next pool never starts a second one beside it."""
    first = job("a", how="until_go")
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from src.nanollama.launcher.pool import Job, Pool
        pool = Pool(1)
        pool.submit(Job(tuple(sys.argv[2:]), Path(sys.argv[1])))
        pool.poll()
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(first.run_dir), *first.command], cwd=ROOT)
    wait_for(first.run_dir / "ready")
    owner.kill()
    owner.wait()
    with Pool(1) as pool:
        pool.submit(first)
        assert pool.poll(0.1) is None
        (first.run_dir / "go").touch()
        (ended,) = drain(pool)
    assert ended.result["status"] == "ok" and ended.result["starts"] == 1


def test_a_job_that_lost_the_race_for_its_folder_waits_for_the_other(job):
    first = job("a", how="until_go")
    with Pool(2) as pool:  # the same folder twice: the second start is refused by the lock
        pool.submit(first)
        pool.submit(first)
        while all(running.process for running in pool._running.values()):
            assert pool.poll(0.05) is None
        (first.run_dir / "go").touch()
        ended = drain(pool)
    assert [e.result["status"] for e in ended] == ["ok", "ok"] and (first.run_dir / "starts").read_text() == "1"


def test_ctrl_c_stops_what_runs_and_starts_no_more(job, tmp_path):
    jobs = [job(name, 60) for name in "abc"]
    code = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from src.nanollama.launcher.pool import Job, Pool, run_all
        jobs = [Job(tuple(c), Path(r)) for r, c in json.loads(sys.argv[1])]
        print(run_all(Pool(2), jobs, lambda e: print(e.line("x"), flush=True)))
        """
    )
    argument = json.dumps([(str(j.run_dir), j.command) for j in jobs])
    owner = subprocess.Popen([sys.executable, "-c", code, argument], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for name in "ab":
        wait_for(tmp_path / name / "ready")
    owner.send_signal(signal.SIGINT)
    out, _ = owner.communicate(timeout=20)
    assert sorted(out.split("\n")) == ["", "False", "a: interrupted  x", "b: interrupted  x"]
    assert not (tmp_path / "c" / "starts").exists()


def test_many_jobs_lose_no_result(job):
    seen = []
    write = 'echo \'{"status": "ok"}\' > "$0/r" && mv "$0/r" "$0/result.json"'
    folders = [job(i).run_dir for i in range(200)]
    assert run_all(Pool(8), [Job(("bash", "-c", write, str(folder)), folder) for folder in folders], seen.append)
    assert len({e.job.run_dir for e in seen}) == 200 and {e.result["status"] for e in seen} == {"ok"}


def test_an_interrupt_that_comes_twice_at_once_is_one():
    """Slurm signals torchrun and its ranks, and torchrun passes the signal on to them."""
    with stop_flag() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.kind == 1
        stop._since -= 5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_stop_that_came_inside_is_known_around():
    """As when a sweep hands a batch to the pool: whoever presses Ctrl-C means both."""
    with stop_flag() as around:
        with stop_flag():
            signal.raise_signal(signal.SIGTERM)
        assert around.kind == 2
