"""YAML -> one validated, frozen SweepConfig; every problem in it reported at once."""

from segray.config.errors import (
    ConfigError,
    Interrupted,
    Problem,
    RequestError,
    SegrayError,
    WorkError,
)
from segray.config.load import (
    CITYSCAPES_HELP,
    load_sweep,
    metric_names,
    reachable,
    trial_config,
)
from segray.config.schema import (
    CATEGORIES,
    Augment,
    CityscapesData,
    Data,
    Folders,
    FoldersData,
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
    "Data",
    "Folders",
    "FoldersData",
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
    "Train",
    "TrialConfig",
    "WorkError",
    "dump",
    "load_sweep",
    "metric_names",
    "reachable",
    "trial_config",
]
