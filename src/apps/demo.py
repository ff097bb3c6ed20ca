"""The main job, for real, in a few minutes: measure how hard data is, calibrate it, train on it, read the curves against the exact floor.

    python -m src.apps.demo            # make demo
    python -m src.apps.demo --quick    # the same steps, too short to learn anything
    python -m src.apps.demo run_dir=PATH

It only runs commands that anyone can run, as many at a time as there are cores, and prints where the report is. Nothing is precomputed.
Everything it makes lies in one new folder: a run folder for every step, and a log that begins with the step's command.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.nanollama.config import ROOT, ConfigError, Interrupted, RunFailed, read_result
from src.nanollama.config.folder import new_folder
from src.nanollama.launcher.signals import stop_flag
from src.nanollama.metrics.sinks import newest

SLOTS = 4  # most commands at a time: a small model gains more from a core of its own than from several
PATIENCE = 20  # seconds that an interrupted command gets to save what it has
TITLE = "Easy to infer, or easy to predict?"
LEAD = (
    "Two data sets that gzip takes for equally hard, and a third that is equally hard by its exact Bayes-optimal loss; "
    "one small transformer on each, read against its floor, and the same transformer on real text."
)

# --- the steps ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """How much of everything: arguments of the commands."""

    steps: int  # of a training on graph data
    text_steps: int
    train: tuple[str, ...]
    text: tuple[str, ...]
    measure: tuple[str, ...]
    sweep: tuple[str, ...]


SMALL = ("model.emb_dim=64", "model.nb_layers=2", "model.nb_heads=2")
FULL = Size(
    steps=7500,
    text_steps=7500,
    train=(
        *SMALL, "data.batch_size=4", "data.seq_len=128", "optim.lr=6e-3", "optim.schedule=linear", "train.log_period=25", "eval.period=300",
    ),
    text=("data.domain_bytes=2097152",),
    measure=("data.seq_len=128",),
    sweep=("fidelity.steps=[100,400]", "budget.trials=14"),
)
QUICK = Size(
    steps=4,
    text_steps=4,
    train=(*SMALL, "data.batch_size=2", "data.seq_len=32", "optim.warmup=1", "train.log_period=1", "eval.period=2"),
    text=("data.domain_bytes=262144",),
    measure=("data.seq_len=32", "measure.tokens=4096", "measure.sequences=16"),
    sweep=("fidelity.steps=[2,4]", "budget.trials=3"),
)


@dataclass(frozen=True)
class Step:
    """One command. ``arguments`` may read what the steps in ``after`` have found; ``tell`` puts into words what this one did."""

    name: str  # also its run folder, below the demo's
    module: str
    arguments: Callable[[Path], Sequence[str]]
    tell: Callable[[Path], str]
    after: tuple[str, ...] = ()
    train_steps: int = 0
    weight: int = 20  # its share of the progress bar, about seconds


def steps_of(size: Size) -> list[Step]:
    """Everything the demo does, in the order in which free cores take it up."""
    infer = ("experiment=debug", "alpha_X=1e-3", "alpha_Z=0.125")
    predict = ("experiment=debug", "alpha_X=5e-2", "alpha_Z=1e-3")

    def matched(folder: Path) -> tuple[str, ...]:
        return ("experiment=debug", "alpha_X=1e-3", f"alpha_Z={read_calibration(folder)['alpha']!r}")

    def target(folder: Path) -> tuple[str, ...]:
        wanted = read_difficulty(folder, "predict")["bayes_loss"]
        return ("experiment=debug", "alpha_X=1e-3", f"solve.target={wanted!r}", "solve.curve=0", *size.measure)

    def measure(name: str, law: tuple[str, ...]) -> Step:
        return Step(f"difficulty/{name}", "src.apps.gssm.difficulty", lambda f: (*law, *size.measure), lambda f: tell_difficulty(f, name))

    def training(name: str, module: str, steps: int, arguments: Callable[[Path], tuple[str, ...]], *after: str) -> Step:
        def full(folder: Path) -> tuple[str, ...]:
            return (*arguments(folder), f"train.steps={steps}", *size.train)

        return Step(f"train/{name}", module, full, lambda f: tell_training(f, name), after, steps, 70)

    def text(folder: Path) -> tuple[str, ...]:
        return ("data.weights=[.2,.2,.2,.2,.2]", f"data.cache={folder / 'corpora'}", *size.text)

    def sweep(folder: Path) -> tuple[str, ...]:
        overrides = ",".join(f"'{o}'" for o in (f"data.cache={folder / 'corpora'}", *size.text, "data.seq_len=128", "data.batch_size=8"))
        return (f"training.overrides=[{overrides}]", "fidelity.model_size=[pico,nano]", *size.sweep)

    gssm, steps = "src.apps.gssm.train", size.steps
    trainings = tuple(f"train/{name}" for name in ("text", "infer", "predict", "matched"))
    return [
        measure("predict", predict),
        measure("infer", infer),
        Step("difficulty/matched", "src.apps.gssm.calibrate", target, tell_calibration, ("difficulty/predict",), weight=30),
        training("text", "src.apps.mixbo.train", size.text_steps, text),
        training("infer", gssm, steps, lambda f: infer),
        training("predict", gssm, steps, lambda f: predict),
        training("matched", gssm, steps, matched, "difficulty/matched"),
        # last, since it takes every core for its own trials
        Step("sweep", "src.apps.mixbo.sweep", sweep, tell_sweep, trainings, weight=70),
    ]


# --- what they found ----------------------------------------------------------------------------------------------------------------


def read_difficulty(folder: Path, name: str) -> dict[str, Any]:
    """The measures of one setting; the calibrated one's come with its calibration."""
    return json.loads((folder / "difficulty" / name / "difficulty.json").read_text())


