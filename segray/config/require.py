"""Conditions of `require:`, such as train.early_stop.patience < train.epochs.

Python's words for comparisons (chained ones too), arithmetic (+ - * / // %), and, or, not, numbers,
text in quotes, true, false, null. Nothing is ever run: the text is parsed, and only these parts of
Python's grammar are known.
"""

from __future__ import annotations

import ast
import functools
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LENGTH, MAX_DEPTH = 1000, 40  # characters, and levels: Python's own recursion gives out later
_WORDS = {"null": None, "true": True, "false": False}
_ORDER: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUAL: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Condition:
    """One parsed condition."""

    text: str
    keys: tuple[str, ...]
    """The dotted paths in it."""
    tree: ast.expr

    def holds(self, value: Callable[[str], Any]) -> bool:
        """Whether it is true, with `value` giving what stands at a dotted path.

        Everything is evaluated, also what `and` and `or` would not need. A number that is null or
        cannot be computed (x / 0) is smaller than, equal to and larger than nothing; only == and
        != see null itself. Raises ValueError for what cannot be compared, such as 3 < 'fp32'.
        """
        return _truth(self.tree, value)


@functools.lru_cache
def parse(text: str) -> Condition:
    """The condition that `text` states. Raises ValueError with what is wrong with it."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"expected a condition of at most {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own remarks, as on "3 is 3"
            tree = ast.parse(text.strip(), mode="eval").body
        keys = dict.fromkeys(_keys(tree, MAX_DEPTH))
    except (SyntaxError, RecursionError, MemoryError) as error:
        what = error.msg if isinstance(error, SyntaxError) else "nested too deep"
        raise ValueError(f"expected a condition such as {EXAMPLE}: {what} (got {text})") from None
    if not keys:
        raise ValueError(f"expected a condition on a key, such as {EXAMPLE} (got {text})")
    return Condition(text, tuple(keys), tree)


EXAMPLE = "train.early_stop.patience < train.epochs"


def _keys(node: ast.expr, room: int) -> list[str]:
    """The dotted paths below `node`. Raises ValueError for what a condition cannot hold."""
    if room == 0:
        raise ValueError(f"expected at most {MAX_DEPTH} levels of operators in a condition")
    room -= 1
    match node:
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            if all(part.isidentifier() for part in name.split(".")):
                return [] if name in _WORDS else [name]
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return []
        case ast.BoolOp(values=parts):
            return [key for part in parts for key in _keys(part, room)]
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=part):
            return _keys(part, room)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return [*_keys(left, room), *_keys(right, room)]
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(
            type(op) in _ORDER or type(op) in _EQUAL for op in ops
        ):
            return [key for part in (left, *rest) for key in _keys(part, room)]
    raise ValueError(
        "expected keys, numbers, text in quotes, true, false, null, and < <= > >= == != "
        f"+ - * / // % and or not ( ) (got {ast.unparse(node)})"
    )


def _truth(node: ast.expr, value: Callable[[str], Any]) -> bool:
    """A part that is true or false; null counts as false."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            truths = [_truth(part, value) for part in parts]
            return all(truths) if isinstance(op, ast.And) else any(truths)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _truth(part, value)
        case ast.Compare(left=first, ops=ops, comparators=rest):
            parts = [first, *rest]
            values = [_value(part, value) for part in parts]
            links = [
                _compared(op, parts[at : at + 2], values[at : at + 2]) for at, op in enumerate(ops)
            ]
            return all(links)
    found = _value(node, value)
    if found is not None and not isinstance(found, bool):
        shown = ast.unparse(node)
        raise ValueError(f"expected a comparison, such as {shown} > 1: {shown} is {_kind(found)}")
    return bool(found)


def _value(node: ast.expr, value: Callable[[str], Any]) -> Any:
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            return _WORDS[name] if name in _WORDS else value(name)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=part):
            number = _number(part, value)
            return -number if number is not None and isinstance(op, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _number(left, value), _number(right, value)
            try:
                return None if a is None or b is None else _ARITHMETIC[type(op)](a, b)
            except (ZeroDivisionError, OverflowError):
                return None
    return _truth(node, value)


def _number(node: ast.expr, value: Callable[[str], Any]) -> Any:
    found = _value(node, value)
    if found is not None and _kind(found) != "a number":
        raise ValueError(f"{ast.unparse(node)} is {_kind(found)}, and arithmetic needs numbers")
    return found


def _compared(op: ast.cmpop, parts: list[ast.expr], values: list[Any]) -> bool:
    a, b = values
    if type(op) in _EQUAL and (a is None or b is None):
        return _EQUAL[type(op)](a, b)
    if a is None or b is None:
        return False
    kinds = [_kind(a), _kind(b)]
    ordered = type(op) in _ORDER
    if kinds[0] != kinds[1] and not (type(op) in _EQUAL and "a list or section" in kinds):
        what = [f"{ast.unparse(part)} is {kind}" for part, kind in zip(parts, kinds, strict=True)]
        raise ValueError(f"{' and '.join(what)}: the two cannot be compared")
    if ordered and kinds[0] not in ("a number", "text"):
        raise ValueError(f"{ast.unparse(parts[0])} is {kinds[0]}: it has no smaller and larger")
    return (_ORDER if ordered else _EQUAL)[type(op)](a, b)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else "a list or section"
