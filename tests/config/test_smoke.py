"""What --smoke-test leaves of a sweep file."""

import pytest

from segray.config import ConfigError, read_sweep, trial_count

HEAD = """\
name: a
model: {name: unet, width: 8, depth: 3}
data: {format: scenes, size: [96, 192]}
"""


@pytest.fixture
def small(tmp_path):
    """Reads a sweep file with more below HEAD as --smoke-test does."""

    def read(more, *overrides):
        file = tmp_path / "a.yaml"
        file.write_text(HEAD + more)
        return read_sweep(file, overrides, smoke=True)

    return read


def test_it_is_short_and_small(small):
    read = small("final: {seeds: [3, 4]}\nearly_terminate: {type: asha}\n", "train.epochs=300")
    config = read.config
    assert (config.name, config.train.epochs, config.run_cap) == ("a-smoke", 1, 2)
    assert (config.data.limit, config.early_terminate) == (8, None)
    assert config.final.seeds == (3,)
    fixed = {key for key, source in read.sources.items() if source == "--smoke-test"}
    assert fixed == {
        *("name", "data.limit", "run_cap", "early_terminate", "final.seeds", "final.top_k"),
        *("train.epochs", "train.schedule.warmup_steps"),
    }


@pytest.mark.parametrize(
    "batch", ["train: {batch_size: 20}", "parameters: {train.batch_size: [4, 20]}"]
)
def test_a_split_holds_the_largest_batch(small, batch):
    assert small(batch).config.data.limit == 20


def test_all_is_searched_but_the_length(small):
    config = small("""
parameters:
  train.epochs: {values: [2, 3]}
  train.schedule.warmup_steps: {min: 0, max: 9}
  train.optimizer.lr: loguniform(1e-4, 1e-1)
  train.early_stop.patience: {values: [2, 3], when: {train.epochs: 3}}
  train.augment.flip: {values: [0.5], when: {train.epochs: 3, train.early_stop.patience: 2}}
start_points: [{train.epochs: 3, train.optimizer.lr: 0.01}]
""").config
    assert list(config.parameters) == [
        *("train.optimizer.lr", "train.early_stop.patience", "train.augment.flip")
    ]
    assert config.parameters["train.early_stop.patience"].when == {}
    assert config.parameters["train.augment.flip"].when == {"train.early_stop.patience": (2,)}
    assert config.start_points == ({"train.optimizer.lr": 0.01},)


@pytest.mark.parametrize("method", ["tpe", "grid"])
def test_conditions_on_the_length_are_dropped(small, method):
    read = small(f"""
method: {method}
parameters: {{train.early_stop.patience: [2, 3], train.augment.flip: [0.0, 0.5]}}
require:
  - train.early_stop.patience < train.epochs
  - train.early_stop.patience > 2
""")
    assert read.config.require == ("train.early_stop.patience > 2",)
    assert read.sources["require"] == "--smoke-test"
    assert trial_count(read.config) == 2


def test_a_file_that_is_wrong_at_its_full_size_is_refused(small):
    with pytest.raises(ConfigError, match=r"a\.yaml:4: early_terminate\.min_iter: the first rung"):
        small("early_terminate: {type: asha, min_iter: 30}\n")
