"""``fedq device resume``: the owner's word on what was running when the gate ended too often."""

from __future__ import annotations

from fedq import ids
from fedq.device.calls import Ends
from fedq.device.home import Home
from tests.rig import config_of


def test_an_owner_sees_what_is_held_and_lets_it_go_on(shell):
    shell("device", "init", "device_1")
    message, other = ids.new_id(), "f" * 32
    home = Home(config_of(shell.root).devices / "device_1", config_of(shell.root))
    with home.journal.transaction():
        for id_ in (message, other):
            home.journal.set_ends("ann-01234567", id_, 3, Ends(gates=5, time=1.0))
    home.close()
    assert shell.json("device", "status")[0]["held"] == 2
    row = shell.json("device", "log", "--failed")[0]
    assert row["reason"].startswith(
        "action 3: held: the gate ended five times while it ran; fedq device resume device_1 "
    )
    assert "held: " in shell.out("device", "log", "--failed")
    assert shell.out("device", "resume", "device_1", message[:8]) == (
        f"device_1  message {message} of ann-01234567 goes on"
    )
    assert shell.json("device", "resume", "device_1") == [
        {"device": "device_1", "requester": "ann-01234567", "message": other}
    ]
    assert shell.json("device", "status")[0]["held"] == 0
    assert "holds nothing" in shell("device", "resume", "device_1", code=3).stderr
    for words in ((other,), ("ffff",)):
        assert "holds no message" in shell("device", "resume", "device_1", *words, code=3).stderr
