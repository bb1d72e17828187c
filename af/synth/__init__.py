"""Synthetic conversations whose causes are known: people, faces, voices, reactions, shards. No download."""

from af.synth.appearance import Appearance
from af.synth.build import GENERATOR_VERSION, SynthSettings, appearance_of, build
from af.synth.face import FACE_INDEX, FACE_NAMES, FACE_RANGES, FACE_SPEC
from af.synth.render import regions, render
from af.synth.session import REACTION_LAG_FRAMES, Session, SessionConfig, Side, simulate

__all__ = [
    "FACE_INDEX",
    "FACE_NAMES",
    "FACE_RANGES",
    "FACE_SPEC",
    "GENERATOR_VERSION",
    "REACTION_LAG_FRAMES",
    "Appearance",
    "Session",
    "SessionConfig",
    "Side",
    "SynthSettings",
    "appearance_of",
    "build",
    "regions",
    "render",
    "simulate",
]
