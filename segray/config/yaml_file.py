"""YAML with line numbers: plain data, and the line on which each key and item stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from segray.config.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 32  # nested deeper, a file is broken or hostile; Python's own recursion gives out later
MAX_NODES = 100_000  # aliases of aliases double with every line
_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}
_FLOAT = re.compile(
    r"[-+]?((0|[1-9][\d_]*)(\.[\d_]*)?|\.\d+)([eE][-+]?\d+)?$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain values of YAML 1.2.

    1e-5 is a number; yes, no, on, off, 007, 1:30 and 2020-01-01 are text. To YAML 1.1, which
    PyYAML follows, 1e-5 is text and the others are booleans, 7, 90 and a date.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError):  # !!int x, or more digits than Python reads
            what = f"{_cut(str(node.value), 20)} cannot be read as {node.tag.removeprefix(_TAG)}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("int", re.compile(r"[-+]?(0|[1-9][\d_]*)$|0x[\da-fA-F]+$"), "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("merge", re.compile(r"<<$"), "<"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list(_first))


class _Line(yaml.SafeDumper):
    """SafeDumper that quotes what either version of YAML would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Line.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


class _Dumper(_Line):
    """Writes short lists on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        f"{_TAG}seq",
        items,
        flow_style=not any(isinstance(item, dict | list) for item in items),
    ),
)


def dump(data: Any) -> str:
    """YAML text of plain data, keys in their order; `read` gives the same data back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def one_line(value: Any) -> str:
    """A value as YAML on one line; `parse_value` gives it back."""
    text = yaml.dump(
        value,
        Dumper=_Line,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")


def brief(value: Any) -> str:
    """A value on one line, cut at 80 characters: what a message shows."""
    return _cut(one_line(value), 80)


def parse_value(text: str, where: str, key: str) -> Any:
    """The value a command line gives for `key`, read as YAML.

    Raises ConfigError as `read` does; its problems stand at `where`.
    """
    try:
        return _parse(text, lambda mark: where, key)[0]
    except _NotYaml as error:
        raise ConfigError([Problem(where, key, error.rule, _cut(text, 80))]) from None


def read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in a YAML file, and the line (from 1) of every key path in it.

    Raises ConfigError for text that is no YAML, for what a config cannot hold (a key written
    twice, of which YAML would keep the last in silence; a key that is no text; a tag such as
    !!python/object; an alias inside its own anchor), and for a file that holds no mapping.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        rule = f"expected UTF-8 text: byte {error.start} is {raw[error.start]:#04x}"
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(f"{path}:{line}", "", rule)]) from None
    try:
        data, lines = _parse(text, lambda line: f"{path}:{line}", "")
    except _NotYaml as error:
        raise ConfigError([Problem(f"{path}:{error.place}", "", error.rule)]) from None
    if not isinstance(data, dict):
        rule = "expected a mapping of keys such as name, model, data, train"
        came = "an empty file" if data is None else brief(data)
        raise ConfigError([Problem(f"{path}:1", "", rule, came)])
    return data, lines


def show(path: KeyPath) -> str:
    """A key path as people write it: train.augment.scale[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_WORDS = {  # PyYAML's error -> what to do, where its words do not say
    "mapping values are not allowed": "a second `key: value` on one line, or a key indented deeper "
    "than the line above allows; put text that holds a colon in quotes",
    "expected <block end>, but found '<block mapping start>'": "this key is indented as none "
    "above it is: the keys of a section start in one column",
    "expected <block end>, but found '-'": "this item is indented differently than the list",
    "expected <block end>": "text after a value that had ended, or a line indented less than those "
    "it stands with",
    "could not find expected ':'": "expected `key: value`, with a space after the colon",
    "while parsing a flow": "a { or [ is not closed, or a comma is missing",
    "while scanning a quoted": "a quote is not closed",
    "cannot start any token": "this character can begin no value: put the text in quotes",
}


class _NotYaml(Exception):
    """Text that YAML's grammar refuses: the rule, and line:column."""

    def __init__(self, error: yaml.YAMLError | RecursionError, text: str) -> None:
        self.place = "1"
        what = str(error)
        if isinstance(error, RecursionError):
            what = f"nested deeper than {MAX_DEPTH} levels"
        elif isinstance(error, yaml.reader.ReaderError):
            self.place = str(text.count("\n", 0, error.position) + 1)
            what = f"the character {error.character:#x} is not allowed"
        elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            self.place = f"{mark.line + 1}:{mark.column + 1}"
            what = f"{error.context} {error.problem}" if error.context else str(error.problem)
            line = "".join(text.splitlines()[mark.line : mark.line + 1])
            indent = line[: len(line) - len(line.lstrip())]
            if "\t" in indent:
                what = f"indented with a tab; use spaces ({what})"
            elif "${" in line:
                what += '; inside { } and [ ], put "${...}" in quotes'
            else:
                ours = next((words for theirs, words in _WORDS.items() if theirs in what), None)
                what = f"{ours} ({what})" if ours else what
        self.rule = f"not valid YAML: {what}"
        super().__init__(self.rule)


class _Nodes:
    """Walks YAML's nodes: notes the line of every key path, and what a config cannot hold."""

    def __init__(self, where: Callable[[int], str], key: str) -> None:
        self.where, self.key = where, key
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def walk(self, node: yaml.Node, at: KeyPath, above: tuple[yaml.Node, ...]) -> None:
        self.lines.setdefault(at, node.start_mark.line + 1)
        if node.tag not in _PLAIN:
            tag = node.tag.replace(_TAG, "!!")
            self.refuse(node, at, f"the tag {tag} is not allowed: write plain text, lists and keys")
        elif any(node is outer for outer in above):
            self.refuse(node, at, "an alias cannot stand inside its own anchor")
        elif len(above) >= MAX_DEPTH or len(self.lines) > MAX_NODES:
            rule = f"expected at most {MAX_DEPTH} levels and {MAX_NODES} values, aliases included"
            self.refuse(node, at, rule)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.walk(item, (*at, index), (*above, node))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self.pair(key, value, at, (*above, node))

    def pair(
        self, key: yaml.Node, value: yaml.Node, at: KeyPath, above: tuple[yaml.Node, ...]
    ) -> None:
        text = key.tag in (f"{_TAG}str", f"{_TAG}merge")
        if not text or not key.value or not key.value.isprintable():
            came = _cut(repr(key.value), 80) if isinstance(key.value, str) else "a list or mapping"
            self.refuse(key, at, "expected a key of plain text", came)
            return
        path = (*at, key.value)
        if path in self.lines:
            rule = f"written twice, first on line {self.lines[path]}: keep one"
            self.refuse(key, path, rule)
        self.lines[path] = key.start_mark.line + 1
        self.walk(value, path, above)

    def refuse(self, node: yaml.Node, at: KeyPath, rule: str, came: str | None = None) -> None:
        path = show((self.key, *at) if self.key else at)
        self.problems.append(Problem(self.where(node.start_mark.line + 1), path, rule, came))


def _parse(text: str, where: Callable[[int], str], key: str) -> tuple[Any, dict[KeyPath, int]]:
    """Data and lines of `text`; `where` names the place of a line."""
    nodes = _Nodes(where, key)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, {}
            nodes.walk(node, (), ())
            if nodes.problems:
                raise ConfigError(nodes.problems)
            return _unshared(loader.construct_document(node)), nodes.lines
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        raise _NotYaml(error, text) from None


def _unshared(value: Any) -> Any:
    """A copy in which aliases are values of their own, so that an override changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
