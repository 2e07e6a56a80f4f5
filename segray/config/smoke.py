"""What --smoke-test changes in a sweep file: the same sweep, but small."""

from __future__ import annotations

from typing import Any

from segray.config.assignment import reachable
from segray.config.require import parse
from segray.config.schema import SweepConfig

IMAGES = 8  # of each split, or a batch
_LENGTH = {"train.epochs": 1, "train.schedule.warmup_steps": 0}


def smoke_changes(config: SweepConfig) -> dict[tuple[str, ...], Any]:
    """Key path -> value that makes a valid sweep 2 trials of 1 epoch on a few images of each split,
    with one final training.

    The length of a training is fixed and no longer searched, and no condition asks for it.
    """
    changes: dict[tuple[str, ...], Any] = {
        ("name",): f"{config.name[:58]}-smoke",
        ("data", "limit"): max(IMAGES, *reachable(config, "train.batch_size")),
        ("run_cap",): 2,
        ("early_terminate",): None,
    }
    for name, value in _LENGTH.items():
        changes[tuple(name.split("."))] = value
    for name, parameter in config.parameters.items():
        when = _without_length(parameter.when)
        if name in _LENGTH:
            changes["parameters", name] = None  # as a file takes out what its base searches
        elif when != parameter.when:
            changes["parameters", name] = parameter.model_dump(mode="json") | {"when": when}
    points = [_without_length(point) for point in config.start_points]
    if points != list(config.start_points):
        changes["start_points",] = points
    kept = [text for text in config.require if not _LENGTH.keys() & parse(text).keys]
    if len(kept) < len(config.require):
        changes["require",] = kept
    if config.final is not None:
        changes["final", "seeds"] = list(config.final.seeds[:1])
        changes["final", "top_k"] = 1
    return changes


def _without_length(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _LENGTH}
