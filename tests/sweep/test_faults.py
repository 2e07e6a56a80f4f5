import subprocess
import sys
import traceback

import pytest
import torch

from segray.config import TrialConfig
from segray.data.remote import DiskFull, RemoteError, RemoteRefused
from segray.sweep.faults import LINES, halved, put_down, understand


def trial(**train):
    return TrialConfig.model_validate(
        {
            "model": {"name": "unet"},
            "data": {"format": "scenes", "size": [64, 128]},
            "train": {"batch_size": 8, **train},
            "metric": {},
            "seed": 0,
            "workers": 2,
            "gpus_per_worker": 0,
            "threads": 1,
        }
    )


DEATH = """The actor died unexpectedly before finishing this task.
	class_name: ImplicitFunc
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. There are some \
potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory \
usage. (2) ray stop --force is called."""


def account_of(code: str) -> str:
    """The real last words of a Python process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    return done.stderr


def test_torchs_own_words_for_too_little_memory_are_understood():
    fault = understand(account_of("import torch; torch.empty(2**55)"), trial())
    assert fault.kind == "out_of_memory"
    assert "train.batch_size=8 on 2 workers, 64x128" in fault.reason
    assert "allocate" in fault.reason


@pytest.mark.parametrize(
    "account",
    [
        account_of("bytearray(2**62)"),
        str(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")),
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "RuntimeError: NCCL error\nCUDA error: out of memory",
    ],
)
def test_every_kind_of_memory_counts(account):
    assert understand(account, trial()).kind == "out_of_memory"


def test_a_death_is_no_lack_of_memory_but_suspected_where_the_system_killed():
    """Though Ray names that among the causes of every death."""
    fault = understand(DEATH, trial())
    assert fault.kind == "died"
    assert "memory" not in fault.reason
    fault = understand(DEATH, trial(accumulate=2), oom_kills=1)
    assert fault.kind == "died"  # so it is tried again
    assert "perhaps out of memory" in fault.reason
    assert "in 2 passes on 2 workers" in fault.reason


def test_a_full_disk_is_told_before_all_else():
    account = account_of("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")
    assert understand(account + DEATH, trial()).kind == "disk_full"


def test_an_exception_is_told_by_its_last_line():
    fault = understand(account_of("raise ValueError('a wrong mask')"), trial())
    assert (fault.kind, fault.reason) == ("raised", "ValueError: a wrong mask")
    assert understand("", trial()).reason == "it ended without saying how"


def test_half_the_images_a_pass():
    once = halved(trial())
    assert once.train.accumulate == 2  # 4 images a worker, in passes of 2
    assert halved(once).train.accumulate == 4
    assert halved(halved(once)) is None  # a pass of one image
    assert once.train.batch_size == 8


def test_error_txt_keeps_every_failure_and_the_last_lines_of_each(tmp_path):
    put_down(tmp_path / "000", "first", "\n".join(map(str, range(100))))
    put_down(tmp_path / "000", "second", "short")
    lines = (tmp_path / "000/error.txt").read_text().splitlines()
    assert lines[0] == "first"
    assert lines[2] == str(100 - LINES)
    assert lines[-3:-1] == ["", "short"]


def test_a_cache_that_finds_no_room_is_told_with_its_folder():
    said = "cannot fetch s3://lab/a.png: the disk of /cache is full (No space left on device)"
    fault = understand("".join(traceback.format_exception(DiskFull(said))), trial())
    assert (fault.kind, fault.reason) == ("cache_full", said)


@pytest.mark.parametrize("kind", [RemoteError, RemoteRefused])
def test_a_store_that_is_lost_is_no_fault_of_the_trial(kind):
    said = "cannot write s3://lab/runs/a/trials/000/metrics.jsonl: timeout"
    fault = understand("".join(traceback.format_exception(kind(said))), trial())
    assert fault.kind == "store_lost"
    assert fault.reason == said
