"""Draws docs/plan.svg: the printed form of a small model, as a terminal shows it.

Run as ``python tools/plan_svg.py``; `tests/test_docs.py` checks that the picture shows what
``print(plan)`` prints today.
"""

from __future__ import annotations

import html
from pathlib import Path

import torch

import fedq as fq

OUT = Path(__file__).parent.parent / "docs" / "plan.svg"
LINE, CHAR, PAD = 20, 8.4, 18


class Net(fq.Plan):
    """Two layers and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(64, 32)
        self.fc2 = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc1(x))
        return torch.softmax(self.fc2(x), dim=1)


def text() -> str:
    net = Net()
    net.build_shapes([(-1, 64)])
    return str(net).replace("plan_svg.py", "net.py")


def svg(lines: list[str]) -> str:
    width, height = int(max(map(len, lines)) * CHAR + 2 * PAD), len(lines) * LINE + 2 * PAD
    rows = "\n".join(
        f'<text x="{PAD}" y="{PAD + 14 + n * LINE}" xml:space="preserve">{html.escape(line)}</text>'
        for n, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#10151c"/>\n<g fill="#d7e0ea">\n{rows}\n</g>\n</svg>\n'
    )


if __name__ == "__main__":
    OUT.write_text(svg(text().splitlines()))
