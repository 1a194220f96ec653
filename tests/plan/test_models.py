"""docs/models.md says what is so. All models with ``make models``; here those that build fast."""

from __future__ import annotations

import os

import pytest

from tests.plan import models

FAST = ("nn.RNN", "nn.Conv1d", "nn.GroupNorm", "nn.TransformerEncoder")
CHECKED = tuple(models.MODELS) if os.environ.get("FEDQ_MORE") else FAST


@pytest.mark.scaled
@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.filterwarnings("ignore")
def test_a_model_is_as_the_page_says(name):
    """But for the last bits: a machine with other kernels may give them another way."""
    row = models.row(name)
    same = {row, row.replace("| close |", "| equal |"), row.replace("| equal |", "| close |")}
    assert same & set(models.PAGE.read_text("utf-8").splitlines())


def test_every_model_stands_on_the_page_once_and_no_other():
    rows = [line.split("|")[1].strip() for line in models.PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert rows[1:] == list(models.MODELS)
