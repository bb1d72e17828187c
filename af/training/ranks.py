"""The rank of this process, and its launcher: torchrun, srun or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from af.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

#: torchrun's environment variables for a rank.
TORCHRUN: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Prefixes of its other variables.
TORCHRUN_MORE: Final = ("LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "TORCHELASTIC_")
#: Tested strategies; averages, checkpoints and the order of data rely on whole copies of the model.
STRATEGIES: Final = ("auto", "ddp", "ddp_find_unused_parameters_true")


@dataclass(frozen=True)
class Ranks:
    """This process in a training: its rank, the number of ranks, and their launcher (None: one process)."""

    rank: int = 0
    world: int = 1
    launcher: Literal["torchrun", "srun"] | None = None

    def environment(self) -> ClusterEnvironment:
        """The environment for Lightning, which must not start processes or requeue jobs itself."""
        from lightning.fabric.plugins.environments import (
            LightningEnvironment,
            SLURMEnvironment,
            TorchElasticEnvironment,
        )

        if self.launcher == "torchrun":
            return TorchElasticEnvironment()
        # otherwise Lightning would requeue the job in addition to the launcher
        return SLURMEnvironment(auto_requeue=False) if self.launcher == "srun" else LightningEnvironment()


def find_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Find the rank in `os.environ`. Raises UserError for leftovers of another process's launcher.

    A batch script or a step with one task (`SLURM_PROCID` is 0) is no rank, since it may start ranks itself.
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
    """An environment without torchrun's variables."""
    return {k: v for k, v in environment.items() if k not in TORCHRUN and not k.startswith(TORCHRUN_MORE)}


def ranks_per_node(trainer: Mapping[str, Any]) -> int:
    """Number of processes per machine in `trainer.devices`. Raises UserError for invalid values."""
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
    """Raise UserError for combinations known to hang or to start too many processes."""
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
            f"trainer.num_nodes={nodes} is {devices * nodes}; make them agree"
        )
