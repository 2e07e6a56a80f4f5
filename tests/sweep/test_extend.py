"""Trials added to a sweep that has ended."""

import yaml

LR = "train.optimizer.lr"


def test_trials_are_added_and_a_new_winner_gets_a_final_stage_of_its_own(
    sweep_file, segray, leaderboard, tmp_path
):
    file = sweep_file(
        method="grid",
        parameters={LR: {"values": [1.0e-5, 1.0e-2, 3.0e-3]}},
        run_cap=1,
        train={"epochs": 4, "batch_size": 4},
        final={"seeds": [7]},
        tracking={"wandb": {"mode": "offline"}},
    )
    run = tmp_path / "runs/tiny"
    nothing = segray("sweep", file, "--extend", "2")
    assert nothing.returncode == 2
    assert "there is no sweep in" in nothing.stderr
    assert "run_cap=3" in nothing.stderr

    assert segray("sweep", file).returncode == 0
    first = {p: p.read_bytes() for p in run.glob("*/*/metrics.jsonl")}
    more = segray("sweep", file, "--extend", "9")
    assert more.returncode == 0, more.stderr
    assert "extended to 3 trials" in more.stdout  # all combinations that there are
    rows = leaderboard(run)
    assert set(rows) == {"000", "001", "002"}
    assert next(iter(rows)) != "000"
    assert "the final stage of the earlier one is kept in final-before-1/" in more.stdout
    for path, content in first.items():
        stage, trial = path.parts[-3:-1]
        kept = run / stage.replace("final", "final-before-1") / trial / "metrics.jsonl"
        assert kept.read_bytes() == content
    assigned = yaml.safe_load((run / "final/seed_7/config.yaml").read_text())["assignment"]
    assert assigned == {LR: float(rows[next(iter(rows))][LR])}
    runs = sorted(path.name.split("-", 4)[-1] for path in (run / "wandb").glob("offline-run-*"))
    assert runs == ["000", "001", "002", "final-seed7", "final-seed7-again1"]

    # The file says one trial; the folder, three.
    again = segray("sweep", file, "--resume")
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load((run / "sweep.yaml").read_text())["run_cap"] == 3
    assert len(leaderboard(run)) == 3
    whole = segray("sweep", file, "--extend", "1")
    assert whole.returncode == 2
    assert "has run every combination of its grid, 3 trials" in whole.stderr


def test_without_extend_another_number_of_trials_is_refused_and_extend_named(
    sweep_file, segray, tmp_path
):
    file = sweep_file(run_cap=1, tracking={"wandb": {"mode": "disabled"}})
    assert segray("sweep", file, "train.epochs=1").returncode == 0
    other = segray("sweep", file, "train.epochs=1", "run_cap=4", "--resume")
    assert other.returncode == 2
    assert "run_cap: 1 -> 4" in other.stderr
    assert "--extend N adds trials" in other.stderr


def test_a_budget_of_epochs_ends_the_search_and_the_sweep_says_so(
    sweep_file, segray, leaderboard, tmp_path
):
    file = sweep_file(
        run_cap=9, budget={"epochs": 11}, tracking={"wandb": {"mode": "disabled"}}
    )  # 3 epochs a trial
    run = segray("sweep", file)
    assert run.returncode == 0, run.stderr
    rows = leaderboard(tmp_path / "runs/tiny")
    assert sum(int(row["epochs"]) for row in rows.values()) == 9
    assert "no further trial after 3 of 9: budget.epochs=11: 9 are spent" in run.stdout
    status = segray("status", tmp_path / "runs/tiny").stdout
    assert "budget: epochs 9/11" in status
    assert "The sweep is done." in status
    more = segray("sweep", file, "--resume", "budget.epochs=15")
    assert more.returncode == 0, more.stderr
    assert len(leaderboard(tmp_path / "runs/tiny")) == 5
