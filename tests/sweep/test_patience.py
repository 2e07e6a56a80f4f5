"""Early stopping replayed from records: what is known, what is not, and what a person reads."""

import dataclasses
import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from segray.cli import main
from segray.config import Metric, load_sweep, trial_config
from segray.sweep.patience import (
    Course,
    largest_patience,
    read_courses,
    replay,
    summarise,
    winner,
)
from segray.sweep.records import RunFolder
from segray.sweep.runner import run_training
from segray.sweep.trial_files import TrialSpec, failed_outcome, write_config, write_outcome
from segray.train.loop import append_record

MIOU = Metric()
LOSS = Metric(name="val/loss", goal="minimize")
CUT = ("pruned", "budget", "failed", "diverged", "running", "stopped")


def course(values, patience=None, *, state="finished", limit=None, min_delta=0.0, trial="000"):
    seconds = [float(epoch) for epoch in range(1, len(values) + 1)]
    broken = state in ("failed", "diverged")
    return Course(trial, state, patience, min_delta, limit or len(values), values, seconds, broken)


def epochs_run(values, patience, min_delta, goal, limit):
    """The rule written out anew: how many epochs a training with these values would have run."""
    gain = (lambda new, old: new - old) if goal == "maximize" else (lambda new, old: old - new)
    for done in range(1, limit):
        last_better = 1
        for epoch in range(2, done + 1):
            if gain(values[epoch - 1], values[last_better - 1]) > min_delta:
                last_better = epoch
        if patience is not None and done - last_better >= patience:
            return done
    return limit


@st.composite
def trainings(draw):
    """Values of every epoch that could have been, and the course of what was run of them."""
    value = st.sampled_from([i / 8 for i in range(9)]) | st.floats(0, 1)  # with ties
    values = draw(st.lists(value, min_size=1, max_size=12))
    patience = draw(st.none() | st.integers(1, 13))
    min_delta = draw(st.sampled_from([0.0, 0.125, 0.1]))
    metric = draw(st.sampled_from([MIOU, LOSS, Metric(cost_per_epoch=0.01)]))
    limit = len(values)
    own = epochs_run(values, patience, min_delta, metric.goal, limit)
    state = "finished" if own == limit else "early_stopped"
    cut = draw(st.none() | st.integers(0, own - 1))
    if cut is not None:
        own, state = cut, draw(st.sampled_from(CUT))
    ran = course(values[:own], patience, state=state, limit=limit, min_delta=min_delta)
    return values, ran, metric


@given(trainings(), st.integers(1, 14))
def test_a_replay_is_what_the_rule_would_have_done(training, patience):
    values, ran, metric = training
    best = max if metric.goal == "maximize" else min
    sign = 1 if metric.goal == "maximize" else -1
    truth = functools.partial(
        epochs_run, values, min_delta=ran.min_delta, goal=metric.goal, limit=ran.limit
    )
    epochs = truth(patience)
    found = replay(ran, patience, metric)
    if epochs > len(ran.values):  # its end lies beyond the record
        assert (found.says, found.lost) == ("unknown", None)
        assert (found.epochs, found.epochs_saved) == (len(ran.values), 0)
        return
    assert found.epochs == epochs
    assert found.best == best(values[:epochs])
    assert found.best_epoch == 1 + values.index(found.best)
    assert found.objective == found.best - sign * (metric.cost_per_epoch * epochs)
    assert found.lost == sign * (best(ran.values) - found.best) >= 0
    assert found.epochs_saved == len(ran.values) - epochs
    assert found.seconds == sum(ran.seconds[:epochs])
    assert found.seconds_saved == sum(ran.seconds[epochs:])
    assert found.state == ("early_stopped" if epochs < ran.limit else ran.state)
    assert found.says == ("at_least" if ran.state in CUT else "exact")
    # To its own end it would have come to this; of a trial that was cut short no more was seen.
    own = sign * (best(values[: max(epochs, truth(ran.patience))]) - found.best)
    assert own == found.lost if found.says == "exact" else own >= found.lost


