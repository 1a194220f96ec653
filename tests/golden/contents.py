"""What the golden files of version 1 hold; run as a module, writes those that are missing."""

from dataclasses import replace
from pathlib import Path

from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile, encode_plan
from fedq.plan.fold import Batches
from fedq.plan.graph import About, Action, Dtype, Format, Graph, Param, Subgraph, Type, Var, show
from fedq.queue.message import (
    Ack,
    Address,
    Cancel,
    Drop,
    Failure,
    Fold,
    Get,
    Inline,
    Message,
    Number,
    OwnerRef,
    Put,
    Ref,
    Reply,
    Run,
    SendPlan,
    encode_message,
    encode_reply,
)
from fedq.queue.pair import Card, Catalog, Entry, Heartbeat, seal_json
from fedq.trust.keys import Key

FOLDER = Path(__file__).parent

ALICE = Key.from_seed(bytes(range(32)))
DEVICE = Key.from_seed(bytes(range(32, 64)))
REQUESTER = f"alice-{ALICE.fingerprint}"


def id_of(number: int) -> str:
    return f"0197{number:028x}"


ROOT = id_of(0)
TO_ALICE = Address(REQUESTER, ALICE.public.hex(), ROOT)
TO_DEVICE = Address("device_1", DEVICE.public.hex(), ROOT)
RUN = "00112233445566ff"


DOUBLE_ABS = Graph(
    inputs=(Type("f32", ("n", "m")),),
    actions=(
        Action("aten.add.Tensor", (Var(0), Var(0)), {}, (Type("f32", ("n", "m")),)),
        Action("aten.abs", (Var(1),), {}, (Type("f32", ("n", "m")),)),
    ),
    outputs=Var(2),
    sizes={"m": 1, "n": 2},
    dtypes=(("f64", "f64"), ("i64", "i64")),
)
DOUBLE_ABS_ABOUT = About("double_abs", ("tour.py:9", "tour.py:10"), ("x",), {"n=1": "tour.py:9"})

BODY = Graph(
    inputs=(Type("i64", ()), Type("f32", ("n", 2))),
    actions=(Action("aten.mul.Scalar", (Var(1), -0.5), {}, (Type("f32", ("n", 2)),)),),
    outputs=[Var(0), Var(2)],
)
EVERYTHING = Graph(
    inputs=(Type("f32", ("n", 2)), Type("i64", ("2*n+1",)), Type("int"), Type("float", None, 0.1)),
    actions=(
        Action("aten.addmm", (Var(5), Var(0), Var(4)), {"alpha": 1, "beta": 2.5}, (Type("f32", ("n", 2)),)),
        Action("sym.size", (Var(0), 0), {}, (Type("int"),)),
        Action(
            "aten.full", ([Var(7), 2], float("inf")),
            {"dtype": Dtype("f32"), "memory_format": Format("channels_last"), "pin_memory": None},
            (Type("f32", ("n", 2)),),
        ),
        Action("while_loop", (Subgraph(0), [Var(6), Var(8)], True, "größe", complex(0.0, -1.5)), {},
               (Type("i64", ()), Type("f32", ("n", 2)))),
    ),
    outputs={"loss": Var(9), "rest": [(Var(10), None), (Var(7),)], 3: Var(6)},
    sizes={"n": 2},
    guards=(("<=", "n", 4096), ("==", ("%", ("*", "n", 3), 2), 0)),
    dtypes=(("f64", "i64", "int", "float", "i64", "f64", "int", "f64"),),
    state=(("fc.weight", Type("f32", (2, 2))), ("fc.bias", Type("f32", (2,)))),
    graphs=(BODY,),
)  # fmt: skip
STATE = {
    "fc.weight": RawTensor("f32", (2, 2), b"\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40\x00\x00\x80\x40"),
    "fc.bias": RawTensor("f32", (2,), b"\x00\x00\x00\xbf\x00\x00\x00\x00"),
}
PLAN = PlanFile(EVERYTHING, STATE, About("Net", ("net.py:3", "", "net.py:5", "net.py:7"), ("x", "y", "k", "p")))
DOUBLE = PlanFile(DOUBLE_ABS, {}, DOUBLE_ABS_ABOUT)

