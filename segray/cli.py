"""The `segray` command tree.

A command imports what it needs, the config and its errors included: `--help` waits for none of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from segray import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE [key=value ...]",
        help="A sweep file, and config keys to override, as in train.epochs=5.",
        show_default=False,
    ),
]
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Run folders, as in runs/unet or s3://bucket/runs/unet.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Take up the run that was killed or interrupted."),
]

_NO_SEARCH = [
    "parameters={}",
    "start_points=[]",
    "require=[]",
    "early_terminate=null",
    "final=null",
    "method=random",
    "run_cap=1",
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Which segmentation model is best on my street images once each is tuned fairly?"""
    if version:
        typer.echo(f"segray {__version__}")
        raise typer.Exit


@app.command()
def sweep(
    context: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... [key=value ...]",
            help="Sweep files, run one after the other, and config keys to override in each, as "
            "in train.epochs=5.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show config, search space and plan; run nothing.")
    ] = False,
    smoke_test: Annotated[
        bool,
        typer.Option(
            "--smoke-test", help="Run it small: 2 trials, 1 epoch, a few images; as <name>-smoke."
        ),
    ] = False,
    resume: Resume = False,
    extend: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Take up the run and add N trials to it."),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="So many trials at once; default: as many as fit."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster to join; default: RAY_ADDRESS, or Ray on this machine."),
    ] = None,
) -> None:
    """Tune a model: search the parameters of a sweep file, show which values won.

    Examples:

        segray sweep sweeps/quickstart.yaml

        segray sweep sweeps/unet.yaml data.root=/data/cityscapes run_cap=12 --dry-run

        segray sweep sweeps/unet.yaml sweeps/segformer.yaml tracking.wandb.mode=offline

        segray sweep sweeps/unet.yaml --resume

        segray sweep sweeps/unet.yaml --extend 12
    """
    from segray.config import RequestError, read_sweep
    from segray.sweep.budget import shared
    from segray.sweep.dry_run import show_plan
    from segray.sweep.runner import run_sweeps

    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    files, overrides = _split(arguments)
    if extend and (resume or smoke_test):
        raise RequestError(
            "--extend adds trials each time: give it alone, and --resume to go on with those that "
            "it added"
        )
    if max_concurrent is not None:
        overrides.append(f"resources.max_concurrent={max_concurrent}")
    read = []
    for file in files:
        with _Advice(file):
            read.append(read_sweep(file, overrides, smoke=smoke_test))
    if dry_run:
        for one, config in zip(read, shared([one.config for one in read]), strict=True):
            show_plan(replace(one, config=config))
        return
    with _Advice(files[0]):
        run_sweeps(
            [one.config for one in read],
            resume=resume,
            extend=extend or 0,
            replace=smoke_test,
            command=context.obj,
            done=lambda result: _report(result.folder) if result.final else None,
        )


@app.command()
def train(context: typer.Context, arguments: Arguments, resume: Resume = False) -> None:
    """One training with the file's own values, without search; it is scored on val only.

    Example:

        segray train sweeps/unet.yaml data.root=/data/cityscapes train.optimizer.lr=1e-3
    """
    from segray.config import load_sweep
    from segray.sweep.runner import run_training

    file, overrides = _split_one(arguments)
    with _Advice(file):
        config = load_sweep(file, [*_NO_SEARCH, *overrides])
        run_training(config, resume=resume, command=context.obj)


