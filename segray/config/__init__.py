"""YAML -> one validated, frozen SweepConfig; every problem in it reported at once."""

from segray.config.assignment import (
    Assignment,
    draw_order,
    grid,
    is_active,
    reachable,
    satisfied,
    trial_config,
    trial_count,
)
from segray.config.errors import (
    ConfigError,
    Interrupted,
    Problem,
    RequestError,
    SegrayError,
    WorkError,
)
from segray.config.json_schema import json_schema
from segray.config.load import CITYSCAPES_HELP, SweepFile, load_sweep, read_sweep
from segray.config.rules import metric_names
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
from segray.config.yaml_file import dump, one_line

__all__ = [
    "CATEGORIES",
    "CITYSCAPES_HELP",
    "Assignment",
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
    "SweepFile",
    "Train",
    "TrialConfig",
    "WorkError",
    "draw_order",
    "dump",
    "grid",
    "is_active",
    "json_schema",
    "load_sweep",
    "metric_names",
    "one_line",
    "reachable",
    "read_sweep",
    "satisfied",
    "trial_config",
    "trial_count",
]