STEP = Graph(
    params=(
        Param("batch", {"x": Var(0), "y": [Var(1), None]}),
        Param("rest[0]", (Var(2),)),
        Param("rate", Var(3), 0.5),
        Param("steps", Var(4), -2),
        Param("reduce", "größe"),
        Param("flag", True),
        Param("mask", None),
        Param("least", float("-inf")),
    ),
    inputs=(Type("f32", ("n",)), Type("i64", ("n",)), Type("bool", None, True), Type("float"), Type("int")),
    actions=(Action("aten.mul.Tensor", (Var(0), Var(3)), {}, (Type("f32", ("n",)),)),),
    outputs=Var(5),
    sizes={"n": 0},
)
PARAMS = PlanFile(
    STEP, {}, About("step", ("tour.py:3",), ("batch['x']", "batch['y'][0]", "rest[0][0]", "rate", "steps"))
)

_ROW = Type("f32", ("n",))
BY_SIZE = Graph(
    inputs=(_ROW, Type("float")),
    actions=(Action("aten.mul.Tensor", (Var(0), Var(2)), {}, (_ROW,)),),
    outputs=[Var(3)],
    sizes={"n": 2},
    state=(("by", Type("f32", (1,))),),
)
BY_SIZE = replace(
    BY_SIZE,
    variants=(
        replace(BY_SIZE, inputs=(Type("f32", (1,)), Type("float", None, 0.5)), sizes={}, outputs=[Var(0)], actions=()),
        replace(BY_SIZE, inputs=(Type("f64", ("n",)), Type("float")), sizes={"n": 0}),
    ),
)
VARIANTS = PlanFile(
    BY_SIZE,
    {"by": RawTensor("f32", (1,), b"\x00\x00\x80\x3f")},
    About("by_size", ("tour.py:3", "tour.py:5"), ("x", "k")),
)

_COUNT, _FLAG = Type("i64", ()), Type("bool", ())
LOOPS = Graph(
    inputs=(_ROW, _COUNT),
    actions=(
        Action("aten.any", (Var(0),), {}, (_FLAG,)),
        Action("ctl.cond", (Var(3), Subgraph(0), Subgraph(1), [Var(0), Var(2)]), {}, (_ROW,)),
        Action("ctl.while_loop", (Subgraph(2), Subgraph(3), [Var(1), Var(4)], []), {}, (_COUNT, _ROW)),
        Action("ctl.scan", (Subgraph(4), [Var(2)], [Var(6)], []), {}, (Type("f32", ()), _ROW)),
    ),
    outputs=[Var(5), Var(7), Var(8)],
    sizes={"n": 1},
    state=(("by", Type("f32", ())),),
    graphs=(
        Graph((_ROW, Type("f32", ())), (Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (_ROW,)),), [Var(2)]),
        Graph(
            (_ROW, Type("f32", ())),
            (Action("ctl.map", (Subgraph(0), [Var(0)], [Var(1)]), {}, (_ROW,)),),
            [Var(2)],
            graphs=(
                Graph(
                    (Type("f32", ()), Type("f32", ())),
                    (Action("aten.sub.Tensor", (Var(0), Var(1)), {}, (Type("f32", ()),)),),
                    [Var(2)],
                ),
            ),
        ),
        Graph((_COUNT, _ROW), (Action("aten.lt.Scalar", (Var(0), 3), {}, (_FLAG,)),), [Var(2)]),
        Graph((_COUNT, _ROW), (Action("aten.add.Tensor", (Var(0), 1), {}, (_COUNT,)),), [Var(2), Var(1)]),
        Graph(
            (Type("f32", ()), Type("f32", ())),
            (Action("aten.add.Tensor", (Var(0), Var(1)), {}, (Type("f32", ()),)),),
            [Var(2), Var(0)],
        ),
    ),
)
CONTROL = PlanFile(
    LOOPS,
    {"by": RawTensor("f32", (), b"\x00\x00\x00\x40")},
    About("loops", tuple(f"tour.py:{n}" for n in (3, 4, 5, 6, 4, 4, 4, 5, 5, 6)), ("x", "i")),
)

ONE_MINUS_TWO = RawTensor("f32", (2,), b"\x00\x00\x80\x3f\x00\x00\x00\xc0")
FLAGS = RawTensor("bool", (3,), b"\x01\x00\x01")

