"""The autoencoder's training: the right parameters move, validation counts right, a resumed run is the same run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import Adam
from torch.utils.data import DataLoader

from af.cli.config import compose, instantiate, resolve
from af.errors import UserError
from af.losses.adversarial import AdversarialLoss
from af.losses.reconstruction import FaceGuide, ReconstructionLoss
from af.models.autoencoder import MotionAutoencoder
from af.models.discriminator import Discriminator
from af.models.perceptual import VGG19_LAYERS
from af.training.checkpoints import SafeCheckpointIO, checkpointers
from af.training.ema import Ema
from af.training.gradients import Gradients
from af.training.muon import Muon, is_matrix
from af.training.schedules import constant
from af.training.vae import VaeModule
from af.types import PairBatch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
GAME = AdversarialLoss(0.1, r1_every=2)
ADVERSARIAL = {"kl": 1e-3, "adversarial": GAME}


def _batches(count: int, size: int = 4, weighted: bool = False) -> list[PairBatch]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        source, driving = torch.rand(2, size, 3, 16, 16, generator=generator) * 2 - 1
        weight = 1 + torch.rand(size, 1, 16, 16, generator=generator) if weighted else None
        batches.append(PairBatch(source, driving, weight))
    return batches


def _module(kl: float = 0.0, kl_warmup_steps: int = 0, **options) -> VaeModule:
    options.setdefault("optimizer", partial(Adam, lr=2e-3))
    options.setdefault("loss", ReconstructionLoss(kl=kl, kl_warmup_steps=kl_warmup_steps))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = MotionAutoencoder(16, 12, 4, channel_base=64, max_channels=8, variational=kl > 0)
        if options.get("adversarial") is not None:
            options["discriminator"] = Discriminator(16, channel_base=64, max_channels=8)
    return VaeModule(autoencoder, **options)


def _trainer(folder: Path, steps: int, **options) -> Trainer:
    options = {"logger": False, "enable_checkpointing": False, **options}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )


def _loader(batches: list[PairBatch]) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def _weights(module: VaeModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _end_together(start: dict[str, torch.Tensor], one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Two trainings end within a twentieth of the way that they have gone: fp32 turns single steps of Adam around."""
    names = [name for name, value in one.items() if value.is_floating_point()]
    gone, apart = (torch.cat([(one[n] - x[n]).flatten() for n in names]).norm() for x in (start, other))
    assert gone > 0
    assert apart < 0.05 * gone


def test_learns_one_pair(tmp_path):
    ramp = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    batches = [PairBatch(ramp, -ramp.transpose(2, 3))] * 40
    module = _module(optimizer=partial(Adam, lr=1e-2))
    with torch.no_grad():
        before = module.reconstruction_loss(module.autoencoder(batches[0].source, batches[0].driving), batches[0])[0]
    _trainer(tmp_path, 40).fit(module, _loader(batches))
    after = module.reconstruction_loss(module.autoencoder(batches[0].source, batches[0].driving), batches[0])[0]
    assert after < 0.5 * before


def test_guiding_steps_train_the_encoder_alone(tmp_path):
    batches = [PairBatch(b.source, b.driving, face=torch.randn(4, 3)) for b in _batches(4)]
    module = _module(loss=ReconstructionLoss(guide=0.5, face=FaceGuide(3)), guide_steps=3)
    start = _weights(module)
    moved = []
    for steps in (3, 4):
        module.load_state_dict(start)
        _trainer(tmp_path, steps).fit(module, _loader(batches))
        moved.append({n.split(".")[1] for n, v in module.state_dict().items() if not torch.equal(v, start[n])})
    assert moved[0] == {"encoder", "motion_head", "face"}
    assert "decoder" in moved[1]


def test_guiding_steps_are_for_plain_training():
    with pytest.raises(ValueError, match="guide_steps"):
        _module(adversarial=GAME, guide_steps=1)
    with pytest.raises(ValueError, match=r"loss\.guide"):
        _module(guide_steps=1)


