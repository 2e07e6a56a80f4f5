"""Data against the schema: what it refuses, in words for someone who writes YAML."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segray.config.schema import SweepConfig
from segray.config.yaml_file import KeyPath, show

SEARCHABLE = ("model", "train")
_WORDS = {  # pydantic's errors
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "keys with their values"),
    **dict.fromkeys(("string_type", "string_unicode"), "text"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "up to 64 letters, digits, dots, dashes and underscores",
}
_OTHER_NAMES = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "run_count": "run_cap",
    "max_iter": "epochs",  # of W&B's hyperband
}
_OTHER_WORDS = {  # other tools' values of a key -> what they are here
    ("method", "bayes"): "what W&B calls bayes is gp here; tpe, the default, takes every space",
}


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong with a config: the key, the rule, and what came."""

    path: KeyPath
    rule: str
    value: Any = ...  # ... where the rule says it or nothing came


def check(data: dict[str, Any]) -> tuple[SweepConfig | None, list[Flaw]]:
    """The config that `data` makes, None where the schema refuses it, and every flaw in it."""
    config, found = None, []
    try:
        config = SweepConfig.model_validate(data)
    except ValidationError as errors:
        found = flaws(errors, data)
    parameters = data.get("parameters")
    if isinstance(parameters, dict):
        known = searchable_keys(data)
        found += [flaw for name in parameters for flaw in _unknown_parameter(name, known)]
    return config, found


def flaws(errors: ValidationError, data: Any) -> list[Flaw]:
    """Everything that the schema refuses in `data`, each value once."""
    found: dict[KeyPath, Flaw] = {}
    literals = set()
    for error in errors.errors():
        one = _in_words(error, _data_path(data, error), data)
        other = found.setdefault(one.path, one)
        if other is one and error["type"] == "literal_error":
            literals.add(one.path)
        if one.rule != other.rule:  # each member of a union complains: a number, or auto
            both = f"{other.rule} or {one.rule.removeprefix('expected ')}"
            rule = both.replace("a whole number or a number", "a number")
            found[one.path] = replace(other, rule=rule)
    return [
        one
        for path, one in found.items()  # an item of a list is wrong: a literal was not meant
        if path not in literals or not any(path == p[: len(path)] != p for p in found)
    ]


def searchable_keys(data: Any) -> list[str]:
    """Dotted paths of the keys of model and train that hold values."""
    return sorted({path for path in _leaves(SweepConfig, data) if path.split(".")[0] in SEARCHABLE})


def takes_text(path: Sequence[str], data: Any) -> bool:
    """Whether the key at `path` holds text, so that 007 is no number there."""
    model: type[BaseModel] | None = SweepConfig
    for key in path[:-1]:
        data = get(data, [key])
        field = model.model_fields.get(key) if model else None
        model = _chosen(field.annotation, data) if field else None
    field = model.model_fields.get(path[-1]) if model else None
    return field is not None and (field.annotation is str or field.annotation == str | None)


