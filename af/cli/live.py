"""Talk with the avatar in a browser: a server with one page, for models that answer as they hear and see.

  af live
  af live --autoencoder runs/vae/export --denoiser runs/denoiser/export

Open the address that it prints. Without models you meet a small avatar of drawn people that comes with the package and
talks from the start. The user is a drawn person whom you steer (smile, nod, tilt, blink, talk), or your camera and
microphone; the avatar's voice is a file, text (by espeak-ng, where installed) or what a program sends
(`af.serve.client`). The page shows how the avatar reacts, how long that takes, and what happens without each signal.

Only this machine can use it, unless --host is another address: then a token is needed, which is part of the printed
address, and TLS (--tls-certificate) for cameras and microphones of other machines. Nothing is written to disk, unless
--record names a folder; the page says so then.

A small mark in every frame says that it is generated; --no-mark leaves it out, for research.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from af.cli.kinds import Device, Model, OutFolder, Seed, number
from af.cli.options import More
from af.cli.sampling import Sampling
from af.errors import UserError
from af.serve.limits import Limits

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "the server has stopped"
_SEVERAL = More(action="append")


def run(
    *,
    autoencoder: Annotated[
        Model | None, "folder, run or checkpoint of the motion VAE (default: of drawn people)"
    ] = None,
    denoiser: Annotated[Model | None, "folder, run or checkpoint of the denoiser"] = None,
    device: Device = "auto",
    precision: Annotated[str | None, "fp32, bf16 or auto (what is fast here): pack the denoiser's weights"] = None,
    runtime: Annotated[
        Literal["auto", "torch", "onnx"],
        "what computes: onnx exports the models first; auto is onnx on a CPU that has it, otherwise torch (default auto)",
    ] = "auto",
    portrait: Annotated[Path | None, "image of the avatar (default: a drawn person)"] = None,
    no_crop: Annotated[bool, "the portrait is a face crop already"] = False,
    voice: Annotated[Path | None, "a recording that the page lets the avatar say"] = None,
    student: Annotated[Model | None, "a distilled denoiser that the page can switch to, one pass per block"] = None,
    replay: Annotated[
        Path | None, "shards, such as data/demo/test: conversations that can take the user's place"
    ] = None,
    record: Annotated[OutFolder | None, "write every session there, as shards"] = None,
    seed: Annotated[Seed, "draws the puppet, the portrait and the noise"] = 0,
    sampling: Sampling,
    no_mark: Annotated[bool, "draw no mark into the frames, for research"] = False,
    host: Annotated[str, "address to listen on (default 127.0.0.1: this machine)"] = "127.0.0.1",
    port: Annotated[int, number(int, least=0, most=65535, whole=True), "of the server"] = 8765,
    token: Annotated[str | None, "what clients of other machines must know (default: a new one each time)"] = None,
    origin: Annotated[list[str] | None, _SEVERAL, "pages of this origin may use the server, too"] = None,
    tls_certificate: Annotated[Path | None, "PEM file; with it the server speaks HTTPS"] = None,
    tls_key: Annotated[Path | None, "its key (default: in the same file)"] = None,
    ice: Annotated[
        list[str] | None,
        _SEVERAL,
        More(metavar="URL"),
        "STUN or TURN server: stun:HOST:PORT, or turn:USER:PASSWORD@HOST:PORT",
    ] = None,
    limits: Limits,
) -> None:
    """Serve until Ctrl-C."""
    import asyncio
    import secrets
    from functools import partial

    from af.data.audio import read_audio
    from af.data.container import Notes
    from af.ingest.crops import read_portrait
    from af.models.artifact import load_model
    from af.models.autoencoder import MotionAutoencoder
    from af.models.denoiser import MotionDenoiser
    from af.pipeline.avatar import Avatar
    from af.pipeline.live import free_cores
    from af.pipeline.sampling import ONE_PASS, usual_sampling
    from af.serve import puppet
    from af.serve.recordings import Recordings
    from af.serve.replay import Replays
    from af.serve.server import Access, LiveServer, ice_server, is_loopback, serve, tls
    from af.serve.service import Service
    from af.serve.settings import Settings
    from af.serve.ship import AUTOENCODER, DENOISER, PORTRAIT, STUDENT, VOICE, shipped
    from af.share.onnx_avatar import live_avatar

    if (autoencoder is None) != (denoiser is None):
        raise UserError("--autoencoder and --denoiser belong together: give both, or neither")
    talkative, begin_with_student = autoencoder is None and voice is None, False
    if autoencoder is None or denoiser is None:
        own = shipped()
        autoencoder, denoiser = own / AUTOENCODER, own / DENOISER
        portrait, voice = portrait or own / PORTRAIT, voice or own / VOICE
        no_crop = no_crop or portrait == own / PORTRAIT
        begin_with_student = student is None
        student = student or own / STUDENT
    security, servers = tls(tls_certificate, tls_key), [ice_server(url) for url in ice or []]
    token = token if is_loopback(host) else token or secrets.token_urlsafe(16)
    images, motion = load_model(autoencoder, MotionAutoencoder), load_model(denoiser, MotionDenoiser)
    notes = Notes()
    usual = usual_sampling(motion.info)
    how = sampling.over(usual)
    begin_with_student &= all(how[name] == usual[name] for name in ("steps", "solver", "schedule", "guidance"))
    if motion.info.get("stage") == "distill":
        notes.add("student", f"{denoiser} is a student: few passes per block, without guidance")
    learned = None if student is None else load_model(student, MotionDenoiser)
    learned_how = ONE_PASS if learned is None else usual_sampling(learned.info)
    assert isinstance(images.model, MotionAutoencoder)
    size = images.model.image_size
    if portrait is None:
        face = puppet.portrait(seed, size)
    else:
        face = read_portrait(portrait, size, find_face=not no_crop, notes=notes)
    spoken = None if voice is None else read_audio(voice, notes=notes)
    replays = None if replay is None else Replays(replay, size)
    threads = free_cores(spared=1)  # one for the coding of video and sound, and the lines
    options: Any = {"device": device, "precision": precision, "runtime": runtime, "threads": threads, "notes": notes}
    make: Any = partial(live_avatar, images, **options)
    avatar = make(motion, how)
    begin_with_student &= isinstance(avatar, Avatar) and avatar.device.type == "cpu"  # torch on a CPU is slow
    service = Service(
        avatar,
        face,
        Settings(how, cushion_ms=60, seed=seed, mark=not no_mark, student=begin_with_student),
        limits,
        student=None if learned is None else make(learned, learned_how),
        student_sampling=learned_how,
        replays=replays,
        recordings=None if record is None else Recordings(record, size),
    )
    if record is not None:
        print(f"sessions are recorded in {record}")
    for note in notes:
        print(f"note: {note.text}")
    sys.setswitchinterval(2e-4)  # s: at the usual 5 ms, sending a frame holds up the thread that computes the next ones
    service.start()

    def started(address: str) -> None:
        print(f"open {address}\nCtrl-C stops the server", flush=True)

    access = Access(token, origin or [], ("localhost", "127.0.0.1", "::1", host))
    asyncio.run(serve(LiveServer(service, access, spoken, servers, talkative), host, port, security, started))
