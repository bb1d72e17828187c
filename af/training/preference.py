"""Preference stage: direct preference optimisation of the denoiser; winners are true motion (method §5).

L = denoising_weight · L_DF + weight · L_DPO. Winner and loser are motions of the same avatar in the same frames, with
the same noise and flow times. The policy and a frozen copy of the initial model, the reference, predict both with all
conditions present (only L_DF drops conditions, unless `pair_dropout` is set). Windows without a user have no pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from af.errors import UserError, require_choice
from af.forcing.dropout import ConditionDropout, drop
from af.forcing.path import interpolate, target_velocity
from af.forcing.rollout import block_sizes
from af.losses.preference import PairErrors, PreferenceLoss
from af.losses.velocity import FrameError, valid_mean
from af.models.denoiser import MotionDenoiser
from af.nn.precision import full_precision
from af.pipeline.losers import LoserSource
from af.pipeline.rolling import Scene
from af.training.denoiser import DenoiserModule, compile_denoiser, conditioned, draw_drops
from af.training.randomness import Draws, validation_draws
from af.training.reference import FrozenReference
from af.types import DyadBatch
from af.values import require_number


@dataclass(frozen=True)
class Pairs:
    """Errors on winners and losers, mean squared distance of the policy's velocities from the reference's on winners
    (which grows with the Kullback-Leibler divergence of the flows), and the frames that count.
    """

    errors: PairErrors
    distance: Float[Tensor, "B T"]
    counted: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class OnlineLosers:
    """Makes losers during training from the batch's windows, by a source as for `af losers`. Only every
    `every_n_steps`-th step has losers and a preference term. `by`: the reference or the current policy.
    """

    source: LoserSource
    every_n_steps: int = 1
    by: Literal["reference", "policy"] = "reference"

    def __post_init__(self) -> None:
        require_number("online.every_n_steps", self.every_n_steps, least=1, whole=True)
        require_choice("online.by", "model", self.by, ("reference", "policy"))

    @torch.no_grad()
    def __call__(
        self, policy: MotionDenoiser, reference: MotionDenoiser, batch: DyadBatch, draws: Draws, step: int = 0
    ) -> Tensor | None:
        """Motion latents of the batch's avatars; None in steps without losers. Raises UserError for a single window if
        the source needs another window's user.
        """
        if step % self.every_n_steps:
            return None
        denoiser, users = policy if self.by == "policy" else reference, (batch.user_audio, batch.user_motion)
        if self.source.other_users:
            if len(batch.valid) < 2:
                raise UserError(
                    "module.online.source takes another window's user: data.batch_size must be at least 2 per rank"
                )
            other = _others(batch)
            users = (batch.user_audio[other], batch.user_motion[other])
        frames = sum(block_sizes(batch.valid.shape[1], denoiser.layout))
        noise = draws.normal(torch.Size((len(batch.valid), frames, denoiser.dim)), like=batch.avatar_motion)
        with full_precision(noise.device):
            scene = Scene(batch.avatar_audio, *users, batch.reference, has_user=batch.has_user)
            return self.source(denoiser, scene, noise)


def _others(batch: DyadBatch) -> Int[Tensor, " B"]:
    """For every window the nearest one before it (cyclically) that has a user; itself if no other has one."""
    rows = torch.arange(len(batch.valid), device=batch.valid.device)
    before = (rows[:, None] - rows - 1) % len(rows)
    if batch.has_user is not None:
        before = before + len(rows) * ~batch.has_user
    return before.argmin(1)


class PreferenceModule(DenoiserModule):
    """`DenoiserModule` with the preference term. Options of the denoising term are the base class's.

    `error` is the velocity error for the margins (the paper: L1). With `listening_only`, frames in which the avatar
    speaks do not count. `online` makes losers; without it, they are part of the batch.
    """

    def __init__(
        self,
        denoiser: MotionDenoiser,
        reference: FrozenReference[MotionDenoiser],
        *,
        preference: PreferenceLoss,
        error: FrameError,
        weight: float = 0.1,
        denoising_weight: float = 1.0,
        listening_only: bool = False,
        online: OnlineLosers | None = None,
        pair_dropout: ConditionDropout | None = None,
        **denoising: Any,
    ) -> None:
        super().__init__(denoiser, **denoising)
        if denoising.get("start") is not None:
            raise UserError("module.start: policy and reference both start from the model that start=FOLDER names")
        require_number("weight", weight, least=0)
        require_number("denoising_weight", denoising_weight, least=0)
        if weight + denoising_weight == 0:
            raise UserError("weight and denoising_weight are both 0: there is nothing to learn")
        if online is not None and online.every_n_steps > 1 and denoising_weight == 0:
            raise UserError(
                f"denoising_weight: 0 with online.every_n_steps: {online.every_n_steps}; steps without losers would have "
                "nothing to learn from"
            )
        self.reference, self.preference, self.online = reference, preference, online
        self.weight, self.denoising_weight, self.error = weight, denoising_weight, error
        self.listening_only = listening_only
        self.pair_dropout = pair_dropout or ConditionDropout.never()
        self.winner_excess: Tensor | None = None  # of this step; None without a preference term

    def compile_networks(self, **how: Any) -> None:
        """Compile the policy and the reference."""
        super().compile_networks(**how)
        compile_denoiser(self.reference.network, **how)

    def on_fit_start(self) -> None:
        """Move the reference to the policy's device, and check it."""
        self.reference.to(self.device)
        self.reference.check()

    def on_train_end(self) -> None:
        """Check that the reference is unchanged."""
        self.reference.check()

    def training_step(self, batch: DyadBatch, batch_idx: int) -> Tensor:
        """One training step with both terms."""
        step = (
            self.batches_seen // self.trainer.accumulate_grad_batches
        )  # all batches of a step have the term or none has
        draws = self.next_draws(len(batch.valid))
        loss = batch.avatar_motion.new_zeros(())
        if self.denoising_weight:
            loss = self.denoising_weight * self.denoising_loss(batch, draws)
        loser, self.winner_excess = self._loser(batch, step, draws), None
        if loser is None:
            return loss
        pairs = self.pairs(batch, loser, draws, self.training_progress())
        preference, diagnostics = self.judged(pairs)
        self.winner_excess = self._winner_excess(pairs)
        # logged in every step with the term, since written steps may lack it (not in the progress bar, where Lightning
        # would read and wait for it in every step)
        self.log("train/preference/loss", preference)
        for name, value in diagnostics.items():
            self.log(f"train/preference/{name}", value)
        return loss + self.weight * preference

    def validation_step(self, batch: DyadBatch, batch_idx: int) -> None:
        """The base class's losses, and the pairs' numbers if the validation data has losers."""
        super().validation_step(batch, batch_idx)
        if len(batch.valid) == 0:
            return
        draws = validation_draws(self, self.seed + 2, batch_idx, len(batch.valid))
        reference, loser = self.reference.network, batch.loser
        if self.online is not None:
            loser = self.online(reference, reference, batch, draws)
        if loser is None:
            return
        pairs = self.pairs(batch, loser, draws, self.training_progress())
        loss, diagnostics = self.judged(pairs)
        for name, value in {"loss": loss, **diagnostics}.items():
            self.validation.add(f"preference/{name}", value, pairs.counted.sum())

    def pairs(self, batch: DyadBatch, loser: Float[Tensor, "B T D"], draws: Draws, progress: float = 1.0) -> Pairs:
        """Errors of policy and reference on winners and losers, in fp32, with one draw of noise and flow time for all
        four, and drops as at `progress` (0 … 1) of training.
        """
        policy, reference = self.denoiser, self.reference.network
        batch = self.cut(replace(batch, loser=loser), draws)
        assert batch.loser is not None
        winner = policy.motion_space.to_model(batch.avatar_motion)
        clean = torch.cat((winner, policy.motion_space.to_model(batch.loser)))
        noise = draws.normal(winner.shape, like=winner).repeat(2, 1, 1)
        flow_time = self.draw_flow_times(draws, winner)
        dropped = draw_drops(self.pair_dropout, batch, draws, progress)
        flow_times = flow_time.repeat(2, 1)
        noisy, target = interpolate(noise, clean, flow_times), target_velocity(noise, clean)

        # a margin is a difference of nearly equal errors, times β: half precision would lose it
        def velocity(model: MotionDenoiser) -> Tensor:
            condition, portrait = drop(*conditioned(model, batch), dropped)
            twice = type(condition)(**{name: x.repeat(2, 1, 1) for name, x in vars(condition).items()})
            return model(noisy, flow_times, twice, portrait.repeat(2, 1), self.past(clean))

        with full_precision(noise.device):
            ours = velocity(policy)
            with torch.no_grad():
                theirs = velocity(reference)
        (policy_winner, policy_loser), (reference_winner, reference_loser) = (
            self.error(v, target).chunk(2) for v in (ours, theirs)
        )
        distance = (ours.detach() - theirs).square().mean(-1).chunk(2)[0]
        errors = PairErrors(policy_winner, policy_loser, reference_winner, reference_loser)
        return Pairs(errors, distance, self._counted(batch) & (flow_time < 1))  # clean frames have no velocity

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save only the hash of the reference."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference_sha256"] = self.reference.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError unless the reference is the original one."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["reference_sha256"] != self.reference.digest:
            raise UserError(
                "start: the model there is not the one this run started from (sha256 of its weights "
                f"{self.reference.digest[:12]}… instead of {checkpoint['reference_sha256'][:12]}…); "
                "put that one back, or choose another run=FOLDER"
            )

    def _loser(self, batch: DyadBatch, step: int, draws: Draws) -> Tensor | None:
        if self.online is None:
            if batch.loser is None:
                raise UserError("data.losers is not set and module.online neither: make losers with `af losers`")
            return batch.loser
        if batch.loser is not None:
            raise UserError(
                "data.losers and module.online are both set: module.online=null takes the losers of the shards"
            )
        return self.online(self.denoiser, self.reference.network, batch, draws, step)

    def _counted(self, batch: DyadBatch) -> Tensor:
        # without a user there is no reaction to prefer
        valid = batch.valid if batch.has_user is None else batch.valid & batch.has_user[:, None]
        if not self.listening_only:
            return valid
        if batch.listening is None:
            raise UserError("module.listening_only needs data.listening=true")
        return valid & batch.listening

    def judged(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and figures for the log."""
        loss, watched = self.preference(pairs.errors, pairs.counted, block_frames=self.denoiser.layout.block_frames)
        errors = {f"error/{name}": valid_mean(e.detach(), pairs.counted) for name, e in vars(pairs.errors).items()}
        return loss, {**watched, **errors, "drift": valid_mean(pairs.distance, pairs.counted)}

    def _winner_excess(self, pairs: Pairs) -> Tensor:
        sums = torch.stack(
            [valid_mean(e.detach(), pairs.counted) for e in (pairs.errors.policy_winner, pairs.errors.reference_winner)]
        )
        policy, reference = self.trainer.strategy.reduce(sums, reduce_op="mean").unbind()
        return torch.where(reference > 0, policy / reference - 1, torch.zeros_like(policy))


class StopOnDrift(Callback):
    """Stop when the policy's error on winners exceeds the reference's by more than `tolerance` (a share) for `steps`
    successive batches with a preference term: the margin then grows by unlearning both loser and winner.
    """

    acts = True  # the end of a training depends on it

    def __init__(self, steps: int = 200, tolerance: float = 0.05) -> None:
        require_number("steps", steps, least=1, whole=True)
        require_number("tolerance", tolerance, least=0)
        self.steps, self.tolerance = steps, tolerance
        self.in_a_row: Tensor | int = 0  # on the errors' device, so that the host does not wait
        self._look_in = steps  # batches before the limit can be reached

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count, and stop at the limit (the same on all ranks)."""
        assert isinstance(pl_module, PreferenceModule)
        if pl_module.winner_excess is None:
            return
        self.in_a_row = (self.in_a_row + 1) * (pl_module.winner_excess > self.tolerance)
        pl_module.log("train/preference/winner_excess", pl_module.winner_excess)
        self._look_in -= 1
        if self._look_in > 0:
            return
        self._look_in = self.steps - int(self.in_a_row)
        if self._look_in <= 0:
            trainer.should_stop = True
            if trainer.global_rank == 0:
                print(
                    f"stopped at step {trainer.global_step}: for {self.steps} batches the winner's error was more than "
                    f"{self.tolerance:.0%} above the reference's (a smaller module.preference.beta or module.weight "
                    "drifts less)"
                )

    def state_dict(self) -> dict[str, Any]:
        """The current count."""
        return {"in_a_row": int(self.in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.in_a_row = int(state_dict["in_a_row"])
        self._look_in = self.steps - self.in_a_row
