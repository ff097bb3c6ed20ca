"""What the launcher writes comes back unchanged, and nothing of it reaches a shell unquoted."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.nanollama.config import ConfigError
from src.nanollama.config.schema import ClusterConfig
from src.nanollama.launcher import script
from src.nanollama.launcher.outcome import EXIT_CODES
from src.nanollama.launcher.script import Script, check_path, ranges


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_environment_reaches_the_process_as_it_is(value):
    spec = Script("m", ClusterConfig(env={"MARKER": value}), Path("/r"), Path("/r/launch/0"), Path("/"), "m")
    shell = "\n".join(script.environment(spec)) + '\nprintf %s "$MARKER"'
    assert subprocess.run(["bash", "-c", shell], capture_output=True).stdout == value.encode()


@pytest.mark.parametrize("name", ["a b", "it's", "$(touch x)", "a;b", "line\nend", "-rf", "`id`", "&", "*"])
def test_everything_in_a_script_is_one_word(name):
    folder = Path("/tmp") / name.replace("\n", "")  # check_path refuses those
    spec = Script("pkg.module", ClusterConfig(), folder, folder / "launch" / "0", Path("/") / name, name)
    for batch in (False, True):
        text = script.text(spec, batch)
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        assert f"cd {shlex.quote('/' + name)}\n" in text
        assert f"run={shlex.quote(str(folder))}\n" in text


def test_batch_directives():
    cluster = ClusterConfig(torchrun=True, gpus=8, nodes=2, cpus=3, mem="16G", time="2:00:00", partition="p", account="a", constraint="x&y")
    spec = Script("m", cluster, Path("/runs/a b%"), Path("/runs/a b%/launch/0"), Path("/"), "my run", tasks=(0, 1, 2, 5))
    lines = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in script.directives(spec)[:-1])
    assert lines["job-name"] == "my-run"
    assert lines["output"] == '"/runs/a b%%/logs/slurm-%A_%a.out"'
    assert (lines["nodes"], lines["gpus-per-node"], lines["cpus-per-task"]) == ("2", "8", "24")
    assert (lines["mem"], lines["time"], lines["partition"], lines["account"], lines["constraint"]) == ("16G", "2:00:00", "p", "a", "x&y")
    assert lines["array"] == "0-2,5"
    text = script.text(spec, batch=True)
    assert "--nnodes=2 --nproc-per-node=8" in text and "--rdzv-endpoint" in text and "--standalone" not in text


def test_digits_where_a_text_is_meant():
    cluster = ClusterConfig(mem=0, account=123, env={"A": 4})
    assert (cluster.mem, cluster.account, cluster.env) == ("0", "123", {"A": "4"})


def test_ranges():
    assert ranges([3]) == "3"
    assert ranges([5, 1, 2, 3]) == "1-3,5"


@pytest.mark.parametrize(
    "key, value", [("partition", "a b"), ("mem", "much"), ("time", 86400), ("constraint", "a\n#SBATCH"), ("env", {"A=B": "x"})]
)
def test_cluster_values_are_checked(key, value):
    with pytest.raises(ValueError):
        ClusterConfig(**{key: value})


@pytest.mark.parametrize("path", ["/a'b", '/a"b', "/a,b", "/a:b", "/a${x}", "/a\nb", "/a\\b"])
def test_run_folders_that_cannot_be_passed_on(path):
    with pytest.raises(ConfigError, match="cannot be in it"):
        check_path(Path(path))


def test_every_status_has_an_exit_code():
    from src.nanollama.config.folder import STATUSES

    assert set(EXIT_CODES) == set(STATUSES)
