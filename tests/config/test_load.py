"""A sweep file with overrides becomes one config, or one report of everything that is wrong."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segray.config import (
    ConfigError,
    RequestError,
    ScenesData,
    SweepConfig,
    dump,
    load_sweep,
    metric_names,
    trial_config,
    unmodelled,
)

HEAD = """\
name: a
model: {name: unet, width: 8, depth: 3}
data: {format: scenes, size: [96, 192]}
"""
FULL: dict[str, Any] = {
    "name": "full",
    "storage": "runs",
    "model": {"name": "segformer", "variant": "b0", "width": 0.5},
    "data": {"format": "scenes", "size": [96, 192], "split": "official", "ignore": "none"},
    "train": {
        "epochs": 6,
        "batch_size": 8,
        "crop": [64, 64],
        "optimizer": {"lr": 1e-5, "clip_norm": None},
        "schedule": {"name": "poly", "warmup_steps": 10},
        "early_stop": {"patience": 3},
        "loss": {"class_weights": [1.0, 1, 1, 1, 1, 1, 1, 0.5]},
        "augment": {"scale": [0.5, 2.0], "flip": 0.5},
    },
    "metric": {"name": "val/miou_without_void", "goal": "maximize"},
    "method": "tpe",
    "seed": 3,
    "parameters": {
        "train.optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "train.early_stop.patience": {"values": [2, 3]},
        "train.augment.scale": {"values": [[1.0, 1.0], [0.5, 2.0]]},
        "train.augment.blur": {"min": 0.0, "max": 0.5},
        "train.schedule.warmup_steps": {"min": 0, "max": 20},
        "model.drop_path": {"value": 0.2},
    },
    "start_points": [{"train.optimizer.lr": 1e-3, "train.augment.scale": [1.0, 1.0]}],
    "early_terminate": {"type": "asha", "min_iter": 2, "eta": 3},
    "run_cap": 8,
    "budget": {"hours": 1.5},
    "resources": {"workers": 2, "gpus_per_worker": "auto", "cpus_per_worker": 2},
    "final": {"seeds": [0, 1], "workers": 4},
    "tracking": {"wandb": {"project": "p", "images": 0}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep.yaml"


def load(file: Path, text: str, *overrides: str, env: dict[str, str] | None = None) -> SweepConfig:
    file.write_text(text, encoding="utf-8")
    return load_sweep(file, overrides, env or {})


def report(file: Path, text: str, *overrides: str, env: dict[str, str] | None = None) -> list[str]:
    """The lines of the report, with `sweep.yaml` for the whole path."""
    with pytest.raises(ConfigError) as caught:
        load(file, text, *overrides, env=env)
    return [str(problem).replace(str(file), "sweep.yaml") for problem in caught.value.problems]


def test_a_file_with_every_section_loads(file: Path) -> None:
    config = load(file, dump(FULL))
    assert config.train.optimizer.lr == 1e-5
    assert config.parameters["train.schedule.warmup_steps"].distribution == "int_uniform"
    assert config.storage == str(Path("runs").absolute())


def test_a_loaded_config_round_trips(file: Path) -> None:
    config = load(file, dump(FULL))
    assert load(file, dump(config.model_dump(mode="json"))) == config


@pytest.mark.parametrize("name", ["1e5", "2020-01-01", "007", "yes", "5", "0x1", "1_0", "true"])
def test_a_name_that_looks_like_something_else_round_trips(file: Path, name: str) -> None:
    config = load(file, HEAD, f"name={name}")
    assert config.name == name
    assert load(file, dump(config.model_dump(mode="json"))) == config


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RequestError, match=r"no sweep file at .*: name a YAML file") as caught:
            load_sweep(path)
        assert str(path) in str(caught.value)


# ---- everything in one report ---------------------------------------------------------------


def test_all_problems_come_in_file_order_with_line_path_rule_and_value(file: Path) -> None:
    text = (
        "name: a/b\n"
        "model: {name: unet, widht: 8}\n"
        "data:\n"
        "  format: scenes\n"
        "  size: [96, 16]\n"
        "storage: ${NOWHERE}\n"
        "train:\n"
        "  epohcs: 3\n"
        "  optimizer:\n"
        "    lr: fast\n"
        "parameters:\n"
        "  train.optimizer.rl: {values: [1]}\n"
        "run_cap: 0\n"
    )
    assert report(file, text) == [
        "sweep.yaml:1: name: expected up to 64 letters, digits, dots, dashes and underscores "
        "(got a/b)",
        "sweep.yaml:2: model.widht: no such key; did you mean width?",
        "sweep.yaml:5: data.size[1]: expected at least 32 (got 16)",
        "sweep.yaml:6: storage: the environment variable NOWHERE is not set (got ${NOWHERE})",
        "sweep.yaml:8: train.epohcs: no such key; did you mean epochs?",
        "sweep.yaml:10: train.optimizer.lr: expected a number (got fast)",
        "sweep.yaml:12: parameters.train.optimizer.rl: no such config key; "
        "did you mean train.optimizer.lr?",
        "sweep.yaml:13: run_cap: expected at least 1 (got 0)",
    ]


def test_the_message_counts_and_lists_the_problems(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, HEAD + "run_cap: 0\nseed: x\n")
    first, *rest = str(caught.value).splitlines()
    assert first == "2 problems in the request"
    assert rest == [
        f"  {file}:4: run_cap: expected at least 1 (got 0)",
        f"  {file}:5: seed: expected a whole number (got x)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sed: 1", "sed: no such key; did you mean seed?"),
        ("zzz: 1", "zzz: no such key; expected one of name, storage, model,"),
        ("lr: 1", "lr: no such key; did you mean train.optimizer.lr?"),
        ("learning_rate: 1", "learning_rate: no such key; did you mean train.optimizer.lr?"),
        ("train: {lr: 1}", "train.lr: no such key; did you mean train.optimizer.lr?"),
        ("train: {depth: 1}", "train.depth: no such key; did you mean model.depth?"),
        ("train: {seed: 1}", "train.seed: no such key; did you mean data.seed or seed?"),
        (
            "patience: 3",
            "patience: no such key; did you mean train.early_stop.patience or train.schedule.pat",
        ),
        ("train: {epoch: 1}", "train.epoch: no such key; did you mean epochs?"),
        ("train: {augment: {flipp: 1}}", "train.augment.flipp: no such key; did you mean flip?"),
        ("tracking: {wandb: {imges: 1}}", "tracking.wandb.imges: no such key; did you mean images"),
        (
            "parameters: {train.epochs: {vlues: [1]}}",
            "parameters.train.epochs.vlues: no such key; did you mean values?",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, text: str, expected: str) -> None:
    (line,) = report(file, f"{HEAD}{text}\n")
    assert line.startswith(f"sweep.yaml:4: {expected}")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("model: {name: unet, dept: 3}", "model.dept: no such key; did you mean depth?"),
        (
            "model: {name: segformer, variant: b0, drop_pat: 0}",
            "model.drop_pat: no such key; did you mean drop_path?",
        ),
        ("model: {name: resnet}", "model.name: expected unet or segformer (got resnet)"),
        ("model: {name: null}", "model.name: expected unet or segformer (got null)"),
        ("model: {width: 3}", "model.name: this key is required: unet or segformer"),
        ("model: 5", "model: expected keys with their values (got 5)"),
        ("model: {name: segformer}", "model: give either pretrained"),
        ("data: {format: png}", "data.format: expected cityscapes or folders or scenes (got png)"),
        ("data: {format: [1]}", "data.format: expected cityscapes or folders or scenes (got [1])"),
        (
            "data: {size: [96, 96]}",
            "data.format: this key is required: cityscapes or folders or scenes",
        ),
        (
            "data: {format: cityscapes, size: [96, 96]}",
            "data.root: this key is required",
        ),
        (
            "data: {format: scenes, test_city: 2}",
            "data.test_city: no such key; did you mean test_c",
        ),
        ("data: {format: scenes, scenes: 2}", "data.scenes: no such key"),
    ],
)
def test_a_member_of_a_union_is_told_by_its_tag(file: Path, section: str, expected: str) -> None:
    key = section.split(":")[0]
    rest = [line for line in HEAD.splitlines() if not line.startswith(key)]
    (line,) = report(file, "\n".join([*rest, section]))
    assert line.startswith(f"sweep.yaml:3: {expected}")


def test_missing_keys_point_at_their_section(file: Path) -> None:
    assert report(file, "seed: 1\ntrain:\n  epochs: 3\n  early_stop: {min_delta: 0.1}\n") == [
        "sweep.yaml:1: name: this key is required",
        "sweep.yaml:1: model: this key is required",
        "sweep.yaml:1: data: this key is required",
        "sweep.yaml:4: train.early_stop.patience: this key is required",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochs: 1.5}", "train.epochs: expected a whole number (got 1.5)"),
        ("train: {epochs: true}", "train.epochs: expected a number (got true)"),
        ("train: {epochs: 2020-01-01}", "train.epochs: expected a whole number (got '2020-01-01')"),
        (
            "train: {optimizer: {lr: .inf}}",
            "train.optimizer.lr: expected a finite number (got .inf",
        ),
        (
            "train: {optimizer: {lr: .nan}}",
            "train.optimizer.lr: expected a finite number (got .nan",
        ),
        ("train: {optimizer: {lr: 0}}", "train.optimizer.lr: expected more than 0 (got 0)"),
        ("train: {augment: {hue: 1}}", "train.augment.hue: expected at most 0.5 (got 1)"),
        (
            "method: bayes",
            "method: expected tpe, random, grid, gp, cmaes or qmc; what W&B calls bayes is gp "
            "here; tpe, the default, takes every space (got bayes)",
        ),
        (
            "early_terminate: {type: bandit}",
            "early_terminate.type: expected asha or hyperband or median or none (got bandit)",
        ),
        (
            "early_terminate: {type: hyperband, max_iter: 27}",
            "early_terminate.max_iter: no such key; did you mean budget.epochs or train.epochs?",
        ),
        (
            "early_terminate: {type: hyperband, s: 2}",
            "early_terminate.s: no such key; expected one of type, min_iter, eta",
        ),
        (
            "early_terminate: {type: median, eta: 3}",
            "early_terminate.eta: no such key; expected one of type, min_iter, min_trials",
        ),
        (
            "early_terminate: {type: median, min_trails: 3}",
            "early_terminate.min_trails: no such key; did you mean min_trials?",
        ),
        (
            "early_terminate: {type: median, min_trials: 0}",
            "early_terminate.min_trials: expected at least 1 (got 0)",
        ),
        (
            "early_terminate: {type: none, eta: 3}",
            "early_terminate: type: none takes no other key, got eta",
        ),
        ("early_terminate: 3", "early_terminate: expected keys with their values (got 3)"),
        ("train: {precision: fp64}", "train.precision: expected auto, fp32 or bf16 (got fp64)"),
        ("train: {crop: 5}", "train.crop: expected a list (got 5)"),
        ("train: {crop: [64]}", "train.crop: expected a list of two (got [64])"),
        ("train: {crop: []}", "train.crop: expected a list of two (got [])"),
        (
            "train: {crop: [64, 64, 3]}",
            "train.crop: expected at most 2 in the list (got [64, 64, 3])",
        ),
        (
            "train: {augment: {scale: [2, 1]}}",
            "train.augment: scale is [smallest, largest], got [2",
        ),
        ("train: abc", "train: expected keys with their values (got abc)"),
        ("train: null", "train: expected keys with their values (got null)"),
        ("train: {early_stop: []}", "train.early_stop: expected keys with their values (got [])"),
        ("storage: {a: 1}", "storage: expected text (got {a: 1})"),
        ("seed: -1", "seed: expected at least 0 (got -1)"),
        (f"seed: {'9' * 30}", f"seed: expected less than 4294967296 (got {'9' * 30})"),
        ("final: {seeds: []}", "final.seeds: expected at least 1 in the list (got [])"),
        (
            "resources: {gpus_per_worker: abc}",
            "resources.gpus_per_worker: expected a number or auto (got abc)",
        ),
        (
            "resources: {max_concurrent: 1.5}",
            "resources.max_concurrent: expected a whole number or auto (got 1.5)",
        ),
        (
            "resources: {cpus_per_worker: 0}",
            "resources.cpus_per_worker: expected at least 1 or auto (got 0)",
        ),
        (
            "train: {loss: {class_weights: foo}}",
            "train.loss.class_weights: expected balanced or a list (got foo)",
        ),
        (
            "train: {loss: {class_weights: {a: 1}}}",
            "train.loss.class_weights: expected balanced or a list (got {a: 1})",
        ),
        (
            "train: {loss: {class_weights: [1, -1]}}",
            "train.loss.class_weights[1]: expected at least 0 (got -1)",
        ),
        (
            "parameters: {train.epochs: {min: a, max: 3}}",
            "parameters.train.epochs.min: expected a number (got a)",
        ),
    ],
)
def test_a_wrong_value_is_one_readable_problem(file: Path, text: str, expected: str) -> None:
    (line,) = report(file, f"{HEAD}{text}\n")
    assert line.startswith(f"sweep.yaml:4: {expected}")


# ---- parameters and start points ------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            "train.optimiser.lr: {value: 1}",
            "optimiser.lr: no such config key; did you mean train.op",
        ),
        ("model.name: {value: unet}", "model.name: no such config key"),
        ("train.optimizer: {value: {lr: 1}}", "train.optimizer: no such config key"),
        (
            "data.size: {values: [[64, 64]]}",
            "data.size: only keys of model and train can be search",
        ),
        ("seed: {values: [1, 2]}", "seed: only keys of model and train can be searched"),
        ("train.epochs: 5", "train.epochs: expected keys with their values (got 5)"),
        ("train.epochs: {}", "train.epochs: a uniform parameter needs min and max"),
        ("train.epochs: {min: 5, max: 3}", "min must be below max, got min=5 and max=3"),
        (
            "train.optimizer.lr: {distribution: log_uniform_values, min: 0, max: 1}",
            "train.optimizer.lr: a logarithmic range must start above 0, got min=0",
        ),
        (
            "train.optimizer.lr: {min: -1, max: 1}",
            "train.optimizer.lr does not take this value: expected more than 0 (got -1)",
        ),
        (
            "train.epochs: {values: [1, a]}",
            "epochs.values[1]: train.epochs does not take this value: expected a whole number (got",
        ),
        (
            "train.epochs: {values: [1, true]}",
            "does not take this value: expected a number (got tr",
        ),
        (
            "train.epochs: {distribution: uniform, min: 1, max: 10}",
            "does not take this value: expected a whole number (got 4.",
        ),
        (
            "train.augment.scale: {values: [[2, 1]]}",
            "values[0]: train.augment.scale does not take this value: train.augment: scale is",
        ),
        (
            "train.early_stop.min_delta: {value: 0.1}",
            "does not take this value: train.early_stop.patience: this key is required",
        ),
        (
            "train.loss.class_weights: {values: [balanced, [1, 2]]}",
            "class_weights.values[1]: expected one weight for each of the 7 classes, in the order",
        ),
        (
            "train.early_stop: {values: [null]}, train.early_stop.patience: {value: 2}",
            "train.early_stop is searched too and holds this key: search one of them",
        ),
    ],
)
def test_a_parameter_that_fits_no_key_is_refused(
    file: Path, parameters: str, expected: str
) -> None:
    (line,) = report(file, f"{HEAD}parameters: {{{parameters}}}\n")
    assert line.startswith("sweep.yaml:4: parameters.")
    assert expected in line


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("train.optimizer.lr: 2", "lr: outside the values that parameters gives it (got 2)"),
        ("train.optimizer.lr: a", "lr: outside the values that parameters gives it (got a)"),
        ("train.epochs: 4", "epochs: outside the values that parameters gives it (got 4)"),
        ("train.optimizer.rl: 1", "rl: not one of the searched parameters; did you mean train.opt"),
    ],
)
def test_a_start_point_outside_the_space_is_refused(file: Path, point: str, expected: str) -> None:
    space = (
        "parameters: {train.optimizer.lr: {min: 1e-5, max: 1e-1}, train.epochs: {values: [3]}}\n"
    )
    good = "{train.optimizer.lr: 1e-3}"
    (line,) = report(file, f"{HEAD}{space}start_points:\n- {good}\n- {{{point}}}\n")
    assert line.startswith("sweep.yaml:7: start_points[1].train.")
    assert expected in line


# ---- what one key asks of another -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "resources: {workers: 3}",
            "resources.workers: the batch of 8 images cannot be shared by 3",
        ),
        (
            "final: {workers: 3}",
            "final.workers: the batch of 8 images cannot be shared by 3 workers",
        ),
        (
            "{resources: {workers: 2}, parameters: {train.batch_size: {min: 2, max: 6}}}",
            "resources.workers: the batch of 3 images cannot be shared by 2 workers evenly (got 2)",
        ),
        (
            '{final: {workers: 4}, parameters: {train.batch_size: {values: [8, "6"]}}}',
            "final.workers: the batch of 6 images cannot be shared by 4 workers evenly (got 4)",
        ),
        (
            "train: {accumulate: 3}",
            "train.accumulate: a worker's share of 8 images cannot be taken in 3 even passes",
        ),
        (
            "{train: {accumulate: 8}, final: {workers: 2}}",
            "train.accumulate: a worker's share of 4 images cannot be taken in 8 even passes",
        ),
        (
            "{train: {epochs: 4}, early_terminate: {type: asha, min_iter: 4}}",
            "early_terminate.min_iter: the first rung must come before the last epoch (4)",
        ),
        (
            "{early_terminate: {type: asha, min_iter: 4}, "
            "parameters: {train.epochs: {values: [2, 4]}}}",
            "early_terminate.min_iter: the first rung must come before the last epoch (4)",
        ),
        (
            "{train: {epochs: 4}, early_terminate: {type: hyperband, min_iter: 4}}",
            "early_terminate.min_iter: the first rung must come before the last epoch (4), or "
            "hyperband stops nothing",
        ),
        (
            "{train: {epochs: 4}, early_terminate: {type: median, min_iter: 4}}",
            "early_terminate.min_iter: the first epoch to stop at must come before the last epoch",
        ),
        (
            "{early_terminate: {type: median, min_trials: 6}, run_cap: 6}",
            "early_terminate.min_trials: the sweep has 6 trials, so that none is left to stop once",
        ),
        (
            "method: grid\nearly_terminate: {type: median, min_trials: 2}\n"
            "parameters: {train.batch_size: {values: [2, 4]}}",
            "early_terminate.min_trials: the sweep has 2 trials, so that none is left to stop once",
        ),
        (
            "metric: {name: val/miuo}",
            "metric.name: no such metric; did you mean val/miou? (got val",
        ),
        ("metric: {name: val/iou/void}", "metric.name: no such metric; did you mean"),
        (
            "metric: {name: val/loss}",
            "metric.goal: a loss is better when it is smaller: set goal: m",
        ),
        (
            "train: {loss: {class_weights: [1, 2]}}",
            "train.loss.class_weights: expected one weight for each of the 7 classes",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(file: Path, text: str, expected: str) -> None:
    body = text[1:-1].replace("}, ", "}\n") if text.startswith("{") else text
    (line,) = report(file, f"{HEAD}{body}\n")
    assert expected in line


@pytest.mark.parametrize(
    ("workers", "parameters", "require"),
    [
        (2, "SIZE: [4, 16], PASSES: {values: [2, 8], when: {SIZE: 16}}", ""),
        (1, "SIZE: [4, 16], PASSES: [1, 8]", "SIZE % PASSES == 0"),
        (1, "SIZE: {min: 1, max: 4096}, PASSES: [1, 8], LR: {min: 1.0e-3, max: 0.1}",
         "SIZE % PASSES + 0 * LR == 0"),
        (2, "SIZE: {value: 10, when: {PASSES: 1}}, PASSES: [1, 4]", ""),
        (2, "SIZE: [5, 8], PASSES: [2, 4]", "SIZE % PASSES == 0"),
    ],
)  # fmt: skip
def test_batches_and_passes_are_asked_of_trials_that_can_be_drawn(
    file: Path, workers: int, parameters: str, require: str
) -> None:
    text = f"resources: {{workers: {workers}}}\nparameters: {{{parameters}}}\n"
    text += f"require: ['{require}']\n" if require else ""
    for short, key in (("SIZE", "batch_size"), ("PASSES", "accumulate"), ("LR", "optimizer.lr")):
        text = text.replace(short, f"train.{key}")
    load(file, HEAD + text)


@pytest.mark.parametrize(
    ("parameters", "require", "expected"),
    [
        (
            "train.batch_size: [4, 16], train.accumulate: [1, 8]",
            "train.batch_size > 2",
            "parameters.train.accumulate.values[1]: a worker's share of 4 images cannot be taken "
            "in 8 even passes",
        ),
        (
            "train.batch_size: [4, 16], train.accumulate: {values: [2, 8], when: "
            "{train.batch_size: 4}}",
            "train.batch_size > 2",
            "parameters.train.accumulate.values[1]: a worker's share of 4 images cannot be taken "
            "in 8 even passes",
        ),
        (
            "train.batch_size: {min: 8, max: 4096, q: 8}, train.accumulate: {min: 1, max: 4096}",
            "train.accumulate < 8",
            "parameters.train.accumulate: a worker's share of ",
        ),
        (
            "train.batch_size: [4, 6]",
            "train.batch_size > 2",
            "train.accumulate: a worker's share of 6 images cannot be taken in 4 even passes",
        ),
    ],
)
def test_passes_that_do_not_fit_a_trial_that_can_be_drawn_are_refused(
    file: Path, parameters: str, require: str, expected: str
) -> None:
    text = f"{HEAD}parameters: {{{parameters}}}\nrequire: ['{require}']\n"
    text += "" if "accumulate" in parameters else "train: {accumulate: 4}\n"
    (line,) = report(file, text)
    assert expected in line


def test_a_value_that_fits_no_key_hides_no_other_rule(file: Path) -> None:
    text = "parameters: {train.batch_size: {values: [a, 6]}}\nresources: {workers: 4}\n"
    first, second = report(file, HEAD + text)
    assert "train.batch_size does not take this value" in first
    assert "the batch of 6 images cannot be shared by 4 workers" in second


def test_searched_epochs_count_for_the_first_rung(file: Path) -> None:
    text = "train: {epochs: 2}\nearly_terminate: {type: asha, min_iter: 4}\n"
    config = load(file, HEAD + text + "parameters: {train.epochs: {values: [2, 8]}}\n")
    assert config.early_terminate is not None


def test_a_base_s_rule_gives_way_to_one_of_another_type(file: Path) -> None:
    base = file.with_name("base.yaml")
    base.write_text(HEAD + "early_terminate: {type: asha, min_iter: 2, eta: 4}\n")

    def rule(text: str) -> object:
        config = load(file, f"base: base.yaml\nearly_terminate: {text}\n")
        return config.model_dump()["early_terminate"]

    assert rule("{type: median, min_trials: 4}") == {
        **{"type": "median", "min_iter": 3, "min_trials": 4}
    }
    assert rule("{eta: 2}") == {"type": "asha", "min_iter": 2, "eta": 2}
    assert rule("{type: none}") is None
    assert rule("null") is None


PLATEAU = """\
method: {method}
parameters:
  train.schedule.name: {{values: [poly, plateau]}}
  train.schedule.patience: {{min: 1, max: 9, when: {{train.schedule.name: plateau}}}}
