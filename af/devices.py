"""Where networks run: the device that an option names, what it can compute in, and waiting for it when time is taken."""

from __future__ import annotations

import torch

from af.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "mps" …; "auto" is the accelerator if there is one, else the CPU.

    Apple's GPUs (mps) lack operations that some networks need: they are used when they are named, never by "auto".
    Raises UserError, naming the devices that are there, for one that is not.
    """
    if name == "auto":
        found = [kind for kind in _accelerators() if kind != "mps"]
        return torch.device(found[0] if found else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such kind of device; {_allowed()}") from None
    if device.type != "cpu" and (device.index or 0) >= _accelerators().get(device.type, 0):
        raise UserError(f"--device {name}: there is no such device on this machine; {_allowed()}")
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type that a device is sure to have; Apple's GPUs refuse float64."""
    return torch.float64 if device.type in ("cpu", "cuda", "meta") else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given: only then does a clock tell how long it took."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device.type).synchronize(device)


def _accelerators() -> dict[str, int]:
    """Kinds of accelerators that are there, and how many of each."""
    current = torch.accelerator.current_accelerator()
    kinds = dict.fromkeys(["cuda", "mps", *([] if current is None else [current.type])])
    modules = {kind: torch.get_device_module(kind) for kind in kinds}
    return {kind: module.device_count() for kind, module in modules.items() if module.is_available()}


def _allowed() -> str:
    there = [f"{kind}:{i}" for kind, count in _accelerators().items() for i in range(count)]
    return f"allowed: {', '.join(['auto', 'cpu', *there])}"
