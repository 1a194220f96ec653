"""``fedq approve`` and ``fedq deny``: the owner's word on results that wait for it."""

from __future__ import annotations

from typing import Annotated

import typer

from fedq.cli.call import Call, Shown, command

app = typer.Typer(rich_markup_mode=None)

Ref = Annotated[str, typer.Argument(metavar="DEVICE:ID", help="A result that waits; 6 or more digits will do.")]


@command(app, examples=["fedq approve device_1:0197a3c4", "fedq device ls"])
def approve(call: Call, ref: Ref) -> Shown:
    """Release a result that waits for your review."""
    return _judge(call, ref, "approve")


@command(app, examples=["fedq deny device_1:0197a3c4"])
def deny(call: Call, ref: Ref) -> Shown:
    """Decline to release a result. Its requester is told so."""
    return _judge(call, ref, "deny")


def _judge(call: Call, ref: str, verdict: str) -> Shown:
    from fedq.cli import words
    from fedq.device import review

    device, id_ = words.reference(ref)
    home = call.home(device)
    (said,) = review.decide(home, [review.find(home, id_)], verdict)
    row = {"device": device, "reply": said.reply, "requester": said.sender, "word": said.word}
    return Shown([row], f"{device}:{said.reply}  {_PAST[verdict]} for {said.sender}")


_PAST = {"approve": "approved", "deny": "denied"}
