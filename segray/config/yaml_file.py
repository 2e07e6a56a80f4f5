"""YAML with line numbers: plain data, and the line on which each key and item stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from segray.config.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-5 as a number, as YAML 1.2 does and people expect."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes short lists on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq",
        items,
        flow_style=not any(isinstance(item, dict | list) for item in items),
    ),
)


def dump(data: Any) -> str:
    """YAML text of plain data, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_value(text: str) -> Any:
    """The value a command line gives for a key, read as YAML; raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in a YAML file, and the line (from 1) of every key path in it.

    Raises ConfigError for text that is no YAML, for a key written twice (YAML would keep the
    last one in silence), and for a file that holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        rule = f"expected UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        raise ConfigError([Problem(str(path), "", rule)]) from None
    lines: dict[KeyPath, int] = {}
    twice: list[Problem] = []
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _collect(node, (), path, lines, twice)
        data = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError([_syntax_problem(path, error)]) from None
    finally:
        loader.dispose()
    if twice:
        raise ConfigError(twice)
    if not isinstance(data, dict):
        rule = "expected a mapping of keys such as name, model, data, train"
        raise ConfigError([Problem(f"{path}:1", "", rule, type(data).__name__)])
    return data, lines


def show(path: KeyPath) -> str:
    """A key path as people write it: train.augment.scale[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _collect(
    node: yaml.Node, at: KeyPath, file: Path, lines: dict[KeyPath, int], twice: list[Problem]
) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect(item, (*at, index), file, lines, twice)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*at, str(key.value))
            line = key.start_mark.line + 1
            if path in lines:
                rule = f"written twice, first on line {lines[path]}: keep one"
                twice.append(Problem(f"{file}:{line}", show(path), rule))
            lines[path] = line
            _collect(value, path, file, lines, twice)


def _syntax_problem(file: Path, error: Exception) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        what = f"{error.context} {error.problem}" if error.context else error.problem
        return Problem(f"{file}:{mark.line + 1}:{mark.column + 1}", "", f"not valid YAML: {what}")
    return Problem(str(file), "", f"not valid YAML: {error}")
