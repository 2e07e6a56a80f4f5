"""YAML -> one validated, frozen SweepConfig; every problem in it reported at once."""

from segray.config.assignment import reachable, trial_config
from segray.config.errors import (
    ConfigError,
    Interrupted,
    Problem,
    RequestError,
    SegrayError,
    WorkError,
)
from segray.config.load import CITYSCAPES_HELP, SweepFile, load_sweep, read_sweep
from segray.config.rules import CATEGORIES, metric_names
from segray.config.schema import (
    Augment,
    CityscapesData,
    Loss,
    Optimizer,
    Parameter,
    ScenesData,
    Schedule,
    SweepConfig,
    Train,
    TrialConfig,
)
from segray.config.yaml_file import dump

__all__ = [
    "CATEGORIES",
    "CITYSCAPES_HELP",
    "Augment",
    "CityscapesData",
    "ConfigError",
    "Interrupted",
    "Loss",
    "Optimizer",
    "Parameter",
    "Problem",
    "RequestError",
    "ScenesData",
    "Schedule",
    "SegrayError",
    "SweepConfig",
    "SweepFile",
    "Train",
    "TrialConfig",
    "WorkError",
    "dump",
    "load_sweep",
    "metric_names",
    "reachable",
    "read_sweep",
    "trial_config",
]
