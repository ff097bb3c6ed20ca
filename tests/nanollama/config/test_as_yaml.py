"""Any config comes back from YAML as it was: through OmegaConf, as ``config=FILE`` does, and through YAML 1.1, as reports do."""

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.apps.gssm.config import TRAIN
from src.nanollama.config import compose, quoted
from src.nanollama.config.as_yaml import composable, to_yaml
from src.nanollama.config.compose import as_dict

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        *("${oc.env:HOME}", "\\${x}", "\\\\${x", "$(id)", "1e-3", "null", "yes", "a: b", "- x", "'", '"', "\n", "??? "),
        *("12:30:00", "0x10", "1e5", "+1_0.", ".5e3", "010"),
    ]
)
LEAF = TEXT | st.integers(-(2**60), 2**60) | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
VALUE = LEAF | st.lists(LEAF, max_size=3) | st.lists(st.dictionaries(st.sampled_from("abc"), LEAF), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["text", "value", "list"]), VALUE))
def test_what_is_composable_composes_to_itself(tmp_path_factory, config):
    if "???" in str(config):  # OmegaConf's mark of a missing value
        return
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    file.write_text(composable(config))
    assert OmegaConf.to_container(OmegaConf.load(file), resolve=True) == config
    assert yaml.safe_load(to_yaml(config)) == config


def test_the_config_of_a_run_starts_the_same_run(tmp_path) -> None:
    cfg = compose(TRAIN, ["experiment=debug", f"name={quoted('1e-3')}", "cluster.account='007'"])
    (tmp_path / "config.yaml").write_text(to_yaml(as_dict(cfg)))
    assert compose(TRAIN, [f"config={tmp_path / 'config.yaml'}"]) == cfg
