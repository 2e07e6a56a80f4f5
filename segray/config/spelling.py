"""A searched parameter as W&B or Ray spell it -> as segray does."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

_TAKEN = (
    "values: [...], value: ..., or min: and max: with a distribution of uniform, int_uniform, "
    "log_uniform_values or q_uniform (with q), or Ray's choice([...]), grid_search([...]), "
    "uniform(a, b), quniform(a, b, q), randint(a, b), qrandint(a, b, q) or loguniform(a, b)"
)


def ours(raw: Any) -> Any:
    """A parameter in the words of the schema; what cannot be told is left for the schema to refuse.

    Raises ValueError, with what to write instead, for a distribution that segray does not have and
    for one that two libraries read differently.
    """
    if isinstance(raw, str):
        return _mapping(*_call(raw))
    if isinstance(raw, list | tuple):
        return {"distribution": "categorical", "values": raw}
    if not isinstance(raw, dict):
        return raw
    kind = raw.get("distribution")
    if kind is None:
        return {**raw, "distribution": _implied(raw)}
    rays_uniform = kind == "uniform" and {"lower", "upper"} & raw.keys()
    if not isinstance(kind, str) or (kind in _OURS and not rays_uniform):
        return raw
    rest = {key: value for key, value in raw.items() if key not in ("distribution", "when")}
    when = {"when": raw["when"]} if "when" in raw else {}
    return _mapping(kind, rest) | when


_OURS = ("categorical", "constant", "uniform", "int_uniform", "log_uniform_values")


def _implied(raw: dict[str, Any]) -> str:
    """The distribution of a parameter that names none."""
    if "values" in raw:
        return "categorical"
    if "value" in raw:
        return "constant"
    numbers = [raw.get("min"), raw.get("max"), raw.get("q", 1)]
    return "int_uniform" if all(type(number) is int for number in numbers) else "uniform"


def _mapping(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    if kind == "log_uniform":
        raise ValueError(_log_uniform(given.get("min"), given.get("max")))
    if kind == "q_uniform":
        given = {"q": 1} | given
        return _on_multiples({"distribution": "uniform", **given})
    if kind not in _RAY:
        raise ValueError(f"expected {_TAKEN} (got {kind})")
    names, rewrite = _RAY[kind]
    if sorted(given) != sorted(names):
        hint = ""
        if kind == "randint" and isinstance(top := given.get("max"), int):
            hint = (
                f"; Ray's leaves out its upper bound and others do not: write {{min: "
                f"{given.get('min')}, max: {top}}} if {top} may be drawn, else max: {top - 1}"
            )
        got = " and ".join(given) or "nothing"
        raise ValueError(f"{kind} takes {' and '.join(names)}, got {got}{hint}")
    for name in ("lower", "upper", "q"):
        if isinstance(given.get(name, 0), bool) or not isinstance(given.get(name, 0), int | float):
            raise ValueError(f"{kind} needs numbers for {' and '.join(names)}, got {given[name]}")
    return rewrite(**given)


def _randint(lower: float, upper: float) -> dict[str, Any]:
    return {"distribution": "int_uniform", "min": lower, "max": upper - 1}


def _range(distribution: str) -> Callable[..., dict[str, Any]]:
    def rewrite(lower: float, upper: float, **q: float) -> dict[str, Any]:
        return _on_multiples({"distribution": distribution, "min": lower, "max": upper, **q})

    return rewrite


def _choice(categories: Any) -> dict[str, Any]:
    return {"distribution": "categorical", "values": categories}


_ENDS = ("lower", "upper")
_RAY: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, Any]]]] = {
    "choice": (("categories",), _choice),
    "grid_search": (("categories",), _choice),
    "uniform": (_ENDS, _range("uniform")),
    "quniform": ((*_ENDS, "q"), _range("uniform")),
    "randint": (_ENDS, _randint),  # the upper bound is not drawn
    "qrandint": ((*_ENDS, "q"), _range("int_uniform")),  # here it is
    "loguniform": (_ENDS, _range("log_uniform_values")),
}
RAY_FUNCTIONS = tuple(_RAY)
DISTRIBUTIONS = tuple(dict.fromkeys((*_OURS, "q_uniform", *_RAY)))
"""What `distribution` may be in a sweep file."""


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """Ray's loguniform(1e-5, upper=1e-2), with or without `tune.`: the name and the arguments."""
    refused = ValueError(f"expected {_TAKEN} (got {text if len(text) < 80 else text[:77] + '...'})")
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise refused
        kind = ast.unparse(call.func).removeprefix("ray.").removeprefix("tune.")
        names = _RAY[kind][0] if kind in _RAY else ()
        given = dict(zip(names, map(ast.literal_eval, call.args), strict=False))
        given |= {word.arg or "**": ast.literal_eval(word.value) for word in call.keywords}
        if len(given) != len(call.args) + len(call.keywords) or not _plain(list(given.values())):
            raise refused
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise refused from None
    return kind, given


def _plain(value: Any) -> bool:
    """Whether YAML could hold it: no sets, bytes or complex numbers."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _on_multiples(parameter: dict[str, Any]) -> dict[str, Any]:
    """W&B and Ray round to multiples of q; we step by q from min: the same where min is one."""
    low, q = parameter.get("min"), parameter.get("q")
    if isinstance(low, int | float) and isinstance(q, int | float) and q > 0:
        steps = low / q if abs(low) < 2**53 * q else 0.0
        if abs(steps - round(steps)) > 1e-9:
            raise ValueError(
                f"W&B and Ray round to multiples of q={q}, and min={low} is none; for steps from "
                f"min write {{min: {low}, max: {parameter.get('max')}, q: {q}}}"
            )
    return parameter


def _log_uniform(low: Any, high: Any) -> str:
    """What to write instead of W&B's log_uniform, whose bounds few people mean as it reads them."""
    text = "W&B reads the bounds of log_uniform as exponents of e, others as the values themselves"
    fix = "{{distribution: log_uniform_values, min: {:.3g}, max: {:.3g}}}"
    numbers = [end for end in (low, high) if isinstance(end, int | float) and math.isfinite(end)]
    if len(numbers) < 2:
        return f"{text}: write log_uniform_values with min and max as values"
    ways = []
    if all(abs(end) < 700 for end in numbers):  # e^700 is near the largest float
        ways.append(f"{fix.format(*map(math.exp, numbers))} for e^{low} to e^{high}")
    if numbers[0] > 0:
        ways.append(f"{fix.format(*numbers)} for {low} to {high}")
    return f"{text}: write {', or '.join(ways) or 'log_uniform_values'}"
