"""Which of the training's processes this is, and who started it: torchrun, srun or nobody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from af.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

#: What torchrun tells a rank.
TORCHRUN: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How the rest of what it tells begins.
TORCHRUN_MORE: Final = ("LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "TORCHELASTIC_")
#: Strategies that have been tried; the averages, the checkpoints and the order of the data rely on whole copies.
STRATEGIES: Final = ("auto", "ddp", "ddp_find_unused_parameters_true")


@dataclass(frozen=True)
class Ranks:
    """This process among all of a training: its number, their number, and who started them (None: one process)."""

    rank: int = 0
    world: int = 1
    launcher: Literal["torchrun", "srun"] | None = None

    def environment(self) -> ClusterEnvironment:
        """What Lightning is told, so that it starts nothing itself and leaves requeueing to the one who owns it."""
        from lightning.fabric.plugins.environments import (
            LightningEnvironment,
            SLURMEnvironment,
            TorchElasticEnvironment,
        )

        if self.launcher == "torchrun":
            return TorchElasticEnvironment()
        # Lightning would requeue the job itself, beside the launcher of sweeps or the cluster
        return SLURMEnvironment(auto_requeue=False) if self.launcher == "srun" else LightningEnvironment()


def find_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Read `os.environ`. UserError for what a launcher of another process has left behind.

    A batch script or a step of one task (`SLURM_PROCID` is 0 there) is no rank: it may start ranks itself.
    """
    found = os.environ if environment is None else environment
    if "LOCAL_RANK" in found:
        if missing := [name for name in TORCHRUN if name not in found]:
            raise UserError(
                f"LOCAL_RANK is set in the environment, but not {', '.join(missing)}: torchrun sets them all, so these "
                "are left over from another process. Unset LOCAL_RANK, or start ranks with torchrun or srun"
            )
        return Ranks(int(found["RANK"]), int(found["WORLD_SIZE"]), "torchrun")
    if int(found.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Ranks(int(found["SLURM_PROCID"]), int(found["SLURM_STEP_NUM_TASKS"]), "srun")
    return Ranks()


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes that are no ranks of torchrun's."""
    return {k: v for k, v in environment.items() if k not in TORCHRUN and not k.startswith(TORCHRUN_MORE)}


def ranks_per_node(trainer: Mapping[str, Any]) -> int:
    """How many processes `trainer.devices` asks for on a machine. UserError for what is no number of devices."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        import torch

        wanted = trainer.get("accelerator") in ("gpu", "cuda", "auto")
        return max(1, torch.cuda.device_count()) if wanted else 1
    if isinstance(devices, bool) or not str(devices).isdigit() or int(devices) < 1:
        raise UserError(f"trainer.devices={devices!r}: give a number of devices, a list of them, or auto")
    return int(devices)


def check_ranks(trainer: Mapping[str, Any], ranks: Ranks) -> None:
    """Refuse what is known to hang or to start too much. UserError that says what to do."""
    strategy = trainer.get("strategy", "auto")
    if strategy not in STRATEGIES:
        if isinstance(strategy, str) and any(word in strategy for word in ("spawn", "fork", "notebook")):
            raise UserError(
                f"trainer.strategy={strategy}: ranks are started by torchrun here, those that start themselves start "
                "the whole command again; use trainer=ddp"
            )
        raise UserError(f"trainer.strategy={strategy}: allowed: {', '.join(STRATEGIES)}")
    devices, nodes = ranks_per_node(trainer), int(trainer.get("num_nodes", 1))
    if ranks.launcher is None and nodes > 1:
        raise UserError(
            f"trainer.num_nodes={nodes}: start the ranks on every machine, with torchrun --nnodes={nodes} "
            f"--nproc-per-node={devices} … -m af.cli.main train … or srun --nodes={nodes} --ntasks-per-node={devices} …"
        )
    if ranks.launcher is not None and ranks.world != devices * nodes:
        raise UserError(
            f"{ranks.launcher} has started {ranks.world} ranks, but trainer.devices={devices} (a machine) times "
            f"trainer.num_nodes={nodes} is {devices * nodes}; make both say the same"
        )