WORKED = Message(
    id=id_of(1), sender=REQUESTER, to=TO_DEVICE, created=1795300000.125, expires=1796509600.125, seed=81207,
    actions=(
        Put(id_of(2), "t0", "mine"),
        Run(DOUBLE.id, (Ref(id_of(2)),), {}, (id_of(3),)),
        Get(id_of(3), (id_of(3),)),
    ),
)  # fmt: skip
WORKED_TENSORS = {"t0": ONE_MINUS_TWO}

FOLDED = Message(
    id=id_of(60), sender=REQUESTER, to=TO_DEVICE, created=1795300002.0, expires=1796509602.0, seed=81207,
    actions=(
        Fold(PLAN.id, (Inline("t0"),), (Ref(id_of(40)), Ref(id_of(61))), Batches(32, 2, True), (id_of(62), id_of(63)),
             (0.5, Ref(id_of(17)))),
        Fold(DOUBLE.id, (), (Inline("t1"),), Batches(1, drop_last=True), (id_of(64),)),
        Get(id_of(65), (id_of(62), id_of(63), id_of(64))),
    ),
)  # fmt: skip
FOLDED_TENSORS = {"t0": ONE_MINUS_TWO, "t1": FLAGS}

FOLD_OPTIONS = Message(
    id=id_of(80), sender=REQUESTER, to=TO_DEVICE, created=1795300005.0, expires=1796509605.0, seed=81207,
    actions=tuple(
        Fold(DOUBLE.id, (Ref(id_of(40)),), (Ref(id_of(41)),), Batches(32), (id_of(81 + i),), args, metrics, nonfinite)
        for i, (args, metrics, nonfinite) in enumerate((
            ((), "last", "keep"), ((), "sum", "stop"), ((0.5,), "mean", "error"), ((), "epochs", "stop"),
            ((), "steps", "stop"),
        ))
    ),
)  # fmt: skip
"""What is given of the metrics, and what is done about values that are not finite."""

NOTED = Message(
    id=id_of(70), sender=REQUESTER, to=TO_DEVICE, created=1795300004.0, expires=1796509604.0, seed=0,
    actions=(
        Put(id_of(71), "t0", "mine", "größe #ward #2026"),
        Put(id_of(72), "t1", None, "no tag"),
        Get(id_of(73), (PLAN.id,)),
    ),
)  # fmt: skip
NOTED_TENSORS = {"t0": ONE_MINUS_TWO, "t1": FLAGS}
"""Notes to values, and a get of a plan: its reply is the plan's file, signed by the device."""

MESSAGE = Message(
    id=id_of(16), sender=REQUESTER, to=TO_DEVICE, created=1795300000.0, expires=1796509600.5, seed=(1 << 63) - 1,
    token="nightly-2026-11-22",
    actions=(
        Ack((id_of(9),)),
        Cancel((id_of(10),)),
        Put(id_of(17), "t0"),
        SendPlan(PLAN.id, EVERYTHING, ("t1", "t2"), PLAN.about),
        Run(PLAN.id, (Ref(id_of(17)), Inline("t3"), -3, 0.1), {"flag": True, "name": "größe", "no": None},
            (id_of(18), id_of(19), id_of(20), id_of(21))),
        Run(PLAN.id, (float("nan"), float("-inf"), 1e-07, (1 << 64) - 1), {}, ()),
        Get(id_of(22), (id_of(18), id_of(19))),
        Drop((id_of(17),), (id_of(16),)),
        Drop((id_of(8),)),
    ),
)  # fmt: skip
MESSAGE_TENSORS = {"t0": FLAGS, "t1": STATE["fc.weight"], "t2": STATE["fc.bias"], "t3": RawTensor("i64", (0, 4), b"")}

ASKED = Message(
    id=id_of(90), sender=REQUESTER, to=TO_DEVICE, created=1795300006.0, expires=1796509606.0, seed=81207,
    actions=(
        Run(DOUBLE.id, (OwnerRef(id_of(41)),), {}, (id_of(91),)),
        Fold(DOUBLE.id, (Ref(id_of(17)),), (OwnerRef(id_of(41)),), Batches(32), (id_of(92),), (OwnerRef(id_of(40)),)),
        Get(id_of(91), (id_of(91),)),
        Get(id_of(93), (id_of(41), id_of(92)), frozenset([id_of(41)])),
    ),
)  # fmt: skip
"""The owner's values and the requester's own, spelt apart."""

