"""Whatever a sound file is made of, the voice in it arrives: once, in time, at its level; or a line says why not."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from af.data.audio import mixing, read_audio
from af.data.container import MediaError, Notes
from af.data.video import iter_video


def voice(seconds: float = 1.0, hertz: float = 440.0, rate: int = 16000, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.asarray(sound, np.float64) ** 2)))


def hertz_of(sound: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound))) * 16000 / len(sound))


def add_track(container, samples: np.ndarray, codec: str, layout: str, rate: int = 16000, *, start_s: float = 0.0):
    """A sound track of (S, C) samples; call what is returned to write it."""
    stream = container.add_stream(codec, rate=rate)
    stream.layout = layout

    def write() -> None:
        whole = np.ascontiguousarray(np.rint(samples * 32767).astype(np.int16))
        for at in range(0, len(whole), 1024):
            block = av.AudioFrame.from_ndarray(whole[at : at + 1024].reshape(1, -1), format="s16", layout=layout)
            block.sample_rate, block.time_base = rate, Fraction(1, rate)
            block.pts = round(start_s * rate) + at
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))

    return stream, write


def write_sound(path: Path, samples: np.ndarray, codec: str, layout: str, rate: int = 16000, **more) -> Path:
    with av.open(str(path), "w") as container:
        add_track(container, samples, codec, layout, rate, **more)[1]()
    return path


def kinds(notes: Notes) -> list[str]:
    return [note.kind for note in notes]


# ---------------------------------------------------------------------------------------------------------- channels

_LAYOUTS = {"mono": 1, "stereo": 2, "2.1": 3, "3.0": 3, "quad": 4, "5.0": 5, "5.1": 6, "7.1": 8}


@pytest.mark.parametrize(
    ("layout", "gains"),
    [
        ("mono", {0: 1}),
        ("stereo", {0: 1, 1: 1}),
        ("stereo", {0: 1}),
        ("stereo", {1: 1}),
        ("stereo", {0: 1, 1: -1}),
        ("stereo", {0: 1, 1: 0.01}),  # the other channel hums
        ("2.1", {1: 1}),
        ("3.0", {2: 1}),
        ("quad", {3: 1}),
        ("5.0", {2: 1}),
        ("5.1", {2: 1}),
        ("5.1", {0: 1, 1: 1}),
        ("5.1", {2: 1, 3: 0.5}),  # with a rumble that has no share
        ("7.1", {2: 1}),
        ("7.1", {7: 1}),
    ],
)
def test_a_voice_keeps_its_level_wherever_it_is(tmp_path, layout, gains):
    samples = np.zeros((16000, _LAYOUTS[layout]))
    for channel, gain in gains.items():
        samples[:, channel] = gain * voice()
    heard = read_audio(write_sound(tmp_path / "in.mkv", samples, "flac", layout))
    assert rms(heard) == pytest.approx(rms(voice()), rel=0.01)


@pytest.mark.parametrize(
    ("codec", "layout", "channels", "ending"),
    [("aac", "7.1", 8, "mp4"), ("aac", "hexadecagonal", 16, "mp4"), ("wavpack", "hexadecagonal", 16, "mkv")],
)
def test_planar_sound_of_many_channels_is_heard(tmp_path, codec, layout, channels, ending):
    """More than seven planes of samples used to end the process."""
    samples = np.zeros((16000, channels))
    samples[:, 4] = voice()
    heard = read_audio(write_sound(tmp_path / f"in.{ending}", samples, codec, layout))
    assert rms(heard[1000:15000]) == pytest.approx(rms(voice()), rel=0.05)


@pytest.mark.parametrize("channels", [3, 9, 24, 64])
def test_channels_without_names_are_heard(tmp_path, channels):
    samples = np.zeros((16000, channels))
    samples[:, -1] = voice()
    soundfile.write(tmp_path / "in.wav", samples, 16000)
    notes = Notes()
    assert rms(read_audio(tmp_path / "in.wav", notes=notes)) == pytest.approx(rms(voice()), rel=0.01)
    assert kinds(notes) == ["channels"]


def test_too_many_channels_are_refused_by_name(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros((1600, 100)), 16000)
    with pytest.raises(MediaError, match=r"in\.wav.*100 audio channels"):
        read_audio(tmp_path / "in.wav")


@given(
    st.sampled_from([("FL", "FR"), ("FL", "FR", "FC", "LFE", "BL", "BR"), ("NONE",) * 5, ("FL", "FR", "BL", "BR")]),
    st.data(),
)
def test_no_signs_make_a_voice_cancel_itself(layout, data):
    """One voice in any of the channels, there or turned around: the mix keeps at least a quarter of the loudest."""
    gains = np.array([data.draw(st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0])) for _ in layout])
    gains[[n == "LFE" for n in layout]] = 0
    shares, _ = mixing(layout, np.outer(gains, gains))
    assert abs(shares @ gains) >= 0.25 * np.abs(gains).max()
    assert np.abs(shares).max() <= 1


def test_what_is_odd_about_channels_and_level_is_noted(tmp_path):
    pair = np.stack([voice(), voice()], 1)
    cases = [
        (pair, []),
        (pair * [1, 0], ["channels"]),
        (pair * [1, -1], ["channels"]),
        (pair * 0.001, ["level"]),
        (pair * 0, ["level"]),
        (np.clip(pair * 20, -1, 1), ["clipping"]),
    ]
    for n, (samples, expected) in enumerate(cases):
        soundfile.write(tmp_path / f"{n}.wav", samples, 16000)
        notes = Notes()
        read_audio(tmp_path / f"{n}.wav", notes=notes)
        assert kinds(notes) == expected, n
        assert all(f"{n}.wav" in note.text for note in notes)


# ------------------------------------------------------------------------------------------------------------ tracks


@pytest.mark.parametrize(
    ("levels", "default", "taken"),
    [
        ([0, 0.3], 1, 1),  # the first is silent, the second the default
        ([0, 0.3], 0, 1),  # the default is silent
        ([0.3, 0.3], 1, 1),
        ([0.3, 0.3], 0, 0),
        ([0.3, 0], 1, 0),
        ([0, 0, 0.3], 0, 2),
    ],
)
def test_the_track_with_the_voice_is_taken(tmp_path, levels, default, taken):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        tracks = [
            add_track(container, voice(hertz=300.0 + 200 * n, level=level)[:, None], "pcm_s16le", "mono")
            for n, level in enumerate(levels)
        ]
        for n, (stream, _) in enumerate(tracks):
            stream.disposition = av.stream.Disposition.default if n == default else av.stream.Disposition(0)
        for _, write in tracks:
            write()
    notes = Notes()
    heard = read_audio(tmp_path / "in.mkv", notes=notes)
    assert hertz_of(heard) == pytest.approx(300 + 200 * taken, abs=2)
    assert kinds(notes) == ["tracks"]
    assert f"number {taken + 1} is taken" in next(iter(notes)).text


def test_a_commentary_comes_last(tmp_path):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        tracks = [add_track(container, voice(hertz=h)[:, None], "pcm_s16le", "mono") for h in (300.0, 500.0)]
        for (stream, _), kind in zip(tracks, (av.stream.Disposition.comment, 0), strict=True):
            stream.disposition = av.stream.Disposition(kind)
        for _, write in tracks:
            write()
    notes = Notes()
    assert hertz_of(read_audio(tmp_path / "in.mkv", notes=notes)) == pytest.approx(500, abs=2)
    assert "number 2 is taken, the first that is not a commentary" in next(iter(notes)).text


def test_a_sound_around_another_value_than_zero_is_noted(tmp_path):
    for name, level in (("voice", 1.0), ("nothing", 0.0)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 + level * voice(), 16000, subtype="FLOAT")
        notes = Notes()
        read_audio(tmp_path / f"{name}.wav", notes=notes)
        said = [note.text.split(": ", 1)[1] for note in notes]
        assert said[0].startswith("the audio has a mean of 0.10, not 0")
        assert any("silent" in text for text in said) == (level == 0)


def test_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "in.m4a"), "w", format="mp4") as container:
        _, write = add_track(container, voice()[:, None], "aac", "mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        container.mux(cover.encode(None))
        write()
    with pytest.raises(MediaError, match="no video stream but a cover"):
        next(iter_video(tmp_path / "in.m4a"))


# ------------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("full_scale", [2.0**15, 2.0**23, 2.0**31, 1.0, 1.5, 10.0])
def test_floats_of_any_scale_come_out_whole(tmp_path, full_scale):
    """A sine at the top of its scale stays a sine: nothing is clipped."""
    soundfile.write(tmp_path / "in.wav", voice(level=0.999 * full_scale), 16000, subtype="FLOAT")
    notes = Notes()
    heard = read_audio(tmp_path / "in.wav", notes=notes)
    assert rms(heard) == pytest.approx(np.abs(heard).max() / np.sqrt(2), rel=0.01)
    assert np.abs(heard).max() == pytest.approx(1, abs=0.01)
    assert ("level" in kinds(notes)) == (full_scale > 2)


def test_floats_without_any_scale_are_refused(tmp_path):
    soundfile.write(tmp_path / "in.wav", voice(level=1e12), 16000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"samples up to 1e\+12"):
        read_audio(tmp_path / "in.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_silence_and_counted(tmp_path, value):
    samples = voice()
    samples[4000:4100] = value
    soundfile.write(tmp_path / "in.wav", samples, 16000, subtype="FLOAT")
    notes = Notes()
    heard = read_audio(tmp_path / "in.wav", notes=notes)
    np.testing.assert_allclose(heard, np.where(np.isfinite(samples), samples, 0), atol=1e-6)
    assert [(n.kind, "100 of 16000" in n.text) for n in notes] == [("corruption", True)]
    samples[:] = value
    soundfile.write(tmp_path / "in.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(MediaError, match="16000 of 16000 samples are not numbers"):
        read_audio(tmp_path / "in.wav")


@pytest.mark.parametrize(
    ("ending", "subtype"),
    [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("w64", "PCM_16"), ("caf", "PCM_16"), ("aiff", "PCM_16")],
)
def test_sound_that_is_cut_off_says_both_lengths(tmp_path, ending, subtype):
    soundfile.write(tmp_path / f"whole.{ending}", voice(4.0), 16000, subtype=subtype)
    assert len(read_audio(tmp_path / f"whole.{ending}")) == 64000
    data = (tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"in.{ending}").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"declares 4\.00 s but the audio ends at (2\.0|1\.9)\d s") as caught:
        read_audio(tmp_path / f"in.{ending}")
    assert caught.value.reason == "truncated"
    (tmp_path / f"in.{ending}").write_bytes(data[: int(0.94 * len(data))])
    notes = Notes()
    assert len(read_audio(tmp_path / f"in.{ending}", notes=notes)) == pytest.approx(0.94 * 64000, rel=0.02)
    assert kinds(notes) == ["lengths"]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_is_whole(tmp_path, size):
    """Its header was written before its length was known."""
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", size, b"WAVE", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    samples = np.rint(voice() * 32767).astype("<i2").tobytes()
    (tmp_path / "in.wav").write_bytes(head + struct.pack("<4sI", b"data", size) + samples)
    np.testing.assert_allclose(read_audio(tmp_path / "in.wav"), voice(), atol=1e-4)


@pytest.mark.parametrize("more", [False, True])
def test_sound_that_the_header_does_not_count_is_noted(tmp_path, more):
    """A recorder died before it brought its header up to date; other chunks behind the samples are none of it."""
    soundfile.write(tmp_path / "in.wav", voice(3.0), 16000, subtype="PCM_16")
    data = bytearray((tmp_path / "in.wav").read_bytes())
    at = data.index(b"data") + 4
    if more:
        data[at : at + 4] = struct.pack("<I", 32000)
    (tmp_path / "in.wav").write_bytes(data + b"LIST" + struct.pack("<I", 40000) + bytes(40000))
    notes = Notes()
    assert len(read_audio(tmp_path / "in.wav", notes=notes)) == (16000 if more else 48000)
    said = [note.text for note in notes]
    assert [("s behind the first 1.00 s" in text, "-ignore_length 1" in text) for text in said] == [(True, True)] * more


def test_a_track_without_any_of_its_samples_is_cut_off(tmp_path):
    soundfile.write(tmp_path / "in.wav", voice(3.0), 16000, subtype="PCM_16")
    (tmp_path / "in.wav").write_bytes((tmp_path / "in.wav").read_bytes()[:44])
    with pytest.raises(MediaError, match=r"declares 3\.00 s but its audio track holds no samples"):
        read_audio(tmp_path / "in.wav")


# ----------------------------------------------------------------------------------------------- changes and damage


def test_a_change_of_rate_and_channels_is_followed(tmp_path):
    """Two recordings one after the other in one transport stream."""
    parts = []
    for n, (rate, layout, channels) in enumerate([(16000, "mono", 1), (48000, "stereo", 2)]):
        samples = np.repeat(voice(2.0, 400.0 + 400 * n, rate)[:, None], channels, 1)
        parts.append(write_sound(tmp_path / f"{n}.ts", samples, "aac", layout, rate, start_s=2.0 * n).read_bytes())
    (tmp_path / "in.ts").write_bytes(b"".join(parts))
    notes = Notes()
    heard = read_audio(tmp_path / "in.ts", notes=notes)
    assert len(heard) == pytest.approx(4 * 16000, abs=0.2 * 16000)
    assert hertz_of(heard[8000:24000]) == pytest.approx(400, abs=4)
    assert hertz_of(heard[40000:56000]) == pytest.approx(800, abs=4)
    assert rms(heard[8000:24000]) == pytest.approx(rms(heard[40000:56000]), rel=0.1)
    assert "rate" in kinds(notes)


def test_lost_sound_is_silence_in_its_place_and_noted(tmp_path):
    write_sound(tmp_path / "whole.mkv", voice(3.0)[:, None], "aac", "mono")
    with av.open(str(tmp_path / "whole.mkv")) as source, av.open(str(tmp_path / "in.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is not None and not 1.0 < float(packet.pts * packet.time_base) < 2.0:
                packet.stream = stream
                out.mux(packet)
    notes = Notes()
    heard = read_audio(tmp_path / "in.mkv", notes=notes)
    assert len(heard) == pytest.approx(3 * 16000, abs=2048)
    assert np.abs(heard[20000:30000]).max() < 0.01
    assert rms(heard[35000:45000]) == pytest.approx(rms(voice()), rel=0.1)
    assert kinds(notes) == ["corruption"]


def test_damaged_sound_packets_cost_themselves_alone(tmp_path):
    write_sound(tmp_path / "whole.mkv", voice(3.0)[:, None], "aac", "mono")
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "whole.mkv")) as source, av.open(str(tmp_path / "in.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is None:
                continue
            if 1.0 < float(packet.pts * packet.time_base) < 1.5:
                noise = av.Packet(rng.bytes(packet.size))
                noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                noise.duration, packet = packet.duration, noise
            packet.stream = stream
            out.mux(packet)
    notes = Notes()
    heard = read_audio(tmp_path / "in.mkv", notes=notes)
    assert len(heard) == pytest.approx(3 * 16000, abs=2048)
    assert rms(heard[28000:45000]) == pytest.approx(rms(voice()), rel=0.1)
    assert "corruption" in kinds(notes)
