"""Random Python functions of tensors, as people write them: sizes, branches, loops, views, writes.

A function is a text made from a seed; what it does may be impossible to record, or wrong for some
inputs. Either is an answer: `tests/plan/test_grammar.py` asks that a plan is never wrong.
"""

# ruff: noqa: E501

from __future__ import annotations

import linecache
import random

import torch
from torch._higher_order_ops import map as torch_map
from torch._higher_order_ops import scan, while_loop
from torch.utils import _pytree as pytree

NAMES = {"torch": torch, "scan": scan, "while_loop": while_loop, "torch_map": torch_map, "F": torch.nn.functional}
CONSTANTS = ("2", "3", "-1", "0.5", "1.5", "7", "0")

UNARY = (
    "-{a}", "{a}.abs()", "{a}.relu()", "{a}.sin()", "{a}.exp()", "{a} ** 2", "{a} + {c}", "{c} - {a}", "{a} * {c}",
    "{a} / {c}", "{a} // 2", "{a} % 3", "{a} * {n}", "{a} + {n}", "{a} / {n}", "{a}.cumsum(0)", "{a}.clamp(min={c})",
    "{a}.float()", "{a}.double()", "{a}.long()", "{a}.to(x.dtype)", "({a} > {c})", "{a}.softmax(0)", "{a} * 1",
    "{a} + torch.tensor({c})", "{a}.masked_fill({a} > {c}, 9)", "{a}.clone()", "{a}.detach()", "{a}.neg()",
    "torch.where({a} > 0, {a}, {c})", "{a}.bool()", "F.dropout({a}, 0.5, training=False)", "{a}.contiguous()",
    "{a} * torch.finfo({a}.dtype).eps", "{a}.sort(0).values", "{a} + len({a})", "{a}.type_as(x)", "{a}.half()",
)  # fmt: skip
REDUCED = (
    "{a}.sum()", "{a}.sum(0)", "{a}.mean()", "{a}.sum(0, keepdim=True)", "{a}.amax()", "{a}.max(0).values",
    "{a}.sum() / {n}", "{a}.sum(-1)", "{a}.std()", "{a}.prod()", "{a}.any()", "{a}.argmax()", "{a}[{a} > 0].sum()",
    "{a}.norm()", "{a}.count_nonzero()", "{a}.var(0)",
)  # fmt: skip
VIEWS = (
    "{a}.view(-1)", "{a}.reshape(1, -1)", "{a}.reshape(-1, 2)", "{a}.t()", "{a}[0]", "{a}[-1]", "{a}[1:]", "{a}[:2]",
    "{a}[::2]", "{a}[:-1]", "{a}.unsqueeze(0)", "{a}.flatten()", "{a}.flip(0)", "{a}.transpose(0, -1)", "{a}[None]",
    "{a}.squeeze()", "{a}.expand(2, *{a}.shape)", "{a}.view({a}.shape)", "{a}[..., 0]", "{a}.repeat(2)",
    "{a}[: {n}]", "{a}.roll(1, 0)", "{a}.chunk(2)[0]", "{a}.unbind(0)[0]", "{a}.reshape({n}, -1)", "{a}.narrow(0, 0, 1)",
    "{a}[torch.tensor([0, 1])]", "{a}.permute(*reversed(range({a}.dim())))", "{a}.diff(dim=0)", "{a}.index_select(0, torch.arange(2))",
)  # fmt: skip
BINARY = (
    "{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / {b}", "torch.maximum({a}, {b})", "torch.where({a} > {b}, {a}, {b})",
    "torch.cat([{a}, {b}])", "torch.stack([{a}, {b}])", "{a} @ {b}", "{a} == {b}", "{a} * {b}.sum()", "{b}.expand_as({a}) + {a}",
    "{a} + {b}.mean()", "{a}.view_as({b})",
)  # fmt: skip
MADE = (
    "torch.arange({n})", "torch.zeros({n})", "torch.ones_like({a})", "torch.full(({n},), 2.0)", "torch.zeros_like({a})",
    "torch.arange({n}, dtype={a}.dtype)", "{a}.new_zeros({n})", "torch.eye({n})", "torch.tensor([1.0, 2.0])",
    "torch.tensor(3)", "torch.zeros(3, dtype={a}.dtype).sum()", "torch.linspace(0, 1, {n})", "{a}.new_full(({n}, 2), 3)",
    "torch.empty_like({a}).fill_(2)", "torch.tensor({n})",
)  # fmt: skip
SIZES = (
    "{a}.shape[0]", "{a}.shape[-1]", "{a}.numel()", "len({a})", "{a}.size(0)", "{a}.dim()", "{n} * 2", "{n} // 2", "{n} + 1",
    "{n} - 1", "max({n}, 3)", "min({n}, 4)", "{n} % 3", "{n} + {m}", "abs({n} - 3)", "3", "1",
)  # fmt: skip
SIZE_TESTS = (
    "{n} > 2", "{n} == 3", "{n} % 2 == 0", "{n} == {m}", "{n} < 6", "{n} >= 1", "{n} > 1 and {m} < 7", "not {n} > 4",
    "{a}.dim() == 2", "{a}.dtype == torch.float32", "{n} in (2, 5)", "{n} != 1", "{n}", "{a}.is_floating_point()",
    "{n} < {m} or {n} == 2", "{a}.shape == {b}.shape", "{a}.numel() > 6", "{a}.is_contiguous()",
)  # fmt: skip
DATA_TESTS = (
    "{a}.sum() > 0",
    "({a} > 0).any()",
    "{a}.flatten()[0] < {b}.sum()",
    "int({a}.sum()) > 2",
    "{a}.max() == 1",
)
WRITES = (
    "{v} += {b}", "{v}.add_({c})", "{v}[0] = {c}", "{v}[1:] *= 2", "{v}.mul_({b})", "{v}.zero_()", "{v}.clamp_(min=0)",
    "{v}[{v} > 0] = {c}", "{v}.view(-1)[0] = 5", "{v}.t().add_(1)", "{v}[: {n}] = {c}", "{v} *= {n}", "{v}.copy_({b})",
)  # fmt: skip


