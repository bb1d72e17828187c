"""A second device without hardware: torch's private-use backend, computed by the CPU, strict where a GPU is slow or fails.

Tensors of the device wrap tensors of the CPU. What a GPU refuses raises `WrongDevice`: a CPU tensor beside one of the
device (but for single numbers, which kernels take as arguments), and float64, which Apple's GPUs do not have. What makes
the host wait for a GPU is counted in `syncs`, with the line of the package that did it: numbers read, tensors brought to
the host, copies to the device from ordinary memory, results whose size depends on values, an event before anything
else was launched after it.

The backend is there for the whole process once `install` was called; it is only *available* while `present` is true.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"
PACKAGE = Path(__file__).parents[1] / "af"
aten = torch.ops.aten
#: Results whose size, or whose being there at all, the host has to know.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "_is_all_true", "_is_any_true", "bincount",
}  # fmt: skip


class WrongDevice(RuntimeError):
    """What a real device would refuse."""


class State:
    """What is known about the device in this process."""

    present = False
    float64 = False
    syncs: list[str] = []  # noqa: RUF012
    copies: list[str] = []  # noqa: RUF012  # to the device that do not wait
    launched = 0  # operations


class _Backend:
    """`torch.fake`: what torch and Lightning ask a device module."""

    @staticmethod
    def is_available() -> bool:
        return State.present

    @staticmethod
    def device_count() -> int:
        return 2 if State.present else 0

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def set_device(device: Any) -> None:
        pass

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def synchronize(device: Any = None) -> None:
        State.syncs.append("synchronize")

    class Event:
        """A place in the order of work: what came before it is done as soon as something was launched after it."""

        def record(self) -> None:
            """Here."""
            self.launched = State.launched

        def synchronize(self) -> None:
            """Wait, if need be, for what came before."""
            if State.launched == self.launched:
                waited("event")

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        pass


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return State.present

    def has_primary_context(self, device_index: int) -> bool:
        return State.present

    def is_built(self) -> bool:
        return True


class FakeTensor(torch.Tensor):
    """A tensor of the device; `raw` holds its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> FakeTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, raw.stride(), raw.storage_offset(), dtype=raw.dtype, device=f"{NAME}:0"
        )
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"FakeTensor({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.detach().__reduce_ex__(protocol)  # what is saved can be read without the device

    def tolist(self) -> Any:  # type: ignore[override]
        waited("tolist")
        return self.raw.tolist()

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise WrongDevice(f"can't convert a tensor of {NAME} to numpy; use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, *args, **(kwargs or {}))


def compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation on the device."""
    State.launched += 1
    name = func.overloadpacket.__name__
    asked = kwargs.get("device")
    here = None if asked is None else torch.device(asked).type == NAME
    if name in ("_to_copy", "copy_"):
        return _copied(func, args, kwargs, here)
    given = [x for x in _flat((args, kwargs)) if isinstance(x, torch.Tensor)]
    indexes = name in ("index", "index_put", "index_put_", "_index_put_impl_")
    if any(isinstance(x, FakeTensor) for x in given):
        for x in given:
            if not isinstance(x, FakeTensor) and (x.ndim or indexes):
                raise WrongDevice(f"{func}: a tensor of the CPU {tuple(x.shape)} beside tensors of {NAME}")
    masks = indexes and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    sizes_rows = name == "repeat_interleave" and isinstance(args[0], FakeTensor) and kwargs.get("output_size") is None
    if name in WAITS or masks or sizes_rows:
        waited(str(func))
    if here is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    raw = tree_map(lambda x: x.raw if isinstance(x, FakeTensor) else x, (args, kwargs))
    out = func(*raw[0], **raw[1])
    if name.endswith("_") and isinstance(args[0], FakeTensor) and out is raw[0][0]:
        _restride(args[0])
        return args[0]
    known = {id(x.raw): x for x in given if isinstance(x, FakeTensor)}  # what comes back as it was given (out=)

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else FakeTensor(_checked(x, func))

    return tree_map(wrapped, out)


def _copied(func: Any, args: tuple, kwargs: dict[str, Any], here: bool | None) -> Any:
    if func.overloadpacket.__name__ == "copy_":
        target, source, *more = args
        async_ = bool(more and more[0]) or kwargs.get("non_blocking", False)
        if isinstance(target, FakeTensor) != isinstance(source, FakeTensor):
            _moved(isinstance(target, FakeTensor), async_)
        a, b = (x.raw if isinstance(x, FakeTensor) else x for x in (target, source))
        a.copy_(b)
        return target
    source = args[0]
    to_device = isinstance(source, FakeTensor) if here is None else here
    options = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
    if to_device != isinstance(source, FakeTensor):
        _moved(to_device, kwargs.get("non_blocking", False))
    out = func(source.raw if isinstance(source, FakeTensor) else source, **options)
    return FakeTensor(_checked(out, func)) if to_device else out


def _moved(to_device: bool, async_: bool) -> None:
    if not async_:
        waited(f"copy {'to' if to_device else 'from'} the device")
    elif to_device:
        State.copies.append(_where())


def _checked(raw: torch.Tensor, func: Any) -> torch.Tensor:
    if not State.float64 and raw.dtype in (torch.float64, torch.complex128):
        raise WrongDevice(f"{func}: {raw.dtype} on the device; Apple's GPUs have none")
    return raw


def _restride(x: FakeTensor) -> None:
    if x.shape != x.raw.shape or x.stride() != x.raw.stride():
        raise NotImplementedError("an operation in place that changes a tensor's shape")


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        values = values.values()
    for value in values:
        if isinstance(value, list | tuple | dict):
            yield from _flat(value)
        else:
            yield value


def waited(what: str) -> None:
    """The host had to wait for the device."""
    State.syncs.append(f"{what} at {_where()}")


def _where() -> str:
    lines = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
    return f"{Path(lines[-1].filename).relative_to(PACKAGE)}:{lines[-1].lineno}" if lines else "outside"


def _lower(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What autocast does to a product."""

    def cast(x: Any) -> Any:
        floating = isinstance(x, torch.Tensor) and x.is_floating_point()
        return x.to(torch.get_autocast_dtype(NAME)) if floating else x

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return func(*tree_map(cast, args), **tree_map(cast, kwargs))


_library: torch.library.Library | None = None
_kernels: torch.library.Library | None = None


def install() -> None:
    """Make the device known to torch (once a process)."""
    global _library, _kernels
    if _library is not None:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend, hook=_Hooks())
    _library = torch.library.Library("_", "IMPL")
    _library.fallback(compute, "PrivateUse1")
    _kernels = torch.library.Library("aten", "IMPL")  # what torch.tensor calls with subclasses out of sight
    for op in (aten.copy_.default, aten._to_copy.default):
        _kernels.impl(op, partial(compute, op), "PrivateUse1")
    _library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for op in (aten.linear.default, aten.conv2d.default, aten.matmul.default):
        _kernels.impl(op, partial(_lower, op), "AutocastPrivateUse1")
    real = torch.Generator

    class Generator(real):  # type: ignore[misc,valid-type]
        """Numbers of the CPU's generator, but the device's by name."""

        def __new__(cls, device: Any = "cpu") -> Any:
            kind = torch.device(device).type
            made = real.__new__(cls, "cpu") if kind == NAME else real.__new__(real, device)
            return made

        device = property(lambda self: torch.device(NAME, 0))

    torch.Generator = Generator  # type: ignore[misc]


