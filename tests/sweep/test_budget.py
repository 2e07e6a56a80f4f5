import dataclasses
import time

import pytest

from segray.config import RequestError
from segray.config.schema import Budget, SweepConfig
from segray.sweep.budget import Ledger, check_gpus, shared
from segray.sweep.trial_files import failed_outcome


def ended(epochs, seconds, path):
    outcome = failed_outcome(path, "")
    return dataclasses.replace(outcome, state="finished", epochs=epochs, seconds=seconds)


def test_epochs_are_promised_whole_and_given_back(tmp_path):
    ledger = Ledger(Budget(epochs=25), longest=10, gpus=0)
    ledger.begin("000")
    ledger.begin("001")
    ledger.epoch("000", 2)
    assert ledger.used() == "epochs 2/25"
    assert ledger.refusal() == "budget.epochs=25: 20 are spent, and another trial may take 10"
    ledger.end("000", ended(3, 1, tmp_path))  # pruned, and 7 are free again
    assert ledger.refusal() is None
    ledger.begin("002")
    assert ledger.refusal() is not None
    assert ledger.exhausted is None  # nobody has to end for it


def test_a_budget_is_never_exceeded_however_trials_end(tmp_path):
    ledger = Ledger(Budget(epochs=40), longest=9, gpus=0)
    spent = 0
    for number, epochs in enumerate([9, 3, 1, 9, 5, 9, 2, 9, 9]):
        if ledger.refusal():
            break
        ledger.begin(str(number))
        ledger.end(str(number), ended(epochs, 1, tmp_path))
        spent += epochs
    assert 40 - 9 < spent <= 40


def test_no_trial_starts_that_the_hours_left_cannot_hold(tmp_path):
    ledger = Ledger(Budget(hours=1), longest=9, gpus=0, before_s=3500)
    assert ledger.refusal() is None  # nothing is known of how long one takes
    ledger.end("000", ended(9, 200, tmp_path))
    assert "budget.hours=1: 100 s are left, a trial takes 200" in ledger.refusal()
    assert ledger.exhausted is None
    assert ledger.deadline == pytest.approx(time.time() + 100, abs=5)
    late = Ledger(Budget(hours=1), longest=9, gpus=0, before_s=3601)
    assert late.exhausted == late.refusal() == "budget.hours=1 is used up"


def test_gpu_hours_count_the_gpus_of_a_trial_and_those_that_run(tmp_path):
    ledger = Ledger(Budget(gpu_hours=10), longest=9, gpus=4)
    ledger.end("000", ended(9, 3600, tmp_path))
    assert ledger.used() == "gpu_hours 4.00/10"
    assert ledger.refusal() is None
    ledger.begin("001")
    assert ledger.refusal() == "budget.gpu_hours=10: 8.00 are spent, and a trial takes 4.00"
    assert ledger.exhausted is None
    ledger.end("001", ended(9, 5500, tmp_path))
    assert ledger.exhausted == "budget.gpu_hours=10 is used up"


def test_gpu_hours_without_gpus_are_a_mistake():
    with pytest.raises(RequestError, match=r"budget.gpu_hours: trials are given no GPU here"):
        check_gpus(Budget(gpu_hours=1), gpus=0)
    check_gpus(Budget(gpu_hours=1), gpus=0.5)
    check_gpus(Budget(hours=1), gpus=0)


def sweep(name, **budget):
    raw = {"name": name, "model": {"name": "unet"}, "data": {"format": "scenes"}}
    return SweepConfig.model_validate(raw | {"budget": budget})


def test_sweeps_of_one_command_share_one_budget_evenly():
    limits = {"hours": 3, "epochs": 100, "max_failed_trials": 2}
    for config in shared([sweep("a", **limits), sweep("b", **limits)]):
        assert config.budget == Budget(hours=1.5, epochs=50, max_failed_trials=2)
    assert shared([sweep("a"), sweep("b")]) == [sweep("a"), sweep("b")]


def test_two_budgets_cannot_be_one():
    with pytest.raises(RequestError, match=r"budget.hours: .* differ \(a: 3.0, b: None\)"):
        shared([sweep("a", hours=3), sweep("b")])
    with pytest.raises(RequestError, match="cannot be shared by 2 sweeps"):
        shared([sweep("a", epochs=1), sweep("b", epochs=1)])
