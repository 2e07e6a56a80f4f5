"""The JSON Schema of a sweep file, with which an editor completes keys and marks typos."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from segray.config.schema import SweepConfig
from segray.config.spelling import DISTRIBUTIONS, RAY_FUNCTIONS
from segray.config.validate import SEARCHABLE

_VARIABLE = {"type": "string", "pattern": r"\$\{[^}]*\}"}
_RAYS = {
    "type": "string",
    "pattern": rf"^\s*((ray\.)?tune\.)?({'|'.join(RAY_FUNCTIONS)})\(.*\)\s*$|\$\{{",
}
_BASE = (
    "Another sweep file, from this one's folder: keys that this file lacks are taken from there."
)


def json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of a sweep file as it is written.

    It knows what one key alone can tell; `load_sweep` also checks keys against each other. No key
    of a section is required, as the base of the file may have it.
    """
    schema = SweepConfig.model_json_schema()
    sections, keys = schema.pop("$defs"), schema["properties"]
    paths: dict[str, str] = {}
    for path, text in _searchable(sections, keys):  # model.width is a key of either model
        paths[path] = f"{paths[path]} / {text}" if path in paths else text
    parameter = sections.pop("Parameter")
    for section in (*sections.values(), parameter):
        section.pop("required", None)
    _tidy(schema)
    _tidy(sections)
    _tidy(parameter)
    names = {"enum": list(paths)}
    number = {"anyOf": [{"type": "number"}, _VARIABLE]}
    parameter["properties"] |= {
        "distribution": {
            "description": parameter["properties"]["distribution"]["description"],
            "enum": [*DISTRIBUTIONS, None],
        },
        "when": parameter["properties"]["when"]
        | {"additionalProperties": True, "propertyNames": names},
        "lower": {"description": "Ray's name of min.", **number},
        "upper": {"description": "Ray's name of max; randint leaves it out.", **number},
        "categories": {"description": "Ray's name of values.", "type": "array"},
    }
    sections["Parameter"] = {
        "description": parameter.pop("description"),
        "anyOf": [parameter, {"type": "array", "minItems": 1}, _RAYS, {"type": "null"}],
    }
    keys["parameters"] |= {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {
            path: {"$ref": "#/$defs/Parameter"} | ({"description": text} if text else {})
            for path, text in paths.items()
        },
    }
    keys["start_points"]["items"] = {"type": "object", "propertyNames": names}
    texts = {"type": "array", "items": {"type": "string"}}
    keys["require"] = {
        "description": keys["require"]["description"],
        "anyOf": [{"type": "string"}, texts, {"type": "null"}],
    }
    required = schema.pop("required")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "segray sweep",
        **schema,
        "properties": {"base": {"description": _BASE, "type": "string"}, **keys},
        "anyOf": [{"required": ["base"]}, {"required": required}],
        "$defs": sections,
    }


def _searchable(sections: dict[str, Any], keys: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every dotted path that can be searched, in any model, and what it is."""

    def below(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
        members = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
        inner = [sections[member["$ref"].split("/")[-1]] for member in members if "$ref" in member]
        tag = schema.get("discriminator", {}).get("propertyName")
        nullable = {"type": "null"} in members
        if path.count(".") and (not inner or nullable):
            yield path, schema.get("description", "")
        for section in inner:
            for name, key in section["properties"].items():
                if name != tag:
                    yield from below(key, f"{path}.{name}")

    for section in SEARCHABLE:
        yield from below(keys[section], section)


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _tidy(schema: Any) -> None:
    """Finish what pydantic leaves, and let ${VAR} stand where a text of some form does.

    It writes titles that repeat the key, its own names of bounds (behind a validator), and a oneOf
    for models, which two may match now that their names are not required.
    """
    if isinstance(schema, list):
        for item in schema:
            _tidy(item)
    if not isinstance(schema, dict):
        return
    for item in schema.values():
        _tidy(item)
    if isinstance(schema.get("title"), str):
        del schema["title"]
    if schema.pop("discriminator", None):
        schema["anyOf"] = schema.pop("oneOf")
    for theirs, keyword in _BOUNDS.items():
        if theirs in schema:
            schema[keyword] = schema.pop(theirs)
    if "enum" in schema or "pattern" in schema:
        form = {key: schema.pop(key) for key in ("enum", "pattern", "type") if key in schema}
        schema["anyOf"] = [form, _VARIABLE]
