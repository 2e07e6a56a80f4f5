"""A sweep whose images stand in an object store, as a person runs it, against moto's S3."""

import pytest

from segray.config import load_sweep
from segray.data import read_splits
from segray.data.scenes import write_scenes


@pytest.fixture
def streets(bucket, tmp_path, monkeypatch):
    """Fifteen scenes at s3://.../streets, and a cache that holds nothing of them."""
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    size = {"cities": 4, "val_cities": 1, "size": (32, 64), "seed": 0}
    write_scenes(tmp_path / "streets", train=12, val=3, **size)
    bucket.put_tree(tmp_path / "streets", "streets")
    return f"{bucket.url}/streets"


def section(root):
    return {"format": "cityscapes", "root": root, "size": [32, 64], "val_share": 0.25}


def test_a_dry_run_says_what_is_to_be_fetched_and_fetches_nothing(
    streets, sweep_file, segray, tmp_path
):
    file = sweep_file(data=section(streets))
    run = segray("sweep", file, "--dry-run")
    assert run.returncode == 0, run.stderr
    told = " ".join(run.stdout.split())
    assert "images 9 train, 3 val, 3 test" in told
    assert f"30 files of {streets}, not yet fetched: 30 files, " in told
    assert not list((tmp_path / "cache").glob("files-*"))
    read_splits(load_sweep(file).data)
    run = segray("sweep", file, "--dry-run")
    assert f"30 files of {streets}, all fetched" in " ".join(run.stdout.split())


@pytest.mark.slow
def test_a_sweep_learns_the_same_as_from_a_local_folder(
    streets, s3_proxy, sweep_file, segray, tmp_path, records, leaderboard
):
    best = {}
    for name, root in (("local", str(tmp_path / "streets")), ("remote", streets)):
        data = section(root)
        run = segray("sweep", sweep_file(name=name, data=data, run_cap=2, final={"seeds": [0]}))
        assert run.returncode == 0, run.stderr
        rows = leaderboard(tmp_path / "runs" / name)
        best[name] = [(row["state"], row["best_value"]) for row in rows.values()]
    assert best["local"] == best["remote"]
    # The driver listed before and after the fetch; trials knew that they need not.
    taken = s3_proxy.taken()
    assert sum("list-type" in path for _, path in taken) == 8
    assert sum(method == "GET" and "list-type" not in path for method, path in taken) == 30


@pytest.mark.slow
def test_what_cannot_be_had_ends_a_sweep_at_once(streets, s3_proxy, sweep_file, segray, tmp_path):
    none = segray("sweep", sweep_file(data=section("s3://nobody-has-this/streets")))
    assert (none.returncode, none.stdout.count("Traceback")) == (2, 0)
    assert "error: cannot list s3://nobody-has-this/streets/" in none.stderr
    empty = segray("sweep", sweep_file(data=section(f"{streets}/deeper")))
    assert empty.returncode == 2
    assert f"expected images as {streets}/deeper/leftImg8bit/train/" in empty.stderr
    s3_proxy.behaviour = "error"
    away = segray("sweep", sweep_file(data=section(streets)))
    assert away.returncode == 1
    assert "look at the network" in away.stderr
    assert not (tmp_path / "runs").exists()
