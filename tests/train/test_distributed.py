"""Two workers over gloo do what one worker does."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PROGRAM = Path(__file__).with_name("workers.py")
RANKS = (0, 1)


@pytest.fixture(scope="module")
def workers(tiny):
    """workers.py beside this file, in this process."""
    sys.modules["tiny"] = tiny
    spec = importlib.util.spec_from_file_location("workers", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both workers have been."""
    folder = tmp_path_factory.mktemp("workers")
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "SEGRAY_CACHE": str(folder / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(folder)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in RANKS
    ]
    try:
        said = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path):
    """What each worker found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in RANKS]


@pytest.mark.parametrize("model", ["UNET", "SEGFORMER"])
def test_the_matrices_are_one_workers_pixel_for_pixel(tiny, workers, done, model: str) -> None:
    expected, loss = workers.score(getattr(tiny, model))
    assert len(expected) == workers.VAL
    for rank in RANKS:
        matrices, mean_loss = done[rank]["scores"][model]
        assert torch.equal(matrices, expected)
        assert mean_loss == pytest.approx(loss, rel=1e-6)


CASES = [
    case
    for case in itertools.product(
        ("no norm", "frozen norm", "segformer"),
        ("plain", "weighted", "dice"),
        (False, True),
        (1, 2),
    )
    if not ("dice" in case and 2 in case)  # Dice is of the images of a pass
]


@pytest.mark.parametrize(("model", "loss", "void", "passes"), CASES)
def test_loss_and_gradients_are_one_workers(workers, done, model, loss, void, passes) -> None:
    """In one pass, where the two may take their shares in two passes."""
    value, gradients = workers.gradients(model, loss, void, 0, 1)
    for rank in RANKS:
        found_value, found = done[rank]["gradients"][model, loss, void, passes]
        assert found_value == pytest.approx(value, rel=1e-5)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("state", ["finished", "diverged", "early_stopped", "pruned"])
def test_both_workers_end_alike(done, state: str) -> None:
    ends = [done[rank]["fits"][state].copy() for rank in RANKS]
    for end in ends:
        del end["seconds"]
        assert end["state"] == state
    assert ends[0] == ends[1]
    epochs = {"finished": 4, "diverged": 0, "early_stopped": 2, "pruned": 2}
    assert ends[0]["epochs"] == epochs[state]


def test_killed_and_resumed_equals_never_killed(tiny, folder: Path, done) -> None:
    records = tiny.records(folder / "finished")
    assert len(records) == 4
    assert tiny.records(folder / "resumed") == records
    for name in ("state", "best_value", "best_epoch", "objective"):
        ends = {done[rank]["fits"][fit][name] for rank in RANKS for fit in ("finished", "resumed")}
        assert len(ends) == 1


def test_every_validation_pixel_is_counted_once(tiny, folder: Path) -> None:
    data = tiny.dataset()
    counted = int((data.masks[list(data.splits.val)] != 255).sum())
    for record in tiny.records(folder / "finished"):
        assert np.sum(record["confusion"]) == counted
