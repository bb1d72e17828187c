from __future__ import annotations

import io
import pickle
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from af.clock import FPS, SAMPLE_RATE
from af.data import codecs
from af.data.audio import read_audio
from af.data.codecs import CodecError
from af.data.container import MediaError, probe
from af.data.video import _at_constant_rate, iter_video, read_video
from af.data.video_writer import write_video
from af.errors import UserError
from tests.toy_shards import moving_picture
from tests.toy_videos import make_video


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def numbered(frames: int, size: int = 64) -> np.ndarray:
    """Eight vertical stripes, black or white, are the bits of the frame's number."""
    bits = (np.arange(frames)[:, None] >> np.arange(8)) & 1
    return np.broadcast_to(np.repeat(bits * 255, size // 8, 1)[:, None, :, None], (frames, size, size, 3)).astype(
        np.uint8
    )


def number_of(frame: np.ndarray) -> int:
    stripes = frame.mean((0, 2)).reshape(8, -1).mean(1) > 128
    return int((stripes << np.arange(8)).sum())


@pytest.fixture(scope="module")
def clip_of_120() -> tuple[bytes, np.ndarray]:
    data = codecs.encode_video(numbered(120, 32))
    return data, codecs.decode_video(data)


# ------------------------------------------------------------------------------------------------------- members


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(st.sampled_from([np.float16, np.float32, np.int64, np.uint8, np.bool_]), hnp.array_shapes(max_side=5))
)
def test_npy_round_trip(array):
    again = codecs.decode_npy(codecs.encode_npy(array))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_npy_refuses_pickles_records_and_wrong_sizes():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CodecError, match="pickle"):
        codecs.decode_npy(buffer.getvalue())
    with pytest.raises(CodecError):
        codecs.encode_npy(np.array([{}], dtype=object))
    record = io.BytesIO()
    np.save(record, np.zeros(3, dtype=[("x", "<f4")]))
    with pytest.raises(CodecError, match="only numbers"):
        codecs.decode_npy(record.getvalue())
    good = codecs.encode_npy(np.zeros((4, 3), np.float32))
    for bad in (good[:-1], good + b"\0", good[:20], b"", pickle.dumps([1])):
        with pytest.raises(CodecError):
            codecs.decode_npy(bad)
    huge = good.replace(b"(4, 3)", b"(4000000000, 3)".ljust(15)).replace(b" " * 9 + b"\n", b"\n")
    with pytest.raises(CodecError):
        codecs.decode_npy(huge)


def test_only_whitelisted_formats_are_decoded():
    for name in ("a.pkl", "a.pyd", "a.pth", "a.npz", "a", "a.npy.gz"):
        with pytest.raises(CodecError, match="not among"):
            codecs.decode(name, pickle.dumps([1]))
    assert codecs.decode("json", b'{"a": [1]}') == {"a": [1]}
    for bad in (b"{", b"\xff", b"[NaN]", b"[" * 100_000):
        with pytest.raises(CodecError):
            codecs.decode("json", bad)


def test_sound_round_trip_and_refusals(tmp_path):
    sound = np.random.default_rng(0).uniform(-1, 1, 12345).astype(np.float32)
    again = codecs.decode_audio(codecs.encode_audio(sound))
    assert again.dtype == np.float32
    assert np.abs(again - sound).max() <= 2**-15
    for rate, shape in ((44100, (100,)), (16000, (100, 2))):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(shape, np.float32), rate, format="WAV")
        with pytest.raises(CodecError, match="mono"):
            codecs.decode_audio(buffer.getvalue())
    ogg = io.BytesIO()
    soundfile.write(ogg, np.zeros(1000, np.float32), 16000, format="OGG")
    with pytest.raises(CodecError, match="OGG"):
        codecs.decode_audio(ogg.getvalue())
    data = codecs.encode_audio(sound)
    for bad in (data[: len(data) // 2], b"", b"fLaC" + b"\0" * 100):
        with pytest.raises(CodecError):
            codecs.decode_audio(bad)
    with pytest.raises(CodecError, match="NaN"):
        codecs.encode_audio(np.full(10, np.nan, np.float32))


@pytest.mark.parametrize(("size", "pixel_format"), [(32, None), (256, None), (33, "yuv444p")])
def test_video_round_trip_is_close_and_exact_in_length(size, pixel_format):
    frames = moving_picture(30, size)
    data = codecs.encode_video(frames, pixel_format=pixel_format)
    assert data == codecs.encode_video(iter(frames), pixel_format=pixel_format)  # the same bytes again
    assert codecs.video_shape(data) == (30, size, size)
    again = codecs.decode_video(data)
    assert again.shape == frames.shape
    assert psnr(again, frames) > 33
    assert np.abs(again.mean((0, 1, 2)) - frames.mean((0, 1, 2))).max() < 1.5  # no colour shift


def test_colours_survive():
    flat = np.empty((4, 32, 32, 3), np.uint8)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 90), (255, 255, 255), (0, 0, 0)):
        flat[:] = colour
        again = codecs.decode_video(codecs.encode_video(flat))
        assert np.abs(again.astype(int) - flat).max() <= 4, colour


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    indices=st.lists(st.integers(0, 119), min_size=1, max_size=6),
    cut=st.tuples(st.integers(0, 119), st.integers(1, 30)),
)
def test_any_frame_can_be_had_alone(indices, cut, clip_of_120):
    data, whole = clip_of_120
    assert [number_of(f) for f in whole] == list(range(120))
    np.testing.assert_array_equal(codecs.decode_frames(data, indices), whole[indices])
    start, stop = cut[0], min(cut[0] + cut[1], 120)
    np.testing.assert_array_equal(codecs.decode_video(data, start, stop), whole[start:stop])


