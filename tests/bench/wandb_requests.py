"""How many requests W&B's client makes for a trial, and of what kind, against a stand-in server.

A run of EPOCHS epochs, one every SECONDS; W&B limits requests a minute and project.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from segray.tracking import start_tracker

_file = Path(__file__).parents[1] / "wandb_server.py"
_spec = importlib.util.spec_from_file_location("wandb_server", _file)
wandb_server = importlib.util.module_from_spec(_spec)


def main() -> None:
    import sys

    sys.modules["wandb_server"] = wandb_server
    _spec.loader.exec_module(wandb_server)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="of an epoch")
    options = parser.parse_args()
    server = wandb_server.StandIn()
    os.environ |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        tracker = start_tracker(
            "online",
            project="scale",
            entity=None,
            run_id="a-000",
            run_name="a-000",
            group="a",
            job_type="trial",
            config={"train": {"lr": 1e-3}},
            folder=Path(folder),
            classes=("a", "b"),
        )
        for epoch in range(1, options.epochs + 1):
            time.sleep(options.seconds)
            tracker.log({f"val/iou/{k}": 0.5 for k in range(30)}, epoch=epoch)
        tracker.finish({"best": 0.5})
        minutes = (time.monotonic() - started) / 60
    kinds = Counter(
        "file_stream"
        if path.endswith("/file_stream")
        else "graphql"
        if path.endswith("/graphql")
        else "files"
        for _, path, _ in server.requests
    )
    server.close()
    total = sum(kinds.values())
    told = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    print(
        f"{options.epochs} epochs of {options.seconds:g} s: {total} requests ({told}) in "
        f"{minutes:.1f} min"
    )


if __name__ == "__main__":
    main()
