"""Who is a rank, what is refused, and random numbers that do not know ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from af.cli.main import main
from af.errors import UserError
from af.training.randomness import training_draws, validation_draws
from af.training.ranks import Ranks, check_ranks, find_ranks, ranks_per_node
from tests.training.test_resume import DENOISER, SHORT, same

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks(3, 4, "torchrun")),
        (SRUN, Ranks(2, 4, "srun")),
        ({**SRUN, **TORCHRUN}, Ranks(3, 4, "torchrun")),  # torchrun inside a job
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Ranks()),  # a batch script: no step
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Ranks()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Ranks()),  # a pod's, meant for the torchrun in it
    ],
)
def test_ranks_are_told_by_their_launcher(environment, expected):
    assert find_ranks(environment) == expected


def test_a_leftover_of_another_launcher_is_refused():
    with pytest.raises(UserError, match=r"left over.*Unset LOCAL_RANK"):
        find_ranks({"LOCAL_RANK": "0", "MASTER_PORT": "29500"})


def test_nobody_but_the_owner_requeues():
    assert not Ranks(0, 2, "srun").environment().auto_requeue
    assert type(Ranks().environment()).__name__ == "LightningEnvironment"


@pytest.mark.parametrize(
    ("trainer", "ranks", "message"),
    [
        ({"devices": 2, "strategy": "ddp_notebook"}, Ranks(), "use trainer=ddp"),
        ({"devices": 2, "strategy": "ddp_spawn_find_unused_parameters_true"}, Ranks(), "use trainer=ddp"),
        ({"devices": 2, "strategy": "fsdp"}, Ranks(), "allowed: auto, ddp"),
        ({"devices": 8, "num_nodes": 2}, Ranks(), "--nnodes=2 --nproc-per-node=8"),
        ({"devices": 2}, Ranks(0, 4, "torchrun"), "torchrun has started 4 ranks"),
        ({"devices": 1}, Ranks(1, 2, "srun"), "srun has started 2 ranks"),
        ({"devices": "many"}, Ranks(), "trainer.devices='many'"),
        ({"devices": 0}, Ranks(), "trainer.devices=0"),
    ],
)
def test_what_is_known_to_break_is_refused_and_says_what_to_do(trainer, ranks, message):
    with pytest.raises(UserError) as error:
        check_ranks({"accelerator": "cpu", **trainer}, ranks)
    assert message in str(error.value)


def test_ranks_of_a_machine():
    assert [ranks_per_node({"devices": d, "accelerator": "cpu"}) for d in (1, "4", [2, 3], "auto")] == [1, 4, 2, 1]


@pytest.mark.parametrize("override", ["seed=0,1", "optimizer.lr=choice(1e-3,1e-4)", "seed=range(0,3)"])
def test_several_values_are_for_sweeps(override, latents, tmp_path, capsys):
    assert main(["train", *DENOISER, f"data.root={latents}", f"run={tmp_path}", override]) == 1
    assert "af train -m" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- random numbers


@dataclass
class Two:
    a: torch.Tensor
    b: torch.Tensor


def rank_of(rank: int, world: int, share: int | None = None):
    data = None if share is None else SimpleNamespace(rank_batch_size=share)
    trainer = SimpleNamespace(world_size=world, datamodule=data)
    return SimpleNamespace(trainer=trainer, global_rank=rank, device=torch.device("cpu"))


def numbers(draws) -> torch.Tensor:
    normal = draws.normal(torch.Size((draws.rows, 3)), like=torch.zeros(1))
    options = {"generator": draws.generator}
    both = draws.of_rows(lambda rows: Two(torch.rand(rows, 2, **options), torch.rand(rows, 1, **options)))
    return torch.cat((normal, both.a, both.b), 1)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (3, 4)])
def test_a_sample_meets_the_same_numbers_on_any_number_of_ranks_and_batches_a_step(world, accumulate):
    rows = 12 // (world * accumulate)
    for step in (0, 5):
        whole = numbers(training_draws(rank_of(0, 1), 7, step, 12, 1))
        parts = [
            numbers(training_draws(rank_of(rank, world), 7, step * accumulate + part, rows, accumulate))
            for part in range(accumulate)
            for rank in range(world)
        ]
        assert torch.cat(parts).equal(whole)


def test_a_last_batch_of_a_validation_meets_them_too():
    """Five samples on ranks of two: the last rank holds one."""
    whole = numbers(validation_draws(rank_of(0, 1, share=6), 7, 2, 5))
    parts = [numbers(validation_draws(rank_of(r, 3, share=2), 7, 2, n)) for r, n in enumerate((2, 2, 1))]
    assert torch.cat(parts).equal(whole)


# ------------------------------------------------------------------------------------------------ other launchers


def started(command, environments) -> None:
    processes = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **e}) for e in environments]
    try:
        assert [p.wait(300) for p in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_two_machines_and_srun_end_with_the_same_weights(latents, tmp_path):
    """Two torchrun agents that meet on 127.0.0.1, and two processes with srun's environment."""
    words = ["train", *DENOISER, *SHORT, f"data.root={latents}", "trainer=ddp", "trainer.accelerator=cpu"]
    words += ["trainer.max_steps=3", "callbacks.previews.clips=0"]
    port = free_port()
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    nodes = ["trainer.devices=1", "trainer.num_nodes=2", f"run={tmp_path / 'torchrun'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meet, "--rdzv-id=af", "--local-addr=127.0.0.1"]
    started([*torchrun, "-m", "af.cli.main", *words, *nodes], [{}, {}])
    ranks = [
        {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
         "SLURM_NODEID": "0", "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r), "SLURM_JOB_ID": "7",
         "SLURM_JOB_NAME": "af", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        for r in range(2)
    ]  # fmt: skip
    ranks[1]["MASTER_PORT"] = ranks[0]["MASTER_PORT"]
    srun = ["trainer.devices=2", f"run={tmp_path / 'srun'}"]
    started([sys.executable, "-m", "af.cli.main", *words, *srun], ranks)
    for run in ("torchrun", "srun"):
        assert json.loads((tmp_path / run / "done.json").read_text())["steps"] == 3
        assert "train" in json.loads((tmp_path / run / "environment.json").read_text())["command"]
    assert same(tmp_path / "torchrun", tmp_path / "srun")