def test_broken_videos_are_refused():
    data = codecs.encode_video(moving_picture(40, 32))
    for bad in (b"", data[:100], data[: len(data) // 2], b"#EXTM3U\nfile:///etc/passwd\n", pickle.dumps([1])):
        with pytest.raises(CodecError):
            codecs.decode_video(bad)
    with pytest.raises(IndexError):
        codecs.decode_frames(data, [40])


# --------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("rate", [25, 30, Fraction(30000, 1001), 50, 60, 12, Fraction(15)])
def test_any_rate_becomes_25_fps_by_time_stamps(tmp_path, rate):
    count = round(float(rate) * 2)
    times = [n / Fraction(rate) for n in range(count)]
    make_video(tmp_path / "in.mp4", times, numbered(count))
    seen = [number_of(f) for f in iter_video(tmp_path / "in.mp4")]
    assert abs(len(seen) - float(count / Fraction(rate)) * FPS) <= 1
    for n, number in enumerate(seen[:-1]):
        shown = times[number]
        assert abs(shown - Fraction(n, FPS)) <= 1 / Fraction(rate) / 2 + Fraction(1, 1000), f"frame {n}"


def test_variable_rate_keeps_the_clock(tmp_path):
    rng = np.random.default_rng(1)
    times = [Fraction(0)]
    while times[-1] < 3:
        times.append(times[-1] + Fraction(int(rng.integers(8, 90)), 1000))
    make_video(tmp_path / "in.mkv", times, numbered(len(times)))
    seen = [number_of(f) for f in iter_video(tmp_path / "in.mkv")]
    for n, number in enumerate(seen):
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - Fraction(n, FPS)))
        # Matroska keeps milliseconds: allow what is as near to one of them
        assert abs(times[number] - Fraction(n, FPS)) <= abs(times[nearest] - Fraction(n, FPS)) + Fraction(1, 500)


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_constant_rate_takes_the_nearest_picture(steps):
    times = [Fraction(sum(steps[:i]), 1000) for i in range(len(steps))]
    pictures = [(t, Fraction(40, 1000), i) for i, t in enumerate(times)]
    chosen = list(_at_constant_rate(pictures))
    assert all(a <= b for a, b in pairwise(chosen))
    assert abs(len(chosen) / FPS - float(times[-1]) - 0.04) <= 0.04
    for n, i in enumerate(chosen):
        assert abs(times[i] - Fraction(n, FPS)) == min(abs(t - Fraction(n, FPS)) for t in times)


def test_phone_videos_are_turned_upright(tmp_path):
    frame = np.zeros((1, 64, 96, 3), np.uint8)
    frame[:, :20, :20, 0] = 255  # red corner, top left of what the sensor saw
    make_video(tmp_path / "in.mp4", [Fraction(n, 25) for n in range(5)], np.repeat(frame, 5, 0), rotate=90)
    upright = read_video(tmp_path / "in.mp4")[0]
    assert upright.shape == (96, 64, 3)
    assert upright[-10, 10, 0] > 200  # a quarter turn counterclockwise: the corner is now bottom left
    assert upright[10, 10, 0] < 60


def test_small_previews_are_scaled_down(tmp_path):
    make_video(tmp_path / "in.mp4", [Fraction(n, 25) for n in range(5)], moving_picture(5, 128)[:, :64])
    assert read_video(tmp_path / "in.mp4", max_side=32).shape == (5, 16, 32, 3)


