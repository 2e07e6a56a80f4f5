"""From a YAML file and overrides to one validated SweepConfig, or every problem at once."""

from __future__ import annotations

import difflib
import functools
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segray.config import yaml_file
from segray.config.errors import ConfigError, Problem, RequestError
from segray.config.schema import Data, Parameter, SweepConfig, TrialConfig
from segray.config.yaml_file import KeyPath, show

SEARCHABLE = ("model", "train")
CITYSCAPES_HELP = """\
How to get Cityscapes: register at cityscapes-dataset.com, then
  pip install cityscapesscripts && csDownload gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip
unzip both into one folder and name it: export CITYSCAPES_ROOT=/that/folder, or data.root=..."""


def load_sweep(
    file: str | Path, overrides: Sequence[str] = (), env: Mapping[str, str] = os.environ
) -> SweepConfig:
    """Read a sweep file, apply `key=value` overrides, expand ${VAR} and ~, validate.

    Raises ConfigError with everything that is wrong, each with its file:line (or override),
    key path, rule and value; RequestError where there is no such file.
    """
    path = Path(file)
    try:
        data, lines = yaml_file.read(path)
    except OSError as error:
        rule = f"no sweep file at {path} ({error.strerror})"
        raise RequestError(f"{rule}: name a YAML file, such as those in sweeps/") from None
    source = _Source(path, data, dict(lines))
    problems = [problem for text in overrides for problem in source.override(text)]
    if problems:
        raise ConfigError(problems)
    unset = source.expand(env)
    problems, config = source.validate(unset)
    if config is None or problems:
        about_root = any(problem.path == "data.root" for problem in unset)
        about_root &= _get(source.data, ("data", "format")) == "cityscapes"
        raise ConfigError(problems, CITYSCAPES_HELP if about_root else "")
    return config


def trial_config(
    sweep: SweepConfig,
    assignment: Mapping[str, Any],
    *,
    seed: int,
    workers: int,
    gpus_per_worker: float,
    threads: int,
) -> TrialConfig:
    """The sweep's model, data and train with `assignment` (dotted path -> value) put in.

    Raises pydantic's ValidationError for a value that the schema refuses; `load_sweep` has tried
    the ends of every range, so that a sampled assignment is valid.
    """
    return TrialConfig.model_validate(
        _assigned(sweep, assignment)
        | {"seed": seed, "workers": workers, "gpus_per_worker": gpus_per_worker, "threads": threads}
    )


