from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import af
from af.errors import UserError
from af.nn.precision import choose, full_precision
from af.training.precision import trainer_precision


def processor(monkeypatch, *, amx: bool = False, bf16: bool = False, onednn: bool = True) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr("af.nn.precision.packs_bf16", lambda: onednn)
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("has", ["amx", "bf16"])
def test_auto_takes_bf16_where_the_processor_multiplies_in_it(monkeypatch, has: str) -> None:
    processor(monkeypatch)
    assert choose("auto").name == "fp32"
    assert "neither AVX512-BF16 nor AMX" in choose("auto").reason
    processor(monkeypatch, **{has: True})
    assert choose("auto").name == "bf16"
    assert trainer_precision("auto", "cpu")[0] == "bf16-mixed"
    processor(monkeypatch, **{has: True}, onednn=False)
    assert choose("auto").name == "fp32"
    assert trainer_precision("auto", "cpu")[0] == "32-true"


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(("limit", "name"), [("AVX2", "fp32"), ("avx512_core", "fp32"), ("ALL", "bf16")])
def test_auto_heeds_what_is_switched_off(monkeypatch, variable: str, limit: str, name: str) -> None:
    processor(monkeypatch, bf16=True)
    monkeypatch.setenv(variable, limit)
    assert choose("auto").name == name


def test_the_real_processor_without_its_wide_instructions_takes_fp32() -> None:
    code = "from af.nn.precision import choose; print(choose('auto').name)"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(Path(af.__file__).parents[1])}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == "fp32"


def test_what_is_asked_for_is_taken_and_called_slow_where_it_is(monkeypatch) -> None:
    processor(monkeypatch)
    assert choose("bf16").name == "bf16"
    assert "slow" in choose("bf16").reason
    assert "slow" in trainer_precision("bf16-mixed", "cpu")[1]
    assert "slow" not in choose("fp32").reason
    processor(monkeypatch, bf16=True)
    assert "slow" not in choose("bf16").reason
    assert trainer_precision("bf16-mixed", "cpu") == ("bf16-mixed", "")


@pytest.mark.parametrize("wanted", ["fp8", "", "transformer-engine", "bf16-true", None, -1])
def test_other_precisions_are_refused_by_name(wanted) -> None:
    with pytest.raises(UserError, match=r"trainer.precision: .* allowed: auto"):
        trainer_precision(wanted, "cpu")
    with pytest.raises(UserError, match=r"precision: .* allowed: auto"):
        choose(wanted)


def test_full_precision_is_left_as_it_was_found(monkeypatch) -> None:
    a = torch.linspace(1, 2, 64)[None]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", torch.bfloat16):
            assert (a @ a.T).dtype == torch.bfloat16
            with full_precision(a.device):
                assert (a @ a.T).dtype == torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "high"
            assert (a @ a.T).dtype == torch.bfloat16
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["tpu", "gpux"])
def test_an_accelerator_that_torch_does_not_know_is_left_to_lightning(name):
    assert trainer_precision("auto", name) == ("32-true", "")
    assert trainer_precision("bf16-mixed", name) == ("bf16-mixed", "")
