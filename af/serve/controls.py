"""Control messages of a client: JSON objects with an entry `do`, checked before they do anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from af.errors import UserError, did_you_mean
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.pieces import Signals, check_names
from af.serve.conversation import Conversation
from af.serve.settings import Model
from af.serve.voices import spoken
from af.values import require_number

LONGEST_MESSAGE: Final = 4096  # characters
_SCALES: Final = ("audio", "user")  # of guidance
#: The most steps and the largest guidance scale that a client may ask for.
MOST_STEPS, MOST_GUIDANCE = 32, 10.0


@dataclass(frozen=True)
class Controls:
    """Carries out a client's messages for its conversation. `voice`: a recording that the avatar can say; `anchor`: what
    it is held by when a client asks for it.
    """

    conversation: Conversation
    voice: Float32[np.ndarray, " S"] | None = None
    anchor: Anchor = Anchor(sink_frames=10, pull=0.1)  # noqa: RUF009 (frozen)
    _speaking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def __call__(self, text: str) -> dict[str, Any] | None:
        """Do what a message asks for. Returns an answer, `{"error": …}` for what cannot be done, or None."""
        try:
            if len(text) > LONGEST_MESSAGE:
                raise UserError(f"a message has at most {LONGEST_MESSAGE} characters, not {len(text)}")
            message = json.loads(text)
            if not isinstance(message, dict) or not isinstance(message.get("do"), str):
                raise UserError('a message is an object with an entry "do"')
            do = message.pop("do")
            if do not in _DO:
                near = did_you_mean(do, list(_DO)) or f"; it is one of {', '.join(_DO)}"
                raise UserError(f"do: unknown {do!r}{near}")
            answer = await _DO[do](self, message)
            self.conversation.touch()
            return answer
        except (UserError, ValueError, RecursionError) as error:
            return {"error": str(error) or "the message does not fit"}

    async def _steer(self, message: Mapping[str, Any]) -> None:
        self.conversation.steer(message)

    async def _act(self, message: Mapping[str, Any]) -> None:
        self.conversation.act(_text(message, "what"))

    async def _user(self, message: Mapping[str, Any]) -> None:
        self.conversation.be(_text(message, "user"))  # type: ignore[arg-type]

    async def _replay(self, message: Mapping[str, Any]) -> dict[str, Any]:
        check_names(message, ("number",), "replay")
        number = message.get("number")
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError("number: a whole number is needed")
        self.conversation.replay(number)
        return {"replays": number}

    async def _say(self, message: Mapping[str, Any]) -> dict[str, Any]:
        text = _text(message, "text")
        if self._speaking.locked():
            raise UserError("say: the text before is still being turned into speech")
        async with self._speaking:
            sound = await spoken(text)
        self.conversation.say(sound)
        return {"says": len(sound)}

    async def _play(self, message: Mapping[str, Any]) -> dict[str, Any]:
        check_names(message, (), "play")
        if self.voice is None:
            raise UserError("play: the server was started without a recording (--voice FILE)")
        self.conversation.say(self.voice)
        return {"says": len(self.voice)}

    async def _interrupt(self, message: Mapping[str, Any]) -> None:
        check_names(message, (), "interrupt")
        self.conversation.interrupt()

    async def _restart(self, message: Mapping[str, Any]) -> None:
        check_names(message, (), "restart")
        self.conversation.restart()

    async def _change(self, message: Mapping[str, Any]) -> dict[str, Any]:
        check_names(message, ("student", "signals", "anchor", "steps", "audio", "user", "barge_in"), "change")
        given: dict[str, Any] = {}
        for name in {"student", "anchor", "barge_in"} & set(message):
            if not isinstance(message[name], bool):
                raise UserError(f"{name}: true or false")
            given[name] = message[name]
        model, sampling = self.conversation.choice(message.get("student", self.conversation.on_student))
        if message.get("anchor") and not model.avatar.anchored:
            raise UserError("anchor: this avatar runs on ONNX; start the server with --runtime torch")
        if "anchor" in message:
            given["anchor"] = self.anchor if message["anchor"] else Anchor()
        if "signals" in message:
            names = tuple(vars(Signals()))
            signals = message["signals"]
            if not isinstance(signals, dict) or not all(isinstance(value, bool) for value in signals.values()):
                raise UserError(f"signals: an object of {', '.join(names)}, each true or false")
            check_names(signals, names, "signals")
            given["signals"] = Signals(**{**vars(self.conversation.settings.signals), **signals})
        if "steps" in message:
            require_number("steps", message["steps"], least=1, most=MOST_STEPS, whole=True)
            given["steps"] = message["steps"]
        if scales := {name: message[name] for name in _SCALES if name in message}:
            given["guidance"] = _guided(model, sampling, scales)
        self.conversation.change(**given)
        return {"settings": self.settings()}

    def settings(self) -> dict[str, Any]:
        """The conversation's settings that a client can change."""
        settings, model = self.conversation.settings, self.conversation.model
        guidance = _guidance(settings.sampling)
        scales = {name: None if _refusal(model, guidance, name) else getattr(guidance, name) for name in _SCALES}
        return {
            "signals": dict(vars(settings.signals)),
            "barge_in": settings.barge_in,
            "anchor": settings.sampling.get("anchor", Anchor()) != Anchor(),
            "student": self.conversation.on_student,
            "block_frames": model.block_frames,
            "steps": settings.sampling.get("steps", 8),
            **scales,
        }


_DO: Final[Mapping[str, Callable[[Controls, dict[str, Any]], Awaitable[dict[str, Any] | None]]]] = {
    "steer": Controls._steer,
    "act": Controls._act,
    "user": Controls._user,
    "replay": Controls._replay,
    "say": Controls._say,
    "play": Controls._play,
    "interrupt": Controls._interrupt,
    "restart": Controls._restart,
    "change": Controls._change,
}


def _text(message: Mapping[str, Any], name: str) -> str:
    check_names(message, (name,), "the message")
    if not isinstance(message.get(name), str):
        raise UserError(f"{name}: a text is needed")
    return message[name]


def _guidance(sampling: Mapping[str, Any]) -> Guidance:
    return sampling.get("guidance", Guidance())


def _guided(model: Model, sampling: Mapping[str, Any], scales: Mapping[str, float]) -> Guidance:
    """The guidance of `sampling` with other scales. Raises UserError for those that this model cannot have."""
    guidance = _guidance(sampling)
    for name, scale in scales.items():
        require_number(name, scale, least=0, most=MOST_GUIDANCE)
        if refusal := _refusal(model, guidance, name):
            raise UserError(refusal)
    return replace(guidance, **scales)


def _refusal(model: Model, guidance: Guidance, name: str) -> str | None:
    """Why a guidance scale cannot be changed, if so: beside the joint one, only those that the model began with can, and
    on an export, only those whose branches it has.
    """
    began = _guidance(model.sampling)
    if guidance.joint and not (began.joint and getattr(began, name)):
        return f"change: this model works without guidance by {name}"
    # the present value works; a branch without a weight at it has one at any other
    if not model.has_branches(replace(guidance, **{name: getattr(guidance, name) + 0.5})):
        return f"{name}: this avatar runs on ONNX without this guidance; start the server with --runtime torch"
    return None