class Writer:
    """Writes one function from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.indent = "    "
        self.inputs = ["x", "y"][: self.random.choice((1, 1, 2))]
        self.number = self.random.random() < 0.15
        self.names = list(self.inputs)
        self.count = 0

    def text(self) -> str:
        for _ in range(self.random.randint(1, 5)):
            self.statement(2)
        out = self.random.choice(("{a}", "{a}", "{a}", "({a}, {b})", "{{'a': {a}, 'n': {n}}}", "[{a}, {n}]"))
        self.line(f"return {self.fill(out, 1)}")
        if any("# writes" in line for line in self.lines) and self.random.random() < 0.8:
            self.lines[:0] = [f"    {name} = {name}.clone()" for name in self.inputs]
        arguments = ", ".join([*self.inputs, *(["k"] if self.number else [])])
        return "\n".join([f"def f({arguments}):", *self.lines, ""])

    # -- expressions

    def fill(self, form: str, depth: int) -> str:
        return form.format(
            a=self.tensor(depth), b=self.tensor(depth), c=self.random.choice(CONSTANTS), n=self.size(depth),
            m=self.size(0), v=self.random.choice(self.names),
        )  # fmt: skip

    def tensor(self, depth: int) -> str:
        if depth <= 0 or self.random.random() < 0.3:
            return self.random.choice(self.names)
        forms = self.random.choices((UNARY, REDUCED, VIEWS, BINARY, MADE), (6, 3, 4, 3, 2))[0]
        return f"({self.fill(self.random.choice(forms), depth - 1)})"

    def size(self, depth: int) -> str:
        if self.number and self.random.random() < 0.3:
            return "k"
        form = self.random.choice(SIZES[:6] if depth <= 0 else SIZES)
        if depth <= 0:
            return form.format(a=self.random.choice(self.names), n="2", m="3")
        return f"({form.format(a=self.random.choice(self.names), n=self.size(depth - 1), m=self.size(0))})"

    # -- statements

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def block(self, depth: int, count: int = 2) -> None:
        was, names = self.indent, list(self.names)
        self.indent += "    "
        for _ in range(self.random.randint(1, count)):
            self.statement(depth)
        self.indent, self.names = was, names

    def new(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def assign(self, value: str, *, fresh: bool = True) -> None:
        name = self.new() if fresh and self.random.random() < 0.7 else self.random.choice(self.names)
        self.line(f"{name} = {value}")
        self.names.append(name)

    def statement(self, depth: int) -> None:
        kinds = {
            self.simple: 8, self.write: 3, self.branch: 3, self.unrolled: 1.5, self.over_size: 0.7, self.shrinking: 0.5,
            self.asserted: 0.6, self.data: 0.25, self.cond: 2, self.loop: 1.5, self.scanned: 1.2, self.mapped: 0.8,
        }  # fmt: skip
        if depth <= 0:
            kinds = {self.simple: 3, self.write: 1}
        self.random.choices(list(kinds), list(kinds.values()))[0](depth - 1)

    def simple(self, depth: int) -> None:
        self.assign(self.tensor(2))

    def write(self, depth: int) -> None:
        if self.random.random() < 0.7:
            name = self.new()
            self.line(f"{name} = {self.random.choice(self.names)}.clone()")
            self.names.append(name)
        self.line(f"{self.fill(self.random.choice(WRITES), 1)}  # writes")

    def branch(self, depth: int) -> None:
        name = self.random.choice(self.names)
        self.line(f"if {self.fill(self.random.choice(SIZE_TESTS), 0)}:")
        self.block(depth)
        self.indent += "    "
        self.line(f"{name} = {self.tensor(1)}")
        self.indent = self.indent[:-4]
        if self.random.random() < 0.5:
            self.line("else:")
            self.block(depth)

    def unrolled(self, depth: int) -> None:
        name = self.random.choice(self.names)
        self.line(f"for i in range({self.random.randint(0, 3)}):")
        self.indent += "    "
        self.line(f"{name} = {name} {self.random.choice('+-*')} {self.random.choice(['i', self.tensor(1)])}")
        self.indent = self.indent[:-4]

    def over_size(self, depth: int) -> None:
        name, total = self.random.choice(self.names), self.new()
        self.line(f"{total} = {self.tensor(1)} * 0")
        if self.random.random() < 0.5:
            self.line(f"for i in range({self.size(0)}):")
            self.line(f"    {total} = {total} + {name}[i] * i")
        else:
            self.line(f"for row in {name}:")
            self.line(f"    {total} = {total} + row")
        self.names.append(total)

    def shrinking(self, depth: int) -> None:
        name = self.random.choice(self.names)
        self.line(f"n = {self.size(0)}")
        self.line("while n > 1:")
        self.line("    n = n // 2")
        self.line(f"    {name} = {name} * 2 + n")

    def asserted(self, depth: int) -> None:
        self.line(f"assert {self.fill(self.random.choice(SIZE_TESTS), 0)}")

    def data(self, depth: int) -> None:
        self.line(f"if {self.fill(self.random.choice(DATA_TESTS), 1)}:")
        self.block(depth, 1)

    # -- control flow of torch

    def inside(self, *names: str) -> list[str]:
        """Expressions of these names and what is around."""
        was, self.names = self.names, [*names, *names, *self.names]
        made = [self.tensor(2) for _ in range(4)]
        self.names = was
        return made

    def cond(self, depth: int) -> None:
        name = self.random.choice(self.names)
        a, b, *_ = self.inside("q")
        if self.random.random() < 0.6:
            a, b = f"{a} * 0 + q", f"q - {b}.sum()"
        test = self.random.choice(
            ("{a}.sum() > 0", "({a} > {c}).any()", "{a}.sum() < {n}", "{n} > 3", "{a}.flatten()[0] > 0")
        )
        self.assign(f"torch.cond({self.fill(test, 1)}, lambda q: {a}, lambda q: {b}, ({name},))")

    def loop(self, depth: int) -> None:
        name = self.random.choice(self.names)
        a, b, *_ = self.inside("q")
        a = self.random.choice(
            (
                a,
                "q * 2",
                "q + 1",
                f"q + {b}.sum()",
                f"torch.cond(q.sum() > i, lambda q: q + i, lambda q: q * {b}.sum(), (q,))",
            )
        )
        test = self.random.choice(("i < 3", "i < 0", "(i < 4) & (q.sum() < 9)", f"i < {self.size(0)}"))
        made = self.random.choice(("{}[1]", "{}[1] + {}[0]", "{}[1]"))
        start = self.random.choice(("torch.tensor(0)", "torch.tensor(0)", "0", "1"))
        call = f"while_loop(lambda i, q: {test}, lambda i, q: (i + 1, {a}), ({start}, {name}))"
        self.assign(made.replace("{}", call))

    def scanned(self, depth: int) -> None:
        name = self.random.choice(self.names)
        a, b, *_ = self.inside("c", "q")
        a = self.random.choice(("c + q", "c * q", f"c + {b}.sum()", a))
        init = self.random.choice(("{}[0] * 0", "torch.zeros({}.shape[1:])", "{}[-1].clone()", "{}.sum(0)")).format(
            name
        )
        more = self.random.choice(("", ", reverse=True", ", dim=1"))
        self.assign(f"scan(lambda c, q: ({a}, {b}), {init}, {name}{more})[{self.random.choice('01')}]")

    def mapped(self, depth: int) -> None:
        name = self.random.choice(self.names)
        a, *_ = self.inside("q")
        self.assign(f"torch_map(lambda q: {a}, {name})")


def written(seed: int, example):
    """A function that runs on what ``example(tensors, number)`` gives: (text, function, its example)."""
    for attempt in range(60):
        writer = Writer(seed * 100 + attempt)
        text, inputs = writer.text(), example(len(writer.inputs), writer.number)
        file = f"/grammar/{seed}.py"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        scope = dict(NAMES)
        exec(compile(text, file, "exec"), scope)
        try:
            with torch.compiler.set_stance("force_eager"), torch.no_grad():
                out = scope["f"](*inputs)
        except Exception:
            continue
        if not _is_small(out):
            continue
        break
    return text, scope["f"], inputs


def _is_small(out) -> bool:
    return all(t.numel() < 10_000 for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