"""


def test_a_method_that_can_learn_of_no_key_is_refused_where_it_is_written(file: Path) -> None:
    (line,) = report(file, HEAD + PLATEAU.format(method="cmaes"))
    assert line.startswith("sweep.yaml:4: method: cmaes can learn of no searched key here: ")
    assert "train.schedule.name (values, no range)" in line
    assert "train.schedule.patience (not searched in every trial)" in line


@pytest.mark.parametrize(
    ("method", "key", "blind"),
    [
        ("gp", "{values: [1, 2]}", ["train.schedule.patience"]),
        ("cmaes", "{min: 1, max: 2}", ["train.schedule.name", "train.schedule.patience"]),
        ("tpe", "{values: [1, 2]}", []),
        ("qmc", "{values: [1, 2]}", []),
        ("random", "{values: [1, 2]}", []),
        ("grid", "{values: [1, 2]}", []),
        (
            "cmaes",
            "{value: 2}\n  train.epochs: {min: 1, max: 2}",
            ["train.schedule.name", "train.schedule.patience"],
        ),
        (
            "gp",
            "{value: 2}\n  train.schedule.warmup_steps: {min: 0, max: 2000000}",
            ["train.schedule.patience", "train.schedule.warmup_steps"],
        ),
    ],
)
def test_which_keys_a_method_leaves_to_chance(
    file: Path, method: str, key: str, blind: list[str]
) -> None:
    text = PLATEAU.format(method=method) + f"  train.batch_size: {key}\n"
    assert list(unmodelled(load(file, HEAD + text))) == blind


FOLDERS = """\
name: a
model: {name: unet, width: 8, depth: 3}
data:
  format: folders
  root: ${OWN}
  images: images
  masks: masks
  size: [64, 64]
  classes:
    road: {ids: 1}
    sky: {ids: 2}
    void: {ids: 0}