def click_track(frames: int, at: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Black frames with a white flash, and silence with a noise burst, at the same frames."""
    rng = np.random.default_rng(0)
    video = np.zeros((frames, 64, 64, 3), np.uint8)
    sound = np.zeros(frames * 640, np.float32)
    for n in at:
        video[n] = 255
        sound[n * 640 : (n + 1) * 640] = rng.uniform(-0.8, 0.8, 640)
    return video, sound


def test_written_video_is_in_sync(tmp_path):
    video, sound = click_track(120, [10, 47, 90])
    # sound shorter, exact and longer than the pictures: always cut or padded to them
    for length in (len(sound) - 7000, len(sound), len(sound) + 9000):
        given_sound = np.pad(sound, (0, 9000))[:length]
        path = tmp_path / "out, with = odd : name %d.mp4"
        assert write_video(path, iter(video), given_sound) == 120
        with av.open(f"file:{path}") as container:
            durations = [float(s.duration * s.time_base) for s in container.streams]
            assert durations[0] == 120 / FPS
            assert abs(durations[1] - durations[0]) <= 1 / FPS
        again, heard = read_video(path), read_audio(path)
        assert len(again) == 120
        assert np.flatnonzero(again.mean((1, 2, 3)) > 128).tolist() == [10, 47, 90]
        assert abs(len(heard) - len(sound)) <= 640
        window = slice(5 * 640, 85 * 640)  # where every version has the sound
        lags = range(-400, 401)
        match = [np.dot(heard[window.start + lag : window.stop + lag], sound[window]) for lag in lags]
        assert abs(lags[int(np.argmax(match))]) <= 1


def test_written_video_takes_frames_one_by_one(tmp_path):
    alive = 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    peak = 0

    def frames():
        nonlocal alive, peak
        for n in range(100):
            alive += 1
            peak = max(peak, alive)
            yield np.full((64, 64, 3), n, np.uint8).view(Counted)

    write_video(tmp_path / "out.mp4", frames())
    assert peak <= 3


def test_failed_writing_leaves_nothing(tmp_path):
    def frames():
        yield np.zeros((64, 64, 3), np.uint8)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_video(tmp_path / "out.mp4", frames(), np.zeros(640, np.float32))
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "out.mp4", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (48000, 2), (44100, 1), (8000, 1)])
def test_sound_becomes_16_khz_mono_in_time(tmp_path, rate, channels):
    seconds = 1.5
    time = np.arange(int(rate * seconds)) / rate
    tone = 0.4 * np.sin(2 * np.pi * 440 * time) * (time > 0.5)
    soundfile.write(tmp_path / "in.wav", np.repeat(tone[:, None], channels, 1), rate)
    heard = read_audio(tmp_path / "in.wav")
    assert heard.dtype == np.float32
    assert abs(len(heard) - SAMPLE_RATE * seconds) <= 2
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / SAMPLE_RATE)
    middle = slice(int(0.7 * SAMPLE_RATE), int(1.3 * SAMPLE_RATE))
    assert np.abs(heard[middle] - expected[middle]).max() < 0.01
    assert np.abs(heard[: int(0.45 * SAMPLE_RATE)]).max() < 0.01


def test_later_sound_starts_with_silence(tmp_path):
    """A file whose sound begins 0.4 s after its pictures."""
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        sound = container.add_stream("pcm_s16le", rate=16000)
        sound.layout = "mono"
        for n in range(25):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = n, Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for n in range(10):
            block = av.AudioFrame.from_ndarray(np.full((1, 960), 9000, np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16000, 6400 + n * 960, Fraction(1, 16000)
            container.mux(sound.encode(block))
    heard = read_audio(tmp_path / "in.mkv")
    assert abs(int(np.argmax(heard > 0.1)) - 6400) <= 16
    assert abs(len(heard) - 16000) <= 16


def test_bad_files_say_which_and_why(tmp_path):
    good = tmp_path / "good.mp4"
    video, sound = click_track(100, [3])
    rng = np.random.default_rng(0)
    write_video(good, rng.integers(0, 255, (100, 64, 64, 3), np.uint8), sound)
    write_video(tmp_path / "mute.mp4", video)
    soundfile.write(tmp_path / "sound.wav", sound, 16000)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:20_000])
    noise = rng.integers(0, 255, (100, 64, 64, 3), np.uint8)
    make_video(tmp_path / "whole.mkv", [Fraction(n, 25) for n in range(100)], noise)
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    with (
        av.open(str(good)) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "+faststart"}) as out,
    ):
        streams = {s: out.add_stream_from_template(s) for s in source.streams}  # the same with its table in front
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                out.mux(packet)
    data = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut_fast.mp4").write_bytes(data[: len(data) // 2])
    cases = [
        ("missing.mp4", read_video, "missing"),
        ("empty.mp4", read_video, "empty"),
        ("text.mp4", read_video, "not_media"),
        ("cut.mp4", read_video, "not_media"),
        ("cut.mkv", read_video, "truncated"),
        ("cut_fast.mp4", read_video, "truncated"),
        ("cut_fast.mp4", read_audio, "truncated"),
        ("sound.wav", read_video, "no_video"),
        ("mute.mp4", read_audio, "no_audio"),
        ("empty.mp4", read_audio, "empty"),
        (".", read_video, "not_media"),
    ]
    for name, read, reason in cases:
        with pytest.raises(MediaError) as caught:
            read(tmp_path / name)
        assert caught.value.reason == reason, name
        assert str(tmp_path / name) in str(caught.value)
        assert isinstance(caught.value, UserError)
        again = pickle.loads(pickle.dumps(caught.value))  # as it travels from a worker
        assert (again.reason, str(again)) == (reason, str(caught.value))
    assert probe(good).has_audio
    assert not probe(tmp_path / "mute.mp4").has_audio
