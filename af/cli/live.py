"""Talk with the avatar in a browser: a server with one page, for models that answer as they hear and see.

af live --autoencoder runs/vae/export --denoiser runs/denoiser/export

Open the address that it prints. The user is a drawn person whom you steer (smile, nod, tilt, blink, talk), or your
camera and microphone; the avatar's voice is a file, text (by espeak-ng, where installed) or what a program sends
(`af.serve.client`). The page shows how the avatar reacts, how long that takes, and what happens without each signal.

Only this machine can use it, unless --host is another address: then a token is needed, which is part of the printed
address, and TLS (--tls-certificate) for cameras and microphones of other machines. Nothing is written to disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.cli.devices import add_device_argument, device_of
from af.cli.options import add_settings, count, number, positive, seed, settings_of
from af.cli.sampling import add_sampling_arguments, anchor_of, guidance_of

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "the server has stopped"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af live`."""
    from af.serve.limits import Limits

    models = parser.add_argument_group("models")
    models.add_argument("--autoencoder", type=Path, required=True, help="folder, run or checkpoint of the motion VAE")
    models.add_argument("--denoiser", type=Path, required=True, help="folder, run or checkpoint of the denoiser")
    add_device_argument(models)
    models.add_argument("--precision", help="fp32, bf16 or auto (what is fast here): pack the denoiser's weights")
    people = parser.add_argument_group("people")
    people.add_argument("--portrait", type=Path, help="image of the avatar (default: a drawn person)")
    people.add_argument("--no-crop", action="store_true", help="the portrait is a face crop already")
    people.add_argument("--voice", type=Path, help="a recording that the page lets the avatar say")
    people.add_argument("--seed", type=seed, default=0, help="draws the puppet, the portrait and the noise (default 0)")
    sampling = parser.add_argument_group("sampling")
    add_sampling_arguments(sampling)
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    network.add_argument("--port", type=number(int, least=0, most=65535, whole=True), default=8765, help="default 8765")
    network.add_argument("--token", help="what clients of other machines must know (default: a new one each time)")
    network.add_argument("--origin", action="append", default=[], help="pages of this origin may use the server, too")
    network.add_argument("--tls-certificate", type=Path, help="PEM file; with it the server speaks HTTPS")
    network.add_argument("--tls-key", type=Path, help="its key (default: in the same file)")
    network.add_argument("--ice", action="append", default=[], metavar="URL", help="STUN or TURN server: stun:HOST:PORT, "
                         "or turn:USER:PASSWORD@HOST:PORT")  # fmt: skip
    limits = parser.add_argument_group("limits")
    add_settings(limits, Limits, {
        "conversations": ("--conversations", count, "at one time"),
        "idle_s": ("--idle", positive, "seconds without a word or an action until a conversation is closed"),
        "length_s": ("--length", positive, "seconds that a conversation may last"),
    })  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    import asyncio
    import secrets

    from af.data.audio import read_audio
    from af.data.container import Notes
    from af.ingest.crops import read_portrait
    from af.pipeline.avatar import Avatar
    from af.serve import puppet
    from af.serve.conversation import Settings
    from af.serve.limits import Limits
    from af.serve.server import Access, LiveServer, ice_server, is_loopback, serve, tls
    from af.serve.service import Service

    security, ice = tls(args.tls_certificate, args.tls_key), [ice_server(url) for url in args.ice]
    token = args.token if is_loopback(args.host) else args.token or secrets.token_urlsafe(16)
    avatar = Avatar.load(args.autoencoder, args.denoiser, device_of(args), args.precision)
    size, notes = avatar.autoencoder.image_size, Notes()
    if args.portrait is None:
        portrait = puppet.portrait(args.seed, size)
    else:
        portrait = read_portrait(args.portrait, size, find_face=not args.no_crop, notes=notes)
    voice = None if args.voice is None else read_audio(args.voice, notes=notes)
    sampling = {"steps": args.steps, "guidance": guidance_of(args), "anchor": anchor_of(args)}
    service = Service(avatar, portrait, Settings(sampling, cushion_ms=60, seed=args.seed), settings_of(args, Limits))
    for note in notes:
        print(f"note: {note.text}")
    service.start()

    def started(address: str) -> None:
        print(f"open {address}\nCtrl-C stops the server", flush=True)

    server = LiveServer(service, Access(token, args.origin, ("localhost", "127.0.0.1", "::1", args.host)), voice, ice)
    asyncio.run(serve(server, args.host, args.port, security, started))
    return 0
