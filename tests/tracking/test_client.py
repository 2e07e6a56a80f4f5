"""What tracking would do, asked before a sweep."""

import os
from pathlib import Path
from typing import Any

import pytest

from segray.tracking import check

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("mode", "environment", "found", "says"),
    [
        ("disabled", {}, "disabled", "disabled"),
        ("offline", {}, "offline", "tracking.wandb.mode"),
        ("auto", {"WANDB_MODE": "offline"}, "offline", "WANDB_MODE"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled", "WANDB_MODE"),
        ("auto", {"WANDB_API_KEY": ""}, "offline", "no key for http"),
        ("online", {"WANDB_API_KEY": ""}, "offline", "wandb login"),
        ("online", {"WANDB_API_KEY": "too short"}, "offline", "refuses the key"),
        ("auto", {"WANDB_BASE_URL": "http://127.0.0.1:9"}, "offline", "did not answer"),
        ("auto", {"WANDB_BASE_URL": "no address"}, "disabled", "does not start"),
        ("auto", {}, "online", "as me"),
        ("online", {"WANDB_MODE": "offline"}, "online", "as me"),
    ],
)
def test_check(
    mode: Any, environment: Any, found: str, says: str, online: Any, monkeypatch: Any, capfd: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    readiness = check(mode)
    assert (readiness.mode, says in readiness.says) == (found, True), readiness
    assert "too short" not in readiness.says
    assert KEY not in readiness.says
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("denied", "refuses the key"),
        ("forbidden", "refuses the key"),
        ("quota", "answers with 402: "),
        ("error", "did not answer"),
        ("busy", "did not answer"),
        ("stall", "did not answer"),
    ],
)
def test_check_finds_a_server_that_does_not_serve(
    behaviour: Any, says: str, online: Any, impatient: None
) -> None:
    online.behaviour = behaviour
    readiness = check("auto")
    assert readiness.mode == "offline"
    assert readiness.says.startswith(f"offline: {online.url} {says}")


def test_check_can_stay_off_the_network(online: Any) -> None:
    assert check("auto", ask=False).mode == "online"
    assert online.requests == []


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_check_leaves_no_client_behind(mode: Any, online: Any) -> None:
    """Trials would share its service, and their logs be cut off as it ends with the sweep."""
    check(mode)
    assert "WANDB_SERVICE" not in os.environ


def test_check_leaves_a_run_of_this_program_open(online: Any, tmp_path: Path) -> None:
    import wandb

    run = wandb.init(mode="offline", dir=tmp_path, project="theirs")
    check("auto")
    run.log({"loss": 1.0})
    assert wandb.run is run
    run.finish()