def nearest(key: str, valid: Sequence[str], elsewhere: Iterable[str] = ()) -> str:
    """Which of the valid keys `key` may mean; all of them where none is near.

    `elsewhere` are keys under their dotted paths that are valid in other places: one with the very
    name comes first.
    """
    name = key.split(".")[-1]
    name = _OTHER_NAMES.get(name, name)
    same = [path for path in (*valid, *elsewhere) if path.split(".")[-1] == name]
    close = same or difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if not close:
        last = {path.split(".")[-1]: path for path in (*elsewhere, *valid)}
        close = [last[found] for found in difflib.get_close_matches(name, last, n=1)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"expected one of {', '.join(valid)}" if valid else "remove it"


def get(data: Any, path: Sequence[str | int]) -> Any:
    """The value at `path`; None where there is none."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _unknown_parameter(name: str, known: Sequence[str]) -> Iterator[Flaw]:
    if name in known:
        return
    path = ("parameters", name)
    if name.split(".")[0] not in SEARCHABLE and name.split(".")[0] in SweepConfig.model_fields:
        rule = (
            "only keys of model and train can be searched: the others decide what is measured "
            "or how the sweep runs, so its trials could not be compared"
        )
        yield Flaw(path, rule)
    else:
        yield Flaw(path, f"no such config key; {nearest(name, known)}")


def _in_words(error: ErrorDetails, path: KeyPath, data: Any) -> Flaw:
    kind, came = error["type"], error["input"]
    context = {key: str(text).replace("'", "") for key, text in error.get("ctx", {}).items()}
    if kind == "value_error":
        return Flaw(path, error["msg"].removeprefix("Value error, "))
    if kind == "extra_forbidden":
        elsewhere = () if "parameters" in path[:1] else _leaves(SweepConfig, data)
        near = nearest(str(path[-1]), _keys(path[:-1], data), sorted(elsewhere))
        return Flaw(path, f"no such key; {near}")
    if kind == "missing" and isinstance(path[-1], int):  # fixed-length lists are pairs
        return Flaw(path[:-1], "expected a list of two", get(data, path[:-1]))
    if kind == "missing":
        return Flaw(path, "this key is required")
    if kind.startswith("union_tag"):
        tag = context["discriminator"]
        members = " or ".join(_tags(path, tag))
        if kind == "union_tag_not_found":
            return Flaw((*path, tag), f"this key is required: {members}")
        return Flaw((*path, tag), f"expected {members}", came[tag])
    if kind in _WORDS:
        rule = "expected " + _WORDS[kind].format(**context)
        hint = _OTHER_WORDS.get((show(path[-1:]), came)) if path and isinstance(came, str) else None
        return Flaw(path, f"{rule}; {hint}" if hint else rule, came)
    return Flaw(path, f"expected {error['msg'].removeprefix('Input should be ')}", came)


def _data_path(data: Any, error: ErrorDetails) -> KeyPath:
    """pydantic's location without the names of union members that it mixes in."""
    path: list[str | int] = []
    for position, part in enumerate(error["loc"]):
        if position == 1 and SweepConfig.model_fields[str(path[0])].discriminator:
            continue  # unet in model.unet.width
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif error["type"] != "missing" or position < len(error["loc"]) - 1:
            continue  # float in resources.gpus_per_worker.float
        path.append(part)
    return tuple(path)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models an annotation allows: X, X | None, Annotated[X | Y, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _models(member)


def _chosen(annotation: Any, data: Any) -> type[BaseModel] | None:
    """Which of an annotation's models `data` means, by the literal that tells them apart."""
    candidates = list(_models(annotation))
    if len(candidates) > 1 and isinstance(data, dict):
        candidates = [
            model
            for model in candidates
            if all(
                data.get(key) in get_args(field.annotation)
                for key, field in model.model_fields.items()
                if get_origin(field.annotation) is Literal and field.is_required()
            )
        ]
    return candidates[0] if candidates else None


def _keys(path: KeyPath, data: Any) -> list[str]:
    """The valid keys of the section at `path`."""
    inside: Any = SweepConfig  # the annotation of what `data` is
    for part in path:
        if get_origin(inside) is dict:
            inside = get_args(inside)[1]
        else:
            model = _chosen(inside, data)
            field = model.model_fields.get(str(part)) if model is not None else None
            inside = field.annotation if field is not None else None
        data = data[part]
    model = _chosen(inside, data)
    return list(model.model_fields) if model is not None else []


def _tags(path: KeyPath, tag: str) -> list[str]:
    """The values that tell the members of a union apart; where it may be null, none is one."""
    annotation = SweepConfig.model_fields[str(path[0])].annotation
    tags = [get_args(model.model_fields[tag].annotation)[0] for model in _models(annotation)]
    return [*tags, "none"] if type(None) in get_args(annotation) else tags


def _leaves(model: type[BaseModel], data: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of the keys that hold values, and of the sections that may be null."""
    for key, field in model.model_fields.items():
        inner_data = data.get(key) if isinstance(data, dict) else None
        inner = _chosen(field.annotation, inner_data)
        tag = get_origin(field.annotation) is Literal and field.is_required()
        if inner is not None:
            yield from _leaves(inner, inner_data, f"{prefix}{key}.")
        if (inner is None and not tag) or type(None) in get_args(field.annotation):
            yield f"{prefix}{key}"