@app.command()
def compare(
    runs: Runs,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the page goes; default: beside the first run, or here for runs in a store.",
        ),
    ] = None,
    cost: Annotated[
        bool, typer.Option(help="Measure latency and memory of each model on this machine.")
    ] = True,
    wandb_report: Annotated[
        bool,
        typer.Option(
            "--wandb-report",
            help="Also make a report of W&B's panels; needs a key and wandb-workspaces.",
        ),
    ] = False,
) -> None:
    """Which model is better on the test split, by how much, and how sure that is.

    Compares the winners of sweeps that have a final stage, and writes report.html and compare.json.
    One run alone gives its own report.

    Examples:

        segray compare runs/unet runs/segformer

        segray compare runs/unet runs/segformer runs/segformer-b0 --out comparison --no-cost
    """
    from segray.compare.compare import compare_runs
    from segray.compare.wandb_view import log_comparison, report_in_wandb
    from segray.config import RequestError
    from segray.config.places import is_remote
    from segray.sweep.progress import count
    from segray.sweep.store import readable

    if wandb_report and len(runs) < 2:
        raise RequestError("--wandb-report is of a comparison: name two runs or more")
    folders = [readable(run, "best", "preds") for run in runs]
    if out is None and is_remote(runs[0]):  # beside its copy nobody would find it
        out = Path("-vs-".join(f.name for f in folders) + "-report" * (len(folders) == 1))
    comparison, page = compare_runs(folders, out, typer.echo, cost=cost)
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    for warning in comparison.unfair:
        console.print(Text.assemble(("Not quite fair: ", "bold yellow"), warning))
    console.print(Text(comparison.verdict, style="bold"))
    if len(comparison.pairs) > 1:
        for pair in comparison.pairs:
            console.print(Text(pair.verdict))
    cities = len(comparison.cities)
    of = f" of {cities} {'city' if cities == 1 else 'cities'}" if cities else ""
    console.print(f"On {count(comparison.images, 'test image')}{of}. Not covered:")
    for limit in comparison.not_covered:
        console.print(Text(f"  {limit}"))
    console.print(Text(f"\nThe page: {page}   all figures: {page.parent / 'compare.json'}"))
    if len(comparison.models) > 1:
        log_comparison(comparison, page)  # what goes wrong with it is said by its logger
    if wandb_report:
        console.print(Text(f"W&B report: {report_in_wandb(comparison)}"))


def _report(folder: Path) -> None:
    """A sweep's own page; whatever goes wrong with it, the sweep is done."""
    from segray.compare.compare import compare_runs
    from segray.sweep.store import publish

    again = shlex.join(["segray", "compare", str(folder)])
    try:
        _, page = compare_runs([folder])
        publish(folder, page.name, "compare.json")
    except Exception as error:
        _complain(
            f"the report could not be made: {type(error).__name__}: {error}\n"
            f"The sweep is done; to try again: {again}"
        )
        return
    typer.echo(f"  report.html       all of it on one page: open {page} in a browser")
    predict = shlex.join(["segray", "predict", str(folder)])
    typer.echo(f"Masks of other images: {predict} IMAGE... --out masks")


@app.command()
def status(
    runs: Runs,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask the head of this cluster, where the runs are."),
    ] = None,
) -> None:
    """What a run has done so far, whether it is at work, and how it goes on.

    Examples:

        segray status runs/unet

        segray status s3://bucket/runs/unet

        segray status /mnt/shared/runs/unet --cluster cluster.yaml
    """
    if cluster is not None:
        from segray.submit.submit import show_status as ask_head

        raise typer.Exit(ask_head(cluster, runs, typer.echo))
    from segray.sweep.housekeeping import show_status
    from segray.sweep.store import readable

    for run in runs:
        show_status(readable(run))


