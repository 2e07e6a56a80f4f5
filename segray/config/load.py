"""From a YAML file and overrides to one validated SweepConfig, or every problem at once."""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segray.config import yaml_file
from segray.config.errors import ConfigError, Problem, RequestError
from segray.config.schema import SweepConfig, TrialConfig
from segray.config.yaml_file import KeyPath, show

SEARCHABLE = ("model", "train")
CATEGORIES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
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
    if not path.is_file():
        raise RequestError(f"no sweep file at {path}: name a YAML file, such as those in sweeps/")
    data, lines = yaml_file.read(path)
    source = _Source(path, data, dict(lines))
    problems = [problem for text in overrides if (problem := source.override(text))]
    if problems:
        raise ConfigError(problems)
    unset = source.expand(env)
    if unset:
        about_root = any(problem.path == "data.root" for problem in unset)
        raise ConfigError(unset, CITYSCAPES_HELP if about_root else "")
    problems, config = source.validate()
    if config is None or problems:
        raise ConfigError(problems)
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
    raw = sweep.model_dump(mode="json", include={"model", "data", "train", "metric"})
    for path, value in assignment.items():
        _put(raw, path.split("."), value)
    return TrialConfig.model_validate(
        raw
        | {"seed": seed, "workers": workers, "gpus_per_worker": gpus_per_worker, "threads": threads}
    )


