"""A report on W&B's server: what its own panels show of sweeps whose runs are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from segray.config import RequestError, WorkError
from segray.tracking import client
from segray.tracking.client import told, within

if TYPE_CHECKING:  # wandb-workspaces is an extra, and slow to import
    import wandb_workspaces.reports.v2 as wr

PACKAGE = "pip install 'wandb-workspaces>=0.4.13'"
_WIDTH = 24  # of W&B's grid of panels


@dataclass(frozen=True)
class ReportedSweep:
    """A sweep as W&B has it: a group of runs, those of its trials and of its final trainings."""

    group: str
    project: str
    entity: str | None
    metric: str
    parameters: Sequence[str]  # that were searched: dotted paths in a run's config


def write_wandb_report(
    title: str,
    paragraphs: Sequence[str],
    sweeps: Sequence[ReportedSweep],
    classes: Sequence[str],
    comparison: str,
) -> str:
    """Make a report in the first sweep's project; returns its address.

    It has `paragraphs`, the tables of the comparison's run (whose name is `comparison`), the final
    trainings side by side, and each sweep's search. Raises RequestError where wandb-workspaces is
    missing, and where no key is known or the server refuses it; WorkError where the server does not
    take the report.
    """
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError:
        raise RequestError(
            f"no W&B report was made: it needs the package wandb-workspaces: {PACKAGE}"
        ) from None
    with client.for_a_moment():
        possible, why = client.ways("online")
        if "online" not in possible:
            raise RequestError(f"no W&B report was made: {why}")
        try:
            _, own = client.ask_server()
        except PermissionError as error:
            raise RequestError(f"no W&B report was made: {error}") from None
        except ConnectionError as error:
            raise WorkError(f"no W&B report was made: {error}") from None
        save = partial(_save, title, paragraphs, sweeps, classes, comparison, own)
        try:
            return within(client.FINISH_SECONDS, save)
        except (Exception, SystemExit) as error:
            raise WorkError(
                f"no W&B report was made: {told(error)}. It shows runs that the server has: "
                "`segray sync` uploads what stayed on disk"
            ) from None


def _save(
    title: str,
    paragraphs: Sequence[str],
    sweeps: Sequence[ReportedSweep],
    classes: Sequence[str],
    comparison: str,
    own: str,
) -> str:
    import wandb
    import wandb_workspaces.reports.v2 as wr

    wandb.setup(client.settings())  # silent
    first = sweeps[0]
    report = wr.Report(
        project=first.project,
        entity=first.entity or own,
        title=title[:128],
        description="Made by segray compare --wandb-report.",
        width="fluid",
        blocks=[
            *map(wr.P, paragraphs),
            wr.H2("The comparison"),
            _compared(first, comparison, own),
            wr.H2("The winners, trained again with every seed"),
            _finals(sweeps, classes, own),
        ],
    )
    for sweep in sweeps:
        report.blocks += [wr.H2(f"The search of {sweep.group}"), _search(sweep, own)]
    report.save()
    return str(report.url)


def _compared(first: ReportedSweep, comparison: str, own: str) -> wr.PanelGrid:
    """The tables that the comparison's run logged."""
    import wandb_workspaces.reports.v2 as wr

    runs = _runs(
        first, own, f"Metric('JobType') = 'comparison' and Metric('Name') = {comparison!r}"
    )
    runs.name = "comparison"
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in ("models", "pairs")]
    return wr.PanelGrid(runsets=[runs], panels=_placed(tables, across=1, height=8))


def _finals(sweeps: Sequence[ReportedSweep], classes: Sequence[str], own: str) -> wr.PanelGrid:
    """Learning curves and scores on test, a line and a bar a model: the mean over its seeds."""
    import wandb_workspaces.reports.v2 as wr

    runsets = []
    for sweep in sweeps:
        runs = _runs(sweep, own, _of(sweep, "final"))
        runs.groupby = ["group"]
        runsets.append(runs)
    by_group: dict[str, Any] = {"groupby": "Group", "groupby_aggfunc": "mean"}
    curves = [
        wr.LinePlot(title=name, y=[name], groupby_rangefunc="minmax", **by_group)
        for name in dict.fromkeys([*(s.metric for s in sweeps), "train/loss", "val/loss"])
    ]
    bars = [
        wr.BarPlot(
            title=f"test/{name}",
            metrics=[wr.SummaryMetric(f"test/{name}")],
            range_x=(0, 1),
            groupby_rangefunc="minmax",
            **by_group,
        )
        for name in ("miou", *(f"iou/{name}" for name in classes))
    ]
    rest = [wr.MediaBrowser(title="Test images", media_keys=["images/test"], num_columns=4)]
    panels = _placed(curves, across=3, height=8)
    panels += _placed(bars, across=4, height=6, below=panels)
    panels += _placed([*rest, wr.RunComparer(diff_only="split")], across=1, height=10, below=panels)
    return wr.PanelGrid(runsets=runsets, panels=panels)


def _search(sweep: ReportedSweep, own: str) -> wr.PanelGrid:
    """The trials: their curves, and what their parameters did to the best value."""
    import wandb_workspaces.reports.v2 as wr

    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(path), display_name=path)
        for path in sweep.parameters
    ]
    best = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("best"), display_name="best")
    panels = _placed(
        [
            wr.LinePlot(title=sweep.metric, y=[sweep.metric], max_runs_to_show=100),
            wr.ParameterImportancePlot(with_respect_to="best"),
        ],
        across=2,
        height=8,
    )
    wide = [
        wr.ParallelCoordinatesPlot(title="Parallel coordinates", columns=[*columns, best]),
        wr.RunComparer(diff_only="split"),
    ]
    panels += _placed(wide, across=1, height=10, below=panels)
    return wr.PanelGrid(runsets=[_runs(sweep, own, _of(sweep, "trial"))], panels=panels)


def _runs(sweep: ReportedSweep, own: str, filters: str) -> wr.Runset:
    import wandb_workspaces.reports.v2 as wr

    return wr.Runset(
        entity=sweep.entity or own, project=sweep.project, name=sweep.group, filters=filters
    )


def _of(sweep: ReportedSweep, job_type: str) -> str:
    return f"Metric('Group') = {sweep.group!r} and Metric('JobType') = {job_type!r}"


def _placed(
    panels: Sequence[Any], *, across: int, height: int, below: Sequence[Any] = ()
) -> list[Any]:
    """The panels in rows of `across`, under those that were placed before."""
    import wandb_workspaces.reports.v2 as wr

    top = max((panel.layout.y + panel.layout.h for panel in below), default=0)
    width = _WIDTH // across
    for n, panel in enumerate(panels):
        row, column = divmod(n, across)
        panel.layout = wr.Layout(x=column * width, y=top + row * height, w=width, h=height)
    return [*panels]