_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_WORDS = {  # pydantic's errors in words for someone who writes YAML
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


@dataclass
class _Source:
    """The raw data of a sweep file, and where each key of it came from."""

    file: Path
    data: dict[str, Any]
    places: dict[KeyPath, int | str]  # a line of the file, or the override's own text

    def where(self, path: KeyPath) -> str:
        """The place of a key; of one that an override made on its way, that override."""
        for end in range(len(path), -1, -1):
            near = path[:end]
            made = (place for key, place in self.places.items() if end and key[:end] == near)
            place = self.places.get(near) or next(made, None)
            if place is not None:
                return f"override {place}" if isinstance(place, str) else f"{self.file}:{place}"
        return f"{self.file}:1"

    def problem(self, path: KeyPath, rule: str, value: Any = ..., place: str = "") -> Problem:
        shown = None if value is ... else yaml_file.brief(value)
        return Problem(place or self.where(path), show(path), rule, shown)

    def override(self, text: str) -> tuple[Problem, ...]:
        """Apply one `key=value`, or say why it cannot be."""
        place = f"override {text}"
        key, equals, raw = text.partition("=")
        path = self._split(key)
        if not equals or not all(path) or len(path) > yaml_file.MAX_DEPTH:
            return (Problem(place, "", "expected key=value, as in train.epochs=5"),)
        try:
            value = yaml_file.parse_value(raw, place, key)
        except ConfigError as error:
            return error.problems
        if isinstance(value, int | float) and _takes_text(path, self.data):
            value = raw  # name=7 is a name
        for end in range(1, len(path)):
            parent = _get(self.data, path[:end])
            if parent is not None and not isinstance(parent, dict):
                rule = f"{show(path[:end])} holds no keys, so {path[end]} cannot be set in it"
                return (Problem(place, key, rule, yaml_file.brief(parent)),)
        _put(self.data, path, value)
        for old in [old for old in self.places if old[: len(path)] == path]:
            del self.places[old]
        self.places[path] = text
        return ()

    def _split(self, key: str) -> tuple[str, ...]:
        """Names below `parameters` are dotted themselves: the longest known one wins."""
        parts = tuple(key.split("."))
        if parts[0] != "parameters" or len(parts) < 2 or not all(parts):
            return parts
        known = self.data.get("parameters")
        for end in range(len(parts), 1, -1):
            name = ".".join(parts[1:end])
            if isinstance(known, dict) and name in known:
                return ("parameters", name, *parts[end:])
        end = len(parts) - (len(parts) > 2 and parts[-1] in Parameter.model_fields)
        return ("parameters", ".".join(parts[1:end]), *parts[end:])

    def expand(self, env: Mapping[str, str]) -> list[Problem]:
        """Put the environment's values into ${VAR} and the home folder into a leading ~."""
        unset: list[Problem] = []

        def walk(value: Any, at: KeyPath) -> Any:
            if isinstance(value, dict):
                return {key: walk(item, (*at, key)) for key, item in value.items()}
            if isinstance(value, list):
                return [walk(item, (*at, index)) for index, item in enumerate(value)]
            if not isinstance(value, str):
                return value
            missing = sorted({name for name in _VARIABLE.findall(value) if name not in env})
            if missing:
                what = "variable {} is" if len(missing) == 1 else "variables {} are"
                rule = f"the environment {what.format(' and '.join(missing))} not set"
                unset.append(self.problem(at, rule, value))
                return value
            text = _VARIABLE.sub(lambda found: env[found[1]], value)
            return str(Path(text).expanduser()) if text.startswith("~/") or text == "~" else text

        self.data = walk(self.data, ())
        return unset

    def validate(self, unset: Sequence[Problem]) -> tuple[list[Problem], SweepConfig | None]:
        """The config, or every problem with it; `unset` are those that are known already."""
        config = None
        problems = list(unset)
        try:
            config = SweepConfig.model_validate(self.data)
        except ValidationError as errors:
            paths = {problem.path for problem in unset}  # what is not expanded fits nowhere
            found = [self._problem_of(broken) for broken in _broken(errors, self.data)]
            problems += [problem for problem in found if problem.path not in paths]
        parameters = self.data.get("parameters")
        if isinstance(parameters, dict):
            known = sorted(set(_leaves(SweepConfig, self.data)))
            problems += [
                problem for name in parameters if (problem := self._unknown_parameter(name, known))
            ]
        if config is not None and not problems:
            problems = [*self._values_fit(config), *self._rules(config)]
        if config is not None and not problems:
            config = _absolute_paths(config)
        return sorted(problems, key=self._position), config

    def _position(self, problem: Problem) -> tuple[bool, int]:
        """Overrides first, then in the order of the file."""
        line = problem.where.removeprefix(f"{self.file}:")
        return (line.isdigit(), int(line) if line.isdigit() else 0)

    def _problem_of(self, broken: _Broken) -> Problem:
        path, rule = broken.path, broken.rule
        if broken.kind == "extra_forbidden":
            near = _nearest(str(path[-1]), _keys(path[:-1], self.data))
            return self.problem(path, f"no such key; {near}")
        if broken.kind == "missing":
            return self.problem(path, rule, place=self.where(path[:-1]))
        return self.problem(path, rule, broken.value)

    def _unknown_parameter(self, name: str, known: Sequence[str]) -> Problem | None:
        if name in known:
            return None
        path = ("parameters", name)
        if name.split(".")[0] not in SEARCHABLE and name.split(".")[0] in SweepConfig.model_fields:
            rule = (
                "only keys of model and train can be searched: the others decide what is measured "
                "or how the sweep runs, so its trials could not be compared"
            )
            return self.problem(path, rule)
        return self.problem(path, f"no such config key; {_nearest(name, known)}")

    def _values_fit(self, config: SweepConfig) -> Iterator[Problem]:
        """Every choice, end of range and start point, put where it will go."""
        for name in config.parameters:
            for path, value in _possible(config, name):
                tried = _try(config, {name: value})
                if isinstance(tried, _Broken):
                    at = show(tried.path)
                    why = tried.rule if at == name or not at else f"{at}: {tried.rule}"
                    rule = f"{name} does not take this value: {why}"
                    yield self.problem(path, rule, value)
                    break
        for index, point in enumerate(config.start_points):
            for name, value in point.items():
                path = ("start_points", index, name)
                if name not in config.parameters:
                    near = _nearest(name, list(config.parameters))
                    yield self.problem(path, f"not one of the searched parameters; {near}")
                elif not config.parameters[name].contains(value):
                    yield self.problem(path, "outside the values that parameters gives it", value)

    def _rules(self, config: SweepConfig) -> Iterator[Problem]:
        """What one key asks of another."""
        names = list(config.parameters)
        for name in names:
            if outer := [other for other in names if name.startswith(f"{other}.")]:
                rule = f"{outer[0]} is searched too and holds this key: search one of them"
                yield self.problem(("parameters", name), rule)
        workers = {"resources": config.resources.workers}
        if config.final is not None:
            workers["final"] = config.final.workers
        for section, count in workers.items():
            for _, batch in _reachable(config, "train.batch_size"):
                if batch % count:
                    rule = f"the batch of {batch} images cannot be shared by {count} workers evenly"
                    yield self.problem((section, "workers"), rule, count)
                    break
        asha = config.early_terminate
        epochs = max((reached for _, reached in _reachable(config, "train.epochs")), default=0)
        if asha is not None and asha.min_iter >= epochs > 0:
            rule = (
                f"the first rung must come before the last epoch ({epochs}), or ASHA stops "
                "nothing; lower it, or early_terminate=null for no ASHA"
            )
            yield self.problem(("early_terminate", "min_iter"), rule, asha.min_iter)
        size = config.data.size
        for path, crop in _reachable(config, "train.crop"):
            if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
                rule = (
                    f"larger than the images: data.size is {list(size)}; lower it, or "
                    "train.crop=null for whole images"
                )
                yield self.problem(path, rule, list(crop))
        metric, known = config.metric, metric_names(config.data)
        if metric.name not in known:
            near = _nearest(metric.name, known)
            yield self.problem(("metric", "name"), f"no such metric; {near}", metric.name)
        if metric.name == "val/loss" and metric.goal == "maximize":
            rule = "a loss is better when it is smaller: set goal: minimize"
            yield self.problem(("metric", "goal"), rule, metric.goal)
        if metric.name != "val/loss" and metric.goal == "minimize":
            rule = f"{metric.name} is better when it is larger: set goal: maximize"
            yield self.problem(("metric", "goal"), rule, metric.goal)
        if "://" in config.storage:
            rule = "expected a folder of this machine or of a shared file system"
            yield self.problem(("storage",), rule, config.storage)
        classes = config.data.class_names
        for path, weights in _reachable(config, "train.loss.class_weights"):
            if isinstance(weights, tuple) and len(weights) != len(classes):
                rule = (
                    f"expected one weight for each of the {len(classes)} classes, in the order "
                    f"{', '.join(classes)}"
                )
                yield self.problem(path, rule, list(weights))


def reachable(config: SweepConfig, path: str) -> tuple[Any, ...]:
    """What trials can have at a dotted path: the file's value, or choices or ends of a range."""
    return tuple(value for _, value in _reachable(config, path))


def metric_names(data: Data) -> list[str]:
    """The metrics that a sweep over these images can optimize."""
    names = ["val/miou", "val/dice", "val/accuracy", "val/loss"]
    if "void" in data.class_names:
        names.append("val/miou_without_void")
    return names + [f"val/iou/{name}" for name in data.class_names]


def _absolute_paths(config: SweepConfig) -> SweepConfig:
    """Workers run in another folder, so what names a place on this machine is made absolute."""
    raw = config.model_dump(mode="json")
    raw["storage"] = str(Path(config.storage).absolute())
    if config.data.root is not None:
        raw["data"]["root"] = str(Path(config.data.root).absolute())
    pretrained = raw["model"].get("pretrained")
    if pretrained is not None and os.path.isdir(pretrained):  # noqa: PTH112 - never raises
        raw["model"]["pretrained"] = str(Path(pretrained).absolute())
    return SweepConfig.model_validate(raw)


def _assigned(sweep: SweepConfig, assignment: Mapping[str, Any]) -> dict[str, Any]:
    raw = sweep.model_dump(mode="json", include={"model", "data", "train", "metric"})
    for path, value in assignment.items():
        _put(raw, path.split("."), value)
    return raw


def _try(config: SweepConfig, assignment: Mapping[str, Any]) -> TrialConfig | _Broken:
    """The trial that `assignment` makes, or the first thing that is wrong with it."""
    try:
        return trial_config(config, assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
    except ValidationError as errors:
        return _broken(errors, _assigned(config, assignment))[0]


def _possible(config: SweepConfig, name: str) -> list[tuple[KeyPath, Any]]:
    """Values to try for a searched key: every choice or the ends of a range, and their places."""
    parameter = config.parameters[name]
    path: KeyPath = ("parameters", name)
    if parameter.values is None:
        return [(path, value) for value in parameter.probes()]
    return [((*path, "values", index), value) for index, value in enumerate(parameter.values)]


def _reachable(config: SweepConfig, name: str) -> Iterator[tuple[KeyPath, Any]]:
    """The values that trials can have for a key, searched or not, and where each stands."""
    key = name.split(".")
    if name not in config.parameters:
        yield tuple(key), functools.reduce(getattr, key, config)
        return
    for path, value in _possible(config, name):
        tried = _try(config, {name: value})
        if isinstance(tried, TrialConfig):
            yield path, functools.reduce(getattr, key, tried)


def _put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        inner = data.get(key)
        data[key] = inner = {} if inner is None else inner
        data = inner
    data[path[-1]] = value


def _get(data: Any, path: Sequence[str | int]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


@dataclass(frozen=True)
class _Broken:
    """A value that the schema refuses: pydantic's errors about it, in our words."""

    path: KeyPath
    kind: str  # pydantic's name of the error
    rule: str
    value: Any = ...  # what came; ... where the rule says it or nothing came


def _broken(errors: ValidationError, data: Any) -> list[_Broken]:
    """Everything that the schema refuses in `data`, each value once."""
    found: dict[KeyPath, _Broken] = {}
    for error in errors.errors():
        one = _in_words(error, _data_path(data, error), data)
        other = found.setdefault(one.path, one)
        if one.rule != other.rule:  # each member of a union complains: a number, or auto
            both = f"{other.rule} or {one.rule.removeprefix('expected ')}"
            rule = both.replace("a whole number or a number", "a number")
            found[one.path] = replace(other, rule=rule)
    return [
        one
        for path, one in found.items()  # an item of a list is wrong: a literal was not meant
        if one.kind != "literal_error" or not any(path == p[: len(path)] != p for p in found)
    ]


def _in_words(error: ErrorDetails, path: KeyPath, data: Any) -> _Broken:
    kind, came = error["type"], error["input"]
    context = {key: str(text).replace("'", "") for key, text in error.get("ctx", {}).items()}
    if kind == "value_error":
        return _Broken(path, kind, error["msg"].removeprefix("Value error, "))
    if kind == "missing" and isinstance(path[-1], int):  # fixed-length lists are pairs
        return _Broken(path[:-1], "too_short", "expected a list of two", _get(data, path[:-1]))
    if kind == "missing":
        return _Broken(path, kind, "this key is required")
    if kind.startswith("union_tag"):
        tag = context["discriminator"]
        members = " or ".join(_tags(path, tag))
        if kind == "union_tag_not_found":
            return _Broken((*path, tag), "missing", f"this key is required: {members}")
        return _Broken((*path, tag), kind, f"expected {members}", came[tag])
    if kind in _WORDS:
        return _Broken(path, kind, "expected " + _WORDS[kind].format(**context), came)
    return _Broken(path, kind, f"expected {error['msg'].removeprefix('Input should be ')}", came)


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
    """The values that tell the members of a union apart."""
    members = _models(SweepConfig.model_fields[str(path[0])].annotation)
    return [get_args(member.model_fields[tag].annotation)[0] for member in members]


def _leaves(model: type[BaseModel], data: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of the keys of model and train that hold values."""
    for key, field in model.model_fields.items():
        if not prefix and key not in SEARCHABLE:
            continue
        inner_data = data.get(key) if isinstance(data, dict) else None
        inner = _chosen(field.annotation, inner_data)
        tag = get_origin(field.annotation) is Literal and field.is_required()
        if inner is not None:
            yield from _leaves(inner, inner_data, f"{prefix}{key}.")
        if (inner is None and not tag) or type(None) in get_args(field.annotation):
            yield f"{prefix}{key}"


def _takes_text(path: Sequence[str], data: Any) -> bool:
    model: type[BaseModel] | None = SweepConfig
    for key in path[:-1]:
        data = _get(data, [key])
        field = model.model_fields.get(key) if model else None
        model = _chosen(field.annotation, data) if field else None
    field = model.model_fields.get(path[-1]) if model else None
    return field is not None and (field.annotation is str or field.annotation == str | None)


def _nearest(key: str, valid: Sequence[str]) -> str:
    if not valid:
        return "remove it"
    last = {path.split(".")[-1]: path for path in valid}
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if not close and (same := difflib.get_close_matches(key.split(".")[-1], list(last), n=1)):
        close = [last[same[0]]]
    if close:
        return f"did you mean {close[0]}?"
    return f"expected one of {', '.join(valid)}"
