"""Run folders in an object store: moto's S3, in a process of its own."""

import json
import shutil
import threading
import time

import pytest

from segray.config import RequestError, WorkError, load_sweep
from segray.data.remote import RemoteError, RemoteFolder
from segray.sweep import store
from segray.sweep.records import RunFolder
from segray.sweep.runner import run_sweep
from segray.sweep.store import ATTEMPT, LEASE, Copy, Keeper, Lease, readable, run_path

QUIET = {"tracking": {"wandb": {"mode": "disabled"}}}


@pytest.fixture
def remote(bucket):
    return RemoteFolder(f"{bucket.url}/runs/tiny")


def names(remote):
    return sorted(remote.files())


def test_killed_and_taken_up_on_another_head_it_equals_the_undisturbed_sweep(
    sweep_file, leaderboard, start, kill_when, without_time, tmp_path, bucket, remote, monkeypatch
):
    """The driver is killed twice; each next one begins with an empty disk, as on a new head."""
    changes = {
        "method": "random",
        "run_cap": 2,
        "keep_trials": 1,
        "train": {"epochs": 4, "batch_size": 4, "optimizer": {"lr": 1e-2}},
        "final": {"seeds": [7]},
        "tracking": {"wandb": {"mode": "offline", "images": 1}},
    }
    whole = run_sweep(load_sweep(sweep_file(**changes))).folder
    file = sweep_file(**changes | {"storage": f"{bucket.url}/runs"})

    def epochs():
        return sum(
            (remote.read(name) or b"").count(b"\n")
            for name in remote.files()
            if name.endswith("metrics.jsonl")
        )

    monkeypatch.setattr(store, "GONE_S", 0.0)
    for head, count in ((1, 2), (2, 9)):
        monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / f"head{head}"))
        option = [] if head == 1 else ["--resume"]
        kill_when(start(file, *option), lambda at=count: epochs() >= at)
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "head3"))
    last = start(file, "--resume")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert "taken up again" in said
    assert f"Everything is in {remote.url}" in said

    seen = readable(remote.url, *store.PARTS)
    ignored = ("seconds",)
    rows = [
        {trial: {k: v for k, v in row.items() if k not in ignored} for trial, row in each.items()}
        for each in (leaderboard(whole), leaderboard(seen))
    ]
    assert rows[0] == rows[1]
    assert without_time(whole) == without_time(seen)
    metrics = [json.loads((run / "final/seed_7/metrics.json").read_text()) for run in (whole, seen)]
    assert metrics[0] == metrics[1]
    # The same files lie there as in a folder, but for locks and what says when.
    here = {
        path.relative_to(whole).as_posix()
        for path in whole.rglob("*")
        if path.is_file() and path.relative_to(whole).parts[0] not in ("wandb", ".lock", ".driver")
    }
    there = {name for name in names(remote) if not name.startswith("wandb/")}
    assert {n for n in there if "report" not in n and n != "compare.json"} == here
    # A run of W&B's for each training.
    runs = {name.split("/")[1] for name in names(remote) if name.endswith(".wandb")}
    assert len({run.rpartition("-")[2] for run in runs}) == 3
    assert (seen / "report.html").is_file()


def test_a_run_in_the_store_is_seen_from_outside(sweep_file, segray, bucket, remote, tmp_path):
    file = sweep_file(run_cap=1, final={"seeds": [1]}, storage=f"{bucket.url}/runs", **QUIET)
    run = segray("sweep", file, "train.epochs=1")
    assert run.returncode == 0, run.stderr
    shutil.rmtree(run_path(load_sweep(file)))
    status = segray("status", remote.url)
    assert "1 of 1 trial ended, 1 of 1 final training" in status.stdout
    assert "The sweep is done." in status.stdout
    compared = segray("compare", remote.url, "--no-cost")
    assert compared.returncode == 0, compared.stderr
    assert "The page: tiny-report/report.html" in compared.stdout
    facts = json.loads((tmp_path / "tiny-report/compare.json").read_text())
    assert facts["models"][0]["folder"] == remote.url
    image = next((tmp_path / "cache").rglob("*.png"), None) or _an_image(tmp_path)
    predicted = segray("predict", remote.url, image, "--out", tmp_path / "masks")
    assert predicted.returncode == 0, predicted.stderr
    again = segray("sweep", file, "train.epochs=1")
    assert again.returncode == 2
    assert "holds an earlier run" in again.stderr
    assert segray("clean", remote.url).returncode == 2
    assert segray("status", f"{bucket.url}/runs/other").returncode == 2


def _an_image(folder):
    from PIL import Image

    Image.new("RGB", (64, 32)).save(folder / "street.png")
    return folder / "street.png"


def test_a_bucket_that_is_not_there_is_refused_before_anything_runs(sweep_file, segray, bucket):
    run = segray("sweep", sweep_file(storage="s3://no-such-bucket/runs", **QUIET))
    assert run.returncode == 2
    assert "s3://no-such-bucket/runs" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def begun(sweep_file, bucket):
    file = sweep_file(storage=f"{bucket.url}/runs")
    return load_sweep(file), RunFolder.create(load_sweep(file))


