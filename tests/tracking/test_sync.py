"""`segray sync` with the real client, against a server on loopback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segray.config import RequestError, WorkError
from segray.sweep import view
from segray.tracking import TrackedImage
from segray.tracking.sync import sync_runs

KEY = "0123456789abcdef" * 2 + "01234567"
Sync = Callable[[], list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "sweep.yaml").write_text(
        "# id: 01234567\ntracking: {wandb: {project: streets, entity: null}}\n"
    )
    return folder


@pytest.fixture
def sync(run: Path) -> Sync:
    """Uploads the run folder; returns what was said."""

    def sync() -> list[str]:
        said: list[str] = []
        sync_runs([run], said.append)
        return said

    return sync


@pytest.fixture
def track(start: Any) -> Callable[..., None]:
    """Tracks a run to its end, as a trial that begins or goes on does."""

    def track(mode: str, epochs: int, run_id: str = "trial-7") -> None:
        tracker = start(mode, run_id)
        for epoch in range(1, epochs + 1):
            tracker.log({"val/miou": epoch / 100}, epoch=epoch)
        image = np.zeros((8, 8, 3), np.uint8)
        mask = np.zeros((8, 8), np.uint8)
        pictures = {"val": [TrackedImage("aachen", image, mask, mask)]}
        counts = {"val": np.eye(3, dtype=np.int64)}
        tracker.finish({"best": epochs / 100}, confusion=counts, images=pictures)

    return track


def assert_whole(server: Any, epochs: int, run_id: str = "trial-7") -> None:
    run = server.runs[run_id]
    assert run.curve("val/miou") == {epoch: epoch / 100 for epoch in range(1, epochs + 1)}
    assert (run.summary["best"], run.exit_code) == (epochs / 100, 0)
    media = [name for name in server.uploads(run_id) if name.startswith("media/")]
    assert {name.split("/")[1] for name in media} == {"images", "table"}


def test_offline_runs_arrive_once(track: Any, sync: Sync, online: Any, capfd: Any) -> None:
    track("offline", 3, "trial-1")
    track("offline", 2, "trial-2")
    said = sync()
    assert f"2 runs to upload to {online.url}, project me/streets" in said[0]
    assert [line.strip() for line in said[1:]] == ["1/2 trial-1: uploaded", "2/2 trial-2: uploaded"]
    for run_id, epochs in (("trial-1", 3), ("trial-2", 2)):
        assert_whole(online, epochs, run_id)
        opened = online.runs[run_id].opened
        assert (opened["groupName"], opened["jobType"]) == ("unet-sweep", "trial")
        assert online.runs[run_id].config["train"]["optimizer"] == {"lr": 6.0e-5}
    before = len(online.requests)
    assert "nothing to upload; 2 runs uploaded already" in sync()[0]
    assert len(online.requests) == before
    assert capfd.readouterr() == ("", "")


def test_an_online_run_that_arrived_is_not_sent_again(track: Any, sync: Sync, online: Any) -> None:
    track("online", 2)
    before = len(online.requests)
    assert "1 run uploaded already" in sync()[0]
    assert len(online.requests) == before


def test_a_killed_offline_run_that_went_on_is_one_run(
    killed: Any, track: Any, sync: Sync, online: Any
) -> None:
    killed("offline", 2, at_once=True)
    assert "killed before W&B had written anything" in sync()[0]
    track("offline", 4)
    sync()
    assert len(online.runs["trial-7"].rows) == 4 + 1  # and the pictures
    assert_whole(online, 4)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_killed_run_whose_beginning_the_server_has_is_one_run(
    mode: str, killed: Any, track: Any, sync: Sync, online: Any
) -> None:
    killed(mode, 2, at_once=False)
    sync()
    assert online.runs["trial-7"].curve("val/miou") == {1: 0.01, 2: 0.02}
    assert "nothing to upload" in sync()[0]
    track("offline", 4)
    sync()
    assert_whole(online, 4)


@pytest.mark.parametrize(
    ("trouble", "where"),
    [
        *((trouble, "") for trouble in ("error", "denied", "forbidden", "quota", "busy", "stall")),
        ("quota", "/put/"),
        ("stall", "file_stream"),
    ],
)
def test_what_a_failing_server_did_not_take_is_uploaded_later(
    trouble: str, where: str, track: Any, sync: Sync, online: Any, impatient: None
) -> None:
    online.behaviour_later, online.where = trouble, where
    track("online", 3)
    online.recover()
    sync()
    assert_whole(online, 3)


@pytest.mark.parametrize("trouble", ["error", "denied", "quota", "stall"])
def test_a_server_lost_on_the_way_loses_nothing(
    trouble: str, track: Any, sync: Sync, run: Path, online: Any, impatient: None
) -> None:
    track("offline", 2, "trial-1")
    track("offline", 3, "trial-2")
    online.behaviour_later = trouble
    with pytest.raises(WorkError, match="0 of 2 runs uploaded, 2 not") as lost:
        sync()
    assert f"segray sync {run}" in str(lost.value)
    online.recover()
    sync()
    assert_whole(online, 2, "trial-1")
    assert_whole(online, 3, "trial-2")


def test_a_run_still_being_written_is_left_alone(start: Any, sync: Sync, online: Any) -> None:
    tracker = start("offline")
    tracker.log({"val/miou": 0.5}, epoch=1)
    assert "1 run still being written" in sync()[0]
    assert online.requests == []
    tracker.finish({})
    sync()
    assert online.runs["trial-7"].curve("val/miou") == {1: 0.5}


def test_a_log_cut_off_within_a_record_is_uploaded_up_to_there(
    track: Any, sync: Sync, run: Path, online: Any
) -> None:
    track("offline", 3)
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    log.write_bytes(log.read_bytes()[:1500])
    assert "as far as it was written" in sync()[-1]
    assert "uploaded already" in sync()[-1]


@pytest.mark.parametrize(
    ("environment", "code", "says"),
    [
        ({}, 0, "trial-7: uploaded"),
        ({"WANDB_MODE": "offline"}, 0, "trial-7: uploaded"),
        ({"WANDB_API_KEY": ""}, 2, "wandb login"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, 1, "Nothing is lost"),
    ],
)
def test_the_command(
    environment: Any, code: int, says: str, track: Any, run: Path, online: Any, monkeypatch: Any
) -> None:
    track("offline", 2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = segray("sync", run)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert not Path("wandb").exists()  # where the person is
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_a_folder_that_no_sweep_left_ends_with_2(tmp_path: Path, run: Path) -> None:
    done = segray("sync", run, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no run folder" in done.stderr
    assert segray("sync", run).returncode == 0


def test_a_refused_key_is_a_wrong_request(track: Any, sync: Sync, online: Any) -> None:
    track("offline", 1)
    online.behaviour = "denied"
    with pytest.raises(RequestError, match="refuses the key"):
        sync()


def test_a_comparison_is_uploaded_from_its_own_folder(
    start: Any, online: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "a-vs-b"
    folder.mkdir()
    (folder / "compare.json").write_text("{}")
    said: list[str] = []
    assert view.sync([folder], said.append) == 0
    tracker = start("offline", "compare-1", folder=folder, project="both", job_type="comparison")
    tracker.finish({"verdict": "none"}, files=[folder / "compare.json"])
    assert view.sync([folder], said.append) == 1
    assert "1 run to upload" in said[1]
    assert "project me/both" in said[1]
    assert online.runs["compare-1"].summary["verdict"] == "none"
    (report,) = (a for a in online.artifacts if a.type == "report")
    assert (report.files["compare.json"], report.committed) == (b"{}", True)
    assert view.sync([folder], said.append) == 0
    assert "1 run uploaded already" in said[-1]


def segray(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)
