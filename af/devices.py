"""Devices: choosing one by name, the widest type to compute in there, synchronising for timings, and the whole machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from af.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "mps" …; "auto" prefers an accelerator to the CPU.

    "auto" never chooses Apple's GPUs (mps), which lack operations that some networks need. Raises UserError, listing
    the available devices, for any other name.
    """
    if name == "auto":
        found = [kind for kind in _accelerators() if kind != "mps"]
        return torch.device(found[0] if found else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown kind of device; {_allowed()}") from None
    if device.type != "cpu" and (device.index or 0) >= _accelerators().get(device.type, 0):
        raise UserError(f"--device {name}: this machine has no such device; {_allowed()}")
    return device


def widest_float(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.dtype:
    """The type for angles and times of networks in `dtype`: float64 on the CPU. On a GPU it is float32 unless `dtype` is
    wider: most take 32 or 64 times as long in float64, Apple's have none.
    """
    return torch.float64 if device.type in ("cpu", "meta") or dtype == torch.float64 else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, for correct timings."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device.type).synchronize(device)


def machine() -> dict[str, Any]:
    """Processor, cores, GPUs and torch's version, on which rounding and so a training depend."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
    }


def _accelerators() -> dict[str, int]:
    """Available kinds of accelerators, and how many of each."""
    current = torch.accelerator.current_accelerator()
    kinds = dict.fromkeys(["cuda", "mps", *([] if current is None else [current.type])])
    modules = {kind: torch.get_device_module(kind) for kind in kinds}
    return {kind: module.device_count() for kind, module in modules.items() if module.is_available()}


def _allowed() -> str:
    there = [f"{kind}:{i}" for kind, count in _accelerators().items() for i in range(count)]
    return f"allowed: {', '.join(['auto', 'cpu', *there])}"
