"""A sweep file, the files it is based on, overrides and ${VAR} -> one validated SweepConfig."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segray.config import validate, yaml_file
from segray.config.assignment import put
from segray.config.errors import ConfigError, Problem, RequestError
from segray.config.places import is_remote
from segray.config.rules import contradictions
from segray.config.schema import Parameter, SweepConfig
from segray.config.smoke import smoke_changes
from segray.config.validate import Flaw
from segray.config.yaml_file import KeyPath, brief, show

CITYSCAPES_HELP = """\
How to get Cityscapes: register at cityscapes-dataset.com, then
  pip install cityscapesscripts && csDownload gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip
unzip both into one folder and name it: export CITYSCAPES_ROOT=/that/folder, or data.root=..."""
MAX_FILES = 8  # in a chain of `base:`


@dataclass(frozen=True)
class SweepFile:
    """A sweep file as it was read."""

    file: Path
    config: SweepConfig
    sources: Mapping[str, str]
    """Dotted path of every leaf of the config -> where its value came from: "a.yaml:12",
    "a.yaml:15, environment X", "override train.epochs=5", "--smoke-test" or "default". A list is
    one leaf, and so is an entry of `parameters`."""


def load_sweep(
    file: str | Path, overrides: Sequence[str] = (), env: Mapping[str, str] = os.environ
) -> SweepConfig:
    """The config of `read_sweep`, which says what is raised."""
    return read_sweep(file, overrides, env).config


def read_sweep(
    file: str | Path,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] = os.environ,
    *,
    smoke: bool = False,
) -> SweepFile:
    """Read a sweep file and its bases, apply `key=value` overrides, expand ${VAR} and ~, validate.

    `smoke` then makes the sweep small (see smoke.py); what is wrong with it at its full size is
    found all the same.

    Raises ConfigError with everything that is wrong, each with its file:line (or override),
    key path, rule and value; RequestError where there is no such file.
    """
    path = Path(file)
    try:
        request = _read(path, env, ())
    except OSError as error:
        rule = f"no sweep file at {path} ({error.strerror})"
        raise RequestError(f"{rule}: name a YAML file, such as those in sweeps/") from None
    except ConfigError as error:  # overrides that no file could take are named all the same
        unread = _Request({}, {(): _Place("", 0, 0)})
        refused = [problem for text in overrides for problem in unread.override(text)]
        raise ConfigError([*refused, *error.problems]) from None
    refused = [problem for text in overrides for problem in request.override(text)]
    refused += request.without_effect()
    config = _validated(request, refused, request.expand(env))
    if smoke:
        for at, value in smoke_changes(config).items():
            request.set(at, value, "--smoke-test")
        config = _validated(request)
    config = _absolute_paths(config)
    return SweepFile(path, config, request.sources(config))


def read_unchecked(file: str | Path, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The mapping in a sweep file with its bases merged in, as it stands there.

    Raises OSError for a file that cannot be read and ConfigError for one that is no YAML.
    """
    return _read(Path(file), env, ()).data


_VARIABLE = re.compile(r"\$\{([^}]*)\}")
# Sections whose keys depend on one of them.
_KINDS = {"model": "name", "data": "format", "early_terminate": "type"}
_CLASSES = ("data", "classes")  # in the order of the logits: two such lists cannot be mixed


@dataclass(frozen=True)
class _Place:
    """Where a key is written."""

    text: str  # "sweeps/unet.yaml:12" or "override train.epochs=0"
    level: int  # -1: an override; 0: the file; 1: its base; ...
    line: int

    @property
    def order(self) -> tuple[int, int]:
        """Overrides come first in a report, then the file, then its base."""
        return (self.level, self.line)


