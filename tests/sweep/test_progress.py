import io

from rich.console import Console

from segray.sweep import progress
from segray.sweep.progress import Screen
from segray.sweep.trial_files import TrialResult
from segray.train import Outcome


def screen(terminal, width=80):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, highlight=False)
    return Screen("val/miou", "maximize", 4, console=console), file


def ended(trial_id, state="finished", best=0.5, reason=""):
    outcome = Outcome(state, reason, best, best, 2, best, 4, 9.0)
    return TrialResult(trial_id, None, {"train.optimizer.lr": 0.00123}, outcome)


def play(view):
    with view.trials(2):
        view.start("000", {"train.optimizer.lr": 0.00123})
        view.epoch("000", 1, 0.3, 0.3)
        view.start("001", {"train.optimizer.lr": 0.1})
        view.end(ended("000"))
        view.end(ended("001", "failed", None, "RuntimeError: no"))
    view.leaderboard(view.ended, "Trials")


def test_without_a_terminal_there_are_plain_lines_only():
    view, file = screen(terminal=False)
    play(view)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "000 started  lr=0.00123" in text
    assert "000 finished  val/miou 0.5000 in 4 epochs" in text
    assert "001 failed: RuntimeError: no" in text
    assert "2/2 trials  1 failed  best 0.5000" in text


def test_in_a_terminal_the_table_shows_running_and_ended_trials():
    view, _ = screen(terminal=True)
    view.trials(2).__enter__()
    view.start("000", {"train.optimizer.lr": 0.00123})
    view.start("001", {"train.optimizer.lr": 0.1})
    view.epoch("001", 3, 0.25, 0.3)
    view.end(ended("000"))
    plain = Console(file=io.StringIO(), width=80)
    plain.print(view._table())
    text = plain.file.getvalue()
    assert "000    finished    0.5000  4 (best 2)  9  0.00123" in text
    assert "001    running     0.3000         3/4" in text
    assert "1/2 trials  best 0.5000  ETA" in text
    view._live.stop()


def test_a_narrow_terminal_shows_the_parameters_that_fit():
    view, file = screen(terminal=True, width=64)
    long = TrialResult("000", None, {"model.width": 8, "train.augment.brightness": 0.1}, None)
    trial = ended("000")
    view.leaderboard([TrialResult("000", None, long.assignment, trial.outcome)], "Trials")
    assert "width" in file.getvalue()
    assert "brightness" not in file.getvalue()


def test_parameters_are_named_by_as_much_of_their_path_as_tells_them_apart():
    paths = ["train.optimizer.lr", "train.early_stop.patience", "train.schedule.patience"]
    assert progress._short_names(paths) == ["lr", "early_stop.patience", "schedule.patience"]


def test_time_left_comes_from_the_share_of_epochs_done(monkeypatch):
    view, _ = screen(terminal=False)
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with view.trials(4):
        view.start("000", {})
        assert view._eta() == "-"
        now[0] = 110.0
        view.epoch("000", 2, 0.1, 0.1)  # half of one of four trials in 10 s
        assert view._eta() == "1:10"


def test_trials_that_wait_are_counted():
    view, _ = screen(terminal=False)
    with view.trials(3):
        view.wait("000", {"train.optimizer.lr": 0.1})
        view.wait("001", {"train.optimizer.lr": 0.2})
        view.start("001", {"train.optimizer.lr": 0.2})
        assert view.waiting(60) == (0, 0)
        assert view.waiting(-1) == (1, 1)
        view.epoch("001", 1, 0.5, 0.5)
        assert view.waiting(-1) == (1, 0)
        assert [trial.state for trial in view.running.values()] == ["waiting", "running"]


def test_a_note_stands_below_the_table_until_it_is_taken_back():
    view, file = screen(terminal=True)
    with view.trials(1):
        view.note("n1", "n1: images cached 4/15")
        view.note("n1", "n1: images cached 9/15")
        view._live.refresh()
        assert "n1: images cached 9/15" in file.getvalue()
        view.note("n1", "")
        before = len(file.getvalue())
        view._live.refresh()
        assert "images cached" not in file.getvalue()[before:]


def test_without_a_terminal_a_note_is_said_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view, file = screen(terminal=False)
    for passed in range(0, 70, 10):
        now[0] = 100.0 + passed
        view.note("n1", f"n1: images cached {passed}/70")
    view.note("n1", "")
    said = [line for line in file.getvalue().splitlines() if "cached" in line]
    assert [line.split()[-1] for line in said] == ["0/70", "40/70"]
