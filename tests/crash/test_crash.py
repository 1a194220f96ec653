"""The short versions of ``make crash``, ``make powerloss`` and ``make faults``; a failure prints its seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.crash.guards import GUARDS, ROOT

SHORT = {
    "kills": ("tests.crash", "--kills", "250", "--lanes", "1"),
    "power cuts, by the model": ("tests.crash.powerloss", "--most", "8", "--limit", "100"),
    "failing disks": ("tests.crash.faults", "--every", "149", "--codes", "ENOSPC,EIO,EMFILE"),
}


@pytest.mark.parametrize("what", SHORT)
def test_nothing_is_lost_torn_or_changed_by(what):
    done = subprocess.run(
        [sys.executable, "-m", *SHORT[what]], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.what)
def test_each_guard_stands_where_the_table_says(guard):
    """``make guards`` takes it away there; when the code moved on, its row in guards.py must follow."""
    assert (ROOT / guard.file).read_text().count(guard.old) == 1
