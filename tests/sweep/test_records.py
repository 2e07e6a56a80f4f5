import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from segray.config import RequestError, load_sweep
from segray.sweep.records import RunFolder
from segray.sweep.trial_files import (
    TrialResult,
    failed_outcome,
    ranked,
    read_config,
    read_outcome,
    write_outcome,
)
from segray.train import Outcome


def result(trial_id, state="finished", objective=0.5, **assignment):
    best = objective
    outcome = Outcome(state, "", objective, best, 1, best, 2, 3.0)
    return TrialResult(trial_id, None, assignment, outcome)


def test_the_best_comes_first_and_what_broke_comes_last():
    trials = [
        result("000", objective=0.3),
        result("001", "diverged", 0.9),
        result("002", objective=0.7),
        result("003", "failed", None),
        result("004", "pruned", 0.4),
    ]
    assert [t.id for t in ranked(trials, "maximize")] == ["002", "004", "000", "001", "003"]
    assert [t.id for t in ranked(trials, "minimize")] == ["000", "004", "002", "001", "003"]


def test_the_leaderboard_has_a_row_a_trial_with_its_parameters(sweep_file):
    folder = RunFolder.create(load_sweep(sweep_file()))
    folder.write_leaderboard([result("000", lr=0.1), result("001", objective=0.9)], "maximize")
    with (folder.path / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["001", "000"]
    assert [row["lr"] for row in rows] == ["", "0.1"]
    assert list(rows[0])[:8] == [
        *("trial", "state", "reason", "best_value", "best_epoch", "last_value", "epochs", "seconds")
    ]


def test_the_written_sweep_file_loads_to_the_same_config(sweep_file):
    config = load_sweep(sweep_file(start_points=[{"train.optimizer.lr": 1e-3}]))
    written = RunFolder.create(config).path / "sweep.yaml"
    assert load_sweep(written) == config
    text = written.read_text()
    assert "# config sha256: " in text
    assert "torch " in text


def test_a_run_folder_with_something_in_it_is_refused_with_the_way_on(sweep_file):
    config = load_sweep(sweep_file())
    RunFolder.create(config)
    with pytest.raises(RequestError, match="name=tiny-2"):
        RunFolder.create(config)


def test_a_storage_that_cannot_be_written_is_refused(sweep_file, tmp_path):
    (tmp_path / "file").write_text("")
    config = load_sweep(sweep_file(storage=str(tmp_path / "file")))
    with pytest.raises(RequestError, match="storage="):
        RunFolder.create(config)


def test_an_outcome_is_read_as_it_was_written(tmp_path):
    outcome = result("000").outcome
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, outcome)
    assert read_outcome(tmp_path) == outcome


def test_a_trial_that_died_is_booked_with_what_it_had_reached(tmp_path):
    line = {"epoch": 1, "best": 0.4, "best_epoch": 1, "objective": 0.4, "time/epoch_s": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"epoch": 2, "bes')
    outcome = failed_outcome(tmp_path, "killed")
    assert (outcome.state, outcome.reason) == ("failed", "killed")
    assert (outcome.best_value, outcome.epochs, outcome.seconds) == (0.4, 1, 2.0)
    assert failed_outcome(tmp_path / "nowhere", "killed").best_value is None


def test_yaml_of_a_run_is_plain_data(sweep_file):
    text = (RunFolder.create(load_sweep(sweep_file())).path / "sweep.yaml").read_text()
    assert yaml.safe_load(text)["name"] == "tiny"


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("run_cap=3", "run_cap=3"),
        ("name=a b", "'name=a b'"),
        ("require=x\n# id: 0\n\x7f\x85'", r"$'require=x\n# id: 0\n\x7f\x85\''"),
        ("storage=é\u2028", r"$'storage=\xe9\u2028'"),
    ],
)
def test_the_command_stands_on_one_line_whatever_is_in_it(sweep_file, argument, shown):
    config = load_sweep(sweep_file())
    folder = RunFolder.create(config, command=["segray", "sweep", "a.yaml", argument])
    text = (folder.path / "sweep.yaml").read_text()
    assert f"\n# command: segray sweep a.yaml {shown}\n# versions" in text
    assert RunFolder.open(folder.path).sweep_id == folder.sweep_id
    assert folder.config() == config


def test_from_python_there_is_no_command(sweep_file):
    assert (
        "# command"
        not in (RunFolder.create(load_sweep(sweep_file())).path / "sweep.yaml").read_text()
    )


def test_a_trial_config_of_another_version_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("assignment: {}\nmodel: {name: unet}\nnovel: 1\n")
    with pytest.raises(RequestError, match=r"config\.yaml: expected what segray .* writes there"):
        read_config(tmp_path)


def test_readers_do_not_take_each_other_for_a_sweep(sweep_file):
    folder = RunFolder.create(load_sweep(sweep_file()))
    with folder.hold(lambda: None):
        pass
    with ThreadPoolExecutor(8) as readers:
        assert not any(readers.map(lambda _: folder.running(), range(400)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_reader_who_may_not_write_is_told_all_the_same(sweep_file):
    folder = RunFolder.create(load_sweep(sweep_file()))
    with folder.hold(lambda: None):
        (folder.path / ".lock").chmod(0o444)
        assert folder.running()