@dataclass
class _Source:
    """The raw data of a sweep file, and where each key of it came from."""

    file: Path
    data: dict[str, Any]
    places: dict[KeyPath, int | str]  # a line of the file, or the override's own text

    def where(self, path: KeyPath) -> str:
        while path not in self.places and path:
            path = path[:-1]
        place = self.places.get(path, 1)
        return f"override {place}" if isinstance(place, str) else f"{self.file}:{place}"

    def problem(self, path: KeyPath, rule: str, value: Any = ..., place: str = "") -> Problem:
        shown = None if value is ... else _shorten(yaml_file.dump(value))
        return Problem(place or self.where(path), show(path), rule, shown)

    def override(self, text: str) -> Problem | None:
        """Apply one `key=value`; a problem if it cannot be one."""
        key, equals, raw = text.partition("=")
        if not equals or not key:
            return Problem(f"override {text}", "", "expected key=value, as in train.epochs=5")
        try:
            value = yaml_file.parse_value(raw)
        except yaml.YAMLError as error:
            what = getattr(error, "problem", None) or str(error)
            return Problem(f"override {text}", key, f"not a YAML value: {what}", raw)
        path = self._split(key)
        if isinstance(value, int | float) and _takes_text(path, self.data):
            value = raw  # name=007 is a name
        for end in range(1, len(path)):
            parent = _get(self.data, path[:end])
            if parent is not None and not isinstance(parent, dict):
                rule = f"{show(path[:end])} holds no keys, so {path[end]} cannot be set in it"
                return Problem(f"override {text}", key, rule, _shorten(yaml_file.dump(parent)))
        _put(self.data, path, value)
        for old in [old for old in self.places if old[: len(path)] == tuple(path)]:
            del self.places[old]
        self.places[tuple(path)] = text
        return None

    def _split(self, key: str) -> list[str]:
        """Keys below `parameters` are dotted themselves: the longest known one wins."""
        parts = key.split(".")
        if parts[0] != "parameters" or len(parts) < 2:
            return parts
        known = self.data.get("parameters")
        for end in range(len(parts), 1, -1):
            name = ".".join(parts[1:end])
            if isinstance(known, dict) and name in known:
                return ["parameters", name, *parts[end:]]
        return ["parameters", ".".join(parts[1:])]

    def expand(self, env: Mapping[str, str]) -> list[Problem]:
        """Put the environment's values into ${VAR} and the home folder into a leading ~."""
        unset: list[Problem] = []

        def walk(value: Any, at: KeyPath) -> Any:
            if isinstance(value, dict):
                return {key: walk(item, (*at, str(key))) for key, item in value.items()}
            if isinstance(value, list):
                return [walk(item, (*at, index)) for index, item in enumerate(value)]
            if not isinstance(value, str):
                return value
            for name in re.findall(r"\$\{(\w+)\}", value):
                if name not in env:
                    rule = f"the environment variable {name} is not set"
                    unset.append(self.problem(at, rule, value))
            text = re.sub(r"\$\{(\w+)\}", lambda found: env.get(found[1], ""), value)
            return str(Path(text).expanduser()) if text.startswith("~/") else text

        self.data = walk(self.data, ())
        return unset

    def validate(self) -> tuple[list[Problem], SweepConfig | None]:
        config = None
        problems: list[Problem] = []
        try:
            config = SweepConfig.model_validate(self.data)
        except ValidationError as errors:
            problems = [self._problem_of(error) for error in errors.errors()]
        parameters = self.data.get("parameters")
        if isinstance(parameters, dict):
            known = sorted(set(_leaves(SweepConfig, self.data)))
            problems += [
                problem
                for name in parameters
                if (problem := self._unknown_parameter(str(name), known))
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

    def _problem_of(self, error: ErrorDetails) -> Problem:
        path = _data_path(self.data, error["loc"])
        kind, came = error["type"], error["input"]
        if kind == "extra_forbidden":
            near = _nearest(str(path[-1]), _keys(path[:-1], self.data))
            return self.problem(path, f"no such key; {near}")
        if kind == "missing":
            return self.problem(path, "this key is required", place=self.where(path[:-1]))
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            context = error["ctx"]
            tag = context["discriminator"].strip("'")
            if kind == "union_tag_not_found":
                allowed = " or ".join(_tags(path, tag))
                return self.problem((*path, tag), f"this key is required: {allowed}")
            allowed = context["expected_tags"].replace("'", "").replace(", ", " or ")
            return self.problem((*path, tag), f"expected {allowed}", context["tag"])
        if kind == "string_pattern_mismatch":
            rule = "expected up to 64 letters, digits, dots, dashes and underscores"
            return self.problem(path, rule, came)
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        rule = message if kind == "value_error" else f"expected {message}"
        shown = came if isinstance(came, str | int | float | list | tuple | None) else ...
        if kind == "value_error":
            shown = ...
        return self.problem(path, rule, list(shown) if isinstance(shown, tuple) else shown)

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

        def complaint(assignment: Mapping[str, Any]) -> str | None:
            try:
                trial_config(config, assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
            except ValidationError as error:
                first = error.errors()[0]
                return first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            return None

        for name, parameter in config.parameters.items():
            for index, value in enumerate(parameter.probes()):
                if rule := complaint({name: value}):
                    path: KeyPath = ("parameters", name)
                    if parameter.values is not None:
                        path = (*path, "values", index)
                    yield self.problem(path, f"{name} does not take this value: {rule}", value)
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
        batches = [config.train.batch_size]
        if "train.batch_size" in config.parameters:
            batches = list(config.parameters["train.batch_size"].probes())
        workers = {"resources": config.resources.workers}
        if config.final is not None:
            workers["final"] = config.final.workers
        for section, count in workers.items():
            for batch in batches:
                if batch % count:
                    rule = f"the batch of {batch} images cannot be shared by {count} workers evenly"
                    yield self.problem((section, "workers"), rule, count)
        asha = config.early_terminate
        if asha is not None and asha.min_iter >= config.train.epochs:
            rule = (
                f"the first rung must come before the last epoch ({config.train.epochs}), "
                "or ASHA stops nothing"
            )
            yield self.problem(("early_terminate", "min_iter"), rule, asha.min_iter)
        names = metric_names(config.data.ignore)
        if config.metric.name not in names:
            near = _nearest(config.metric.name, names)
            yield self.problem(("metric", "name"), f"no such metric; {near}", config.metric.name)
        weights = config.train.loss.class_weights
        classes = len(CATEGORIES) + (config.data.ignore == "none")
        if isinstance(weights, tuple) and len(weights) != classes:
            rule = f"expected one weight for each of the {classes} classes"
            yield self.problem(("train", "loss", "class_weights"), rule, list(weights))


def metric_names(ignore: str) -> list[str]:
    """The metrics that a sweep can optimize; `ignore` is data.ignore."""
    names = ["val/miou", "val/dice", "val/accuracy", "val/loss"]
    if ignore == "none":
        names += ["val/miou_without_void", "val/iou/void"]
    return names + [f"val/iou/{category}" for category in CATEGORIES]


def _absolute_paths(config: SweepConfig) -> SweepConfig:
    """Workers run in another folder, so what names a place on this machine is made absolute."""
    raw = config.model_dump(mode="json")
    raw["storage"] = str(Path(config.storage).absolute())
    if config.data.root is not None:
        raw["data"]["root"] = str(Path(config.data.root).absolute())
    pretrained = raw["model"].get("pretrained")
    if pretrained is not None and Path(pretrained).is_dir():
        raw["model"]["pretrained"] = str(Path(pretrained).absolute())
    return SweepConfig.model_validate(raw)


def _put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        inner = data.get(key)
        data[key] = inner = {} if inner is None else inner
        data = inner
    data[path[-1]] = value


def _get(data: Any, path: Sequence[str]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _data_path(data: Any, loc: Sequence[str | int]) -> KeyPath:
    """pydantic's location without the names of union members that it mixes in."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif not (isinstance(data, dict) and position == len(loc) - 1):
            continue  # the tag of a union
        path.append(part)
    return tuple(path)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models an annotation allows: X, X | None, Annotated[X | Y, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
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
    model: type[BaseModel] | None = SweepConfig
    for part in path:
        data = data[part]
        if model is not None and part in model.model_fields:
            model = _chosen(model.model_fields[str(part)].annotation, data)
        elif model is SweepConfig or path[0] == "parameters":
            model = _chosen(get_args(SweepConfig.model_fields["parameters"].annotation)[1], data)
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
        data = data.get(key) if isinstance(data, dict) else None
        field = model.model_fields.get(key) if model else None
        model = _chosen(field.annotation, data) if field else None
    field = model.model_fields.get(path[-1]) if model else None
    return field is not None and str in (field.annotation, *get_args(field.annotation))


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


def _shorten(text: str) -> str:
    flat = " ".join(text.removesuffix("...\n").split())
    return flat if len(flat) <= 80 else f"{flat[:77]}..."
