"""What W&B is told of a final training: how it did on test, beside how it did on val."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segray.config import RequestError, TrialConfig, load_sweep
from segray.data import open_dataset
from segray.sweep import view
from segray.sweep.trial_files import TrialSpec, write_config
from segray.train import Outcome

OUTCOME = Outcome(
    state="finished",
    reason="",
    objective=0.5,
    best_value=0.5,
    best_epoch=1,
    last_value=0.4,
    epochs=2,
    seconds=1.0,
)


class Recorder:
    """A tracker that keeps what it is told."""

    warning = None

    def __init__(self):
        self.rows, self.told = [], {}

    def log(self, metrics, *, epoch):
        self.rows.append(metrics)

    def finish(self, summary, **told):
        self.told = {"summary": summary, **told}


@pytest.fixture
def spec(sweep_file, tmp_path):
    """A final training that has ended; its masks' files are twice as large as its images."""
    sweep = load_sweep(sweep_file())
    given = sweep.model_dump(include=set(TrialConfig.model_fields))
    config = TrialConfig.model_validate(
        given | {"seed": 7, "workers": 1, "gpus_per_worker": 0, "threads": 1}
    )
    folder = tmp_path / "final/seed_7"
    made = TrialSpec(
        id="final-seed7",
        folder=folder,
        config=config,
        assignment={},
        sweep="tiny",
        run_id="0-final-seed7",
        run_folder=tmp_path,
        wandb={"project": "p", "entity": None, "mode": "offline", "images": 2},
        cpus=1,
        stage="final",
    )
    write_config(made)
    dataset = open_dataset(config.data)
    k = len(dataset.classes)
    epochs = [
        {"epoch": e, "val/miou": 0.1 * e, "val/iou/sky": 0.2 * e, "confusion": [[e] * k] * k}
        for e in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    (folder / "metrics.json").write_text(json.dumps({"test/miou": 0.3, "test/iou/sky": 0.7}))
    ids = [dataset.ids[at] for at in dataset.splits.test]
    counts = np.arange(len(ids) * k * k).reshape(len(ids), k, k)
    table = {"ids": ids, "cities": ["city"] * len(ids), "classes": dataset.classes}
    np.savez(folder / "confusion.npz", confusion=counts, **table)
    (folder / "preds").mkdir()
    for n, name in enumerate(ids):
        mask = np.full((64, 128), n, np.uint8)
        mask[:, 64:] = k - 1
        image = Image.fromarray(mask, mode="P")
        image.putpalette([*range(3 * k)])
        image.save(folder / "preds" / f"{name}.png")
    return made


def told(spec, outcome=OUTCOME, images=()):
    tracker = Recorder()
    view.finish(tracker, spec, outcome, images)
    return tracker.told


def test_test_stands_beside_val(spec):
    found = told(spec)
    classes = spec.config.data.class_names
    assert found["summary"]["test/miou"] == 0.3
    assert [*found["confusion"]] == ["val", "test"]
    assert (found["confusion"]["val"] == 1).all()  # of the best epoch
    saved = np.load(spec.folder / "confusion.npz")["confusion"]
    assert (found["confusion"]["test"] == saved.sum(0)).all()
    table = found["tables"]["categories"]
    assert list(table.columns) == ["category", "IoU test", "IoU val, best epoch"]
    assert [row[0] for row in table.rows] == list(classes)
    assert table.rows[classes.index("sky")][1:] == [0.7, 0.2]
    assert table.rows[classes.index("human")][1:] == [None, None]
    assert found["images"] == {}


def test_images_of_test_are_those_that_the_final_evaluation_kept(spec):
    dataset = open_dataset(spec.config.data)
    of_val = [object()]
    found = told(spec, images=of_val)["images"]
    assert found["val"] == of_val
    assert [one.id for one in found["test"]] == [dataset.ids[at] for at in dataset.splits.test[:2]]
    for n, one in enumerate(found["test"]):
        assert one.image.shape[:2] == one.truth.shape == one.pred.shape == (32, 64)
        assert (one.pred[:, :32] == n).all()
        assert (one.pred[:, 32:] == len(dataset.classes) - 1).all()


def test_a_trial_says_nothing_of_test(spec):
    """Though files of a final stage should lie in its folder."""
    for name in ("metrics.json", "confusion.npz"):
        (spec.folder / name).unlink()
    shutil.rmtree(spec.folder / "preds")
    found = told(replace(spec, stage="trial"), images=[object()])
    assert ([*found["confusion"]], [*found["images"]], found["tables"]) == (["val"], ["val"], {})


def test_a_training_that_failed_shows_no_matrix(spec):
    """It may get another chance, and its next epoch then takes that place."""
    found = told(spec, replace(OUTCOME, state="failed"))
    assert (found["confusion"], found["tables"], found["images"]) == ({}, {}, {})
    assert found["failed"]


def test_a_torn_confusion_npz_is_named(spec):
    file = spec.folder / "confusion.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        RequestError, match=r"confusion\.npz: expected a matrix for each test image"
    ):
        told(spec)
