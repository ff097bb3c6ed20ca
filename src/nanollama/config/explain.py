"""Turn what went wrong in a config into one paragraph: which file, which field, what was given, the nearest valid name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from .errors import ConfigError

Layer = tuple[str, Mapping[str, Any]]  # where values come from ("command line", a file), and the nested values themselves


def nested_schema(annotation: Any) -> type | None:
    """The dataclass inside ``annotation`` (also through Optional and containers), or None."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) in (typing.Union, typing.Annotated, tuple, list):
        return next((found for arg in typing.get_args(annotation) if (found := nested_schema(arg))), None)
    return None


def fields_of(schema: type) -> dict[str, Any]:
    """Field name -> annotation."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def all_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key that ``schema`` accepts."""
    for name, annotation in fields_of(schema).items():
        yield prefix + name
        inner = annotation if dataclasses.is_dataclass(annotation) else None
        if inner is not None:
            yield from all_keys(typing.cast(type, inner), f"{prefix}{name}.")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A phrase that points at the likely intended names."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"valid here: {', '.join(sorted(valid))}"


def unknown_key(source: str, key: str, schema: type) -> ConfigError:
    """The error for a key that ``schema`` does not have."""
    parts = key.split(".")
    level: type | None = schema
    for part in parts[:-1]:
        level = nested_schema(fields_of(level).get(part)) if level else None
    siblings = [".".join([*parts[:-1], name]) for name in fields_of(level or schema)]
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    leaf = [k for k in all_keys(schema) if k.rsplit(".", 1)[-1] == parts[-1]]  # right name, wrong place
    hint = f"did you mean {leaf[0]}?" if leaf and not close else nearest(key, siblings)
    return ConfigError(f"{source}: unknown key {key}; {hint}")


def check_key(source: str, key: str, schema: type) -> None:
    """Raise unless the dotted ``key`` exists in ``schema`` (keys of free dictionaries always do)."""
    level: Any = schema
    for part in key.split("."):
        if not dataclasses.is_dataclass(level):
            return  # inside a dictionary or a list
        names = fields_of(typing.cast(type, level))
        if part not in names:
            raise unknown_key(source, key, schema)
        level = names[part]


def is_free(key: str, schema: type) -> bool:
    """Whether the dotted ``key`` names a dictionary of free keys, or something inside one."""
    level: Any = schema
    for part in key.split("."):
        if not dataclasses.is_dataclass(level):
            break
        level = fields_of(typing.cast(type, level)).get(part)
    return typing.get_origin(level) is dict


def _lookup(values: Any, path: Sequence[Any]) -> bool:
    try:
        for part in path:
            values = values[part]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def source_of(path: Sequence[Any], layers: Sequence[Layer], default: str) -> str:
    """Name of the strongest layer that sets ``path`` or, where none does, its parent."""
    for cut in (len(path), len(path) - 1):
        for name, values in layers:
            if cut and _lookup(values, path[:cut]):
                return name
    return default


def from_validation(error: ValidationError, schema: type, layers: Sequence[Layer], default: str) -> ConfigError:
    """One ConfigError for the first thing pydantic complains about, with a count of the others."""
    problems = error.errors(include_url=False)
    first = next((one for one in problems if one["type"] == "unexpected_keyword_argument"), problems[0])  # explains one that is missing
    path = [part for part in first["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    is_missing = first["type"] in ("missing", "missing_argument")
    source = source_of(path[:-1] if is_missing else path, layers, default)  # who gave the rest left it out, whatever a weaker layer's says
    if first["type"] == "unexpected_keyword_argument":
        error_ = unknown_key(source, ".".join(str(p) for p in path if not isinstance(p, int)), schema)
        text = str(error_)
    elif is_missing:
        text = f"{source}: {key} is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        allowed = first.get("ctx", {}).get("expected")
        hint = ""
        if first["type"] == "literal_error" and allowed:
            hint = "; " + nearest(str(first["input"]), [w.strip(" '") for w in allowed.replace(" or ", ",").split(",")])
        text = f"{source}: {key} = {first['input']!r}: {message[:1].lower()}{message[1:]}{hint}"
    if len(problems) > 1:
        text += f" (and {len(problems) - 1} more)"
    return ConfigError(text)