@app.command()
def submit(
    context: typer.Context,
    cluster: Annotated[
        Path,
        typer.Argument(
            metavar="CLUSTER", help="A cluster file, such as cluster.yaml.", show_default=False
        ),
    ],
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... [key=value ...]",
            help="As for `segray sweep`. Storage and data must be where every node reaches them.",
            show_default=False,
        ),
    ],
    down: Annotated[
        bool, typer.Option("--down", help="End the cluster's machines once the sweep has ended.")
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CIDR",
            help="Who may reach the head's port 22 on AWS, by segray's security group; default: "
            "your address alone.",
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Show what the sweep says, until it ends."),
    ] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Run a sweep on a cluster: bring it up, start the sweep there, follow it, fetch its results.

    The sweep runs on the cluster's head and goes on when you stop following, close the laptop or
    lose the network; the same command follows it again, takes it up where it was cut off, or
    fetches its results where it has ended well. Ends with the sweep's own exit code.

    Examples:

        segray submit cluster.yaml sweeps/quickstart.yaml storage=s3://BUCKET/runs

        segray submit cluster.yaml sweeps/segformer.yaml storage=s3://BUCKET/runs \\
            data.root=s3://BUCKET/cityscapes --down

        segray submit lab.yaml sweeps/unet.yaml storage=/mnt/shared/runs \\
            data.root=/mnt/shared/cityscapes --no-follow
    """
    from segray.submit.submit import submit as run_on_cluster

    files, overrides = _split(arguments)
    code = run_on_cluster(
        cluster,
        files,
        overrides,
        say=typer.echo,
        confirm=lambda question: yes or _confirm(question),
        network=network,
        follow=follow,
        down=down,
        again=shlex.join(part for part in context.obj if part != "--no-follow"),
    )
    raise typer.Exit(code)


@app.command()
def patience(
    runs: Runs,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as a JSON object a run.")
    ] = False,
) -> None:
    """What each patience would have cost and saved in a run, replayed from its records.

    Early stopping is replayed on every trial, epoch by epoch, for each patience up to the largest
    that one ran with. It trains nothing. A trial that was cut short (by a smaller patience, ASHA,
    the budget or a fault) says nothing about what would have come after: it is marked, counted, and
    left out.

    Examples:

        segray patience runs/unet

        segray patience runs/unet --json > patience.json
    """
    from segray.sweep.patience import show_patience
    from segray.sweep.store import readable

    for run in runs:
        show_patience(readable(run), as_json=as_json)


@app.command()
def clean(
    runs: Runs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Say what a run could free, and free it: weights of trials, uploaded W&B runs, scratch.

    Records, the study, best/ and the final stage stay; so does what --resume needs.

    Example:

        segray clean runs/unet
    """
    from segray.config import RequestError
    from segray.data.remote import is_remote
    from segray.sweep.housekeeping import clean_run

    for run in runs:
        if is_remote(run):
            raise RequestError(
                f"{run}: clean frees folders of this machine or of a shared file system; in an "
                "object store delete checkpoint/ of trials and candidates with the store's tools"
            )
        clean_run(Path(run), lambda question: yes or _confirm(question))


