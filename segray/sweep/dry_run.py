"""What a sweep would do: nothing is started, drawn, fetched or written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from segray.config import (
    Data,
    Parameter,
    ScenesData,
    SweepConfig,
    SweepFile,
    reachable,
    trial_count,
)
from segray.config.schema import Asha, Median
from segray.config.yaml_file import brief
from segray.data import cache_root, count_images, is_cached
from segray.data.fetch import Survey
from segray.data.samples import pooled
from segray.sweep.budget import longest
from segray.sweep.estimate import (
    cache_bytes,
    checkpoint_bytes,
    estimate,
    plan_here,
    read_bench,
    time_in_words,
)
from segray.sweep.placement import Plan, this_machine
from segray.sweep.preflight import check_steps, first_trial
from segray.sweep.progress import count, size
from segray.sweep.records import RunFolder
from segray.sweep.space import brackets, left_to_chance
from segray.sweep.store import run_place
from segray.tracking import check as check_tracking
from segray.train import build_trial_model


def show_plan(sweep: SweepFile) -> None:
    """Print the resolved config with the source of each value, the search space and the plan.

    Raises RequestError for what can be found wrong without starting anything.
    """
    config = sweep.config
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    values = _table(f"{sweep.file}, resolved", "key", "value", "from")
    for path, value in _leaves(config.model_dump(mode="json"), sweep.sources):
        if not path.startswith("parameters."):
            source = sweep.sources[path]
            values.add_row(path, brief(value), source, style="dim" if source == "default" else None)
    space = _table("Search space", "parameter", "values", "without a search", "from")
    for name, parameter in config.parameters.items():
        own = _at(config.model_dump(mode="json"), name)
        source = sweep.sources[f"parameters.{name}"]
        space.add_row(name, _in_words(parameter), brief(own), source)
    steps = _table("Plan", "", "")
    steps.show_header = False
    for name, text in _plan(config, sweep.sources):
        steps.add_row(name, text)
    for table in (values, *([space] if config.parameters else []), steps):
        console.print(table)
        console.print()


def _plan(config: SweepConfig, sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    trials, epochs = trial_count(config), longest(config)
    yield "trials", f"{trials} by {config.method}" + _stops(config)
    if told := left_to_chance(config, sources):
        yield "at random", told
    then = count(config.final.trainings, "final training") if config.final else "no final stage"
    yield "epochs", f"up to {epochs} a trial, {trials * epochs} in the search; then {then}"
    parts, stored = _images(config.data)
    if isinstance(config.data, ScenesData):
        drawn = config.data.train_images + config.data.test_images
        yield "images", f"{drawn} scenes, drawn when it runs"
    else:
        check_steps(config, parts["train"])
        yield "images", ", ".join(f"{number} {name}" for name, number in parts.items())
    address = os.environ.get("RAY_ADDRESS")
    if address:
        at_once = None
        yield "places", f"on the Ray cluster at {address}, which is asked when it runs"
        yield "time", "not known of a cluster; segray bench FILE measures the machine it runs on"
    else:
        machine = this_machine()
        stage, final = plan_here(config)
        at_once = stage.concurrent
        here = machine.nodes[0].shape
        yield "places", f"{count(at_once, 'trial')} at a time, {stage}; there are {here} here"
        yield "time", _time(config, parts, stage, final)
    yield "disk", "; ".join(_disk(config, sum(parts.values()), at_once or 1, stored))
    taken = (
        ""
        if RunFolder.is_free(config)
        else ", which holds an earlier run: --resume, or another name="
    )
    yield "results", f"{run_place(config)}{taken}"
    yield "W&B", check_tracking(config.tracking.wandb.mode, ask=False).says


def _stops(config: SweepConfig) -> str:
    rule = config.early_terminate
    if rule is None:
        return ", each to its end"
    if isinstance(rule, Median):
        return (
            f"; from epoch {rule.min_iter} on, one that is worse than the median of "
            f"{rule.min_trials} or more finished ones ends"
        )
    parts = [
        (", ".join(map(str, rungs)) or "none", share)
        for share, rungs in brackets(rule, max(reachable(config, "train.epochs")))
    ]
    if isinstance(rule, Asha):
        return f"; after epoch {parts[0][0]} the best 1/{rule.eta} go on (ASHA)"
    when = " or ".join(f"{rungs} ({share:.0%} of trials)" for rungs, share in parts)
    return f"; after epoch {when} the best 1/{rule.eta} go on (Hyperband)"


def _images(data: Data) -> tuple[dict[str, int], Survey | None]:
    """Images of each split, and what an object store has of them; how scenes will fall into train
    and val is known about.
    """
    if not isinstance(data, ScenesData):
        return count_images(data)
    total, test = data.train_images + data.test_images, data.test_images
    val = round(data.val_share * data.train_images)
    if data.split == "pooled":
        val = test = len(pooled(total, data.split_seed).val)
    parts = {"train": total - val - test, "val": val, "test": test}
    return {name: min(number, data.limit or number) for name, number in parts.items()}, None


def _time(config: SweepConfig, images: Mapping[str, int], search: Plan, final: Plan | None) -> str:
    bench = read_bench(config, search)
    if bench is None:
        return "segray bench FILE measures it, in a minute"
    sizes = images["train"], images["val"], images["test"]
    return f"{time_in_words(estimate(config, bench, sizes, search, final))} (segray bench)"


def _disk(config: SweepConfig, images: int, at_once: int, stored: Survey | None) -> Iterator[str]:
    to_fetch = stored is not None and bool(stored.missing)
    if stored is not None:
        state = "all fetched"
        if to_fetch:
            files = count(len(stored.missing), "file")
            state = f"not yet fetched: {files}, {size(stored.bytes)}"
        yield f"{count(len(stored.listing), 'file')} of {config.data.root}, {state}"
    need = size(cache_bytes(config, images))
    known = not isinstance(config.data, ScenesData) and not to_fetch and is_cached(config.data)
    state = "which is there" if known else "to be built"
    yield f"{need} of decoded images in {cache_root()}, {state}"
    if getattr(config.model, "pretrained", None) is None:
        with torch.device("meta"):  # shapes without numbers
            model = build_trial_model(first_trial(config))
        parameters = sum(p.numel() for p in model.parameters())
        most = size(checkpoint_bytes(config, parameters, at_once))
        yield f"at most {most} of checkpoints ({parameters / 1e6:.2f}M parameters)"


def _in_words(parameter: Parameter) -> str:
    """The values of a searched key on one line."""
    plain = parameter.model_dump(mode="json")
    kind = plain.pop("distribution")
    asked = [f"{name} in {brief(list(allowed))}" for name, allowed in parameter.when.items()]
    plain.pop("when", None)
    when = f", when {' and '.join(asked)}" if asked else ""
    if "values" in plain:
        return "one of " + ", ".join(map(brief, plain["values"])) + when
    if "value" in plain:
        return f"always {brief(plain['value'])}{when}"
    low, high = plain.pop("min"), plain.pop("max")
    more = "".join(f", {key} {brief(value)}" for key, value in plain.items())
    scale = kind.removesuffix("_values").replace("_", "-")
    return f"{scale} from {brief(low)} to {brief(high)}{more}{when}"


def _leaves(
    data: Mapping[str, Any], sources: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each key that has a source of its own."""
    for key, value in data.items():
        path = f"{prefix}{key}"
        if path in sources:
            yield path, value
        else:
            yield from _leaves(value, sources, f"{path}.")


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
