"""Compose one typed, frozen config: dataclass defaults < Hydra groups < YAML file < command line, then ``resolve``."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from .as_yaml import uninterpreted
from .errors import ConfigError
from .explain import Layer, check_key, fields_of, from_validation, is_free, nearest, source_of
from .secret import without_passwords

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
FILE_GROUPS = ("config", "experiment")  # groups whose options are files registered on demand
BETWEEN_COMMAS = re.compile(r"(?:'(?:\\.|[^'\\])*'|[^,])+")  # a name that is quoted keeps its own


def _identity(cfg: Any) -> Any:
    return cfg


@dataclasses.dataclass(frozen=True)
class Entry:
    """One command.

    ``name``: its primary config ``configs/<name>.yaml`` and the stem of its run folders. ``resolve``: pure function from the
    checked config to the complete one (derived values, contradictions). ``experiments``: folder, from the project's root, whose
    YAML files are the options of the group ``experiment``. ``volatile``: dotted keys that may change when a run is resumed.
    ``domains``: names of the domains that the key ``data.weights`` of a resolved config mixes, for commands that have it.
    ``ranks``: whether several processes of torchrun may share one run, as in a training; all else is one process.
    """

    name: str
    schema: type
    resolve: Callable[[Any], Any] = _identity
    experiments: str | None = None
    volatile: tuple[str, ...] = ()
    domains: Callable[[Any], tuple[str, ...]] | None = None
    ranks: bool = False


def compose(entry: Entry, argv: Sequence[str]) -> Any:
    """Typed, frozen, resolved config of a command line (without program name). Raises ConfigError; touches no file."""
    node, overrides = compose_node(entry, argv)
    if has_grid(entry, node):
        raise ConfigError(f"{grid_file(entry, overrides)}: a grid is several runs: start them with python -m src.nanollama.launcher")
    return typed(entry, node, overrides)


def compose_node(entry: Entry, argv: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """What Hydra makes of a command line, not yet checked against the dataclasses, and the command line in Hydra's grammar."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    overrides = rewrite_argv(entry, argv)
    check_overrides(entry, overrides)
    register_schema(entry)
    try:
        with config_loader():
            node = hydra_compose(entry.name, overrides=overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last: a defaults list that is none
        raise ConfigError(_one_paragraph(error)) from error
    return node, overrides


@contextmanager
def config_loader() -> Iterator[Any]:
    """Hydra's loader of the files in ``configs/`` and of what is registered beside them."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def has_grid(entry: Entry, node: DictConfig) -> bool:
    """Whether a config holds a ``grid:`` section, which the launcher turns into several runs."""
    return "grid" in node and "grid" not in fields_of(entry.schema)


def grid_file(entry: Entry, overrides: Sequence[str]) -> str:
    """Name of the file that has a ``grid:`` section, for messages."""
    return next((name for name, values in _layers(entry, overrides) if "grid" in values), "grid")


def typed(entry: Entry, node: DictConfig, overrides: Sequence[str] = ()) -> Any:
    """Check a composed OmegaConf node against the dataclasses and resolve it."""
    default = f"configs/{entry.name}.yaml"
    try:
        cfg: Any = TypeAdapter(entry.schema).validate_python(OmegaConf.to_container(node, resolve=True, throw_on_missing=True))
    except ValidationError as error:
        raise from_validation(error, entry.schema, _layers(entry, overrides), default) from error
    except OmegaConfBaseException as error:  # ${...} that leads nowhere, or ???
        source = source_of(str(error.full_key).split("."), _layers(entry, overrides), default)
        raise ConfigError(f"{source}: {error.full_key}: {str(error).splitlines()[0]}") from error
    return entry.resolve(cfg)


def as_dict(cfg: Any) -> dict[str, Any]:
    """A config as plain nested dictionaries and lists, ready for YAML or JSON; passwords of URLs are left out."""
    return _plain(dataclasses.asdict(cfg))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``part.key`` -> value; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return without_passwords(value) if isinstance(value, str) else value


def register_schema(entry: Entry) -> None:
    """Store the dataclass defaults as ``<name>_schema``, the first thing in the primary config's defaults list."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{entry.name}_schema", node=as_dict(entry.schema()), provider=entry.schema.__module__)


# --- the command line -----------------------------------------------------------------------------------------------------------


def rewrite_argv(entry: Entry, argv: Sequence[str]) -> list[str]:
    """Bring every accepted form to Hydra's grammar: a positional YAML, ``config=FILE`` and ``experiment=NAME`` become group choices.

    Idempotent, since a sweep passes rewritten arguments on to its jobs.
    """
    out = []
    for arg in argv:
        if re.fullmatch(r"[^=-][^=]*\.ya?ml", arg):
            arg = "config=" + arg
        group, _, value = arg.partition("=")
        if group in FILE_GROUPS and value not in ("", "null"):
            names = [_register_file(entry, group, name) for name in _names(entry, group, value)]
            arg = f"{group}=" + ",".join(names)
        elif group == "run_dir" and value not in ("", "null") and value[0] not in "'\"" and "${" not in value:
            arg = f"{group}={quoted(value)}"  # a path is not a text in Hydra's grammar, where a parenthesis or a comma would mean something
        elif is_free(group, entry.schema):
            arg = "++" + arg  # Hydra's word for keys that are not there yet
        out.append(arg)
    files = [arg for arg in out if arg.startswith("config=")]
    if len(files) > 1:
        raise ConfigError(f"command line: {' and '.join(files)}: only the last would count; give one file, on top of an experiment=NAME")
    return out


def _names(entry: Entry, group: str, value: str) -> list[str]:
    """The files that ``a,b``, ``choice(a,b)`` or ``glob(a*)`` name."""
    if not re.fullmatch(r"(choice|glob|sort|shuffle)\(.*\)", value):
        return BETWEEN_COMMAS.findall(value)
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    register_experiments(entry)
    try:
        with config_loader() as loader:
            (choice,) = OverridesParser.create(loader).parse_overrides([f"{group}={value}"])
            return list(choice.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(f"command line: {group}={value}: {_one_paragraph(error)}") from error


def quoted(value: object) -> str:
    """A text for Hydra's grammar, taken literally whatever it contains; plain words stay as they are."""
    text = str(value)
    if re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # Backslashes count also before a quote and at the end
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), uninterpreted(text)) + "'"