@app.command()
def bench(
    arguments: Arguments,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")
    ] = False,
) -> None:
    """Measure a sweep file here for a minute: images/s, parts of a step, how long a sweep takes.

    `segray sweep FILE --dry-run` shows the estimate from then on.

    Examples:

        segray bench sweeps/quickstart.yaml

        segray bench sweeps/unet.yaml data.root=/data/cityscapes train.batch_size=16 --json
    """
    from segray.bench.report import bench_sweep
    from segray.config import load_sweep

    file, overrides = _split_one(arguments)
    with _Advice(file):
        bench_sweep(load_sweep(file, overrides), as_json=as_json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, with which an editor completes keys and marks typos.

    Example:

        segray schema > schema.json

    and as the first line of a sweep file beside it: # yaml-language-server: $schema=schema.json
    """
    from segray.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def sync(
    runs: Runs,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also the runs of trials that were not tracked.")
    ] = False,
) -> None:
    """Upload the W&B runs that a sweep kept on disk; what is there already stays as it is.

    Runs whose W&B folder was lost or cut off are made again from segray's own records, without
    images. A comparison's folder can be named too.

    Examples:

        segray sync runs/quickstart

        segray sync runs/unet-vs-segformer

        WANDB_BASE_URL=https://wandb.example.org segray sync runs/*
    """
    from segray.sweep.store import readable
    from segray.sweep.view import sync

    sync([readable(run, "wandb") for run in runs], typer.echo, untracked=rebuild)


@app.command()
def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A run, as in runs/unet, or a folder with a saved model, as in runs/unet/best.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE...]",
            help="Images, and folders of them, which are searched with their subfolders.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where masks/, overlays/ and classes.json go."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images or windows a forward pass.")] = 4,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="H,W",
            help="Slide a window of so many pixels over each image at its own size; default: the "
            "whole image, resized as in training.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    export: Annotated[
        str | None,
        typer.Option(metavar="FILE.onnx", help="Write the model as ONNX; images may be left out."),
    ] = None,
) -> None:
    """Predict the class of every pixel of images; export the model.

    Masks are palette PNGs of the image's size whose pixels are class indices; overlays show them on
    the image; classes.json and legend.png say which class is what. A SegFormer's folder also loads
    with transformers.

    Examples:

        segray predict runs/segformer street.jpg photos/ --out predictions

        segray predict runs/unet photos/ --out predictions --window 512,1024

        segray predict runs/unet --export unet.onnx
    """
    from segray.config import RequestError, WorkError

    inputs = images or []
    if inputs and out is None:
        raise RequestError("--out: name a folder for the masks, as in --out predictions")
    if not inputs and export is None:
        raise RequestError("expected images or folders of them, or --export FILE.onnx, got neither")
    sides = _height_width("--window", window) if window is not None else None

    from segray.predict import export_onnx, first_image, load, plain_progress, predict_files

    predictor = load(checkpoint, device)
    if export is not None:
        image = first_image(inputs, out) if out is not None and inputs else None
        typer.echo(f"exporting to {export}, then checking it: up to a few minutes", err=True)
        made = export_onnx(predictor, export, image)
        typer.echo(
            f"{made.file}: images (N, 3, H, W) -> logits; onnxruntime gives the same class at "
            f"{made.equal:.4%} of the pixels, logits differ by {made.difference:.1e} at most"
        )
    if not inputs or out is None:
        return
    with _bar() as bar:
        progress = bar if sys.stderr.isatty() else plain_progress(partial(typer.echo, err=True))
        written = predict_files(
            predictor, inputs, out, batch=batch, window=sides, progress=progress
        )
    typer.echo(
        f"{written.count} of {written.count + len(written.failed)} images: masks in {out}/masks, "
        f"overlays in {out}/overlays, classes in {out}/classes.json and legend.png"
    )
    if written.failed:
        count = len(written.failed)
        raise WorkError("\n".join([f"{count} could not be read", *written.failed]))


def _height_width(option: str, text: str) -> tuple[int, int]:
    from segray.config import RequestError

    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise RequestError(f"{option}: expected H,W in pixels, as in 96,192, got {text}")
    return int(sides[0]), int(sides[1])


data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data", help="Look at the images before a sweep does.")


@data_app.command()
def check(arguments: Arguments) -> None:
    """Read every image and mask of a sweep file's data, and report all that is wrong with them.

    Ends with 0, or with 1 where a sweep would fail.

    Examples:

        segray data check sweeps/folders.yaml data.root=/data/streets

        segray data check sweeps/unet.yaml 'data.size=[256, 512]'
    """
    from segray.config import load_sweep
    from segray.data.check import check_dataset

    config = load_sweep(*_split_one(arguments))
    with _bar() as progress:
        report = check_dataset(config.data, progress=progress)
    report.print(Console(highlight=False))
    if report.problems:
        raise typer.Exit(1)


@data_app.command()
def scenes(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    train: Annotated[int, typer.Option(min=2, help="Images to tune with.")] = 200,
    val: Annotated[int, typer.Option(min=1, help="Images for the final score.")] = 60,
    size: Annotated[str, typer.Option(metavar="H,W", help="Pixels, 32 or more.")] = "96,192",
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other streets.")] = 0,
) -> None:
    """Draw street scenes as files in Cityscapes' layout, to try things with.

    Example:

        segray data scenes /tmp/streets --train 100 --val 20 --size 128,256
    """
    from segray.config import RequestError
    from segray.data.scenes import write_scenes

    height, width = _height_width("--size", size)
    cities = {"cities": min(10, train), "val_cities": min(3, val)}
    with _bar() as progress:
        try:
            write_scenes(
                folder,
                train=train,
                val=val,
                **cities,
                size=(height, width),
                seed=seed,
                progress=partial(progress, "scenes drawn"),
            )
        except (ValueError, FileExistsError) as error:
            raise RequestError(str(error)) from None
    section = f"data={{format: cityscapes, root: {folder.absolute()}, size: [{height}, {width}]}}"
    typer.echo(f"{train + val} scenes are in {folder}; to use them: {shlex.quote(section)}")


cache_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
data_app.add_typer(
    cache_app, name="cache", help="Decoded images and generated scenes that are kept for later."
)


@cache_app.command("ls")
def cache_ls() -> None:
    """List what is cached: name, size, when a sweep last opened it, what it holds.

    Example:

        segray data cache ls
    """
    from segray.data.housekeeping import show_stored

    show_stored()


@cache_app.command("clear")
def cache_clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="As `ls` lists them; all, if none is given."),
    ] = None,
    unused_days: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Only what no sweep opened for N days."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Say what the cache could free, and free it. A sweep that needs it again builds it again.

    Examples:

        segray data cache clear --unused-days 30

        segray data cache clear images-0123456789abcdef0123
    """
    from segray.data.housekeeping import clear_stored

    clear_stored(names or [], unused_days, lambda question: yes or _confirm(question))


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar where people look on; yields what to call with (title, done, total)."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")

        def tell(title: str, done: int, total: int) -> None:
            progress.update(task, description=title, completed=done, total=total)

        yield tell


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the request was wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=given, prog_name="segray", obj=["segray", *given])
    except OSError as error:  # a full disk, a folder without permission
        _complain(f"{error.strerror or error}: {error.filename or 'no file named'}")
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        from segray.config import Interrupted, SegrayError

        if isinstance(error, KeyboardInterrupt):
            error = Interrupted("interrupted")
        if not isinstance(error, SegrayError):
            raise
        _complain(str(error))
        sys.exit(error.exit_code)


