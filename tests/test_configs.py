"""Every configuration composes; every experiment that fits on a laptop runs one step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from af.cli.config import compose, config_folder, instantiate, resolve
from af.cli.main import main
from af.errors import UserError
from af.models.artifact import load_model, save_model
from tests.conftest import AUTOENCODER, FEATURES

EXPERIMENTS = sorted(p.stem for p in (config_folder() / "experiment").glob("*.yaml"))
SMALL = {
    "vae": ["model.image_size=32", "model.latent_dim=16", "model.directions=14", "model.channel_base=256"],
    "denoiser": [
        "model.motion_space.latent_dim=16",
        "model.motion_space.directions=6",
        "model.hidden=16",
        "model.depth=1",
        "model.heads=2",
        "model.condition_dim=16",
        "model.condition_heads=2",
        "model.block_frames=5",
        "model.window_frames=20",
        "features=logmel",
        "features.block_frames=5",
        "features.window_frames=20",
    ],
}
ONE_STEP = [
    "trainer=cpu",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "data.batch_size=2",
    "data.workers=0",
]


#: A recipe's losses judge by networks that are not shipped, its pixel weights by landmarks of real faces.
NOTHING_TO_BRING = ["loss.perceptual=0", "loss.distance=null", "data.regions=null"]


def start(experiment: str, denoiser: Path, autoencoder: Path | None = None) -> list[str]:
    """What an experiment needs that starts from a model, judges by one, or is for faces with MediaPipe's parameters."""
    if experiment in ("vae_256", "vae_512"):
        return [*NOTHING_TO_BRING, *(["start=null"] if experiment == "vae_512" else [])]
    if experiment == "vae_demo_features":
        return ["start=null", f"loss.distance.features.folder={autoencoder}"]
    if experiment.startswith("vae_people"):
        alone = experiment == "vae_people_encoder"
        encoder = [] if alone else [f"encoder={autoencoder}", "loss.distance.scales=[1.0]"]
        return [
            "loss.face.parameters=13",
            "data.faces=true",
            "data.regions=null",
            "data.vary.place=0",
            "start=null",
            *encoder,
        ]
    if experiment == "person":
        return [f"start={autoencoder}", *NOTHING_TO_BRING]
    if experiment == "vae_light":
        return [f"start={autoencoder}"]
    follows = experiment.startswith(("preference", "distill", "person_"))
    return [f"start={denoiser}", "scheme=forcing"] if follows else []  # the test's denoiser looks ahead


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_resolves(experiment, denoiser_folder, autoencoder_folder):
    begin = start(experiment, denoiser_folder, autoencoder_folder)
    config = resolve(compose("train", [f"experiment={experiment}", "data.root=somewhere", *begin]))
    assert config["module"]["_target_"].startswith("af.")
    assert config["trainer"]["max_steps"] > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_one_step(
    experiment, dyads, latents, teacher, denoiser_folder, autoencoder_folder, tmp_path
):
    begin = start(experiment, denoiser_folder, autoencoder_folder)
    stage = resolve(compose("train", [f"experiment={experiment}", "data.root=x", *begin]))["stage"]
    root = {"vae": dyads, "denoiser": latents, "preference": latents, "distill": latents}[stage]
    made = {"preference": begin, "distill": [*begin, f"data.teacher={teacher}"]}
    small = [*{**SMALL, **made}[stage], *(begin if stage == "vae" else [])]
    if experiment == "vae_light":
        small = begin
    if experiment.startswith("person"):  # their model is the one that is given
        small = [*begin, "adapt.rank=1", *(["data.vary.place=0"] if stage == "vae" else [])]
    arguments = [f"experiment={experiment}", f"data.root={root}", f"run={tmp_path}", *small, *ONE_STEP]
    assert main(["train", *arguments]) == 0
    assert json.loads((tmp_path / "done.json").read_text())["steps"] == 1
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_the_paper_s_second_stage_starts_from_the_first(dyads, tmp_path):
    """With all that `vae_256` trains by: a posterior, a discriminator, both directions."""
    widths = ["model.latent_dim=16", "model.directions=14", "model.channel_base=256", f"data.root={dyads}", *ONE_STEP]
    plain = [*NOTHING_TO_BRING, "module.adversarial.start=0"]
    for name, size, begin in (("vae_256", 16, []), ("vae_512", 32, [f"start={tmp_path / 'vae_256'}"])):
        more = ["data.both_ways=true", f"model.image_size={size}", f"run={tmp_path / name}", *plain, *begin]
        if size == 16:  # the conversations have 32 px
            config = resolve(compose("train", [f"experiment={name}", *widths, *more]))["model"]
            save_model(tmp_path / name, instantiate(config), config, {"stage": "vae"})
        else:
            assert main(["train", f"experiment={name}", *widths, *more]) == 0
    model = load_model(tmp_path / "vae_512" / "export").model
    assert model.variational
    assert model.image_size == 32


def test_the_second_stage_starts_from_a_smaller_model(dyads, tmp_path):
    """16 px first, then 32: what begins as the smaller model's is not what a fresh run has after the same step."""
    widths = ["model.latent_dim=16", "model.directions=14", "model.channel_base=256", f"data.root={dyads}", *ONE_STEP]
    small = resolve(compose("train", ["experiment=vae_synth64", "model.image_size=16", *widths]))["model"]
    save_model(tmp_path / "small", instantiate(small), small, {"stage": "vae"})
    weights = {}
    for name, start in (("fresh", []), ("grown", [f"module.start={tmp_path / 'small'}"])):
        arguments = ["experiment=vae_synth128", "model.image_size=32", *widths, f"run={tmp_path / name}", *start]
        assert main(["train", *arguments]) == 0
        weights[name] = load_model(tmp_path / name / "export").model.state_dict()["decoder.constant"]
    begun = load_model(tmp_path / "small").model.state_dict()["decoder.constant"]
    assert (weights["grown"] - begun).abs().max() < 0.1  # one step away
    assert (weights["fresh"] - begun).abs().max() > 1


