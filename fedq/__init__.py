"""Send PyTorch computations to data through folders: no server, no open port, no pickle.

Names load what they need when they are first used: ``import fedq`` alone loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedq.spelling import mind_logs as _mind_logs

if TYPE_CHECKING:
    from fedq.checking import check as check
    from fedq.client.device import Device as Device
    from fedq.client.hook import TorchHook as TorchHook
    from fedq.client.plans import load as load
    from fedq.client.pointer_plans import PointerPlan as PointerPlan
    from fedq.client.pointers import PointerTensor as PointerTensor
    from fedq.client.pointers import PointerTensors as PointerTensors
    from fedq.client.pointers import gather as gather
    from fedq.client.protocol import Protocol as Protocol
    from fedq.client.session import own_key as own_key
    from fedq.local import VirtualWorker as VirtualWorker
    from fedq.plan.plan import Plan as Plan
    from fedq.plan.plan import State as State
    from fedq.plan.plan import func2plan as func2plan
    from fedq.plan.training import training_plan as training_plan

__version__ = "0.1.0"

_mind_logs()

_FROM = {
    "Device": "client.device",
    "Plan": "plan.plan",
    "PointerPlan": "client.pointer_plans",
    "PointerTensor": "client.pointers",
    "PointerTensors": "client.pointers",
    "Protocol": "client.protocol",
    "State": "plan.plan",
    "TorchHook": "client.hook",
    "VirtualWorker": "local",
    "check": "checking",
    "func2plan": "plan.plan",
    "gather": "client.pointers",
    "load": "client.plans",
    "own_key": "client.session",
    "training_plan": "plan.training",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _FROM:
        return getattr(import_module(f"fedq.{_FROM[name]}"), name)
    errors = import_module("fedq.errors")
    if isinstance(kind := getattr(errors, name, None), type) and issubclass(kind, errors.FedqError):
        return kind
    raise AttributeError(f"module 'fedq' has no attribute {name!r}")
