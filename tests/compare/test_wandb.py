"""A comparison in W&B: a run that the real client writes or sends, and a report made of panels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from segray.compare.wandb_view import log_comparison, report_in_wandb, run_name, tracking_of
from segray.config import RequestError, WorkError
from segray.config.schema import Wandb
from segray.sweep import view
from segray.tracking.wandb_tracker import _Server

KEY = "0123456789abcdef" * 2 + "01234567"
PAGE = "<html><head></head><body>a page with photographs</body></html>"


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """No account of the person who runs the tests, and a server nobody has given up."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home / name.lower()))
    monkeypatch.setattr("segray.tracking.wandb_tracker._server", _Server())
    monkeypatch.chdir(tmp_path)
    yield
    import wandb

    wandb.teardown()


@pytest.fixture
def online(server, monkeypatch):
    """The server, as a person with a key has it."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return server


@pytest.fixture
def page(tmp_path):
    """What compare has written."""
    folder = tmp_path / "segformer-vs-unet"
    folder.mkdir()
    (folder / "compare.json").write_text('{"verdict": "told"}')
    (folder / "report.html").write_text(PAGE)
    return folder / "report.html"


def comparison_of(make, tracking=({}, {}), **changes):
    """Two models, whose sweeps were tracked in these ways."""
    made = make(2, **changes)
    for model, wandb in zip(made.models, tracking, strict=True):
        text = f"# id: {model.name[:3]}1\nname: {model.name}-sweep\ntracking: {{wandb: "
        text += json.dumps(wandb) + "}\nparameters: {train.optimizer.lr: {min: 0.1, max: 1}}\n"
        object.__setattr__(model, "sweep_yaml", text)
    return made


@pytest.fixture
def compared(make_comparison):
    """Two models whose sweeps were tracked as sweeps are."""
    return comparison_of(make_comparison)


def read_back(folder):
    """What W&B's own tool reads in the run's log: its records, and its summary."""
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    tool = str(Path(sys.executable).with_name("wandb"))

    command = [tool, "leet", "inspect", "--json", str(log)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in out.splitlines()]
    summary = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    return log.parent, records, summary


def tables(folder):
    """Of a run's folder, by name."""
    media = folder / "files/media/table"
    found = {}
    for path in media.rglob("*.json"):
        name = path.relative_to(media).as_posix().rpartition("_")[0].rpartition("_")[0]
        content = json.loads(path.read_text())
        found[name] = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    return found


def test_an_offline_comparison_reads_back(compared, page, capfd):
    assert log_comparison(compared, page) is None
    assert capfd.readouterr() == ("", "")
    folder, records, summary = read_back(page.parent)
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert (run["job_type"], run["project"]) == ("comparison", "segray")
    assert run["display_name"] == "segformer-b3 vs unet" == run_name(compared)
    assert summary["verdict"] == compared.verdict
    best, other = compared.models
    (pair,) = compared.pairs
    assert summary["miou/unet"] == other.miou.value
    assert summary["miou/unet/low"] == other.miou.low
    between = "difference/segformer-b3 less unet"
    assert summary[between] == pair.miou.value
    assert summary[f"{between}/p"] == pair.miou.p
    assert summary[f"{between}/differs"] == pair.miou.differs

    found = tables(folder)
    assert [row["model"] for row in found["models"]] == ["segformer-b3", "unet"]
    row = found["models"][0]
    assert (row["mIoU"], row["low"], row["high"]) == (
        *(best.miou.value, best.miou.low, best.miou.high),
    )
    assert (row["weights"], row["GPU-hours"]) == (best.cost.parameters, best.spent.gpu_hours)
    assert found["pairs"][0]["verdict"] == pair.verdict
    assert len(found["categories"]) == 2 * len(compared.classes)
    assert len(found["differences"]) == len(compared.classes)
    assert found["differences"][0]["p corrected"] == pair.iou["flat"].p_corrected
    assert len(found["trainings"]) == 6
    epochs = sum(training.epochs for model in compared.models for training in model.trainings)
    assert len(found["curves"]) == epochs
    assert found["curves"][0]["val/miou"] == best.trainings[0].curves["val/miou"][0]
    for model in compared.models:
        cells = found[f"confusion/{model.name}_table"]
        assert [cell["nPredictions"] for cell in cells] == [
            n for row in model.confusion for n in row
        ]

    (report,) = (
        record["artifact"]
        for record in records
        if record["type"] == "artifact" and record["artifact"]["type"] == "report"
    )
    assert len(report["manifest"]["contents"]) == 2
    (shown,) = folder.glob("files/media/html/report_*.html")
    assert shown.read_text() == PAGE


def test_a_comparison_arrives_online_and_again_in_the_same_run(compared, page, online):
    assert log_comparison(compared, page) is None
    assert log_comparison(compared, page) is None
    ((run_id, run),) = online.runs.items()
    assert run.opened["jobType"] == "comparison"
    assert run.summary["verdict"] == compared.verdict
    assert run.config["models"]["unet"]["seeds"] == [0, 1, 2]
    assert [n for n in online.uploads(run_id) if n.startswith("media/html/report")]
    reports = [artifact for artifact in online.artifacts if artifact.type == "report"]
    assert all(one.committed for one in reports)
    assert reports[0].files["report.html"] == PAGE.encode()
    assert view.sync([page.parent], lambda line: None) == 0  # all of it is there


