from __future__ import annotations

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from af.cli.config import compose, instantiate, resolve
from af.errors import UserError
from af.models.speech import LogMel, SpeechFeatures, Wav2Vec2Features, block_window


@pytest.fixture(scope="module")
def tiny_wav2vec2(tmp_path_factory) -> str:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        apply_spec_augment=True,
    )
    folder = tmp_path_factory.mktemp("wav2vec2")
    Wav2Vec2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["logmel", "wav2vec2", "wav2vec2-right"])
def streaming(request, tiny_wav2vec2) -> SpeechFeatures:
    sizes = {"block_frames": 5, "window_frames": 15}
    if request.param == "logmel":
        return LogMel(mode="streaming", **sizes)
    right = 2 if request.param.endswith("right") else 0
    return Wav2Vec2Features(tiny_wav2vec2, mode="streaming", right_context_frames=right, **sizes)


def speech(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames * 640, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_streaming_equals_live_blocks(streaming):
    wave = speech(37)
    offline = streaming(wave)
    spec = streaming.spec
    padded = torch.nn.functional.pad(wave, (0, 10 * 640))
    live = [streaming.block(padded[slice(*block_window(i, spec))][None])[0] for i in range(8)]
    assert offline.shape == (37, spec.dim)
    torch.testing.assert_close(torch.cat(live)[:37], offline, atol=1e-3, rtol=1e-3)  # float16 rounding of either


def test_no_block_hears_past_its_end(streaming):
    wave, spec = speech(30), streaming.spec
    changed = wave.clone()
    frame = 15
    changed[(frame + spec.right_context_frames) * 640 :] += 0.5
    a, b = streaming(wave), streaming(changed)
    assert torch.equal(a[:frame], b[:frame])
    assert not torch.equal(a[frame:], b[frame:])


def test_streaming_forgets_what_lies_before_its_window(streaming):
    wave = speech(40)
    changed = wave.clone()
    changed[: 10 * 640] = 0.3
    a, b = streaming(wave), streaming(changed)
    assert torch.equal(a[25:], b[25:])  # block [25, 30) starts its window at frame 15
    assert not torch.equal(a[10:20], b[10:20])


def test_utterance_mode_has_one_vector_a_frame(tiny_wav2vec2):
    for extractor in (LogMel(mode="utterance"), Wav2Vec2Features(tiny_wav2vec2, mode="utterance")):
        features = extractor(speech(25))
        assert features.shape == (25, extractor.spec.dim)
        assert extractor.spec.block_frames is None
        assert torch.isfinite(features).all()


def test_wav2vec2_layers_are_the_stock_models_hidden_states(tiny_wav2vec2):
    """At the rate where resampling changes nothing to speak of, ours are the stock hidden states 1..n, layer-major."""
    extractor = Wav2Vec2Features(tiny_wav2vec2, mode="utterance", resample="after")
    wave = speech(20)
    normalised = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
    stock = Wav2Vec2Model.from_pretrained(tiny_wav2vec2).eval()(normalised[None], output_hidden_states=True)
    expected = torch.cat(stock.hidden_states[1:], dim=-1).transpose(1, 2)
    expected = torch.nn.functional.interpolate(expected, size=20, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(extractor(wave), expected.half().float(), atol=2e-3, rtol=2e-3)


def test_training_mode_changes_nothing(tiny_wav2vec2):
    extractor = Wav2Vec2Features(tiny_wav2vec2, mode="utterance").train()
    assert torch.equal(extractor(speech(20)), extractor(speech(20)))
    assert not any(p.requires_grad for p in extractor.parameters())


def test_logmel_of_silence_is_low_and_of_speech_independent_of_level():
    mel = LogMel(mode="utterance")
    quiet = mel(torch.randn(6400, generator=torch.Generator().manual_seed(1)) * 1e-4)
    loud, louder = mel(speech(10) * 2), mel(speech(10) * 4)
    assert quiet.mean() < loud.mean() - 0.5
    torch.testing.assert_close(loud, louder, atol=0.02, rtol=0.02)


def test_bad_input():
    mel = LogMel()
    with pytest.raises(ValueError, match="NaN"):
        mel(torch.full((6400,), float("nan")))
    with pytest.raises(ValueError, match="640"):
        mel(torch.zeros(100))
    with pytest.raises(UserError, match="mode"):
        LogMel(mode="live")
    with pytest.raises(UserError, match="no-such-folder"):
        Wav2Vec2Features("./no-such-folder")


def test_the_model_is_as_wide_as_the_features_say(tiny_wav2vec2):
    words = ["experiment=denoiser_demo", "data.root=x", "features.dim=32"]
    config = resolve(compose("train", words))
    assert config["model"]["audio_feature_dim"] == instantiate(config["features"]).spec.dim == 32
    with pytest.raises(UserError, match=r"features\.dim=9216: the 2 layers of .* give 64"):
        Wav2Vec2Features(tiny_wav2vec2, dim=9216)
    with pytest.raises(ValueError, match="dim must be 2 hops"):
        LogMel(dim=33)
