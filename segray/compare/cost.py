"""What a model costs to use: size, arithmetic, latency and memory, measured on this machine.

In a process of its own for each model, since a CPU's peak memory is the whole process's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segray.compare.comparison import Cost
from segray.config import WorkError
from segray.models import load_model
from segray.train import peak_bytes

SECONDS = 2.0  # of passes for a batch size, of which there are at least PASSES
PASSES = 3
BATCHES = (1, 2, 4, 8, 16, 32)
GAIN = 1.03  # a batch that is no faster than this times the one before it ends the search
LIMIT_S = 600.0  # for a model whose passes take very long, start of the process included


def measure_cost(folder: Path, size: tuple[int, int]) -> Cost:
    """The cost of the model in `folder` (see `save_model`), for images of `size`.

    On the GPU, where there is one, in float32. Raises WorkError where it cannot be measured.
    """
    command = [sys.executable, "-m", "segray.compare.cost", str(folder), *map(str, size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise WorkError(f"the cost of {folder} took more than {LIMIT_S:.0f} s to measure") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WorkError(f"the cost of {folder} could not be measured: {said}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Cost(**found | {"image_size": size})


@torch.inference_mode()
def _measure(folder: Path, height: int, width: int) -> dict[str, object]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: nn.Module = load_model(folder)
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def seconds(batch: int, longest: float) -> float:
        """Of the fastest of as many passes as take `longest` seconds: others are at work too."""
        images = torch.rand(batch, 3, height, width, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        times: list[float] = []
        for turn in range(1000):
            started = time.perf_counter()
            model(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
            if turn >= PASSES and sum(times) > longest:
                break
        return min(times[1:])  # the first one warms up

    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, height, width, device=device))
    latency = seconds(1, SECONDS)
    peak = peak_bytes(device)
    best, speed = 1, 1 / latency
    for batch in BATCHES[1:]:
        if batch * latency > SECONDS:  # one pass would take too long
            break
        try:
            found = batch / seconds(batch, SECONDS / 2)
        except RuntimeError:  # out of memory
            break
        if found < GAIN * speed:
            break
        best, speed = batch, found
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflops": counter.get_total_flops() / 1e9,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "latency_ms": 1000 * latency,
        "images_per_s": speed,
        "best_batch": best,
        "peak_memory_mb": peak / 2**20,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