@contextmanager
def present(*, float64: bool = False) -> Iterator[torch.device]:
    """The device is there; with `float64` it has that too, as GPUs but Apple's do."""
    install()
    State.present, State.float64, State.syncs, State.copies = True, float64, [], []
    inference = torch.autograd.grad_mode.inference_mode
    enter, leave = inference.__enter__, inference.__exit__
    # views of wrapped weights cannot be made in inference mode: without gradients they can
    inference.__enter__ = lambda self: setattr(self, "plain", torch.no_grad()) or self.plain.__enter__()
    inference.__exit__ = lambda self, *error: self.plain.__exit__(*error)
    try:
        yield torch.device(NAME, 0)
    finally:
        State.present = False
        inference.__enter__, inference.__exit__ = enter, leave


def register_accelerator() -> None:
    """`trainer.accelerator=fake` for Lightning."""
    from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
    from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
    from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

    class FakeAccelerator(Accelerator):
        """One device."""

        def setup_device(self, device: torch.device) -> None:
            """Nothing to do."""

        def teardown(self) -> None:
            """Nothing to do."""

        @staticmethod
        def parse_devices(devices: Any) -> Any:
            """As they come."""
            return devices

        @staticmethod
        def get_parallel_devices(devices: Any) -> list[torch.device]:
            """The first."""
            return [torch.device(NAME, 0)]

        @staticmethod
        def auto_device_count() -> int:
            """One."""
            return 1

        @staticmethod
        def is_available() -> bool:
            """While it is there."""
            return State.present

        @staticmethod
        def name() -> str:
            """Of the registry."""
            return NAME

    if NAME not in AcceleratorRegistry.available_accelerators():
        AcceleratorRegistry.register(NAME, FakeAccelerator)
        StrategyRegistry.register(NAME, SingleDeviceStrategy, device=f"{NAME}:0")
        choose = _AcceleratorConnector._choose_strategy
        _AcceleratorConnector._choose_strategy = lambda self: (  # type: ignore[method-assign]
            NAME if self._accelerator_flag == NAME else choose(self)
        )