@given(st.lists(trainings(), min_size=1, max_size=6))
def test_a_row_holds_what_its_trials_say_and_no_more(several):
    _, _, metric = several[0]
    courses = [dataclasses.replace(ran, trial=f"{i:03d}") for i, (_, ran, _) in enumerate(several)]
    before = None
    for patience in range(1, max(1, largest_patience(courses)) + 1):
        replays = [replay(one, patience, metric) for one in courses]
        row = summarise(patience, replays, metric.goal)
        known = [r for r in replays if r.says != "unknown"]
        assert row.known + row.unknown == len(courses)
        assert (row.known, row.at_least) == (len(known), sum(r.says == "at_least" for r in known))
        assert row.lost_most == max((r.lost for r in known), default=None)
        if known:
            assert row.lost_mean == pytest.approx(sum(r.lost for r in known) / len(known))
        assert row.epochs - row.epochs_saved == sum(r.epochs for r in known)
        if before is not None:  # a longer patience ends fewer trials, of fewer that it knows
            assert row.known <= before.known
            assert row.earlier <= before.earlier
        before = row


def test_a_trial_that_finished_speaks_for_every_patience():
    ran = course([0.5, 0.4, 0.3, 0.6, 0.2], patience=3)
    found = [replay(ran, patience, MIOU) for patience in (1, 2, 3, 4, 9)]
    assert [one.says for one in found] == ["exact"] * 5
    assert [one.epochs for one in found] == [2, 3, 5, 5, 5]
    assert [one.lost for one in found] == pytest.approx([0.1, 0.1, 0, 0, 0])
    assert [one.seconds_saved for one in found] == [3 + 4 + 5, 4 + 5, 0, 0, 0]


def test_a_trial_that_patience_ended_speaks_up_to_its_own():
    ran = course([0.5, 0.4, 0.6, 0.3, 0.3], patience=2, state="early_stopped", limit=20)
    found = [replay(ran, patience, MIOU) for patience in (1, 2, 3)]
    assert [one.says for one in found] == ["exact", "exact", "unknown"]
    assert [one.lost for one in found] == [pytest.approx(0.1), 0, None]
    assert [one.epochs for one in found] == [2, 5, 5]


@pytest.mark.parametrize("state", CUT)
def test_a_trial_that_was_cut_short_gives_a_bound_where_patience_came_first(state):
    ran = course([0.5, 0.4, 0.6], patience=5, state=state, limit=20)
    found = [replay(ran, patience, MIOU) for patience in (1, 2, 5)]
    assert [one.says for one in found] == ["at_least", "unknown", "unknown"]
    assert found[0].lost == pytest.approx(0.1)
    assert (found[0].state, found[1].state) == ("early_stopped", state)
    # Patience and the cut at one epoch: what would have become of it is known, and it saves none.
    at_once = replay(course([0.5, 0.4], patience=5, state=state, limit=20), 1, MIOU)
    assert (at_once.says, at_once.lost, at_once.epochs_saved) == ("at_least", 0, 0)


def test_patience_that_runs_out_with_the_last_epoch_has_ended_nothing():
    found = replay(course([0.5, 0.4, 0.3]), 2, MIOU)
    assert (found.says, found.state, found.epochs_saved) == ("exact", "finished", 0)


def test_a_trial_without_an_epoch_says_nothing():
    found = replay(course([], state="diverged", limit=5), 1, MIOU)
    assert (found.says, found.lost, found.best) == ("unknown", None, None)
    row = summarise(1, [found], "maximize")
    assert (row.known, row.unknown, row.lost_mean, row.best_trial) == (0, 1, None, None)


def test_min_delta_counts_for_patience_and_not_for_the_best():
    values = [0.50, 0.53, 0.56, 0.90]
    found = replay(course(values, min_delta=0.1), 2, MIOU)
    assert (found.epochs, found.best) == (3, 0.56)
    assert replay(course(values), 2, MIOU).epochs == 4


def test_of_a_loss_the_lowest_is_the_best():
    found = replay(course([0.5, 0.3, 0.4, 0.35, 0.2]), 2, LOSS)
    assert (found.epochs, found.best) == (4, 0.3)
    assert found.lost == pytest.approx(0.1)


def test_the_price_of_epochs_ranks_but_is_not_what_is_lost():
    long = course([0.1, 0.2, 0.3, 0.4, 0.45], trial="000")
    short = course([0.44, 0.3, 0.3, 0.3, 0.3], trial="001")
    for price, won in ((0.0, "000"), (0.02, "001")):
        metric = Metric(cost_per_epoch=price)
        replays = [replay(one, 2, metric) for one in (long, short)]
        assert winner(replays, "maximize").trial == won  # 001 ends after 3 of its 5 epochs
        assert [one.lost for one in replays] == [0, 0]
    assert replays[1].objective == pytest.approx(0.44 - 3 * 0.02)


def test_a_trial_that_would_have_been_ended_before_it_diverged_can_win():
    broken = course([0.6, 0.5, 0.4, 0.3], state="diverged", limit=9, trial="000")
    other = course([0.5] * 9, trial="001")
    won = [winner([replay(c, p, MIOU) for c in (broken, other)], "maximize") for p in (1, 4)]
    assert [one.trial for one in won] == ["000", "001"]