def test_objective_is_the_weighted_sum_of_its_terms():
    squares = {"perceptual": 3.0, "distance": lambda a, b: (a - b).square().mean()}
    module = _module(kl=0.5, loss=ReconstructionLoss(l1=2.0, kl=0.5, **squares))
    batch = _batches(1, weighted=True)[0]
    with torch.no_grad():
        loss, terms = module.reconstruction_loss(module.autoencoder(batch.source, batch.driving), batch)
    assert loss.item() == pytest.approx(float(2 * terms["l1"] + 0.5 * terms["kl"] + 3 * terms["perceptual"]), rel=1e-5)


def test_what_a_term_needs_is_asked_for():
    for weights, message in (({"perceptual": 1.0}, "distance"), ({"guide": 1.0}, "face"), ({"kl": -1.0}, "kl")):
        with pytest.raises(ValueError, match=message):
            ReconstructionLoss(**weights)
    with pytest.raises(ValueError, match="discriminator"):
        VaeModule(_module().autoencoder, loss=ReconstructionLoss(), adversarial=GAME)
    module, batch = _module(loss=ReconstructionLoss(kl=1.0)), _batches(1)[0]
    with pytest.raises(UserError, match=r"model\.variational=true"):
        module.reconstruction_loss(module.autoencoder(batch.source, batch.driving), batch)


def test_a_loss_of_ones_own_is_what_is_minimised(tmp_path):
    def loss(image, batch, *, coefficients, log_variance, step):
        return image.square().mean(), {"brightness": image.mean()}

    module = _module(loss=loss, optimizer=partial(torch.optim.Adam, lr=1e-2))
    trainer = _trainer(tmp_path, 20)
    trainer.fit(module, _loader(_batches(20)))
    assert trainer.logged_metrics["train/loss"] < 0.1
    assert "train/brightness" in trainer.logged_metrics


@pytest.mark.parametrize("option", [{"accumulate": 2}, {"gradient_clip": 1.0}])
def test_options_of_two_optimisers_are_refused_for_one(option):
    with pytest.raises(ValueError, match="without a discriminator set trainer"):
        _module(**option)


def test_both_ways_train_alike_with_each_image_encoded_once(tmp_path):
    first, second = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batches = [PairBatch(torch.cat((first, second)), torch.cat((second, first)))] * 2
    modules = [_module(both_ways=ways) for ways in (False, True)]
    start = _weights(modules[0])
    for module in modules:
        _trainer(tmp_path, 2).fit(module, _loader(batches))
    _end_together(start, _weights(modules[0]), _weights(modules[1]))


def test_both_players_move_and_steps_are_the_autoencoders(tmp_path):
    module = _module(**ADVERSARIAL, accumulate=2, gradient_clip=1.0)
    before = _weights(module)
    trainer = _trainer(tmp_path, 3)
    trainer.fit(module, _loader(_batches(10)))
    assert (trainer.global_step, module.batches_seen) == (3, 6)
    still = [name for name, value in _weights(module).items() if value.equal(before[name])]
    assert still == []


def test_before_its_start_the_discriminator_rests(tmp_path):
    alone, together = _module(), _module(adversarial=AdversarialLoss(0.1, start=2))
    before = _weights(together)
    for module in (alone, together):
        _trainer(tmp_path, 2).fit(module, _loader(_batches(2)))
    after = _weights(together)
    assert all(after[name].equal(before[name]) for name in after if name.startswith("discriminator"))
    _end_together(before, _weights(alone), after)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    batches = _batches(2, size=4)
    halves = [PairBatch(b.source[i : i + 2], b.driving[i : i + 2]) for b in batches for i in (0, 2)]
    game = AdversarialLoss(0.1, r1_every=1)
    whole, parts = _module(adversarial=game), _module(adversarial=game, accumulate=2)
    start = _weights(whole)
    _trainer(tmp_path, 2).fit(whole, _loader(batches))
    _trainer(tmp_path, 2).fit(parts, _loader(halves))
    _end_together(start, _weights(whole), _weights(parts))


