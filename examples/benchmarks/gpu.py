"""Check and measure the library on a GPU, in one command of nine minutes, without a network.

The parts run one after another, the most important ones first, each in a process of its own that
is killed when its time is over: a part that crashes or hangs takes nothing from the others. What is
found is in files at once: one of JSON per part, ``gpu.json`` with all of them, and ``gpu.md`` with
the tables::

    pip install -c constraints.txt -e ".[test,bench]"
    python examples/benchmarks/gpu.py

``--device cpu --size tiny`` tries all of it in less than a minute, to see that it works; its times
mean nothing. The script exits with 1 if a part failed or was stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import machine, table
from gpu_checks import check_equality, exceed_memory, run_tests
from gpu_part import Part, run_part
from gpu_speed import measure_compiled, measure_fit, measure_transform
from transformers.utils import logging

# In the order of importance, with shares of the time. Time that a part leaves goes to those after.
PARTS: dict[str, tuple[Callable[[Part], None], float]] = {
    "tests": (run_tests, 0.12),
    "equality": (check_equality, 0.18),
    "memory": (exceed_memory, 0.08),
    "transform": (measure_transform, 0.42),
    "fit": (measure_fit, 0.1),
    "compiled": (measure_compiled, 0.1),
}
_SHORTEST = 5.0  # seconds; it takes as long to import torch
_ENDED = ("done", "skipped")


def work(name: str, device: str, size: str, seconds: float, begun: float, path: Path) -> None:
    """Run a part, in its process."""
    # Few steps and repeated loading are on purpose.
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if device != "cpu":
        torch.cuda.set_device(device)  # what is asked of torch about memory is of this one
    run_part(PARTS[name][0], Part(name, device, size, seconds, begun, path))


def start(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a part in a process, which is killed when its time is over, and return what it found."""
    path = args.out / f"{name}.json"
    path.unlink(missing_ok=True)
    values = (name, args.device, args.size, seconds, time.time(), path)
    process: Any
    if args.device == "cpu" and args.size == "tiny" and hasattr(os, "fork"):
        # What was imported need not be imported again. CUDA does not survive this.
        process = multiprocessing.get_context("fork").Process(target=work, args=values)
        process.start()
        process.join(seconds)
        killed = process.exitcode is None
        if killed:
            process.kill()
            process.join()
        code = process.exitcode
    else:
        # No worker of multiprocessing, in which the library would warn of a backbone of its own.
        process = subprocess.Popen([sys.executable, __file__, "--work", *map(str, values)])
        try:
            code, killed = process.wait(seconds), False
        except subprocess.TimeoutExpired:
            process.kill()
            code, killed = process.wait(), True
    found = json.loads(path.read_text()) if path.exists() else {"rows": [], "left_out": []}
    if killed:
        found["status"] = f"stopped after {seconds:.0f} seconds"
    elif found.get("status") in (None, "started"):
        found["status"] = f"failed: the process ended with {code}"
    return found


def write(out: Path, found: dict[str, Any]) -> None:
    """Write what all parts have found, as JSON and as tables."""
    (out / "gpu.json").write_text(json.dumps(found, indent=1))
    lines = [f"**Machine:** {found['machine']}; device {found['device']}, size {found['size']}."]
    for name, part in found["parts"].items():
        lines += [f"\n## {name}: {part['status']}\n"]
        facts = {k: v for k, v in part.items() if k not in ("status", "rows", "left_out", "output")}
        lines += [f"{', '.join(f'{k} {show(v)}' for k, v in facts.items() if k != 'traceback')}\n"]
        if part["left_out"]:
            lines += [f"Left out for lack of time: {'; '.join(part['left_out'])}.\n"]
        if part["rows"]:
            header = list(dict.fromkeys(key for row in part["rows"] for key in row))
            lines += [
                table(
                    [key.replace("_", " ") for key in header],
                    [[show(row.get(k)) for k in header] for row in part["rows"]],
                )
            ]
    (out / "gpu.md").write_text("\n".join(lines) + "\n")


def show(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else (
        f"{value:.0f}" if isinstance(value, float) else str(value)
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run all parts, and return 1 if one of them failed or was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default: cuda)")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)  # one part, in its process
    args = parser.parse_args(arguments)
    if args.work:
        name, device, size, seconds, begun, path = args.work
        work(name, device, size, float(seconds), float(begun), Path(path))
        return 0
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device is {args.device}, but torch finds no CUDA device")
    # Processes without an index would be spread over the devices.
    args.device = "cuda:0" if args.device == "cuda" else args.device
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    if args.device == "cpu" and args.size == "tiny":
        for peer in ("sentence_transformers", "peft"):  # once, for all processes
            if importlib.util.find_spec(peer) is not None:
                importlib.import_module(peer)
    found: dict[str, Any] = {"device": args.device, "size": args.size, "parts": {}}
    found["machine"] = machine()
    names = [name for name in PARTS if name in args.parts]
    for k, name in enumerate(names):
        shares = [PARTS[other][1] for other in names[k:]]
        limit = (end - time.monotonic()) * shares[0] / sum(shares)
        if limit < _SHORTEST:
            result: dict[str, Any] = {"status": "skipped: no time left", "rows": [], "left_out": []}
        else:
            print(f"{name}: at most {limit:.0f} seconds", flush=True)
            result = start(name, args, limit)
        print(f"{name}: {result['status']}", flush=True)
        found["parts"][name] = result
        write(args.out, found)
    print((args.out / "gpu.md").read_text())
    return int(any(not p["status"].startswith(_ENDED) for p in found["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