def test_a_failing_server_costs_a_warning_and_sync_brings_it(compared, page, online):
    online.behaviour = "denied"
    warning = log_comparison(compared, page)
    assert "what its server lacks is kept in" in warning
    assert f"segray sync {page.parent}" in warning
    assert read_back(page.parent)[2]["verdict"] == compared.verdict
    online.recover()
    assert view.sync([page.parent], lambda line: None) == 1
    (run,) = online.runs.values()
    assert run.summary["verdict"] == compared.verdict
    (report,) = (artifact for artifact in online.artifacts if artifact.type == "report")
    assert (report.files["report.html"], report.committed) == (PAGE.encode(), True)


def test_images_0_keeps_the_page_here(make_comparison, page, online):
    """It has photographs in it; one of the sweeps was told to send none."""
    made = comparison_of(make_comparison, ({"images": 4}, {"images": 0}))
    assert log_comparison(made, page) is None
    (report,) = (artifact for artifact in online.artifacts if artifact.type == "report")
    assert {*report.files} == {"compare.json", "wandb_manifest.json"}
    assert not any(b"photographs" in body for _, _, body in online.requests)


def test_a_comparison_of_one_model_without_cost(make_comparison, page):
    made = make_comparison(1)
    object.__setattr__(made.models[0], "cost", None)
    assert log_comparison(made, page, Wandb(mode="offline")) is None
    (folder,) = page.parent.glob("wandb/offline-run-*")
    assert tables(folder)["models"][0]["GFLOPs"] is None
    assert "pairs" not in tables(folder)


@pytest.mark.parametrize(
    ("modes", "found"),
    [
        (("auto", "auto"), "auto"),
        (("online", "auto"), "auto"),
        (("auto", "offline"), "offline"),
        (("disabled", "online"), "disabled"),
    ],
)
def test_the_most_restrained_sweep_decides(modes, found, make_comparison, page):
    made = comparison_of(make_comparison, [{"mode": mode, "project": mode} for mode in modes])
    assert (tracking_of(made).mode, tracking_of(made).project) == (found, modes[0])
    if found == "disabled":
        assert log_comparison(made, page) is None
        assert not (page.parent / "wandb").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces
def test_a_report_of_panels(make_comparison, page, online, capfd):
    pytest.importorskip("wandb_workspaces")
    compared = comparison_of(make_comparison, ({"project": "a"}, {"project": "b", "entity": "lab"}))
    log_comparison(compared, page)
    address = report_in_wandb(compared)
    assert address.startswith(f"{online.url}/me/a/reports/segformer-b3-vs-unet--")
    assert capfd.readouterr() == ("", "")
    (report,) = online.reports
    assert (report["entityName"], report["projectName"], report["type"]) == ("me", "a", "runs")
    assert compared.verdict in report["spec"]
    blocks = json.loads(report["spec"])["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    of_comparison, finals, *searches = grids
    assert filters(of_comparison) == [
        {"jobType": "comparison", "displayName": "segformer-b3 vs unet"}
    ]
    assert filters(finals) == [
        {"group": f"{model.name}-sweep", "jobType": "final"} for model in compared.models
    ]
    places = [
        (runs["project"]["entityName"], runs["project"]["name"]) for runs in finals["runSets"]
    ]
    assert places == [("me", "a"), ("lab", "b")]
    shown = panels(finals)
    curves = {tuple(config["metrics"]) for kind, config in shown if kind == "Run History Line Plot"}
    assert ("val/miou",) in curves
    bars = {config["metrics"][0] for kind, config in shown if kind == "Bar Chart"}
    assert {f"summary_metrics.test/iou/{name}" for name in compared.classes} < bars
    assert "Run Comparer" in dict(shown)
    for search, model in zip(searches, compared.models, strict=True):
        assert filters(search) == [{"group": f"{model.name}-sweep", "jobType": "trial"}]
        shown = dict(panels(search))
        assert shown["Parameter Importance"]["targetKey"] == "best"
        columns = shown["Parallel Coordinates Plot"]["columns"]
        assert [column["accessor"] for column in columns] == [
            "config:train.value.optimizer.lr",
            "summary:best",
        ]


def filters(grid):
    return [
        {one["key"]["name"]: one["value"] for one in runs["filters"]["filters"]}
        for runs in grid["runSets"]
    ]


def panels(grid):
    return [(p["viewType"], p["config"]) for p in grid["panelBankSectionConfig"]["panels"]]


def test_a_report_needs_a_package_a_key_and_a_server(compared, online, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb_workspaces", None)
        without.setitem(sys.modules, "wandb_workspaces.reports", None)
        without.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
        with pytest.raises(RequestError, match="pip install 'wandb-workspaces"):
            report_in_wandb(compared)
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(WorkError, match="segray sync") as lost:  # nothing of it is on the server
        report_in_wandb(compared)
    assert len(str(lost.value).splitlines()) == 1
    online.behaviour = "denied"
    with pytest.raises(RequestError, match="refuses the key"):
        report_in_wandb(compared)
    online.behaviour = "quota"
    with pytest.raises(WorkError, match="answers with 402"):
        report_in_wandb(compared)
    monkeypatch.setenv("WANDB_API_KEY", "")
    with pytest.raises(RequestError, match="wandb login"):
        report_in_wandb(compared)
    assert online.reports == []