def find_file(entry: Entry, group: str, name: str) -> Path:
    """The YAML file that ``config=name`` or ``experiment=name`` means. Raises ConfigError that lists the nearest names."""
    name = name.strip("'\"").replace("\\'", "'")  # as ``quoted`` writes it
    folders = [ROOT / entry.experiments] if entry.experiments else []
    places = [Path.cwd(), ROOT, Path("/")] if group == "config" else folders
    for place in places:
        for suffix in ("", ".yaml", ".yml"):
            path = (place / (os.path.expanduser(name) + suffix)).resolve()
            if path.is_file():
                return path
    known = sorted(str(f.relative_to(folder).with_suffix("")) for folder in folders for f in folder.rglob("*.yaml"))
    if group == "config":
        parent = next((p for place in places if (p := (place / os.path.expanduser(name)).parent).is_dir()), None)
        siblings = [str(Path(name).parent / f.name) for f in sorted(parent.glob("*.y*ml"))] if parent else []
        looked = " and ".join(dict.fromkeys([str(Path.cwd()), str(ROOT)]))
        hint = nearest(name, siblings) if siblings else f"looked in {looked}"
        raise ConfigError(f"config={name}: no such file; {hint}")
    raise ConfigError(f"experiment={name}: no such experiment in {entry.experiments or '(this command has none)'}; {nearest(name, known)}")


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, or ConfigError with the line of the mistake."""
    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_one_paragraph(error)}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: the top level must be a mapping of keys to values")
    return node  # type: ignore[return-value]


def _register_file(entry: Entry, group: str, name: str) -> str:
    from hydra.core.config_store import ConfigStore

    file = find_file(entry, group, name)
    base = ROOT if group == "config" else ROOT / (entry.experiments or "")
    option = str(file.relative_to(base) if file.is_relative_to(base) else file).lstrip("/")
    option = re.sub(r"\.ya?ml$", "", option)
    parent, _, leaf = f"{group}/{option}".rpartition("/")
    ConfigStore.instance().store(group=parent, name=leaf, package="_global_", node=load_yaml(file), provider=str(file))
    return option if re.fullmatch(r"[\w./+-]+", option) else quoted(option)


def register_experiments(entry: Entry) -> None:
    """Make the names of all experiments known to Hydra (for ``--help``), without their contents, which it would copy again and again."""
    from hydra.core.config_store import ConfigStore

    folder = ROOT / (entry.experiments or "")
    for file in sorted(folder.rglob("*.yaml")) if entry.experiments else []:
        group = "/".join(("experiment", *file.relative_to(folder).parent.parts))
        ConfigStore.instance().store(group=group, name=file.stem, package="_global_", node={})


def check_overrides(entry: Entry, overrides: Sequence[str]) -> None:
    """Refuse a malformed override or an unknown key before Hydra sees it, with the nearest valid name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = {p.name for p in CONFIGS.iterdir() if p.is_dir()} | set(FILE_GROUPS)
    for text in overrides:
        if text.startswith("-"):
            raise ConfigError(f"command line: {text}: unknown option (overrides are written key=value; see --help)")
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"command line: {text!r} is not of the form key=value: {_one_paragraph(error)}{_quoting(text)}") from error
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            continue
        if key in groups or key.split("@")[0] in groups:
            _check_choice(key, override.value(), override.is_sweep_override())
        else:
            check_key("command line", key, entry.schema)


def _quoting(text: str) -> str:
    """How to write an override whose value is a text that Hydra's grammar does not take as it is."""
    found = re.fullmatch(r"([+]*[A-Za-z][\w./@-]*)=([^'\"\\[{]+)", text, re.ASCII)
    return "; a text with such characters goes in quotes: " + shlex.quote(f'{found[1]}="{found[2]}"') if found else ""


def _check_choice(group: str, value: Any, is_sweep: bool) -> None:
    if value in (None, ""):
        raise ConfigError(f"command line: {group}={'null' if value is None else ''}: to choose no {group}, leave it out")
    folder = CONFIGS / group
    if is_sweep or not folder.is_dir():
        return
    options = sorted(f.stem for f in folder.glob("*.yaml"))
    if str(value) not in options and not isinstance(value, list):
        raise ConfigError(f"command line: {group}={value}: no such option of configs/{group}; {nearest(str(value), options)}")


def _layers(entry: Entry, overrides: Sequence[str]) -> list[Layer]:
    """Where each value came from, strongest first."""
    command_line: dict[str, Any] = {}
    files: list[Layer] = []
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        if key in FILE_GROUPS and value != "null":
            file = find_file(entry, key, value)
            files.insert(0 if key == "config" else len(files), (_short(file), OmegaConf.to_container(load_yaml(file))))  # type: ignore[arg-type]
        else:
            level = command_line
            *parents, leaf = key.split(".")
            for part in parents:
                level = level.setdefault(part, {})
            if isinstance(level, dict):
                level[leaf] = value
    return [("command line", command_line), *files]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _one_paragraph(error: BaseException) -> str:
    return " ".join(str(error).split())