def test_of_two_drivers_on_two_machines_one_has_the_run(begun, remote, tmp_path, monkeypatch):
    config, folder = begun
    monkeypatch.setattr(store, "BEAT_S", 0.3)
    monkeypatch.setattr(store, "GONE_S", 3.0)
    with folder.hold(lambda: None):
        assert folder.running()
        here = RunFolder.resume(config)
        with pytest.raises(RequestError, match="is still running"), here.hold(lambda: None):
            pass
        monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "other"))
        there = RunFolder.resume(config)
        with pytest.raises(RequestError, match="at work on"), there.hold(lambda: None):
            pass
    assert not folder.running()
    assert LEASE not in names(remote)


def test_a_driver_that_is_dead_is_waited_for_and_then_replaced(begun, remote, monkeypatch):
    config, folder = begun
    monkeypatch.setattr(store, "GONE_S", 1.0)
    sign = {"id": "of-the-dead", "host": "gone", "copy": "another", "beat": 7, "time": 0}
    remote.write(LEASE, json.dumps(sign).encode())
    waited = []
    with RunFolder.resume(config).hold(lambda: waited.append(1)):
        assert waited
        assert json.loads(remote.read(LEASE))["id"] != "of-the-dead"
    sign["copy"] = (folder.path.parent / ".copy").read_text()  # whose locks say that it is dead
    remote.write(LEASE, json.dumps(sign).encode())
    with RunFolder.resume(config).hold(lambda: waited.append(2)):
        assert waited == [1]


def test_a_driver_that_was_replaced_writes_no_more(begun, remote):
    _, folder = begun
    with folder.hold(lambda: None):
        sign = {"id": "another", "host": "elsewhere", "copy": "theirs", "beat": 1, "time": 0}
        remote.write(LEASE, json.dumps(sign).encode())
        (folder.path / "leaderboard.csv").write_text("late")
        with pytest.raises(WorkError, match="taken over by a sweep on elsewhere"):
            folder.save()
    assert "leaderboard.csv" not in names(remote)
    assert json.loads(remote.read(LEASE))["id"] == "another"