def test_the_largest_patience_is_the_largest_that_a_trial_ran_with():
    assert largest_patience([course([0.1] * 4, 3), course([0.1] * 3, 2, limit=9)]) == 3
    # Without early stopping its own epochs are the limit; more than all epochs is no more.
    assert largest_patience([course([0.1] * 4, 3), course([0.1] * 6)]) == 6
    assert largest_patience([course([0.1] * 4, 1000)]) == 4
    assert largest_patience([course([], 5, limit=9)]) == 0


def record(folder: RunFolder, trial, values, patience, state, **changes):
    """A trial's records, written as a sweep writes them; the metric fell or rose as given."""
    config = folder.config()
    chosen = {"train.early_stop": {"patience": patience}} if patience else {}
    path = folder.trial(trial)
    made = trial_config(config, chosen | changes, seed=0, workers=1, gpus_per_worker=0, threads=1)
    write_config(TrialSpec(trial, path, made, {}, "hand", trial, folder.path, {}, cpus=1))
    for epoch, value in enumerate(values, start=1):
        best = max(values[:epoch])
        line = {"epoch": epoch, "value": value, "best": best, "objective": best, "best_epoch": 0}
        append_record(path / "metrics.jsonl", line | {"time/epoch_s": 10.0})
    if state is not None:
        outcome = dataclasses.replace(failed_outcome(path, ""), state=state)
        write_outcome(path, outcome)


@pytest.fixture
def by_hand(sweep_file):
    """A run of four trials of up to 6 epochs, one of them cut short, one without a score."""
    train = {"epochs": 6, "batch_size": 4}
    folder = RunFolder.create(load_sweep(sweep_file(name="hand", train=train, run_cap=4)))
    record(folder, "000", [0.30, 0.20, 0.40, 0.35, 0.38, 0.50], 3, "finished")
    record(folder, "001", [0.35, 0.34, 0.33], 2, "early_stopped")
    record(folder, "002", [0.20, 0.10, 0.25], 3, "pruned")
    record(folder, "003", [], 3, "failed")
    return folder.path


@pytest.fixture
def patience(capsys):
    """Runs `segray patience`; returns what it printed."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["patience", *map(str, arguments)])
        said = capsys.readouterr()
        assert ended.value.code == 0, said
        return said.out

    return run


def test_what_a_person_reads(by_hand, patience):
    said = patience(by_hand)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for line in (
        "1 3 3 0.0833+ 0.2000+ 000 6 50% 1:00 50% 0.3500? 001 1 1",
        "2 2 1 0.0500 0.1000 000 1 11% 0:10 11% 0.4000? 000 0 2",
        "3 1 0 0 0 - - 0.5000? 000 0 3",
        "000 finished 3 6 0.5000 0.2000 0.1000 -",
        "001 early_stopped 2 3 0.3500 0 - ?",
        "002 pruned 3 3 0.2500 0.0500+ ? ?",
        "003 failed 3 0 - ? ? ?",
    ):
        assert line in lines
    text = " ".join(lines)
    assert "p = 3 is the smallest that would have cost nothing here, seen over 1 of 4" in text
    assert (
        "At p = 1 trial 001 would have won, with 0.3500, instead of 000 with 0.5000, as far" in text
    )
    assert "+ at least" in text
    assert "\x1b" not in said


def test_no_claim_is_made_on_trials_that_were_all_cut_short(sweep_file, patience):
    folder = RunFolder.create(load_sweep(sweep_file(name="cut", train={"epochs": 9})))
    record(folder, "000", [0.5, 0.4, 0.3], None, "budget")
    text = patience(folder.path)
    assert "Of no patience do the records show that it would have cost nothing." in text
    assert "0+" in text


def test_json_has_all_figures(by_hand, patience):
    found = json.loads(patience(by_hand, "--json"))
    assert found["winner"] == "000"
    assert found["metric"]["goal"] == "maximize"
    first = found["patiences"][0]
    assert first["lost_mean"] == pytest.approx((0.2 + 0 + 0.05) / 3)
    assert (first["known"], first["at_least"], first["unknown"]) == (3, 1, 1)
    assert [trial["trial"] for trial in found["trials"]] == ["000", "001", "002", "003"]
    assert found["trials"][1]["values"] == [0.35, 0.34, 0.33]
    assert [one["says"] for one in found["trials"][1]["replays"]] == ["exact", "exact", "unknown"]


def test_eighty_columns_hold_it(sweep_file, patience, monkeypatch):
    """Patiences that do not fit beside a trial's facts stand in a further table."""
    train = {"epochs": 14, "early_stop": {"patience": 12, "min_delta": 0.03}}
    folder = RunFolder.create(load_sweep(sweep_file(name="wide", train=train)))
    values = [0.3]
    for better in range(1, 12):  # each patience ends it at another best
        values += [values[-1] - 0.2] * better + [values[-1] + 0.05]
    record(folder, "000", values, 12, "finished", **{"train.epochs": len(values)})
    record(folder, "001", values[:-3], 9, "pruned", **{"train.epochs": len(values)})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = Text.from_ansi(patience(folder.path)).plain.splitlines()
    assert max(len(line) for line in lines if str(folder.path) not in line) <= 80
    heads = [line.split() for line in lines if line.startswith("trial ")]
    assert len(heads) > 1
    assert [p for head in heads for p in head if p[0].isdigit()] == [*map(str, range(1, 12)), "12"]


