"""Trackers against the real W&B client: disabled, offline, and online at a server on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segray.tracking import Table, TrackedImage, Tracker

COUNTS = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 0]], dtype=np.int64)
KEY = "0123456789abcdef" * 2 + "01234567"
Start = Callable[..., Tracker]


def picture(name: str = "aachen_000001") -> TrackedImage:
    rng = np.random.default_rng(list(name.encode()))
    truth = rng.integers(0, 3, (12, 20)).astype(np.uint8)
    truth[0] = 255
    image = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    return TrackedImage(name, image, truth, np.zeros((12, 20), np.uint8))


def train(tracker: Tracker, *, failed: bool = False, images: bool = True) -> None:
    for epoch in (1, 2, 3):
        metrics = {"val/miou": np.float32(epoch / 4), "val/iou/sky": float("nan"), "none": None}
        tracker.log(metrics, epoch=epoch)  # type: ignore[arg-type]
    summary = {"best": 0.75, "best_epoch": np.int64(3), "state": "finished", "worst": float("nan")}
    pictures = {"val": [picture("a"), picture("b")]} if images else {}
    tracker.finish(summary, confusion={"val": COUNTS}, images=pictures, failed=failed)


def inspect(log: Path, *options: str) -> list[dict[str, Any]]:
    """What W&B itself reads in a run's file; one object a line, or one in all."""
    tool = Path(sys.executable).with_name("wandb")
    command = [str(tool), "leet", "inspect", "--json", *options, str(log)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    try:
        found = json.loads(out)
        return found if isinstance(found, list) else [found]
    except json.JSONDecodeError:
        return [json.loads(line) for line in out.splitlines()]


def offline_log(folder: Path, run_id: str = "trial-7") -> Path:
    (log,) = folder.glob(f"run/wandb/offline-run-*/run-{run_id}.wandb")
    return log


@pytest.mark.parametrize("mode", ["disabled", "offline", "online"])
@pytest.mark.parametrize("failed", [False, True])
def test_every_tracker_is_silent_and_forgiving(
    mode: str, failed: bool, start: Start, online: Any, capfd: Any, caplog: Any, tmp_path: Path
) -> None:
    for run_id in ("trial-1", "trial-2"):
        tracker = start(mode, run_id)
        train(tracker, failed=failed)
        assert tracker.warning is None
        tracker.log({"val/miou": 0.1}, epoch=4)  # after the end: nothing happens
        tracker.finish({})
    left_open = start(mode, "trial-3")
    train(start(mode, "trial-4"))
    left_open.log({"val/miou": 0.1}, epoch=1)
    left_open.finish({})

    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    expected_files = mode != "disabled"
    assert (tmp_path / "run").exists() == expected_files
    assert bool(online.requests) == (mode == "online")
    assert not list(tmp_path.glob("wandb"))
    said = [r for r in caplog.records if r.name == "segray" and "trial-3" not in r.getMessage()]
    assert len(said) <= 1  # only the run that another one closed may complain


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from segray.tracking import start_tracker
for mode in ("disabled", "auto"):
    tracker = start_tracker(mode, project="p", entity=None, run_id="r", run_name="n", group="g",
        job_type="j", config={{}}, folder=Path({str(tmp_path / "none")!r}), classes=["a"])
    tracker.log({{"x": 1.0}}, epoch=1)
    tracker.finish({{}})
assert not any(name == "wandb" or name.startswith("wandb.") for name in sys.modules)
"""
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert not (tmp_path / "none").exists()


def test_offline_run_reads_back(start: Start, tmp_path: Path) -> None:
    train(start("offline"))
    log = offline_log(tmp_path)
    text = json.dumps(inspect(log))
    for expected in (
        "unet-sweep",
        "trial",
        "name of trial-7",
        "streets",
        "/data",
        "6e-05",
    ):
        assert expected in text
    rows = [r for r in history(inspect(log)) if "val/miou" in r]
    assert [(r["_step"], r["val/miou"]) for r in rows] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert not any("val/iou/sky" in r or "none" in r for r in rows)
    media = log.parent / "files" / "media"
    assert len(list(media.glob("images/images/*.png"))) == 2
    assert len(list(media.glob("images/mask/images/*.png"))) >= 3
    (table,) = media.glob("table/confusion/val_table*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["Actual", "Predicted", "nPredictions"]
    cells = {(true, pred): count for true, pred, count in content["data"]}
    assert cells["sky", "flat"] == 2
    assert cells["flat", "sky"] == 1
    assert sum(cells.values()) == COUNTS.sum()
    (whole,) = inspect(log, "--summary")
    assert (whole["summary"]["best"], whole["summary"]["best_epoch"]) == (0.75, 3)
    assert "worst" not in whole["summary"]
    assert not list((tmp_path / "home").rglob("*confusion*"))  # all of it is in the run's folder


def test_two_runs_in_one_process_and_no_images(start: Start, tmp_path: Path) -> None:
    train(start("auto", "trial-1"), images=False)  # no key: offline
    worker = threading.Thread(target=lambda: train(start("auto", "trial-2"), failed=True))
    worker.start()  # Tune runs trials outside the main thread
    worker.join()
    assert not list(tmp_path.glob("run/wandb/*trial-1/files/media/images/**/*.png"))
    assert list(tmp_path.glob("run/wandb/*trial-2/files/media/images/images/*.png"))
    for run_id, code in (("trial-1", 0), ("trial-2", 1)):
        log = offline_log(tmp_path, run_id)
        assert len([r for r in history(inspect(log)) if "val/miou" in r]) == 3
        assert inspect(log, "--summary")[0]["exit_code"] == code


def test_online_run_arrives(start: Start, online: Any, tmp_path: Path) -> None:
    train(start("auto"))
    first = online.calls("UpsertBucket")[0]
    assert (first["name"], first["displayName"]) == ("trial-7", "name of trial-7")
    assert (first["groupName"], first["jobType"]) == ("unet-sweep", "trial")
    config = json.loads(first["config"])
    assert config["train"]["value"]["optimizer"]["lr"] == 6.0e-5
    private = {first[name] for name in ("host", "program", "repo", "commit") if name in first}
    assert private <= {None, "", "segray"}
    rows = [r for r in online.history() if "val/miou" in r]
    assert [r["_step"] for r in rows] == [1, 2, 3]
    uploads = online.uploads("trial-7")
    assert any(name.startswith("media/table/confusion/val_table") for name in uploads)
    assert len([n for n in uploads if n.startswith("media/images/images/val")]) == 2
    assert not [n for n in uploads if n.startswith(("requirements", "wandb-metadata", "code"))]
    assert key_holders(tmp_path) == []
    assert not any(KEY.encode() in body for _, _, body in online.requests)


def test_online_without_images_uploads_none(start: Start, online: Any) -> None:
    train(start("online"), images=False)
    assert not [name for name in online.uploads("trial-7") if name.startswith("media/images")]


@pytest.mark.parametrize(
    "trouble", ["refused", "error", "denied", "forbidden", "quota", "busy", "stall"]
)
def test_a_server_in_trouble_means_offline(
    trouble: str,
    start: Start,
    online: Any,
    monkeypatch: Any,
    caplog: Any,
    capfd: Any,
    tmp_path: Path,
    impatient: None,
) -> None:
    if trouble == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    else:
        online.behaviour = trouble
    warnings = set()
    for run_id in ("trial-1", "trial-2"):
        tracker = start("auto", run_id)
        train(tracker)
        warnings.add(tracker.warning)
        rows = history(inspect(offline_log(tmp_path, run_id)))
        assert len([r for r in rows if "val/miou" in r]) == 3
        asked = len(online.requests)
        # The second did not ask at all: a worker that runs many trials waits once.
        assert list(tmp_path.glob(f"run/wandb/run-*-{run_id}")) == [] or run_id == "trial-1"
    assert len(online.requests) == asked
    assert len(warnings) == 1  # the driver's screen shows it once
    (said,) = [record for record in caplog.records if record.name == "segray"]
    assert said.levelname == "WARNING"
    assert f"is kept in {tmp_path / 'run/wandb'}" in said.getMessage()
    assert f"segray sync {tmp_path / 'run'}" in said.getMessage()
    assert KEY not in caplog.text
    assert key_holders(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_a_server_that_stalls_later_does_not_hold_the_run(
    start: Start, online: Any, caplog: Any, tmp_path: Path, impatient: None
) -> None:
    tracker = start("online")
    tracker.log({"val/miou": 0.5}, epoch=1)
    online.behaviour = "stall"
    tracker.finish({"best": 0.5})
    assert "kept in" in caplog.text
    assert list(tmp_path.glob("run/wandb/run-*/run-trial-7.wandb"))


@pytest.mark.parametrize("where", ["file_stream", "/put/"])
def test_a_quota_that_is_used_up_is_told(where: str, start: Start, online: Any) -> None:
    """W&B's server goes on with the run, and takes no metrics, or no files, any more."""
    online.behaviour, online.where = "quota", where
    tracker = start("online")
    train(tracker)
    assert "storage quota exceeded" in str(tracker.warning)
    online.recover()
    assert start("online", "trial-8").warning == tracker.warning  # for a while all stay offline


def test_epochs_do_not_wait_for_the_server(start: Start, online: Any, impatient: None) -> None:
    """One that waited would be given up."""
    tracker = start("online")
    online.behaviour = "stall"
    for epoch in (1, 2, 3):
        tracker.log({"val/miou": epoch / 4}, epoch=epoch)
    assert tracker.warning is None
    online.recover()
    tracker.finish({"best": 0.75})
    assert online.runs["trial-7"].curve("val/miou") == {1: 0.25, 2: 0.5, 3: 0.75}


def test_a_server_that_is_slow_is_left_alone_for_a_while(
    start: Start, online: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    for limit in ("SLOW_SECONDS", "SLOW_SHARE"):
        monkeypatch.setattr(f"segray.tracking.wandb_tracker.{limit}", 0.0)
    first = start("online", "trial-1")
    first.finish({"best": 0.5})
    assert "the server is slow" in str(first.warning)
    assert online.runs["trial-1"].exit_code == 0
    second = start("online", "trial-2")
    second.finish({})
    assert second.warning == first.warning
    assert "trial-2" not in online.runs
    assert offline_log(tmp_path, "trial-2").exists()


def test_a_server_that_is_back_is_used_again(start: Start, online: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("segray.tracking.wandb_tracker.PAUSE_SECONDS", 0.0)
    online.behaviour = "denied"
    train(start("online", "trial-1"))
    online.recover()
    again = start("online", "trial-2")
    train(again)
    assert again.warning is None
    assert online.runs["trial-2"].exit_code == 0


def test_online_without_a_key_never_asks(start: Start, caplog: Any, tmp_path: Path) -> None:
    train(start("online"))
    assert "no key for" in caplog.text
    assert offline_log(tmp_path).exists()


def test_a_malformed_key_is_not_repeated(
    start: Start, online: Any, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    train(start("auto"))
    assert len([record for record in caplog.records if record.name == "segray"]) == 1
    assert "too short" not in caplog.text


def test_key_in_netrc_counts(start: Start, online: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine {online.url.removeprefix('http://')} login user password {KEY}\n")
    train(start("auto"))
    assert online.history()
    assert key_holders(tmp_path / "run") == []


@pytest.mark.parametrize("value", ["offline", "dryrun"])
def test_auto_obeys_wandb_mode(
    value: str, start: Start, online: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    train(start("auto"))
    assert offline_log(tmp_path).exists()
    assert online.requests == []


def test_a_folder_that_cannot_be_made(start: Start, caplog: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    train(start("offline", folder=tmp_path / "file" / "run"))
    assert len([record for record in caplog.records if record.name == "segray"]) == 1
    assert "not tracked" in caplog.text


def test_what_cannot_be_shown_costs_neither_summary_nor_run(
    start: Start, caplog: Any, tmp_path: Path
) -> None:
    tracker = start("offline")
    tracker.log({"val/miou": 0.5}, epoch=1)
    bad = TrackedImage("x", np.zeros((2, 2, 7, 9), np.uint8), *[np.zeros(3, np.uint8)] * 2)
    tracker.finish(
        {"best": 0.5},
        confusion={"val": np.zeros((1, 1), np.int64)},
        images={"val": [bad]},
        tables={"mixed": Table(["a"], [[1], ["one"]]), "good": Table(["a"], [[1], [None]])},
        files=[tmp_path / "none.html"],
    )
    for lost in ("matrix of val is", "images of val are", "table mixed is", "report is"):
        assert f"the {lost} not shown" in caplog.text.replace("confusion matrix", "matrix")
    assert list(tmp_path.glob("run/wandb/*/files/media/table/good*.json"))
    assert '"best"' in json.dumps(inspect(offline_log(tmp_path), "--summary"))


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def key_holders(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".netrc"]
    return [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_that_is_revoked_during_a_run_is_told(start: Start, online: Any) -> None:
    """To the client such a run ends well."""
    tracker = start("online")
    assert tracker.warning is None
    tracker.log({"val/miou": 0.5}, epoch=1)
    online.behaviour = "denied"
    tracker.finish({"best": 0.5})
    assert "did not take everything" in str(tracker.warning)
    assert KEY not in str(tracker.warning)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_killed_run_goes_on_online(at_once: bool, start: Start, killed: Any, online: Any) -> None:
    killed("online", 3, at_once=at_once)
    assert len(online.runs["trial-7"].rows) == (0 if at_once else 3)
    tracker = start("online")
    for epoch in (1, 2, 3, 4, 5):  # a trial tells again what its records hold
        tracker.log({"val/miou": epoch / 100}, epoch=epoch)
    tracker.finish({"best": 0.05})
    (run,) = online.runs.values()
    steps = [row["_step"] for row in run.rows if "val/miou" in row]
    assert steps == [1, 2, 3, 4, 5]
    assert run.curve("val/miou") == {epoch: epoch / 100 for epoch in range(1, 6)}
    assert run.summary["best"] == 0.05


def test_an_epoch_told_twice_is_one_row(start: Start, online: Any) -> None:
    tracker = start("online")
    for epoch in (1, 2, 2, 1, 3):
        tracker.log({"val/miou": epoch / 4}, epoch=epoch)
    tracker.finish({})
    assert [row["_step"] for row in online.history() if "val/miou" in row] == [1, 2, 3]


TABLE = Table(["epoch", "val/miou", "training"], [[1, 0.5, "a"], [2, np.float64("nan"), "b"]])
CHART = Table(TABLE.columns, TABLE.rows, lines=("epoch", "val/miou", "training"))


def finish_with_report(tracker: Tracker, folder: Path) -> dict[str, bytes]:
    """Two files, of which one is a page; they change at once, as a comparison does that is made
    again.
    """
    contents = {"report.html": b"<html><head></head>page</html>", "compare.json": b"{}"}
    files = [folder / name for name in contents]
    for file in files:
        file.write_bytes(contents[file.name])
    tracker.finish({"best": 1}, tables={"plain": TABLE, "curves": CHART}, files=files)
    for file in files:
        file.write_text("changed")
    return contents


def test_tables_and_files_read_back_offline(start: Start, tmp_path: Path) -> None:
    tracker = start("offline")
    finish_with_report(tracker, tmp_path)
    assert tracker.warning is None
    log = offline_log(tmp_path)
    media = log.parent / "files" / "media"
    for name in ("plain_", "curves_", "curves/chart_table_"):
        (table,) = media.glob(f"table/{name}*.json")
        content = json.loads(table.read_text())
        assert content["columns"] == TABLE.columns
        assert content["data"] == [[1, 0.5, "a"], [2, None, "b"]]
    (page,) = media.glob("html/report_*.html")
    assert page.read_text() == "<html><head></head>page</html>"  # nothing is linked into it
    records = inspect(log)
    (report,) = (
        record["artifact"]
        for record in records
        if record["type"] == "artifact" and record["artifact"]["type"] == "report"
    )
    assert {file["path"] for file in report["manifest"]["contents"]} == {
        "report.html",
        "compare.json",
    }
    assert "wandb/line/v0" in json.dumps(records)


def test_tables_and_files_arrive_online(start: Start, online: Any, tmp_path: Path) -> None:
    tracker = start("online")
    contents = finish_with_report(tracker, tmp_path)
    assert tracker.warning is None
    uploads = online.uploads("trial-7")
    for start_of_name in ("table/plain_", "table/curves_", "table/curves/chart_", "html/report_"):
        assert [n for n in uploads if n.startswith(f"media/{start_of_name}")]
    (report,) = (a for a in online.artifacts if a.type == "report")
    assert report.committed
    assert {name: report.files[name] for name in contents} == contents
