"""What the recipe at the paper's size takes, counted stage by stage: parameters, operations, memory, bytes and hours.

  python -m benchmarks.recipe                                     all stages of docs/recipe.md
  python -m benchmarks.recipe --stages vae_256 --devices 4 --peak-tflops 312 --utilisation 0.4 --dollars 1.5

Nothing is measured: the products of one training step are counted on tensors without values, and hours are the largest of

    operations of all steps / (devices x peak x utilisation)
    steps x the least time of a step, in which the host launches its kernels
    bytes of all items / rate of reading

The last factors are assumptions; `throughput.jsonl` of a short run on your machine has the real ones
(callbacks.throughput.peak_tflops). Memory is that of a device: weights, gradients, two moments, averaged weights, and the
activations kept for the backward pass, in bf16 where autocast keeps them so; libraries add a few GB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from torch import Tensor, nn

from af.cli.config import compose, instantiate, resolve
from af.cli.kinds import Count, Positive
from af.cli.options import add_parameters, bind
from af.clock import FPS, frames_to_samples
from af.files import write_text
from af.forcing.guidance import Guidance
from af.models.artifact import save_model
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionStatistics
from af.models.perceptual import VGG19_LAYERS
from af.pipeline.rolling import Scene
from af.specs import MotionSpec
from af.training.denoiser import DenoiserModule, DistillModule, draw_drops
from af.training.flops import FlopCounter
from af.training.preference import PreferenceModule
from af.training.randomness import Draws, step_generator
from af.types import DyadBatch, PairBatch
from benchmarks.common import experiment, options, report
from benchmarks.counting import Kept, gflop_of, without_values

HOURS: Final = 100.0  # of conversation, the data that encoding and teacher are counted for
_MOMENTS: Final = 2  # of Adam
_MOTION: Final = MotionSpec(dim=512, directions=20, autoencoder="0" * 64, image_size=512)


@dataclass(frozen=True)
class Stage:
    """One stage, counted. `work` are GFLOP of an item (an image pair in one direction, a window, a second of a person)
    by part; `items` are processed in all.
    """

    item: str
    parameters: int
    trained: int
    work: dict[str, float]
    items: float
    steps: int = 0
    batch: int = 0
    state_gb: float = 0.0
    activation_gb_per_item: float = 0.0
    read_mb_per_item: float = 0.0

    @property
    def gflop_per_item(self) -> float:
        """Forward and backward."""
        return sum(self.work.values())

    @property
    def exaflop(self) -> float:
        """All of it."""
        return self.gflop_per_item * self.items / 1e9


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision in ("auto", "bf16-mixed"))


def untrained_vgg(path: Path) -> Path:
    """A file of VGG19's size, in place of the weights that a user brings: only shapes matter here."""
    shapes = {index: (outputs, inputs, 3, 3) for index, inputs, outputs in filter(None, VGG19_LAYERS)}
    weights = {f"features.{index}.weight": torch.randn(shape) * 0.05 for index, shape in shapes.items()}
    torch.save(weights | {f"features.{index}.bias": torch.zeros(shape[0]) for index, shape in shapes.items()}, path)
    return path


def untrained(folder: Path, config: dict[str, Any], key: str, info: dict[str, Any]) -> Path:
    """A model folder with random weights for the stage that starts from `config`'s."""
    model = instantiate(config["model"])
    if isinstance(model, MotionDenoiser):
        model.motion_space.fit(_statistics(model))
    save_model(folder / key, model, config["model"], info)
    return folder / key


def _statistics(denoiser: MotionDenoiser) -> MotionStatistics:
    space = denoiser.motion_space
    basis = torch.linalg.qr(torch.randn(space.latent_dim, space.directions))[0]
    return MotionStatistics(torch.zeros(space.directions), torch.eye(space.directions), basis)


