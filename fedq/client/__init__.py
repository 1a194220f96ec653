"""The requester's side: outbox, device handles, pointers. Loads torch only when tensors are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedq.client.device import Device as Device
    from fedq.client.pointer_plans import PointerPlan as PointerPlan
    from fedq.client.pointers import PointerTensor as PointerTensor
    from fedq.client.pointers import gather as gather
    from fedq.client.session import Client as Client
    from fedq.client.session import trust_device as trust_device

_FROM = {
    "Client": "session",
    "Device": "device",
    "PointerPlan": "pointer_plans",
    "PointerTensor": "pointers",
    "gather": "pointers",
    "trust_device": "session",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