"""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.classes.road.colour=[1,2,3]", "data.classes.road.colour: no such key; did you mean"),
        ("data.classes.sky.ids=1", "data.classes: id 1 of sky is in road too"),
        ("data.classes.void.ids=x", "data.classes.void.ids: expected a label id"),
        ("data.train={images: a}", "data.train.masks: this key is required"),
        ("data.train={images: a, mask: b}", "data.train.mask: no such key; did you mean masks?"),
        ("data.train=7", "data.train: expected keys with their values (got 7)"),
        ("data.split=official", "data.split: expected pooled or explicit (got official)"),
        ("metric.name=val/iou/flat", "metric.name: no such metric; did you mean val/iou/"),
        ("train.loss.class_weights=[1,2,3]", "each of the 2 classes, in the order road, sky"),
    ],
)
def test_own_classes_are_reported_on_by_their_keys(
    file: Path, override: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, FOLDERS.replace("${OWN}", "here"), override)
    assert expected in str(caught.value)


def test_an_unset_root_of_own_images_says_nothing_of_cityscapes(file: Path) -> None:
    with pytest.raises(ConfigError, match="environment variable OWN is not set") as caught:
        load(file, FOLDERS)
    assert "Cityscapes" not in str(caught.value)


def test_own_classes_make_the_metrics(file: Path) -> None:
    config = load(file, FOLDERS.replace("${OWN}", "here"), "data.ignore=none")
    names = metric_names(config.data)
    assert names[4:] == ["val/miou_without_void", "val/iou/void", "val/iou/road", "val/iou/sky"]
    assert trial_config(
        config, {}, seed=0, workers=1, gpus_per_worker=0, threads=1
    ).data.class_names == ("void", "road", "sky")


@pytest.mark.parametrize("ignore", ["void", "none"])
def test_every_listed_metric_can_be_optimized(file: Path, ignore: str) -> None:
    for name in metric_names(ScenesData(format="scenes", ignore=ignore)):
        goal = "minimize" if name == "val/loss" else "maximize"
        text = f"{HEAD}metric: {{name: {name}, goal: {goal}}}\n"
        assert load(file, text, f"data.ignore={ignore}").metric.name == name


# ---- overrides ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.optimizer.lr=1e-4", "train.optimizer.lr", 1e-4),
        ("train.augment.scale=[0.5, 2]", "train.augment.scale", (0.5, 2.0)),
        ("train.early_stop.patience=2", "train.early_stop.patience", 2),
        ("resources.gpus_per_worker=auto", "resources.gpus_per_worker", "auto"),
        ("name=007", "name", "007"),
        ("name=7", "name", "7"),
        ("name=1e5", "name", "1e5"),
        ("name=true", "name", "true"),
        ("tracking.wandb.entity=42", "tracking.wandb.entity", "42"),
        ("data={format: scenes}", "data.size", (96, 192)),
        ("data={format: scenes, cities: 3}", "data.cities", 3),
        ("early_terminate={type: asha}", "early_terminate.min_iter", 3),
        ("train={}", "train.epochs", 20),
    ],
)
def test_an_override_is_typed_by_the_schema(
    file: Path, override: str, path: str, value: Any
) -> None:
    found: Any = load(file, HEAD + "train: {epochs: 7, crop: null}\n", override)
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_an_override_replaces_a_mapping_whole(file: Path) -> None:
    text = HEAD.replace("size: [96, 192]", "size: [64, 64], nonsense: 1")
    assert load(file, text, "data={format: scenes}").data.size == (96, 192)


def test_the_last_override_wins(file: Path) -> None:
    assert load(file, HEAD, "train.epochs=0", "train.epochs=3").train.epochs == 3


def test_an_override_changes_one_place_of_an_alias(file: Path) -> None:
    text = f"{HEAD}resources: &r {{workers: 1}}\nfinal: *r\n"
    config = load(file, text, "final.workers=2")
    assert config.resources.workers == 1
    assert config.final is not None
    assert config.final.workers == 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["parameters.train.optimizer.lr.min=1e-4"], {"min": 1e-4, "max": 0.1}),
        (["parameters.train.optimizer.lr={value: 1e-3}"], {"value": 1e-3}),
        (["parameters={train.optimizer.lr: {values: [1e-3]}}"], {"values": [1e-3]}),
    ],
)
def test_a_parameter_is_overridden_under_its_dotted_name(
    file: Path, overrides: list[str], expected: dict[str, Any]
) -> None:
    text = HEAD + "parameters: {train.optimizer.lr: {min: 1e-5, max: 1e-1}}\n"
    parameter = load(file, text, *overrides).parameters["train.optimizer.lr"]
    dumped = parameter.model_dump(mode="json")
    del dumped["distribution"]
    assert dumped == expected


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        (
            "train.optimizer.lr=0.1",
            "train.optimizer.lr: this key is searched, so no trial would have this value; to pin "
            "it, set parameters.train.optimizer.lr={value: 0.1} (and start_points=[] if they name "
            "it)",
        ),
        (
            "train.optimizer={lr: 0.1}",
            "train.optimizer: train.optimizer.lr is searched, so no trial would have this value; "
            "to pin it, set parameters.train.optimizer.lr={value: 0.1}",
        ),
        ("train={optimizer: {lr: 0.1}}", "train: train.optimizer.lr is searched, so no trial"),
        (
            "train.early_stop.patience=5",
            "train.early_stop.patience: train.early_stop is searched, so no trial would have this "
            "value; to pin it, set parameters.train.early_stop={value: {patience: 5}}",
        ),
        ("train.early_stop=null", "train.early_stop: this key is searched, so no trial"),
        (
            "train.loss=null",
            "train.loss: train.loss.dice is searched, so no trial would have this value; "
            "set parameters.train.loss.dice=null as well",
        ),
    ],
)
def test_an_override_that_a_searched_key_replaces_is_refused(
    file: Path, override: str, rule: str
) -> None:
    text = (
        f"{HEAD}parameters:\n"
        "  train.optimizer.lr: {values: [0.01, 0.1]}\n"
        "  train.early_stop: {values: [null, {patience: 3}]}\n"
        "  train.loss.dice: {values: [0.0, 1.0]}\n"
    )
    assert report(file, text, override)[0].startswith(f"override {override}: {rule}")


def test_an_override_beside_a_searched_key_is_taken(file: Path) -> None:
    text = f"{HEAD}parameters: {{train.optimizer.lr: {{values: [0.01, 0.1]}}}}\n"
    config = load(file, text, "train.optimizer={weight_decay: 0.5}")
    assert config.train.optimizer.weight_decay == 0.5
    pinned = load(file, text, "parameters.train.optimizer.lr=null", "train.optimizer={lr: 0.5}")
    assert (pinned.train.optimizer.lr, pinned.parameters) == (0.5, {})


def test_a_parameter_that_the_file_lacks_is_made_by_overrides(file: Path) -> None:
    config = load(file, HEAD, "parameters.train.epochs.min=2", "parameters.train.epochs.max=5")
    assert config.parameters["train.epochs"].probes()[:2] == (2, 5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "expected key=value, as in train.epochs=5"),
        ("=3", "expected key=value, as in train.epochs=5"),
        ("a..b=3", "expected key=value, as in train.epochs=5"),
        ("parameters.=3", "expected key=value, as in train.epochs=5"),
        ("train." + "a." * 99 + "b=1", "expected key=value, as in train.epochs=5"),
        ("train.epochs=[1", "train.epochs: not valid YAML: "),
        ("train.epochs=\x00", "train.epochs: not valid YAML: the character 0x0 is not allowed"),
        ("train.epochs=abc", "train.epochs: expected a whole number (got abc)"),
        ("train.epochs=", "train.epochs: expected a whole number (got null)"),
        ("train.epochs=0", "train.epochs: expected at least 1 (got 0)"),
        ("train.epohcs=3", "train.epohcs: no such key; did you mean epochs?"),
        ("epochs=3", "epochs: no such key; did you mean budget.epochs or train.epochs?"),
        (
            "model.width.x=3",
            "model.width.x: model.width holds no keys, so x cannot be set in it (go",
        ),
        (
            "data.size.0=3",
            "data.size.0: data.size holds no keys, so 0 cannot be set in it (got [96",
        ),
        ("train={1: 2}", "train: expected a key of plain text (got '1')"),
        ("train={epochs: 3, epochs: 4}", "train.epochs: written twice"),
        ("train.crop=&a [*a]", "train.crop[0]: an alias cannot stand inside its own anchor"),
        ("train=!!python/object:x {}", "train: the tag !!python/object:x is not allowed"),
        ("name=null", "name: expected text (got null)"),
        ("early_terminate.min_iter=4", "early_terminate.type: this key is required"),
        ("parameters=5", "parameters: expected keys with their values (got 5)"),
        ("parameters.train.epochs.min=1", "parameters.train.epochs: a uniform parameter needs min"),
        ("parameters.train.epohcs.value=1", "parameters.train.epohcs: no such config key; did you"),
        (
            "parameters={data.size: {value: 1}}",
            "parameters.data.size: only keys of model and train",
        ),
        ("resources.workers=3", "resources.workers: the batch of 8 images cannot be shared by 3"),
        ("storage=${NOWHERE}", "storage: the environment variable NOWHERE is not set"),
        ("storage=${A}/${B}", "storage: the environment variables A and B are not set"),
    ],
)
def test_a_bad_override_is_named_as_override(file: Path, override: str, expected: str) -> None:
    (line,) = report(file, HEAD, override)
    assert line.startswith(f"override {override}: {expected}")


def test_a_refused_override_hides_no_problem_of_the_file_but_at_its_own_key(file: Path) -> None:
    text = HEAD.replace("scenes,", 'cityscapes, root: "${NOPE}",') + "run_cap: 0\n"
    first, second = report(file, text, "data.root=[1")
    assert first.startswith("override data.root=[1: data.root: not valid YAML")
    assert second.startswith("sweep.yaml:4: run_cap: expected at least 1")
    lines = report(file, "a: [1\n", "seed", "train.epochs=[1")
    assert [line.split(": ")[0] for line in lines] == [
        "override seed",
        "override train.epochs=[1",
        "sweep.yaml:2:1",
    ]


def test_overrides_come_before_the_file_in_the_report(file: Path) -> None:
    first, second = report(file, HEAD + "run_cap: 0\n", "seed=x")
    assert first.startswith("override seed=x: ")
    assert second.startswith("sweep.yaml:4: ")


# ---- ${VAR} and ~ ---------------------------------------------------------------------------


def test_the_environment_and_the_home_folder_are_put_in(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(file, HEAD + "storage: ~/x/${A}-${B}\n", env={"A": "1", "B": "b"})
    assert config.storage == "/home/someone/x/1-b"
    assert load(file, HEAD, "storage='~'").storage == "/home/someone"
    assert load(file, HEAD, "seed=${S}", env={"S": "5"}).seed == 5


def test_an_override_replaces_an_unset_variable_before_it_expands(file: Path) -> None:
    text = HEAD.replace("scenes,", 'cityscapes, root: "${CITYSCAPES_ROOT}",')
    assert load(file, text, "data.root=/there").data.root == "/there"
    assert load(file, text, "data.root=${X}/y", env={"X": "/x"}).data.root == "/x/y"


def test_an_unset_cityscapes_root_tells_how_to_get_cityscapes(file: Path) -> None:
    text = HEAD.replace("scenes,", 'cityscapes, root: "${CITYSCAPES_ROOT}",') + "run_cap: 0\n"
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    message = str(caught.value)
    assert f"{file}:3: data.root: the environment variable CITYSCAPES_ROOT is not set" in message
    assert f"{file}:4: run_cap: expected at least 1" in message
    assert "csDownload" in message
    assert "export CITYSCAPES_ROOT=" in message


def test_another_unset_variable_says_nothing_of_cityscapes(file: Path) -> None:
    with pytest.raises(ConfigError, match="variable X is not set") as caught:
        load(file, HEAD + "storage: ${X}\n")
    assert "Cityscapes" not in str(caught.value)


def test_a_variable_that_fits_no_name_is_one_problem(file: Path) -> None:
    (line,) = report(file, HEAD.replace("name: a", "name: ${X}"))
    assert "the environment variable X is not set" in line


# ---- trials ---------------------------------------------------------------------------------


def test_a_trial_has_the_assignment_in_it(file: Path) -> None:
    sweep = load(file, dump(FULL))
    assignment = {"train.optimizer.lr": 2e-4, "train.augment.scale": [1.0, 1.0]}
    trial = trial_config(sweep, assignment, seed=9, workers=2, gpus_per_worker=0.5, threads=3)
    assert trial.train.optimizer.lr == 2e-4
    assert trial.train.augment.scale == (1.0, 1.0)
    assert trial.train.early_stop == sweep.train.early_stop
    assert (trial.model, trial.data, trial.metric) == (sweep.model, sweep.data, sweep.metric)
    assert (trial.seed, trial.workers, trial.gpus_per_worker, trial.threads) == (9, 2, 0.5, 3)
    assert sweep.train.optimizer.lr == 1e-5


def test_an_assignment_makes_a_section_that_was_off(file: Path) -> None:
    trial = trial_config(
        load(file, HEAD),
        {"train.early_stop.patience": 2},
        seed=0,
        workers=1,
        gpus_per_worker=0,
        threads=1,
    )
    assert trial.train.early_stop is not None
    assert trial.train.early_stop.patience == 2


# ---- any damage ends in a report ------------------------------------------------------------

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["auto", "val/loss", "${NOPE}", "${S}", "~", "~/x", "2020-01-01", "1e5", "8"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["name", "min", "max"]), inner)
    ),
    max_leaves=4,
)


def branches(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything below `value`."""
    if not isinstance(value, dict | list):
        return []
    return [
        path
        for key, inner in (value.items() if isinstance(value, dict) else enumerate(value))
        for path in [(*at, key), *branches(inner, (*at, key))]
    ]


