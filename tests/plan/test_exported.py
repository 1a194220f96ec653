"""Plans of torch.export's programs: in memory, never from files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedq.errors import UsageError
from fedq.plan.plan import Plan
from tests.plan.test_params import again

pytestmark = pytest.mark.filterwarnings("ignore")


def test_an_exported_program_becomes_a_plan_with_its_weights():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    program = torch.export.export(net, (torch.ones(4, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    plan = again(Plan.from_exported(program))
    assert [name for name, _ in plan.graph.state] == [name for name, _ in net.named_parameters()]
    for n in (1, 7):
        x = torch.randn(n, 2)
        assert torch.equal(plan(x), net(x))


def test_its_structures_and_names_are_kept():
    class Weighted(nn.Module):
        def forward(self, batch, *, by):
            return {"sum": batch["x"] + batch["y"] * by}

    batch = {"x": torch.ones(4), "y": torch.ones(4)}
    plan = again(Plan.from_exported(torch.export.export(Weighted(), (batch,), {"by": torch.tensor(3.0)})))
    assert torch.equal(plan(batch, by=torch.tensor(5.0))["sum"], torch.full((4,), 6.0))


@pytest.mark.parametrize("what", ["program.pt2", b"PK", None, nn.Linear(2, 2)])
def test_files_and_other_things_are_refused(what):
    with pytest.raises(UsageError, match="no exported program") as caught:
        Plan.from_exported(what)
    assert "runs code" in caught.value.hint