def read_calibration(folder: Path) -> dict[str, Any]:
    """What calibrating the third setting found: ``alpha`` (its alpha_Z), ``value`` (its Bayes loss), ..."""
    (solution,) = json.loads((folder / "difficulty" / "matched" / "calibration.json").read_text())["solutions"]
    return solution


def tell_difficulty(folder: Path, name: str) -> str:
    """The difficulty of one setting."""
    found = read_difficulty(folder, name)
    return (
        f"gzip {found['gzip_legacy']:.3f} bytes/token ({found['gzip_normalised']:.3f} of noise), "
        f"exact Bayes-optimal loss {found['bayes_loss']:.4f} ± {found['bayes_loss_se']:.4f} nats/token"
    )


def tell_calibration(folder: Path) -> str:
    """Which alpha_Z was found, and whether the exact losses are equal."""
    found, wanted = read_calibration(folder), read_difficulty(folder, "predict")
    gap, error = abs(found["value"] - wanted["bayes_loss"]), wanted["bayes_loss_se"]
    verdict = "equal within" if gap <= error else "NOT equal within"
    return (
        f"calibrated: alpha_Z = {found['alpha']:.4g} at alpha_X = 1e-3 has the exact Bayes loss {found['value']:.4f}, predict has "
        f"{wanted['bayes_loss']:.4f}, {verdict} its standard error of {error:.4f}; {tell_difficulty(folder, 'matched')}"
    )


def tell_training(folder: Path, name: str) -> str:
    """The final loss over its floor, or the text domains' losses."""
    result = read_result(folder / "train" / name) or {}
    if "excess_loss" in result:
        return f"loss {result['loss']:.4f} nats/token, {result['excess_loss']:.4f} ± {result['excess_loss_se']:.4f} above its exact floor"
    bits = {split.removeprefix("valid/"): record["bits_per_byte"] for split, record in result["final"].items()}
    return "bits/byte: " + ", ".join(f"{domain} {value:.2f}" for domain, value in bits.items())


def tell_sweep(folder: Path) -> str:
    """The sweep's answer."""
    best = json.loads((folder / "sweep" / "best.json").read_text())
    mixture = ", ".join(f"{domain} {100 * weight:.0f} %" for domain, weight in best["weights"].items() if weight >= 0.005)
    low, high = best["interval"]
    return (
        f"best mixture for {best['model_size']} at step {best['steps']} by {best['trials']} trials: {mixture}; "
        f"mean loss {best['predicted']:.3f} nats/byte [{low:.3f}, {high:.3f}]"
    )


# --- running them -------------------------------------------------------------------------------------------------------------------


