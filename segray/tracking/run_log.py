"""What W&B's own log of a run says: how much of the run it would bring to a server.

The log is one of LevelDB's (doc/log_format.md there) after a header of W&B's: blocks of 32 KiB, in
them parts of records, each after 7 bytes of checksum, length and kind.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the client is slow to import, and absent is a case to survive
    from wandb.proto.wandb_internal_pb2 import Record

HEADER_BYTES = 7  # of W&B's log: with no more than that, nothing was ever logged
_BLOCK = 32 * 1024
_WHOLE, _FIRST, _LAST = 1, 2, 4  # kinds of a part; 3 is one in the middle


@dataclass(frozen=True)
class Told:
    """How much of a run somebody knows."""

    epochs: int = 0
    state: str | None = None  # how the run ended; None: of its end nothing is known

    def covers(self, other: Told) -> bool:
        """Whether `other` says nothing beyond this."""
        return self.epochs >= other.epochs and other.state in (None, self.state)


def read_log(path: Path) -> Told:
    """What the log at `path` tells; as far as it can be read, if it is cut off."""
    epochs, state, ended = 0, None, False
    for record in _records(path.read_bytes()):
        epochs = max(epochs, record.history.step.num)
        for item in record.summary.update:
            if item.key == "state":
                state = json.loads(item.value_json)
        ended = ended or record.HasField("exit")
    return Told(epochs, state if ended else None)


def read_place(path: Path) -> tuple[str | None, str] | None:
    """The entity, if one is named, and the project of the run whose log is at `path`."""
    for record in _records(path.read_bytes()):
        if record.HasField("run"):
            return record.run.entity or None, record.run.project
    return None


def read_summary(summary: Mapping[str, Any]) -> Told:
    """What a server knows of the run whose summary it has."""
    return Told(int(summary.get("_step", 0)), summary.get("state"))


def _records(log: bytes) -> Iterator[Record]:
    """The whole records of a log, up to the first that is broken."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    at, record = HEADER_BYTES, b""
    while True:
        if _BLOCK - at % _BLOCK < 7:  # too little for a part: the rest of a block is left empty
            at += _BLOCK - at % _BLOCK
        if at + 7 > len(log):
            return
        size, kind = struct.unpack_from("<HB", log, at + 4)
        part = log[at + 7 : at + 7 + size]
        at += 7 + size
        if len(part) < size or not kind:
            return
        record = part if kind in (_WHOLE, _FIRST) else record + part
        if kind in (_WHOLE, _LAST):
            try:
                yield Record.FromString(record)
            except DecodeError:
                return
