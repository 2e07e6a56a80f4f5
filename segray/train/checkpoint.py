"""A checkpoint is one safetensors file, with everything that is no tensor as JSON in its header.

One file and one rename: there is never half a checkpoint. `last` holds model and optimizer, `best`
the model alone. Random states are not stored: the loop seeds every epoch anew from (seed, epoch,
rank), which serves every rank and needs no file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from segray.config import RequestError

Json = dict[str, Any]


def save(
    path: Path, state: Json, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write model, optimizer (where given) and `state` to `path`, replacing what stood there."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in slots.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    # As arrays: the same bytes, in two thirds of the time that it takes for torch's tensors.
    plain = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata={"segray": json.dumps(state)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_state(path: Path) -> Json:
    """The `state` a checkpoint was saved with; raises RequestError for another file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state: Json = json.loads(metadata["segray"])
    except (SafetensorError, KeyError, OSError) as error:
        raise RequestError(f"{path}: expected a checkpoint that segray wrote: {error}") from None
    return state


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Json:
    """Fill model and optimizer from `path` and return its state.

    Raises RequestError for a checkpoint of another model.
    """
    state = read_state(path)
    weights: dict[str, Tensor] = {}
    slots: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            kind, _, name = key.partition(".")
            if kind == "model":
                weights[name] = file.get_tensor(key)
            elif optimizer is not None:
                index, _, slot = name.partition(".")
                slots.setdefault(int(index), {})[slot] = file.get_tensor(key)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise RequestError(
            f"{path}: a checkpoint of another model: {' '.join(lines[:2])}"
        ) from None
    if optimizer is not None:
        groups = optimizer.state_dict()["param_groups"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state_of = {i: _laid_out_like(parameters[i], slot) for i, slot in slots.items()}
        optimizer.load_state_dict({"state": state_of, "param_groups": groups})
    return state


def _laid_out_like(parameter: Tensor, slots: dict[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's tensors in the memory format of their parameter.

    A file holds them contiguous, and the fused AdamW walks parameter and moments by their memory:
    beside a channels_last weight a contiguous moment would be read in the wrong order.
    """
    return {
        name: torch.empty_like(parameter, device="cpu").copy_(slot)
        if slot.shape == parameter.shape
        else slot
        for name, slot in slots.items()
    }
