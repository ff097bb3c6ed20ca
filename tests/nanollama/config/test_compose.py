"""Every accepted form of a command line, and every refusal: names the source, the field and the nearest valid name."""

import dataclasses

import pytest

from src.apps.gssm.config import TRAIN
from src.nanollama.config import ConfigError, compose, quoted
from src.nanollama.config.compose import as_dict, rewrite_argv
from src.nanollama.config.main import expand

DEBUG = "src/apps/gssm/configs/debug.yaml"
FORMS = [[f"config={DEBUG}"], [DEBUG], ["experiment=debug"], [f"config={DEBUG.removesuffix('.yaml')}"]]


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_all_forms_mean_the_same(form: list[str]) -> None:
    assert compose(TRAIN, [*form, "train.steps=7"]) == compose(TRAIN, ["train.steps=7", *FORMS[0]])


def test_precedence_defaults_then_group_then_file_then_command_line(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {emb_dim: 96, nb_heads: 3}\n")
    cfg = compose(TRAIN, ["experiment=debug", "model=base", f"config={file}", "model.nb_layers=1"])
    assert (cfg.model.emb_dim, cfg.model.nb_heads, cfg.model.nb_layers) == (96, 3, 1)
    assert compose(TRAIN, ["experiment=base", "model=small"]).model.emb_dim == 128  # a preset named on the command line beats the file's


def test_numbers_written_in_scientific_notation_are_numbers() -> None:
    cfg = compose(TRAIN, ["experiment=debug", "alpha_Z=1e-3"])
    assert cfg.alpha_X == 1e-3 and cfg.alpha_Z == 1e-3  # alpha_X comes from YAML 1.1, which reads 1e-3 as text


def test_config_is_frozen_and_complete() -> None:
    cfg = compose(TRAIN, ["experiment=debug"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.train.steps = 3
    assert cfg.model.vocab_size == 32 and cfg.model.ffn_dim == 352 and cfg.train.micro_batch == 16


def test_a_written_config_composes_to_itself(tmp_path) -> None:
    import yaml

    cfg = compose(TRAIN, ["experiment=debug", "model.nb_layers=3"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(as_dict(cfg)))
    assert compose(TRAIN, [str(file)]) == cfg


def test_files_with_awkward_names(tmp_path) -> None:
    file = tmp_path / "a b, c=d {e}" / "x.yaml"
    file.parent.mkdir()
    file.write_text("train: {steps: 21}\n")
    with pytest.raises(ConfigError):  # commas separate the files of a sweep
        compose(TRAIN, ["experiment=debug", f"config={file}"])
    assert compose(TRAIN, ["experiment=debug", f"config={quoted(file)}"]).train.steps == 21
    both = [part for arg in rewrite_argv(TRAIN, [f"config={quoted(file)},{DEBUG}"]) for part in arg.split("=", 1)]
    assert both[1].endswith(",src/apps/gssm/configs/debug") and "c=d" in both[1]
    theirs = tmp_path / "it's, theirs.yaml"
    theirs.write_text("train: {steps: 22}\n")
    assert compose(TRAIN, ["experiment=debug", f"config={quoted(theirs)}"]).train.steps == 22
    plain = tmp_path / "a b=c.yaml"
    plain.write_text("train: {steps: 21}\n")
    assert compose(TRAIN, ["experiment=debug", f"config={plain}"]).train.steps == 21


def test_dictionaries_of_free_keys_need_no_plus() -> None:
    cfg = compose(TRAIN, ["experiment=debug", "cluster.env={A: b}", "cluster.env.OMP_NUM_THREADS='1'"])
    assert cfg.cluster.env == {"A": "b", "OMP_NUM_THREADS": "1"}


AWKWARD = ["a b", "it's", "a\\b", "a\\", "\\'", "${x}", "\\${x}", "${", "$(x)", "a,b", "[1]", "1e-3", "null", "é", "a=b", "a\\\n", '"', ""]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_quoted_text_is_taken_literally(text: str) -> None:
    assert compose(TRAIN, ["experiment=debug", f"name={quoted(text)}"]).name == text


@pytest.mark.parametrize("path", ["~/x", "a b/(1)", "a,b", "a=b", "12", "1e3", "é", "$x", "'q r'"])
def test_a_run_folder_needs_no_quotes(path: str) -> None:
    argv = rewrite_argv(TRAIN, ["experiment=debug", f"run_dir={path}"])
    assert compose(TRAIN, argv).run_dir == path.strip("'")
    assert compose(TRAIN, ["experiment=debug", "run_dir=null"]).run_dir is None
    assert compose(TRAIN, ["experiment=debug", "run_dir=runs/${name}"]).run_dir == "runs/debug"


def test_choices_of_a_multirun() -> None:
    globs = rewrite_argv(TRAIN, ["experiment=glob(de*)", "model=glob(gpt2*,exclude=*l)"])
    assert list(expand(globs)) == [[f"experiment={e}", f"model=gpt2-{m}"] for e in ("debug", "dense") for m in ("large", "medium")]
    assert list(expand(rewrite_argv(TRAIN, ["experiment=choice(debug,base)"]))) == [["experiment=debug"], ["experiment=base"]]
    with pytest.raises(ConfigError, match="no job"):
        list(expand(["model=glob(nothing*)"]))


def test_rewriting_twice_changes_nothing() -> None:
    once = rewrite_argv(TRAIN, [DEBUG, "experiment=sparse", "train.steps=3", "cluster.env.A=b"])
    assert rewrite_argv(TRAIN, once) == once


@pytest.mark.parametrize("name", ["base", "sparse", "dense", "low_entropy", "debug"])
def test_named_experiments_compose(name: str) -> None:
    assert compose(TRAIN, [f"experiment={name}"]).model.vocab_size == 32


BAD = {
    "unknown key": (["experiment=debug", "model.emb_dimm=3"], ["command line", "model.emb_dimm", "model.emb_dim?"]),
    "right name in the wrong place": (["experiment=debug", "emb_dim=3"], ["emb_dim", "model.emb_dim?"]),
    "wrong type": (["experiment=debug", "model.emb_dim=wide"], ["command line", "model.emb_dim", "'wide'", "integer"]),
    "true for a number": (["experiment=debug", "train.steps=true"], ["train.steps", "number"]),
    "out of range": (["experiment=debug", "optim.lr=-1"], ["optim.lr", "-1", "greater than or equal to 0"]),
    "an average that never moves": (["experiment=debug", "optim.betas=[0.9,1]"], ["optim.betas", "less than 1"]),
    "momentum that never moves": (["experiment=debug", "optim.momentum=1"], ["optim.momentum", "less than 1"]),
    "zero by zero": (["experiment=debug", "optim.eps=0"], ["optim.eps", "greater than 0"]),
    "not among the allowed": (["experiment=debug", "train.device=gpu"], ["train.device", "'gpu'", "did you mean cpu?"]),
    "missing file": (["config=src/apps/gssm/configs/debgu.yaml"], ["no such file", "debug.yaml?"]),
    "missing experiment": (["experiment=debgu"], ["src/apps/gssm/configs", "did you mean debug?"]),
    "missing preset": (["experiment=debug", "model=tinny"], ["configs/model", "did you mean tiny?"]),
    "not key=value": (["experiment=debug", "train.steps"], ["train.steps", "key=value"]),
    "unknown option": (["--sweep"], ["--sweep", "--help"]),
    "contradictory vocabulary": (["experiment=debug", "model.vocab_size=64"], ["model.vocab_size = 64", "node X", "32"]),
    "heads that do not divide": (["experiment=debug", "model.nb_heads=5"], ["model.emb_dim", "model.nb_heads"]),
    "batch that does not divide": (["experiment=debug", "train.micro_batch=5"], ["train.micro_batch", "5", "16"]),
    "a text that wants quotes": (["experiment=debug", "name=é"], ["name=é", "in quotes", "'name=\"é\"'"]),
    "a reference to nothing": (["experiment=debug", "name=${nope}"], ["command line", "name", "'nope' not found"]),
    "a reference to no variable": (["experiment=debug", "name=${oc.env:NOPE_}"], ["command line", "name", "NOPE_"]),
    "no value": (["experiment=debug", "name=???"], ["command line", "name"]),
    "two files": ([DEBUG, f"config={DEBUG}"], ["debug", "give one"]),
    "a group without a choice": (["experiment="], ["experiment=", "leave it out"]),
    "no graph": ([], ["gssm is empty", "experiment=debug"]),
}


@pytest.mark.parametrize("case", BAD, ids=BAD.keys())
def test_refusals_name_the_field_and_what_to_do(case: str) -> None:
    argv, words = BAD[case]
    with pytest.raises(ConfigError) as caught:
        compose(TRAIN, argv)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


FILES = {
    "unknown key": ("model: {emb_dimm: 3}\n", ["model.emb_dimm", "model.emb_dim?"]),
    "unknown key in a list": ("gssm: [{name: X, state_dim: 4, alpa: 1}]\n", ["gssm.alpa", "gssm.alpha?"]),
    "typing error in a required key": ("gssm: [{name: X, state_dimm: 4}]\n", ["gssm.state_dimm", "gssm.state_dim?"]),
    "a reference to nothing": ("name: ${nope}\n", ["name", "'nope' not found"]),
    "a set": ("cluster: {env: !!set {A}}\n", ["set"]),
    "a list of itself": ("gssm: &a [*a]\n", ["recursion"]),
    "wrong type": ("model: {emb_dim: [1, 2]}\n", ["model.emb_dim", "integer"]),
    "missing field": ("gssm: [{name: X}]\n", ["gssm[0].state_dim", "missing"]),
    "broken YAML": ("model: {emb_dim: [1\n", ["not readable as YAML", "line"]),
    "a list": ("- 1\n", ["mapping"]),
    "section that is no mapping": ("model: 3\n", ["model"]),
}


@pytest.mark.parametrize("case", FILES, ids=FILES.keys())
def test_mistakes_in_a_file_name_the_file(case: str, tmp_path) -> None:
    text, words = FILES[case]
    file = tmp_path / "mistake.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose(TRAIN, [str(file)])
    for word in ["mistake.yaml", *words]:
        assert word in str(caught.value)


def test_what_a_file_leaves_out_of_a_list_is_its_own_mistake(tmp_path) -> None:
    file = tmp_path / "mistake.yaml"
    file.write_text("gssm: [{name: X}]\n")  # a list takes the place of the experiment's, in which the field is there
    with pytest.raises(ConfigError, match=r"mistake\.yaml: gssm\[0\]\.state_dim is missing"):
        compose(TRAIN, ["experiment=debug", str(file)])
