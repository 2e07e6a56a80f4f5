"""The few things a loop asks of torch.distributed; each is a no-op in a single process."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This worker's number among those on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The sum of every worker's tensor, on every worker (in place)."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait_for_all() -> None:
    """Until every worker has come here."""
    if world_size() > 1:
        dist.barrier()


def from_first(value: int, device: torch.device) -> int:
    """Worker 0's value, on every worker."""
    if world_size() == 1:
        return value
    box = torch.tensor(value, device=device)
    dist.broadcast(box, 0)
    return int(box)


def share_buffers(model: nn.Module) -> None:
    """Give every worker worker 0's buffers (batch norm's statistics), which checkpoints hold."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def share_weights(model: nn.Module) -> None:
    """Give every worker worker 0's parameters and buffers."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def all_workers(here: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """Every worker's (position, CPU tensor) pairs, sorted by position, on every worker."""
    if world_size() == 1:
        return sorted(here, key=lambda pair: pair[0])
    gathered: list[list[tuple[int, Tensor]]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, here)
    return sorted((pair for part in gathered for pair in part), key=lambda pair: pair[0])
