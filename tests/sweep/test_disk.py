"""A disk that fills up while a sweep is at work."""

import subprocess
import sys

import pytest

APART = ["unshare", "--mount"]

# A file takes all the room once trials are at work, and is gone before the sweep is taken up again.
SCRIPT = """
set -u
mkdir -p "$1/runs"
mount -t tmpfs -o size=8m tmpfs "$1/runs"
(
    until [ -s "$1/runs/tiny/trials/001/metrics.jsonl" ]; do sleep 0.1; done
    dd if=/dev/zero of="$1/runs/filler" bs=1k 2> /dev/null
) &
"$2" -m segray sweep "$1/sweep.yaml"
echo "exit $?"
ls "$1"/runs/tiny/trials/*/outcome.json 2> /dev/null
rm "$1/runs/filler"
"$2" -m segray sweep "$1/sweep.yaml" --resume
echo "exit $?"
cp -r "$1/runs/tiny" "$1/kept"
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_with_room_again_it_is_completed(
    sweep_file, leaderboard, records, tmp_path
):
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace to be had here, which takes root: no small disk")
    file = sweep_file(
        model={"name": "unet", "width": 8, "depth": 2},
        run_cap=4,
        method="random",
        tracking={"wandb": {"mode": "disabled"}},
        train={"epochs": 60, "batch_size": 4, "optimizer": {"lr": 1e-2}},
    )
    run = subprocess.run(
        [*APART, "bash", "-c", SCRIPT, "bash", str(file.parent), sys.executable],
        capture_output=True,
        text=True,
        timeout=400,
    )
    _, _, second = run.stdout.partition("exit 1\n")
    assert second.rstrip().endswith("exit 0"), run.stdout + run.stderr
    assert "outcome.json" not in second  # no trial was booked for it
    assert "is full (No space left on device)" in run.stderr
    assert "with --resume goes on" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert "2 had begun and go on from their last epoch" in second
    rows = leaderboard(tmp_path / "kept")
    assert {row["state"] for row in rows.values()} == {"finished"}
    for trial in rows:
        lines = records(tmp_path / "kept/trials" / trial)
        assert [line["epoch"] for line in lines] == list(range(1, 61))