REPLY = Reply(
    id=id_of(22), device="device_1", to=TO_ALICE, message=id_of(16),
    values={
        id_of(18): "v0",
        id_of(19): Failure("failed", "action 2 failed", {"action": 2, "line": "net.py:5", "op": "aten.full"}),
        id_of(20): Number(-7),
        id_of(21): Number(float("-inf")),
    },
)  # fmt: skip
REPLY_TENSORS = {"v0": RawTensor("bf16", (3,), b"\x80\x3f\x00\x40\x40\x40")}

CARD = Card("device_1", TO_ALICE, (1, 1), DEVICE.public.hex(), "0.1.0", (1,), 30.5, 1 << 20)
CATALOG = Catalog(
    "device_1",
    TO_ALICE,
    (1, 2),
    (
        Entry(id_of(40), "input_data", Type("f32", (1797, 64)), "open"),
        Entry(id_of(41), None, Type("i64", ()), "review", "größe"),
        Entry(id_of(17), "mine", Type("bool", (3,)), "own"),
    ),
    ((DOUBLE.id, "double_abs"),),
)
HEARTBEAT = Heartbeat(
    "device_1",
    TO_ALICE,
    (1, 1),
    RUN,
    1795300001.5,
    "up",
    (id_of(16),),
    (),
    ((id_of(22), "asked"), (id_of(19), "stopped")),
    ((id_of(50), "bad_version"),),
)
HELD_UP = Heartbeat(
    "device_1", TO_ALICE, (1, 2), RUN, 1795300002.5, "up", (id_of(16),),
    progress=((id_of(17), 3, 90),), trouble="disk_full",
)  # fmt: skip

FOLDING = Heartbeat(
    "device_1", TO_ALICE, (2, 1), RUN, 1795300003.0, "up", (), (id_of(60),), progress=((id_of(60), 7, 114),)
)


def golden() -> dict[str, bytes]:
    """File name -> bytes, as today's code writes them."""
    sealed = {f"{s.KIND}-v1.json": seal_json(s.KIND, s.to_json(), DEVICE) for s in (CARD, CATALOG, HEARTBEAT)}
    return {
        "heartbeat-held-up-v1.json": seal_json("heartbeat", HELD_UP.to_json(), DEVICE),
        "double_abs-v1.safetensors": b"".join(encode_plan(DOUBLE, ALICE)),
        "plan-v1.safetensors": b"".join(encode_plan(PLAN, ALICE)),
        "params-v1.safetensors": b"".join(encode_plan(PARAMS, ALICE)),
        "variants-v1.safetensors": b"".join(encode_plan(VARIANTS, ALICE)),
        "control-v1.safetensors": b"".join(encode_plan(CONTROL, ALICE)),
        "worked-v1.safetensors": b"".join(encode_message(WORKED, WORKED_TENSORS, ALICE)),
        "message-v1.safetensors": b"".join(encode_message(MESSAGE, MESSAGE_TENSORS, ALICE)),
        "fold-v1.safetensors": b"".join(encode_message(FOLDED, FOLDED_TENSORS, ALICE)),
        "fold-options-v1.safetensors": b"".join(encode_message(FOLD_OPTIONS, {}, ALICE)),
        "noted-v1.safetensors": b"".join(encode_message(NOTED, NOTED_TENSORS, ALICE)),
        "asked-v1.safetensors": b"".join(encode_message(ASKED, {}, ALICE)),
        "plan-reply-v1.safetensors": b"".join(encode_plan(PLAN, DEVICE)),
        "folding-v1.json": seal_json("heartbeat", FOLDING.to_json(), DEVICE),
        "reply-v1.safetensors": b"".join(encode_reply(REPLY, REPLY_TENSORS, DEVICE)),
        **sealed,
        "double_abs-v1.txt": show(DOUBLE_ABS, DOUBLE_ABS_ABOUT).encode() + b"\n",
        "params-v1.txt": show(STEP, PARAMS.about).encode() + b"\n",
        "variants-v1.txt": show(BY_SIZE, VARIANTS.about).encode() + b"\n",
        "control-v1.txt": show(LOOPS, CONTROL.about).encode() + b"\n",
        "plan-v1.txt": show(EVERYTHING, PLAN.about).encode() + b"\n",
    }


def main() -> None:
    for name, raw in golden().items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(raw)


if __name__ == "__main__":
    main()
