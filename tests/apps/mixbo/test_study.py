"""The store of a sweep: a trial is told in several writes, and a kill may come between any two."""

from contextlib import closing, suppress
from dataclasses import replace

import pytest
from studies import problem, simulator

from src.apps.mixbo.options import SpaceConfig
from src.apps.mixbo.records import Suggestion
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.study import Outcome, Study
from src.nanollama.config import ConfigError

WRITES = ("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values")
ASKED = Suggestion((0.2, 0.3, 0.5), "20M", 4000, acquisition=0.5, flops=8.0)
OUTCOMES = {
    "ok": Outcome("ok", ((2000, (3.0,)), (4000, (2.5,))), 8.0),
    "failed": Outcome("nan", (), 3.0, "the loss is not finite", {"params": 7}),
}


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


def opened(folder) -> Study:
    return Study("study", Study.sqlite(folder), problem(simulator()), "identity")


def kill_after(study: Study, writes: int) -> None:
    """Let ``writes`` more writes reach the database."""
    left = [writes]
    for name in WRITES:
        real = getattr(study._storage, name)

        def write(*args, real=real, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **options)

        setattr(study._storage, name, write)


def facts(details: dict) -> dict:
    return {key: value for key, value in details.items() if key not in ("started", "ended")}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_a_trial_killed_while_it_is_told_runs_until_it_is_told_again(kind: str, tmp_path) -> None:
    with closing(opened(tmp_path)) as study:
        study.tell(study.add(ASKED), OUTCOMES[kind])
        (told,), (details,) = study.records(), study.details()
    assert told.status == kind and told.flops == OUTCOMES[kind].flops
    for writes in range(20):
        folder = tmp_path / str(writes)
        folder.mkdir()
        with closing(opened(folder)) as study:
            number = study.add(ASKED)
            (running,) = study.records()
            kill_after(study, writes)
            with suppress(Killed):
                study.tell(number, OUTCOMES[kind])
        with closing(opened(folder)) as study:
            if study.records() == (told,):
                break
            assert study.records() == (running,) and study.details()[0]["status"] == "running"
            study.tell(number, OUTCOMES[kind])
            assert study.records() == (told,) and facts(study.details()[0]) == facts(details)
    assert writes >= 4  # the last write is the one that counts


@pytest.mark.parametrize(("said", "booked"), [(3.0, 3.0), (0.0, 8.0)])
def test_a_trial_that_cannot_say_what_it_cost_is_charged_what_it_asked_for(said: float, booked: float, tmp_path) -> None:
    with closing(opened(tmp_path)) as study:
        study.tell(study.add(ASKED), Outcome("killed", flops=said))
        assert study.records()[0].flops == booked


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_failure(value: float, tmp_path) -> None:
    with closing(opened(tmp_path)) as study:
        study.tell(study.add(ASKED), Outcome("ok", ((2000, (3.0,)), (4000, (value,))), 8.0))
        (record,), (details,) = study.records(), study.details()
    assert record.status == "failed" and record.curve == () and record.flops == 8.0
    assert details["status"] == "nan" and details["value"] is None and "not finite" in details["message"]


def test_trials_of_other_domains_are_refused(tmp_path) -> None:
    with closing(opened(tmp_path)) as study:
        study.add(ASKED)
    for domains in ("abcd", "ab"):  # a folder of texts more, or less, than when the study began
        posed = replace(problem(simulator()), space=MixtureSpace.from_config(SpaceConfig(tuple(domains))))
        with closing(Study("study", Study.sqlite(tmp_path), posed, "identity")) as study, pytest.raises(ConfigError, match="domains"):
            study.records()


def test_a_study_in_a_store_of_its_own_belongs_to_one_folder(tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    for folder in (first, first):
        with closing(opened(tmp_path)) as study:
            study.claim(folder)
    with closing(opened(tmp_path)) as study, pytest.raises(ConfigError, match="that run_dir"):
        study.claim(second)
    first.rename(second)
    for folder in (second, second):
        with closing(opened(tmp_path)) as study:
            study.claim(folder)