@dataclass
class _Request:
    """The raw data of a sweep file with its bases and overrides, and where each key stands."""

    data: dict[str, Any]
    places: dict[KeyPath, _Place]
    variables: dict[KeyPath, list[str]] = field(default_factory=dict)  # that a value was made from

    def where(self, path: KeyPath) -> _Place:
        """The place of a key; of one that an override made on its way, that override."""
        for end in range(len(path), 0, -1):
            near = path[:end]
            made = (place for key, place in self.places.items() if key[:end] == near)
            place = self.places.get(near) or next(made, None)
            if place is not None:
                return place
        return self.places[()]

    def problem(self, flaw: Flaw) -> Problem:
        shown = None if flaw.value is ... else brief(flaw.value)
        path = flaw.path
        if path and isinstance(validate.get(self.data, path[:-1]), str):
            path = path[:-1]  # a text that stands for a list of one
        return Problem(self.where(path).text, show(path), flaw.rule, shown)

    def based_on(self, base: _Request) -> _Request:
        """The data of `base` with this file's keys in it, or in the place of its."""

        def merge(under: dict[str, Any], over: dict[str, Any], at: KeyPath) -> None:
            for key, value in over.items():
                path = (*at, key)
                below = under.get(key)
                whole = at == ("parameters",) or path == _CLASSES
                if isinstance(value, dict) and isinstance(below, dict) and not whole:
                    kind = _KINDS.get(key) if not at else None
                    if kind is None or value.get(kind, below.get(kind)) == below.get(kind):
                        merge(below, value, path)
                        continue
                under[key] = value
                base.forget(path)

        merge(base.data, self.data, ())
        return _Request(base.data, base.places | self.places)

    def forget(self, path: KeyPath) -> None:
        """Drop where the value of a key, and of all below it, came from."""
        for known in (self.places, self.variables):
            for old in [old for old in known if old[: len(path)] == path]:
                del known[old]

    def override(self, text: str) -> tuple[Problem, ...]:
        """Apply one `key=value`, or say why it cannot be."""
        place = f"override {text}"
        key, equals, raw = text.partition("=")
        path = self._split(key)
        if not equals or not all(path) or len(path) > yaml_file.MAX_DEPTH:
            return (Problem(place, "", "expected key=value, as in train.epochs=5"),)
        if path[0] == "base":
            return (Problem(place, key, "base can only be set in a file: run that file instead"),)
        try:
            value = yaml_file.parse_value(raw, place, key)
        except ConfigError as error:
            return error.problems
        if isinstance(value, int | float) and validate.takes_text(path, self.data):
            value = raw  # name=7 is a name
        for end in range(1, len(path)):
            parent = validate.get(self.data, path[:end])
            if parent is not None and not isinstance(parent, dict):
                rule = f"{show(path[:end])} holds no keys, so {path[end]} cannot be set in it"
                return (Problem(place, key, rule, brief(parent)),)
        self.set(path, value, place)
        return ()

    def set(self, path: Sequence[str], value: Any, place: str) -> None:
        """Put in a value that no file gives; `place` says who does."""
        put(self.data, path, value)
        self.forget(tuple(path))
        self.places[tuple(path)] = _Place(place, -1, 0)

    def without_effect(self) -> list[Problem]:
        """Overrides of keys that are searched, or of one above or below such a key, whose value no
        trial would see."""
        searched = self.data.get("parameters")
        always = [
            name
            for name, entry in (searched.items() if isinstance(searched, dict) else ())
            if isinstance(name, str)
            and entry is not None
            and not (isinstance(entry, dict) and "when" in entry)
        ]
        found = []
        for path, place in self.places.items():
            for name in always if place.level == -1 else ():
                if not self._replaced(path, name):
                    continue
                value = validate.get(self.data, name.split("."))
                fix = f"to pin it, set parameters.{name}={{value: {brief(value)}}}"
                if value is None and name != show(path):  # a section that is to be null
                    fix = f"set parameters.{name}=null as well"
                rule = (
                    f"{'this key' if name == show(path) else name} is searched, so no trial would "
                    f"have this value; {fix} (and start_points=[] if they name it)"
                )
                found.append(Problem(place.text, show(path), rule))
        return found

    def _replaced(self, path: KeyPath, name: str) -> bool:
        """Whether a value for the searched key `name` takes the place of what stands at `path`."""
        key = show(path)
        if f"{key}.".startswith(f"{name}."):
            return True
        if not name.startswith(f"{key}."):
            return False
        value = validate.get(self.data, path)
        for part in name.removeprefix(f"{key}.").split("."):
            if value is None:  # a section that is to be null
                return True
            if not isinstance(value, dict) or part not in value:
                return False
            value = value[part]
        return True

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

    def expand(self, env: Mapping[str, str]) -> list[Flaw]:
        """Put the environment's values into ${VAR} and the home folder into a leading ~."""
        unset: list[Flaw] = []

        def walk(value: Any, at: KeyPath) -> Any:
            if isinstance(value, dict):
                return {key: walk(item, (*at, key)) for key, item in value.items()}
            if isinstance(value, list):
                return [walk(item, (*at, index)) for index, item in enumerate(value)]
            if not isinstance(value, str):
                return value
            names = _VARIABLE.findall(value)
            if names:
                self.variables[at] = names
            text = _expanded(value, env)
            if isinstance(text, Flaw):
                unset.append(Flaw(at, text.rule, value))
                return value
            return text

        self.data = walk(self.data, ())
        return unset

    def sources(self, config: SweepConfig) -> dict[str, str]:
        """Where each leaf of `config` came from."""
        return {show(path): self._source(path) for path in _leaves(config.model_dump(mode="json"))}

    def _source(self, path: KeyPath) -> str:
        data: Any = self.data
        for key in path:
            if not isinstance(data, dict) or key not in data:
                return "default"
            data = data[key]
        used = [names for at, names in self.variables.items() if at[: len(path)] == path]
        names = dict.fromkeys(name for some in used for name in some)
        suffix = f", environment {' and '.join(names)}" if names else ""
        return self.where(path).text + suffix