def vae_stage(config: dict[str, Any]) -> Stage:
    """A training of the motion VAE: everything that a step of `VaeModule` executes, the penalty in its share of steps."""
    module, size = instantiate(config["module"]), config["model"]["image_size"]
    network, discriminator, adversarial = module.autoencoder, module.discriminator, module.adversarial
    both = 1 + config["data"]["both_ways"]
    with without_values(network, discriminator), _autocast(config["trainer"]["precision"]):
        images, noise = torch.empty(both, 3, size, size), torch.empty(both, network.directions_count)
        fake = torch.empty(both, 3, size, size, requires_grad=True)
        batch = PairBatch(images, images)
        variance = noise if network.variational else None
        late = int(config["trainer"]["max_steps"])  # all terms take part

        def judged() -> Tensor:
            return module.loss(fake, batch, coefficients=noise, log_variance=variance, step=late)[0]

        def convinced() -> Tensor:
            discriminator.requires_grad_(False)
            loss = adversarial.generator(discriminator(fake))[0]
            discriminator.requires_grad_(True)
            return loss

        def told_apart(step: int) -> Tensor:
            return adversarial.discriminator(discriminator, images, fake.detach(), step)[0]

        parts = {
            "autoencoder": lambda: network(images, None, noise).image.float().mean(),
            "loss": judged,
            "discriminator as judge": convinced,
            "discriminator": lambda: told_apart(1),
            "discriminator with R1": lambda: told_apart(0),
        }
        work, kept = {}, {}
        for name, part in parts.items():
            with Kept(network, discriminator) as bytes_kept, FlopCounter() as counter:
                loss = part()
                loss.backward()
            work[name], kept[name] = counter.flops / 1e9 / both, bytes_kept.gigabytes / both
    penalty = work.pop("discriminator with R1") - work["discriminator"]
    work["R1"] = penalty / adversarial.r1_every
    first = kept["autoencoder"] + kept["loss"] + kept["discriminator as judge"]
    trained = _size(network) + _size(discriminator)
    steps, pairs = config["trainer"]["max_steps"], config["data"]["batch_size"]
    return Stage(
        item="image pair, one direction",
        parameters=_size(network),
        trained=trained,
        work=work,
        items=float(steps) * pairs * both,
        steps=steps,
        batch=pairs * both,
        state_gb=_state_gb(trained, averaged=_size(network)),
        activation_gb_per_item=max(first, kept["discriminator with R1"]),
    )


def _state_gb(trained: int, averaged: int, frozen: int = 0) -> float:
    """fp32 weights, gradients and moments of what is trained, and the averaged and frozen weights."""
    return 4 * (trained * (2 + _MOMENTS) + averaged + frozen) / 1e9


def _window(denoiser: MotionDenoiser, features: int, frames: int) -> DyadBatch:
    space = denoiser.motion_space
    motion, audio = torch.zeros(1, frames, space.latent_dim), torch.zeros(1, frames, features)
    return DyadBatch(motion, audio, motion, audio, motion[:, 0], torch.ones(1, frames, dtype=torch.bool))


