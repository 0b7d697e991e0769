"""One part of the benchmark for GPUs: its time, its device, and the file that it writes to."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Part:
    """What a part may use, and what it has found; the file has each row at once."""

    name: str
    device: str  # "cpu" or "cuda:0"
    size: str  # "full" or "tiny"
    seconds: float  # after `begun`, the process of the part is killed
    begun: float  # by time.time()
    path: Path
    found: dict[str, Any] = field(
        default_factory=lambda: {"status": "started", "rows": [], "left_out": []}
    )

    @property
    def is_tiny(self) -> bool:
        """Whether all is to be tried and nothing measured."""
        return self.size == "tiny"

    @property
    def on_cuda(self) -> bool:
        """Whether the device is CUDA's."""
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds until something new should no longer be begun."""
        return self.begun + 0.85 * self.seconds - time.time()

    def has_time_for(self, what: str) -> bool:
        """Return whether time is left; otherwise, `what` is recorded as left out."""
        if self.left > 0:
            return True
        self.found["left_out"].append(what)
        self.save()
        return False

    def add(self, **row: Any) -> None:
        """Add a row."""
        self.found["rows"].append(row)
        self.save()

    def note(self, **facts: Any) -> None:
        """Record facts about the whole part."""
        self.found |= facts
        self.save()

    def save(self) -> None:
        """Write what has been found, in one go."""
        self.found["seconds"] = round(time.time() - self.begun, 1)
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.found, indent=1))
        os.replace(draft, self.path)


class Skipped(Exception):  # noqa: N818, it is no error
    """What a part cannot do here."""


def run_part(function: Callable[[Part], None], part: Part) -> None:
    """Run a part in its own process, and record how it ended."""
    part.save()
    try:
        function(part)
    except Skipped as reason:
        status = f"skipped: {reason}"
    except BaseException as error:
        part.found["traceback"] = traceback.format_exc()
        status = f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}"
    else:
        wrong = [row for row in part.found["rows"] if row.get("ok") is False]
        status = f"failed: {len(wrong)} of {len(part.found['rows'])} rows" if wrong else "done"
    part.note(status=status)


def peak_megabytes(device: str, run: Callable[[], Any]) -> float | None:
    """Run, and return the memory of the device that was needed beyond what is held.

    None on a CPU.
    """
    if not device.startswith("cuda"):
        run()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
