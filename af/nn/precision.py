"""The precision networks compute in: what `auto` means on a device, and regions that stay in fp32."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from af.errors import require_choice

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Values of `ONEDNN_MAX_CPU_ISA` without bf16 products.
_WITHOUT_BF16: Final = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class Precision:
    """A decision: `fp32` or `bf16`, and why."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return PRECISIONS[self.name]

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose(wanted: str, device: torch.device | str = "cpu") -> Precision:
    """The precision called `wanted`; `auto` is bf16 where `device` multiplies in bf16, otherwise fp32.

    An emulated bf16 product takes ten to a hundred times as long as one in fp32. Raises UserError for other names.
    """
    require_choice("precision", "precision", wanted, ("auto", *PRECISIONS))
    fast, why = _fast_bf16(torch.device(device))
    if wanted == "auto":
        return Precision("bf16" if fast else "fp32", f"auto: {why}")
    slow = "" if fast or wanted == "fp32" else f", but slow: {why}; auto takes fp32"
    return Precision(wanted, f"as asked{slow}")


def packs_bf16() -> bool:
    """Whether oneDNN can pack bf16 weights on this processor (needs AVX-512, not switched off)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _fast_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 is the faster precision on the device, and the reason."""
    if device.type == "cuda":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, f"this GPU {'multiplies' if fast else 'does not multiply'} in bf16"
    if device.type != "cpu":
        return False, f"bf16 is not known to be fast on {device.type}"
    has = {
        "AMX": getattr(torch.cpu, "_is_amx_tile_supported", bool)(),
        "AVX512-BF16": getattr(torch.cpu, "_is_avx512_bf16_supported", bool)(),
    }
    name = next((name for name, there in has.items() if there), None)
    if name is None:
        return False, "this processor has neither AVX512-BF16 nor AMX"
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if os.environ.get(variable, "").upper() in _WITHOUT_BF16:
            return False, f"{variable}={os.environ[variable]} switches {name} off"
    if not packs_bf16():
        return False, f"this build of torch does not use {name}"
    return True, f"this processor has {name}"


def single(x: torch.Tensor) -> torch.Tensor:
    """`x` in fp32 if it is in half precision, otherwise unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context without autocast to half precision; does nothing on devices without autocast (meta), nor in exported
    graphs.
    """
    if torch.compiler.is_exporting() or not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context with products in the precision of their operands: no autocast to half precision, no TF32.

    For values that half precision would spoil: motion coordinates, differences of nearly equal errors.
    """
    before = torch.get_float32_matmul_precision()
    with without_autocast(device):
        if before == "highest":  # already off: leave the global flag alone, other threads read it too
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