def damage(config: Any, draw: st.DataObject) -> None:
    """Delete or misspell a key, or put something else in the place of a value."""
    path = draw.draw(st.sampled_from(branches(config)))
    for key in path[:-1]:
        config = config[key]
    action = draw.draw(st.sampled_from(["delete", "misspell", "replace", "replace"]))
    if action == "misspell" and isinstance(config, dict):
        letters = [*path[-1], draw.draw(st.characters(codec="utf-8"))]
        config["".join(draw.draw(st.permutations(letters)))] = config.pop(path[-1])
    elif action == "delete":
        del config[path[-1]]
    else:
        config[path[-1]] = draw.draw(junk)


def check(file: Path, overrides: list[str]) -> None:
    """It loads and round-trips, or every problem says where it stands."""
    found: ConfigError | None = None
    try:
        sweep = load_sweep(file, overrides, {"S": "7"})
    except ConfigError as error:
        found = error
    if found is None:
        file.write_text(dump(sweep.model_dump(mode="json")), encoding="utf-8")
        assert load_sweep(file, (), {}) == sweep
        return
    assert found.problems
    for problem in found.problems:
        line = problem.where.removeprefix(f"{file}:").split(":")[0]
        assert line.isdigit() or (overrides and problem.where.startswith("override "))
        assert problem.rule


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_loads_or_says_what_is_wrong(file: Path, data: st.DataObject) -> None:
    config = copy.deepcopy(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        damage(config, data)
    file.write_text(dump(config), encoding="utf-8")
    check(file, [])


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([".".join(map(str, path)) for path in branches(FULL)]),
            st.text(max_size=10) | junk.map(lambda value: dump(value).strip()),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_override_loads_or_says_what_is_wrong(
    file: Path, overrides: list[tuple[str, str]]
) -> None:
    file.write_text(dump(FULL), encoding="utf-8")
    check(file, [f"{key}={value}" for key, value in overrides])