def denoiser_stage(config: dict[str, Any]) -> Stage:
    """A training of the denoiser; with a preference term also its pairs, and the losers made for each window."""
    module: DenoiserModule = instantiate(config["module"])
    denoiser, features = module.denoiser, config["features"]["dim"]
    if not denoiser.motion_space.fitted:
        denoiser.motion_space.fit(_statistics(denoiser))
    reference = module.reference.network if isinstance(module, PreferenceModule) else nn.Identity()
    work: dict[str, float] = {}
    draws = Draws(step_generator(0, 0, torch.device("cpu")), 1)
    if isinstance(module, PreferenceModule):  # a roll-out looks at values, so it is computed
        assert module.online is not None
        online, frozen = module.online, module.reference.network
        window = _window(denoiser, features, denoiser.layout.window_frames)
        work["losers"] = gflop_of(lambda: online(denoiser, frozen, window, draws))
    with without_values(denoiser, reference), _autocast(config["trainer"]["precision"]):
        window = _window(denoiser, features, denoiser.layout.window_frames)
        if isinstance(module, DistillModule):
            noise = torch.empty(1, denoiser.layout.window_frames, denoiser.dim)
            window = replace(window, teacher=window.avatar_motion, noise=noise)

        def denoised() -> None:
            module.velocity_losses(window, draws, draw_drops(module.dropout, window, draws))[0].mean().backward()

        with Kept(denoiser) as kept:
            work["denoising"] = gflop_of(denoised)
        if isinstance(module, PreferenceModule):
            with kept:
                work["pairs"] = gflop_of(
                    lambda: module.pairs(window, window.avatar_motion, draws).errors.policy_winner.mean().backward()
                )
    steps, windows = config["trainer"]["max_steps"], config["data"]["batch_size"]
    frames, space = denoiser.layout.window_frames, denoiser.motion_space
    return Stage(
        item="window",
        parameters=_size(denoiser),
        trained=_size(denoiser),
        work=work,
        items=float(steps) * windows,
        steps=steps,
        batch=windows,
        state_gb=_state_gb(_size(denoiser), _size(denoiser), _size(reference)),
        activation_gb_per_item=kept.gigabytes,
        read_mb_per_item=2 * frames * 2 * (space.latent_dim + features) / 1e6,
    )


def encode_stage(vae: dict[str, Any]) -> Stage:
    """`af encode features=wav2vec2` of `HOURS` of conversation: codes of all frames, features of all blocks."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    network, speech = instantiate(vae["model"]).eval(), Wav2Vec2Model(Wav2Vec2Config()).eval()
    chosen = resolve(compose("encode", ["features=wav2vec2"]))["features"]
    size = vae["model"]["image_size"]
    with without_values(network, speech), torch.no_grad():
        codes = gflop_of(lambda: network.coefficients(torch.empty(1, 3, size, size), check=False))
        window = torch.empty(1, frames_to_samples(chosen["window_frames"]))
        features = gflop_of(lambda: speech(window))
    work = {"codes": FPS * codes, "features": FPS / chosen["block_frames"] * features}
    size_of_all = _size(network) + _size(speech)
    state = 4 * size_of_all / 1e9
    return Stage("second of a person", size_of_all, 0, work, 2 * 3600 * HOURS, state_gb=state)


def teacher_stage(config: dict[str, Any]) -> Stage:
    """`af teacher` for `HOURS` of conversation, with eight steps and three branches."""
    denoiser = instantiate(config["model"]).eval()
    denoiser.motion_space.fit(_statistics(denoiser))
    seconds = 2
    with torch.no_grad():
        turn = _window(denoiser, config["features"]["dim"], seconds * FPS)
        scene = Scene(turn.avatar_audio, turn.user_audio, turn.user_motion, turn.reference)
        noise = torch.zeros(1, seconds * FPS, denoiser.dim)
        rolled = gflop_of(lambda: scene.rolled_out(denoiser, noise, steps=8, guidance=Guidance(user=2.0)))
    work = {"roll-out": rolled / seconds}
    parameters = _size(denoiser)
    return Stage("second of a person", parameters, 0, work, 2 * 3600 * HOURS, state_gb=4 * parameters / 1e9)


STAGES: Final = ("vae_256", "vae_512", "encode", "denoiser_paper", "preference_paper", "teacher", "distill_paper")


def counted(stages: Sequence[str], folder: Path) -> dict[str, Stage]:
    """The stages, each from its composed configuration; models to start from are untrained ones in `folder`."""
    vgg = f"loss.distance.features.weights={untrained_vgg(folder / 'vgg19.pth')}"

    def vae(name: str) -> dict[str, Any]:
        start = {"vae_512": [f"start={folder / 'vae_256'}"]}.get(name, [])
        if start and not (folder / "vae_256").is_dir():
            untrained(folder, vae("vae_256"), "vae_256", {"stage": "vae"})
        return experiment(name, "data.root=x", vgg, *start)

    def denoiser(name: str) -> dict[str, Any]:
        if name == "denoiser_paper":
            return experiment(name, "data.root=x")
        if not (folder / "denoiser_paper").is_dir():
            paper = denoiser("denoiser_paper")
            known = {"features": paper["features"], "motion_spec": _MOTION.to_json(), "stage": "denoiser"}
            untrained(folder, paper, "denoiser_paper", known)
        more = ["data.teacher=x"] if name == "distill_paper" else []
        return experiment(name, "data.root=x", f"start={folder / 'denoiser_paper'}", *more)

    found: dict[str, Stage] = {}
    for name in stages:
        if name.startswith("vae"):
            found[name] = vae_stage(vae(name))
        elif name == "encode":
            found[name] = encode_stage(vae("vae_512"))
        elif name == "teacher":
            found[name] = teacher_stage(denoiser("denoiser_paper"))
        else:
            found[name] = denoiser_stage(denoiser(name))
    return found


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machine."""

    devices: Annotated[Count, "GPUs"] = 8
    peak_tflops: Annotated[Positive, "dense bf16 of one; by default an H100's"] = 989.0
    utilisation: Annotated[Positive, "share of the peak that is reached"] = 0.3
    step_ms: Annotated[Positive, "least time of a step"] = 50.0
    read_gb_s: Annotated[Positive, "rate of reading, of all devices together"] = 2.0
    dollars: Annotated[Positive, "price of a device hour"] = 2.5