@pytest.mark.parametrize("group", ["model/autoencoder", "model/denoiser"])
def test_every_model_is_built(group):
    for file in sorted((config_folder() / group).glob("*.yaml")):
        small = ["model.hidden=64", "model.depth=1"] if "denoiser" in group else ["model.channel_base=512"]
        name, _, kind = group.partition("/")
        config = resolve(compose("train", [f"+{group}@{name}={file.stem}", "+features=wav2vec2", *_bare(), *small]))
        assert sum(p.numel() for p in instantiate(config["model"]).parameters()) > 0, (kind, file)


def _bare() -> list[str]:
    """The training configuration without an experiment."""
    return ["~experiment", "name=x", "trainer.max_steps=1"]


@pytest.mark.parametrize("demo", sorted(p.stem for p in (config_folder() / "demo").glob("*.yaml")))
def test_every_demo_has_stages_with_composable_commands(demo):
    from af.cli.demo import stages

    found = stages(resolve(compose("demo", [f"demo={demo}"])))
    names = ["synth", "vae_first", "vae", "encode", "denoiser", "evaluate", "extract", "generate"]
    assert [name for name, _, _ in found] == names
    for _, _, words in found:
        if words[0] == "train":
            resolve(compose("train", words[1:]))


def test_the_bidirectional_scheme_is_what_it_says():
    config = resolve(compose("train", ["experiment=denoiser_demo", "scheme=bidirectional", "data.root=x"]))
    layout = instantiate(config["model"]).layout
    assert (layout.block_frames, layout.look_ahead, layout.window_frames, layout.cached_frames) == (75, 10, 85, 0)
    assert instantiate(config["module"]["flow_times"]).histories(85) == [0, 10]


@pytest.mark.parametrize(
    "settings",
    [
        ["scheme=autoregressive", "model.look_ahead_layers=first", "model.causal_condition=false"],
        ["scheme=bidirectional", "model.block_frames=15", "model.window_frames=17", "model.look_ahead=2"],
        ["model.block_frames=10", "model.look_ahead=0", "data.balance=2", "model.motion_space.kind=latent"],
        [
            "scheme=forcing",
            "model.look_ahead=4",
            "model.mask=frame_lookahead",
            "module.loss.kind=huber",
            "model.motion_space.kind=identity",
        ],
    ],
)
def test_every_switch_trains_and_rolls_out(settings, latents, tmp_path):
    """One code for all of them: a step of training, and motion from what it wrote."""
    import torch

    from af.forcing.rollout import rollout
    from af.models.artifact import load_model

    arguments = ["experiment=denoiser_demo", f"data.root={latents}", f"run={tmp_path}", *SMALL["denoiser"], *ONE_STEP]
    assert main(["train", *arguments, *settings]) == 0
    model = load_model(tmp_path / "export").model
    generator = torch.Generator().manual_seed(0)
    audio, motion = (torch.randn(1, 40, n, generator=generator) for n in (64, 16))
    condition = model.condition(audio, audio.flip(1), motion)
    reference = model.motion_space.to_model(motion[:, 0])
    got = rollout(model, condition, reference, steps=2, generator=generator)
    assert got.shape == (1, 40, model.dim)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("experiment=nothing", "nothing"),
        ("module.learning=1", "learning"),
        ("+module.sharpness=1", "belong to another stage"),
        ("model.mask=sideways", "sideways"),
        ("module.loss.kind=l3", "l3"),
        ("module.dropout.user=2", "user"),
        ("module.flow_times.levels=first", "independent, each, last"),
        ("model.look_ahead_layers=some", "all, first"),
        ("data.balance=-1", "data.balance"),
    ],
)
def test_a_wrong_value_is_named_before_any_work(override, named, latents, tmp_path, capsys):
    arguments = ["experiment=denoiser_demo", f"data.root={latents}", f"run={tmp_path}"]
    assert main(["train", *arguments, override]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_shards_of_other_features_are_refused_saying_both(latents, tmp_path, capsys):
    arguments = ["experiment=denoiser_demo", f"data.root={latents}", f"run={tmp_path}"]
    assert main(["train", *arguments]) == 1  # the demo's blocks have 10 frames, these shards' 5
    error = capsys.readouterr().err
    assert "block_frames" in error
    assert str(FEATURES["block_frames"]) in error


def test_a_folder_of_ones_own_configurations_comes_first(tmp_path):
    own = tmp_path / "experiment"
    own.mkdir()
    (own / "mine.yaml").write_text("# @package _global_\ndefaults: [vae_demo]\nname: mine\n")
    config = resolve(compose("train", ["experiment=mine", "data.root=x"], Path(tmp_path)))
    assert config["name"] == "mine"
    with pytest.raises(UserError, match="not a folder"):
        compose("train", [], tmp_path / "absent")


def test_the_tiny_autoencoder_of_the_tests_is_the_documented_class():
    assert AUTOENCODER["_target_"] == resolve(compose("train", ["experiment=vae_demo"]))["model"]["_target_"]
