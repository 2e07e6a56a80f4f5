"""`segray bench`: measures a sweep file, keeps the result, and prints it with an estimate."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from segray.bench.measure import SECONDS, measure
from segray.config import SweepConfig
from segray.data import Dataset, is_cached, open_dataset, read_splits
from segray.sweep.estimate import (
    Bench,
    Bounds,
    Estimate,
    duration,
    estimate,
    plan_here,
    time_in_words,
    write_bench,
)
from segray.sweep.preflight import check_steps
from segray.sweep.progress import Screen, count, size
from segray.train.evaluation import EVAL_BATCH

FEW = 32  # images of a split that are decoded, and a batch at least, where no cache is there yet
WIDTH = 80
_PARTS = ("data", "forward", "loss", "backward", "optimizer", "metrics")


def bench_sweep(config: SweepConfig, *, as_json: bool = False, seconds: float = SECONDS) -> None:
    """Measure a sweep file on this machine and print the result; `--dry-run` finds it again.

    `as_json` prints one JSON object and sends progress to stderr. Raises RequestError for images,
    weights or resources that a sweep would be refused for, and what `measure` raises.
    """
    console = Console(highlight=False, stderr=as_json)
    screen = Screen(config.metric.name, config.metric.goal, config.train.epochs, console)
    search, final = plan_here(config)
    dataset, images = _open(config, screen)
    bench = measure(config, search, dataset, screen, seconds=seconds)
    path = write_bench(bench)
    found = estimate(config, bench, images, search, final)
    if as_json:
        whole = {"file": str(path), "bench": asdict(bench), "estimate": asdict(found)}
        print(json.dumps(whole, indent=2))  # noqa: T201
        return
    screen.line("")
    for line in _lines(config, bench, found, path):
        screen.line(line)


def _open(config: SweepConfig, screen: Screen) -> tuple[Dataset, tuple[int, int, int]]:
    """Images to measure with, and how many the whole of train, val and test has.

    A sweep's cache takes minutes to build: where it is not there, a few images do.
    """
    with screen.bars() as progress:
        _, splits = read_splits(config.data, progress)
        sizes = len(splits.train), len(splits.val), len(splits.test)
        check_steps(config, sizes[0])
        data = config.data
        few = max(FEW, config.train.batch_size)
        if sum(sizes) > 3 * few and not is_cached(data):
            screen.say(f"no image cache yet: measured with {few} images of each split")
            data = data.model_copy(update={"limit": min(few, data.limit or few)})
        return open_dataset(data, progress), sizes


def _lines(config: SweepConfig, bench: Bench, found: Estimate, path: Path) -> Iterator[str]:
    """The result in lines of at most WIDTH columns, but for paths."""
    facts = bench.facts
    machine, train = facts["machine"], facts["train"]
    where = machine["gpu"] if facts["gpus_per_worker"] else machine["cpu"]
    yield from _wrapped(
        f"{config.name}: {config.model.name}, {bench.parameters / 1e6:.2f}M parameters, "
        f"on {where}, torch {machine['torch']}"
    )
    share = train["batch_size"] // facts["workers"]
    yield from _wrapped(
        f"One worker of a trial: {count(facts['threads'], 'thread')} on {facts['cores']} of "
        f"{count(machine['cores'], 'core')}, {train['precision']}, "
        f"{count(share, 'image')} of {'x'.join(map(str, train['crop']))} a step, "
        f"{count(bench.steps, 'step')} measured"
    )
    yield ""
    yield f"{'images/s':26}{'training':>12}{'evaluation':>12}"
    yield _row("the loop", bench.train_images_per_s, bench.eval_images_per_s)
    yield _row("loader alone", bench.loader_images_per_s)
    yield _row("model alone", bench.model_images_per_s)
    yield f"{'  waiting for data':26}{bench.data_wait:>12.1%}"
    yield from _bounds(bench)
    yield ""
    yield f"{'ms, medians':26}{'a step':>12}{f'{EVAL_BATCH} of val':>12}"
    for part in _PARTS:
        yield _row(part, *(1000 * p.get(part, 0.0) for p in (bench.train_parts, bench.eval_parts)))
    yield _row("whole", 1000 * bench.train_step_s, 1000 * sum(bench.eval_parts.values()))
    if facts["gpus_per_worker"]:
        yield from _wrapped("Told apart, parts cannot overlap: the GPU waits between them.")
    yield ""
    yield f"peak memory {size(bench.peak_bytes)}"
    yield (
        f"checkpoints {size(bench.checkpoint_bytes)} (last) and {size(bench.weights_bytes)} "
        f"(best), written in {duration(bench.checkpoint_s)}"
    )
    yield ""
    yield from _wrapped(f"The whole sweep: {time_in_words(found)}")
    yield from _wrapped(
        f"On disk: {size(found.cache_bytes)} of decoded images, at most "
        f"{size(found.checkpoint_bytes)} of checkpoints, {size(found.record_bytes)} of records"
    )
    yield "This takes for granted:"
    for assumption in found.assumptions:
        yield from _wrapped(assumption, "  - ")
    yield ""
    yield f"Written to {path}; --dry-run shows the estimate."


def _bounds(bench: Bench) -> Iterator[str]:
    """What a GPU could do at most, and the share of it that training reaches."""
    bounds: Bounds | None = bench.bounds
    if bounds is None:
        return
    for name, most in (("compute", bounds.by_compute), ("bandwidth", bounds.by_bandwidth)):
        yield f"{_row(f'bound by {name}', most)}  {bench.train_images_per_s / most:.0%} reached"
    yield from _wrapped(
        f"Bounds: {bounds.flops_per_image / 1e9:.3g} GFLOP an image at "
        f"{bounds.flops_per_s / 1e12:.3g} TFLOP/s (a large matrix product here), "
        f"{bounds.bytes_per_image / 1e9:.3g} GB an image at {bounds.bytes_per_s / 1e9:.4g} GB/s (a "
        "large copy here). Bytes as if every operation read and wrote its tensors once."
    )


def _row(name: str, *numbers: float) -> str:
    return f"  {name:24}" + "".join(f"{_figure(n):>12}" if n else f"{'-':>12}" for n in numbers)


def _figure(number: float) -> str:
    """Three figures, without an exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _wrapped(text: str, lead: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