def priced(stage: Stage, machine: Machine) -> dict[str, Any]:
    """A stage as JSON, with hours and cost by the formula above, and memory for an even share of its batch."""
    seconds = {
        "compute": stage.exaflop * 1e6 / (machine.devices * machine.peak_tflops * machine.utilisation),
        "launches": stage.steps * machine.step_ms / 1000,
        "reading": stage.read_mb_per_item * stage.items / 1000 / machine.read_gb_s,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    hours = seconds[limit] / 3600
    share = -(-stage.batch // machine.devices)
    numbers = {
        "gflop_per_item": stage.gflop_per_item,
        "exaflop": stage.exaflop,
        "gb_per_device": stage.state_gb + share * stage.activation_gb_per_item,
        "read_tb": stage.read_mb_per_item * stage.items / 1e6,
        "hours": hours,
        "dollars": hours * machine.devices * machine.dollars,
    }
    return asdict(stage) | {"limit": limit} | {name: float(f"{value:.4g}") for name, value in numbers.items()}


def markdown(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The stages as a table."""
    head = ("stage", "M parameters", "items", "GFLOP an item", "EFLOP", "GB a GPU", "TB read", "bound", "hours", "$")
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * 6 + " --- | ---: | ---: |"]
    for name, s in stages.items():
        items = f"{s['items'] / 1e6:.3g} M ({s['item']})"
        numbers = [f"{s[key]:.3g}" for key in ("gflop_per_item", "exaflop", "gb_per_device", "read_tb")]
        cost = [f"{s['hours']:.2g}", f"{s['dollars']:.2g}" if s["dollars"] < 100 else f"{s['dollars']:.0f}"]
        row = [name, f"{s['parameters'] / 1e6:.0f}", items, *numbers, s["limit"], *cost]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("recipe", __doc__, accelerator=False)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help="which (all)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table of docs/recipe.md")
    add_parameters(parser, Machine)

    def found(args: argparse.Namespace) -> dict[str, Any]:
        machine = Machine(**bind(Machine, vars(args)))
        with tempfile.TemporaryDirectory() as folder:
            stages = counted(args.stages, Path(folder))
        priced_stages = {name: priced(stage, machine) for name, stage in stages.items()}
        total = {key: sum(s[key] for s in priced_stages.values()) for key in ("hours", "dollars")}
        if args.markdown:
            write_text(args.markdown, markdown(priced_stages))
        return {"assumed": asdict(machine), "hours_of_conversation": HOURS, "stages": priced_stages, "total": total}

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