def test_a_copy_brings_what_changed(remote, tmp_path):
    here, there = Copy(tmp_path / "here", remote), Copy(tmp_path / "there", remote)
    (here.path / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (here.path / name).write_text(name)
    here.push(["a", "deep/b", "c"])
    assert names(remote) == ["a", "deep/b"]
    uploads, upload = [], remote.upload

    def counted(source, name):
        uploads.append(name)
        upload(source, name)

    remote.upload = counted
    (here.path / "a").write_text("longer")
    here.push(["deep/b", "a"])
    assert uploads == ["a"]
    there.fetch()
    assert (there.path / "a").read_text() == "longer"
    (here.path / "deep/b").unlink()
    here.push(["a", "deep/b"])
    assert names(remote) == ["a", "deep/b"]  # what is missing is not taken for deleted
    here.push_gone(lambda name: True)
    assert names(remote) == ["a"]
    there.fetch()
    assert (there.path / "deep/b").is_file()
    there.fetch(drop=lambda name: True)
    assert not (there.path / "deep/b").exists()


LAST, BEST = "checkpoint/last.safetensors", "checkpoint/best.safetensors"


@pytest.fixture
def keeper(remote, tmp_path):
    """Of a trial that has begun; `keeper.write(epoch, best)` leaves what an epoch leaves.

    `keeper.sent` are the objects brought, in order, and none is before `keeper.go_on` is set.
    """
    folder = tmp_path / "000"
    keeper = Keeper(remote, "trials/000", folder, "mine")
    keeper.claim()
    keeper.fetch()
    (folder / "checkpoint").mkdir()
    (folder / "config.yaml").write_text("what decides its numbers")
    keeper.sent, keeper.go_on = [], threading.Event()
    store_side = keeper._copy.remote
    upload = store_side.upload

    def slowly(source, name):
        keeper.go_on.wait(20)
        keeper.sent.append(name)
        upload(source, name)

    store_side.upload = slowly

    def write(epoch, is_best):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(f"{epoch}\n")
        for name in (LAST, BEST) if is_best else (LAST,):
            new = folder / "checkpoint/.new"
            new.write_text(f"weights of {epoch}")
            new.replace(folder / name)
        keeper.epoch(is_best=is_best)

    keeper.write, keeper.folder, keeper.trial = write, folder, remote / "trials/000"
    keeper.start()
    return keeper


def until(reached):
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_keeper_brings_the_epoch_that_it_was_told_of(keeper):
    """A checkpoint that is replaced while the one before is on its way stays that one."""
    keeper.write(1, True)
    until(lambda: not keeper._waiting)
    keeper.write(2, True)
    keeper.write(3, False)  # takes the place of 2, which has not begun
    keeper.go_on.set()
    until(lambda: keeper.trial.read(LAST) == b"weights of 3")
    assert keeper.trial.read(BEST) == b"weights of 2"
    # Of epoch 3 the best is an earlier one, which nothing but its own file could give again. The
    # record had all three epochs when it was read for the first.
    assert keeper.sent == ["config.yaml", "metrics.jsonl", LAST, BEST, BEST, LAST]


def test_the_outcome_is_brought_last_and_then_the_last_checkpoint_goes(keeper):
    keeper.go_on.set()
    keeper.write(1, True)
    until(lambda: keeper.trial.read(BEST))
    (keeper.folder / LAST).unlink()  # as at a trial's end
    (keeper.folder / "outcome.json").write_text("{}")
    (keeper.folder / "preds").mkdir()
    (keeper.folder / "preds/a.png").write_bytes(b"")
    deleted, delete = [], keeper._copy.remote.delete

    def noted(names):
        deleted.append((list(names), list(keeper.sent)))
        delete(names)

    keeper._copy.remote.delete = noted
    keeper.finish()
    assert keeper.sent[-2:] == ["preds/a.png", "outcome.json"]
    assert deleted == [([LAST], keeper.sent), ([ATTEMPT], keeper.sent)]
    kept = [BEST, "config.yaml", "metrics.jsonl", "outcome.json", "preds/a.png"]
    assert names(keeper.trial) == kept


def test_the_log_is_brought_with_each_epoch(keeper):
    """A process that is killed has no other moment for it."""
    keeper.go_on.set()
    (keeper.folder / "log.txt").write_text("epoch 1")
    keeper.write(1, True)
    until(lambda: keeper.trial.read("log.txt") == b"epoch 1")


def test_the_last_words_of_a_dead_process_are_kept(begun, remote):
    """On the driver's own machine: what its log has beyond what was brought."""
    _, folder = begun
    trial = folder.trial("000")
    (remote / "trials/000").write("log.txt", b"epoch 1\n")
    folder.collect(trial, weights=False)
    assert (trial / "log.txt").read_text() == "epoch 1\n"
    with (trial / "log.txt").open("a") as log:
        log.write("Segmentation fault")
    folder.collect(trial, weights=False)
    folder.save_training(trial, "log.txt")
    assert (remote / "trials/000").read("log.txt") == b"epoch 1\nSegmentation fault"


def test_what_tells_that_a_run_was_uploaded_is_for_every_copy(begun, remote):
    run = "wandb/offline-run-20260101_000000-a"
    remote.write(f"{run}/run-a.wandb", b"log")
    read = readable(remote.url, "wandb")
    (read / run / "run-a.wandb.synced").touch()
    readable(remote.url)  # as `segray status` beside it
    assert (read / run / "run-a.wandb.synced").is_file()
    store.publish_new(read, "wandb")
    assert sorted(remote.files())[-2:] == [f"{run}/run-a.wandb", f"{run}/run-a.wandb.synced"]


def test_a_folder_that_was_wiped_takes_nothing_from_the_store(keeper):
    keeper.go_on.set()
    keeper.write(1, True)
    until(lambda: keeper.trial.read(BEST))
    shutil.rmtree(keeper.folder)
    keeper.finish()
    assert {LAST, BEST, "metrics.jsonl"} <= set(names(keeper.trial))


def test_an_attempt_that_was_begun_anew_elsewhere_brings_nothing_more(keeper, remote, tmp_path):
    """As on a machine that the cluster has lost from sight, and which still reaches the store."""
    keeper.go_on.set()
    keeper.write(1, True)
    until(lambda: keeper.trial.read(BEST))
    other = Keeper(remote, "trials/000", tmp_path / "elsewhere", "mine")
    other.claim()
    other.fetch()
    assert (tmp_path / "elsewhere" / LAST).read_bytes() == b"weights of 1"
    keeper.write(2, True)
    until(lambda: not keeper._waiting)
    (keeper.folder / "outcome.json").write_text("{}")
    keeper.finish()
    assert keeper.trial.read(LAST) == b"weights of 1"
    assert keeper.trial.read("outcome.json") is None
    other.start()
    other.finish()
    assert ATTEMPT not in names(keeper.trial)
    keeper.finish()  # also after the other's end
    assert keeper.trial.read("outcome.json") is None


def test_a_trial_whose_driver_was_replaced_brings_nothing(remote, tmp_path):
    keeper = Keeper(remote, "trials/000", tmp_path / "000", "mine")
    keeper.claim()
    keeper.fetch()
    keeper.start()
    remote.write(LEASE, json.dumps({"id": "another", "host": "elsewhere"}).encode())
    (tmp_path / "000/outcome.json").write_text("{}")
    keeper.finish()
    assert names(remote / "trials/000") == [ATTEMPT]


def test_a_store_that_does_not_answer_is_tried_again_and_then_told(remote, monkeypatch):
    monkeypatch.setattr(store, "TRIES_S", (0.01, 0.01))
    calls = []

    def fail():
        calls.append(1)
        raise RemoteError("cannot write s3://x")

    with pytest.raises(RemoteError):
        store.insist(fail)
    assert len(calls) == 3


def test_a_lease_of_nobody_is_taken_at_once(remote, tmp_path):
    waited = []
    with Lease(remote, tmp_path / "tiny").held(lambda: waited.append(1)):
        assert not waited
        assert store.at_work(remote)