def test_a_run_without_an_epoch_on_record_is_refused(sweep_file, capsys):
    folder = RunFolder.create(load_sweep(sweep_file()))
    for state in ("nothing", "a failure"):
        if state == "a failure":
            record(folder, "000", [], 3, "failed")
        with pytest.raises(SystemExit) as ended:
            main(["patience", str(folder.path)])
        assert ended.value.code == 2
        assert f"segray status {folder.path}" in capsys.readouterr().err


def test_a_line_that_another_version_wrote_is_named(by_hand, capsys):
    (by_hand / "trials/001/metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(SystemExit) as ended:
        main(["patience", str(by_hand)])
    assert ended.value.code == 2
    assert f"{by_hand}/trials/001/metrics.jsonl: expected" in capsys.readouterr().err


def test_a_trial_that_has_not_ended_is_no_finished_one(by_hand, patience):
    (by_hand / "trials/001/outcome.json").unlink()
    assert "001    stopped" in patience(by_hand)
    with RunFolder.open(by_hand).hold(lambda: None):
        assert "001    running" in patience(by_hand)


def test_a_real_sweep_with_asha_and_a_trial_that_diverged(finished, patience):
    """Its three epochs leave patience little to end; what ASHA cut stays unknown."""
    _, result = finished
    found = json.loads(patience(result.folder, "--json"))
    assert found["winner"] == result.best.id
    assert [trial["trial"] for trial in found["trials"]] == [t.id for t in result.trials]
    assert len(found["patiences"]) == 3
    for trial, ended in zip(found["trials"], result.trials, strict=True):
        outcome = ended.outcome
        assert (trial["state"], trial["epochs"]) == (outcome.state, outcome.epochs)
        assert (trial["best"], trial["objective"]) == (outcome.best_value, outcome.objective)
        assert sum(trial["seconds"]) == pytest.approx(outcome.seconds, abs=1e-3)
        whole = trial["replays"][-1]
        assert whole["says"] == ("exact" if outcome.state == "finished" else "unknown")
    states = {trial["state"] for trial in found["trials"]}
    assert {"finished", "pruned", "diverged"} <= states


def test_a_training_replayed_is_a_training_that_was_run(sweep_file, tmp_path, patience):
    """With the same seed a smaller patience ends the same course earlier, to the bit."""
    made = {}
    for allowed in (1, 2, 9):
        file = sweep_file(
            name=f"patience-{allowed}",
            parameters={},
            run_cap=1,
            train={
                "epochs": 9,
                "batch_size": 4,
                "optimizer": {"lr": 0.1},
                "early_stop": {"patience": allowed, "min_delta": 0.01},
            },
            metric={"name": "val/miou", "cost_per_epoch": 0.001},
            tracking={"wandb": {"mode": "disabled"}},
        )
        made[allowed] = run_training(load_sweep(file))
    patience_9 = made.pop(9)
    (whole,) = read_courses(RunFolder.open(patience_9.folder))
    metric = load_sweep(patience_9.folder / "sweep.yaml").metric
    assert {run.best.outcome.state for run in made.values()} >= {"early_stopped"}
    for allowed, run in made.items():
        outcome, found = run.best.outcome, replay(whole, allowed, metric)
        for name in ("state", "epochs", "best_epoch", "objective"):
            assert getattr(found, name) == getattr(outcome, name)
        assert found.best == outcome.best_value
    text = patience(patience_9.folder)
    assert "1 trial on record" in text
    assert "would have won" not in text