class _Advice:
    """Adds, where a dataset or weights are missing, a command that needs neither."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from segray.config import ConfigError, RequestError
        from segray.config.errors import MissingInput

        missing = isinstance(error, MissingInput) or (
            isinstance(error, ConfigError) and any(p.path == "data.root" for p in error.problems)
        )
        if missing and isinstance(error, RequestError):
            error.args = (f"{error}\n\n{_without_downloads(self._file)}",)


def _without_downloads(file: str) -> str:
    """A sweep of two trials on generated scenes, with a small model of the same kind from scratch.

    Of the file's other keys none is kept that could ask for its images, classes, weights or GPUs.
    """
    from segray.config import SegrayError
    from segray.config.load import read_unchecked

    try:
        name = read_unchecked(file)["model"]["name"]
    except (SegrayError, KeyError, TypeError):
        name = "unet"
    small = {"segformer": "{name: segformer, variant: b0, width: 0.25}"}
    command = [
        *(sys.executable, "-m", "segray.sweep", file, "name=no-download"),
        "data={format: scenes}",
        f"model={small.get(name, '{name: unet, width: 8}')}",
        *("train={epochs: 4}", "metric={}", "resources={}", *_NO_SEARCH),
        *("parameters.train.optimizer.lr={values: [1.0e-3, 3.0e-3]}", "run_cap=2"),
    ]
    return f"To see segray at work on generated scenes, without downloads:\n  {shlex.join(command)}"


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sweep files and key=value overrides."""
    from segray.config import RequestError, SweepConfig

    # os.path, as Path.is_file raises for an override that is too long for a file's name
    files = [a for a in arguments if "=" not in a or os.path.isfile(a)]  # noqa: PTH113
    if not files:
        raise RequestError(f"expected a sweep file, got only overrides: {shlex.join(arguments)}")
    for name in files:
        if name.split(".")[0] in SweepConfig.model_fields and not os.path.exists(name):  # noqa: PTH110
            raise RequestError(f"override {name}: expected key=value, as in {name}=...")
    return files, [argument for argument in arguments if argument not in files]


def _split_one(arguments: Sequence[str]) -> tuple[str, list[str]]:
    from segray.config import RequestError

    files, overrides = _split(arguments)
    if len(files) > 1:
        raise RequestError(f"expected one sweep file, got {len(files)}: {shlex.join(files)}")
    return files[0], overrides


def _confirm(question: str) -> bool:
    """Ask on a terminal; anywhere else the answer is no. Raises Interrupted on Ctrl-C."""
    from segray.config import Interrupted

    if not sys.stdin.isatty():
        typer.echo(f"{question} No: add --yes to do it.")
        return False
    try:
        return typer.confirm(question)
    except typer.Abort:
        typer.echo()  # the question's line has no end yet
        raise Interrupted("interrupted") from None


def _complain(message: str) -> None:
    text = Text.assemble(("error: ", "bold red"), message)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
