"""PyTorch's own samples: a fixed fortieth of its ops, or with FEDQ_MORE=1 all of them."""

import os
from pathlib import Path

from tests.plan import samples

LEAST = 600
"""Ops that hold, of all."""


def test_what_is_built_of_pytorchs_samples_runs_on_a_worker_with_eagers_value_and_the_page_says_what_is_refused():
    whole = "FEDQ_MORE" in os.environ
    names = list(samples.ops())[:: 1 if whole else 2 * samples.TWENTIETH]
    made = samples.spread(names, os.cpu_count() or 1) if whole else samples.rows(names)
    assert not [samples.describe(row) for row in made if row.kind in samples.FAULTS]
    assert not samples.drift(made)
    assert len(samples.on_the_page()[0]) >= LEAST


def test_the_page_names_each_op_of_pytorchs_suite_once():
    held, refused = samples.on_the_page()
    text = Path(samples.PAGE).read_text("utf-8").partition("## Fail in eager\n")[2]
    fail = set(text.replace("\n", "").replace(" ", "").split(","))
    assert not held & refused.keys() and not held & fail
    assert held | refused.keys() | fail == set(samples.ops())


def test_a_refusal_without_line_or_cure_or_with_torchs_text_is_a_fault():
    from fedq.errors import CannotRecord

    torchs = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    found = [
        samples.refusal(error).kind
        for error in (
            CannotRecord("it has no place (samples.py:3)", hint="leave it out"),
            CannotRecord("it has no place", hint="leave it out"),
            CannotRecord("it has no place (samples.py:3)"),
            _caused(CannotRecord(f"it failed: {torchs} (samples.py:3)", hint="no"), torchs),
            KeyError("x0"),
        )
    ]
    assert found == [samples.REFUSED, "no line", "no cure", "torch's text", "build broke"]


def _caused(error, cause):
    error.__cause__ = cause
    return error