def _validated(
    request: _Request, refused: Sequence[Problem] = (), unset: Sequence[Flaw] = ()
) -> SweepConfig:
    """The config that a request makes; `refused` and `unset` are wrong with it already."""
    known = {show(flaw.path) for flaw in unset}  # what is not expanded fits nowhere
    config, found = validate.check(request.data)
    found = [flaw for flaw in found if show(flaw.path) not in known] + [*unset]
    found = [flaw for flaw in found if not _concerns(flaw, refused)]
    if config is not None and not found and not refused:
        found = contradictions(config)
    if config is None or found or refused:
        found.sort(key=lambda flaw: request.where(flaw.path).order)
        problems = [*refused, *(request.problem(flaw) for flaw in found)]
        about_root = "data.root" in known
        about_root &= validate.get(request.data, ("data", "format")) == "cityscapes"
        raise ConfigError(problems, CITYSCAPES_HELP if about_root else "")
    return config


def _read(path: Path, env: Mapping[str, str], above: tuple[Path, ...]) -> _Request:
    """A file merged into its base; `above` are the files that it is the base of."""
    data, lines = yaml_file.read(path)
    places = {at: _Place(f"{path}:{line}", len(above), line) for at, line in lines.items()}
    request = _Request(data, places)
    base = data.pop("base", None)
    if base is None:
        return request

    def refuse(rule: str) -> ConfigError:
        return ConfigError([request.problem(Flaw(("base",), rule, base))])

    text = _expanded(base, env) if isinstance(base, str) else base
    if isinstance(text, Flaw):
        raise refuse(text.rule)
    if not isinstance(text, str) or not text:
        raise refuse("expected the path of another sweep file")
    chain = (*above, path)
    file = Path(os.path.normpath(path.parent / text))
    shown = " -> ".join(map(str, (*chain, file)))
    try:
        if os.path.realpath(file) in map(os.path.realpath, chain):
            raise refuse(f"a file cannot be its own base: {shown}")
        if len(chain) == MAX_FILES:
            raise refuse(f"expected at most {MAX_FILES} files in a chain of bases: {shown}")
        return request.based_on(_read(file, env, chain))
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise refuse(f"no sweep file at {file} ({reason})") from None


def _expanded(text: str, env: Mapping[str, str]) -> str | Flaw:
    """`text` with ${VAR} and a leading ~ replaced, or which variables are not set."""
    missing = sorted({name for name in _VARIABLE.findall(text) if name not in env})
    if missing:
        what = "variable {} is" if len(missing) == 1 else "variables {} are"
        return Flaw((), f"the environment {what.format(' and '.join(missing))} not set")
    text = _VARIABLE.sub(lambda found: env[found[1]], text)
    return str(Path(text).expanduser()) if text.startswith("~/") or text == "~" else text


def _concerns(flaw: Flaw, refused: Sequence[Problem]) -> bool:
    """Whether a flaw is at a key whose override was refused, so that it may not be one."""
    keys = [f"{problem.path}." for problem in refused if problem.path]
    return f"{show(flaw.path)}.".startswith(tuple(keys))


def _leaves(data: Any, at: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(data, dict) and data and not (len(at) == 2 and at[0] == "parameters"):
        for key, value in data.items():
            yield from _leaves(value, (*at, key))
    else:
        yield at


def _absolute_paths(config: SweepConfig) -> SweepConfig:
    """Workers run in another folder, so what names a place on this machine is made absolute."""
    raw = config.model_dump(mode="json")
    if not is_remote(config.storage):
        raw["storage"] = str(Path(config.storage).absolute())
    if config.data.root is not None and not is_remote(config.data.root):
        raw["data"]["root"] = str(Path(config.data.root).absolute())
    pretrained = raw["model"].get("pretrained")
    if pretrained is not None and os.path.isdir(pretrained):  # noqa: PTH112 - never raises
        raw["model"]["pretrained"] = str(Path(pretrained).absolute())
    return SweepConfig.model_validate(raw)