class Child:
    """A running command, its output in ``logs/<step>.log``."""

    def __init__(self, step: Step, folder: Path, threads: int) -> None:
        self.step, self.folder = step, folder
        self.log = folder / "logs" / f"{step.name.replace('/', '-')}.log"
        self.began = time.monotonic()
        command = ["-m", step.module, *step.arguments(folder), f"run_dir={folder / step.name}"]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        with self.log.open("w") as log:
            log.write(f"$ {shlex.join(['python', *command])}\n")
            log.flush()
            # a session of its own: Ctrl-C reaches it through us, once
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def progress(self) -> float:
        """Share done, from 0 to 1; a command without training steps has only these two."""
        if self.process.poll() == 0:
            return 1.0
        record = newest(self.folder / self.step.name / "metrics.jsonl", "train") if self.step.train_steps else None
        return record["step"] / self.step.train_steps if record else 0.0

    def error(self) -> str:
        """Why it failed: its own message, or the last lines of its log."""
        result = read_result(self.folder / self.step.name) or {}
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"{self.step.name} failed: {result.get('message') or chr(10).join(lines[-8:])}\nlog: {self.log}"

    def signal(self, number: int) -> None:
        """Send to the command and everything it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


def run_all(steps: Sequence[Step], folder: Path) -> None:
    """Run the steps, as many at a time as there are slots. Raises RunFailed for the first that fails; no command outlives this call."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots = min(SLOTS, cores)
    waiting, running, done = list(steps), list[Child](), set[str]()
    bar = tqdm(total=sum(step.weight for step in steps), bar_format="{percentage:3.0f}% {bar} {elapsed}  {desc}", disable=None)
    with stop_flag() as asked:  # not an exception wherever it happens to be: one inside Popen would leave a command nobody knows of
        try:
            while waiting or running:
                if asked.kind:
                    raise KeyboardInterrupt
                for step in [step for step in waiting if done.issuperset(step.after)][: slots - len(running)]:
                    waiting.remove(step)
                    running.append(Child(step, folder, cores // slots))
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    if child.process.returncode:
                        raise RunFailed(child.error())
                    done.add(child.step.name)
                    tqdm.write(f"{child.step.name:<18} {time.monotonic() - child.began:4.0f} s  {child.step.tell(folder)}")
                finished = sum(step.weight for step in steps if step.name in done)
                bar.n = round(finished + sum(child.progress() * child.step.weight for child in running), 1)
                bar.set_description_str(f"{len(done)}/{len(steps)} done, now " + ", ".join(child.step.name for child in running))
                time.sleep(0.2)
        finally:
            stop(running)
            bar.close()


def stop(running: Sequence[Child]) -> None:
    """End every command that still runs: ask as Ctrl-C does, then insist."""
    for child in running:
        child.signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for child in running:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.signal(signal.SIGKILL)
            child.process.wait()


def report(folder: Path) -> int:
    """Write and print the report; returns the command's exit code."""
    arguments = [str(folder), f"out={folder / 'report.html'}", f"title={TITLE}", f"lead={LEAD}"]
    return subprocess.run([sys.executable, "-m", "src.nanollama.report", *arguments], cwd=ROOT).returncode


def place(argv: Sequence[str]) -> Path:
    """The demo's new folder. Raises ConfigError for arguments that it does not have, or a folder in use or that cannot be made."""
    unknown = [arg for arg in argv if arg != "--quick" and not arg.startswith("run_dir=")]
    if unknown:
        raise ConfigError(f"{unknown[0]}: the demo takes --quick and run_dir=PATH")
    given = next((arg.partition("=")[2] for arg in argv if arg.startswith("run_dir=")), "")
    folder = Path(given).expanduser().absolute() if given else new_folder("demo").absolute()
    if folder.exists() and (not folder.is_dir() or (given and any(folder.iterdir()))):
        raise ConfigError(f"run_dir={given}: is not an empty folder; the demo starts from nothing, give it a new one")
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}; give a writable place with run_dir=PATH") from error
    return folder


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    if any(arg in ("-h", "--help") for arg in argv):
        print((__doc__ or "").strip())
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # explicitly: a shell starts background commands with Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    try:
        folder = place(argv)
        print(f"everything goes to {folder}", flush=True)
        run_all(steps_of(QUICK if "--quick" in argv else FULL), folder)
        print(flush=True)
        return report(folder)
    except (ConfigError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: every command of the demo was ended", file=sys.stderr)
        return Interrupted.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