@pytest.mark.parametrize("optimizer", [Adam, partial(Muon, lr=1e-2, adam_lr=2e-3)])
@pytest.mark.parametrize("weights", [{"kl": 1e-3, "kl_warmup_steps": 4}, ADVERSARIAL])
def test_resumed_is_uninterrupted(tmp_path, weights, optimizer):
    batches = _batches(6)

    def fit(steps: int, checkpoint: Path | None = None) -> VaeModule:
        module = _module(**weights, optimizer=optimizer, scheduler=partial(constant, warmup_steps=2))
        saver = ModelCheckpoint(dirpath=tmp_path / "saved", save_last=True, every_n_train_steps=3, save_top_k=0)
        trainer = _trainer(tmp_path, steps, callbacks=[saver], enable_checkpointing=True)
        share = batches[:steps] if checkpoint is None else batches[3:]
        trainer.fit(module, _loader(share), ckpt_path=checkpoint, weights_only=True)
        return module

    whole = _weights(fit(6))
    (tmp_path / "saved" / "last.ckpt").unlink()
    fit(3)
    resumed = _weights(fit(6, tmp_path / "saved" / "last.ckpt"))
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_again_in_the_middle_of_a_step_is_uninterrupted(tmp_path, accumulate):
    """Accumulated batches: the average moves once a step, and no checkpoint is written between them."""
    batches = _batches(6 * accumulate)

    def fit(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        class Stop(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if pl_module.batches_seen == stop:
                    raise OSError("gone")

        seen = [torch.load(p, weights_only=True)["batches_seen"] for p in folder.glob("*.ckpt")]
        average = Ema("autoencoder", 0.9)
        callbacks = [average, Stop(), *checkpointers(folder, 3, every_minutes=None)]
        trainer = _trainer(tmp_path, 6, callbacks=callbacks, enable_checkpointing=True)
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
        module, loader = _module(**ADVERSARIAL, accumulate=accumulate), _loader(batches[max(seen, default=0) :])
        trainer.fit(module, loader, ckpt_path=folder if seen else None)
        return average.average

    whole = fit(tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            fit(tmp_path / "parts", 3 * accumulate + 1)
    continued = fit(tmp_path / "parts")
    assert [name for name in whole if not whole[name].equal(continued[name])] == []


def test_the_recipe_of_the_configuration_trains(tmp_path):
    """What conf/loss/reconstruction/lia.yaml says to add to an experiment."""
    state = {}
    for layer in filter(None, VGG19_LAYERS):
        state[f"features.{layer[0]}.weight"] = torch.full((1, 1, 1, 1), 0.01).expand(layer[2], layer[1], 3, 3)
        state[f"features.{layer[0]}.bias"] = torch.zeros(layer[2])
    torch.save(state, tmp_path / "vgg19.pth")
    words = ["loss/reconstruction@loss=lia", f"loss.distance.features.weights={tmp_path / 'vgg19.pth'}"]
    loss = instantiate(resolve(compose("train", ["experiment=vae_demo", "data.root=none", *words]))["loss"])
    trainer, model = _trainer(tmp_path, 1, precision="bf16-mixed"), _module().autoencoder
    judge = Discriminator(16, channel_base=64, max_channels=8)
    trainer.fit(VaeModule(model, loss=loss, adversarial=AdversarialLoss(), discriminator=judge), _loader(_batches(1)))
    assert trainer.logged_metrics["train/perceptual"] > 0


def test_validation_compares_with_showing_the_source(tmp_path):
    module = _module()
    batches = _batches(3, weighted=True)
    trainer = _trainer(tmp_path, 1)
    (values,) = trainer.validate(module, _loader(batches), verbose=False)
    copied = torch.cat([(b.source - b.driving).square() for b in batches]).mean()
    assert values["psnr/copy"] == pytest.approx((10 * (4 / copied).log10()).item(), rel=1e-5)
    with torch.no_grad():
        images = [module.autoencoder(b.source, b.driving).image.clamp(-1, 1) for b in batches]
    squared = torch.cat([(i - b.driving).square() for i, b in zip(images, batches, strict=True)]).mean()
    assert values["psnr"] == pytest.approx((10 * (4 / squared).log10()).item(), rel=1e-5)
    assert {"val/l1", "psnr/emphasis"} <= values.keys()


def test_tensorboard_gets_scalars_and_the_grid(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tb")
    trainer = _trainer(tmp_path, 2, logger=logger, val_check_interval=2, callbacks=[Gradients("autoencoder")])
    trainer.fit(_module(**ADVERSARIAL), _loader(_batches(2)), _loader(_batches(1)))
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    wanted = {"train/loss", "train/l1", "train/kl", "train/adversarial", "train/discriminator", "train/r1", "lr"}
    wanted |= {"grad_norm", "grad_norm/encoder", "grad_norm/decoder", "grad_norm/discriminator"}
    assert wanted | {"psnr", "psnr/copy", "val/kl"} <= set(events.Tags()["scalars"])
    (picture,) = events.Images("source_driving_reconstruction")
    assert (picture.width, picture.height) == (3 * 16, 4 * 16)


def test_bfloat16_on_cpu_keeps_weights_and_motion_in_fp32(tmp_path):
    module = _module(kl=1e-3, optimizer=partial(Adam, lr=1e-2))
    _trainer(tmp_path, 3, precision="bf16-mixed").fit(module, _loader(_batches(3)))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    directions = module.autoencoder.directions()
    torch.testing.assert_close(directions.T @ directions, torch.eye(4), rtol=0, atol=1e-6)


def test_float16_with_a_discriminator_is_refused():
    module = _module(**ADVERSARIAL)

    class Fp16:
        precision = "16-mixed"

    module._trainer = Fp16()
    with pytest.raises(UserError, match="bf16-mixed or 32-true"):
        module.on_fit_start()


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from tests.training.test_vae import GAME, _batches, _loader, _module
from af.types import PairBatch
from lightning.pytorch import Trainer
import os
rank = int(os.environ["RANK"])
share = slice(2 * rank, 2 * rank + 2)
batches = [PairBatch(b.source[share], b.driving[share]) for b in _batches(4)]
torch.manual_seed(rank)  # the ranks' own seeds must not matter
module = _module(adversarial=GAME)
if rank:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)  # nor their initial weights
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=4, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                  use_distributed_sampler=False, default_root_dir={folder!r})
trainer.fit(module, _loader(batches))
torch.save(module.state_dict(), {folder!r} + f"/{{rank}}.pt")
"""


@pytest.mark.slow
def test_two_ranks_are_one_with_both_halves(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(launch, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    module = _module(adversarial=GAME)
    _trainer(tmp_path, 4).fit(module, _loader(_batches(4)))
    one = module.state_dict()
    for name in one:
        assert first[name].equal(second[name]), name
    start = _weights(_module(adversarial=GAME))
    _end_together(start, one, first)


def test_muon_moves_the_convolutions_by_its_own_rate(tmp_path):
    """A step of the convolutions is as large as `lr` says, whatever `adam_lr` is for the others."""
    steps = []
    for rate in (1e-3, 1e-2):
        module = _module(optimizer=partial(Muon, lr=rate, adam_lr=1e-5))
        before = {name: p.detach().clone() for name, p in module.autoencoder.named_parameters() if is_matrix(p)}
        _trainer(tmp_path / str(rate), 1).fit(module, _loader(_batches(1)))
        after = dict(module.autoencoder.named_parameters())
        steps.append(torch.cat([(after[name].detach() - p).flatten() for name, p in before.items()]).norm().item())
    assert steps[0] > 0
    assert 8 < steps[1] / steps[0] < 12
