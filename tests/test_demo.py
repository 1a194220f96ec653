"""The demo runs to its end and leaves nothing behind, also when it is interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedq.config import find
from fedq.device import daemon
from tests.marks import more

DEMO = Path(__file__).resolve().parents[1] / "demo" / "run.py"


@pytest.fixture
def start(tmp_path):
    """Start the demo in a session of its own, as a terminal would."""

    def start():
        return subprocess.Popen(
            [sys.executable, DEMO, tmp_path / "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def gate_of(folder):
    root = folder / "demo"
    return daemon.pid(find(cwd=root, environ={"HOME": str(root)}))


@more
def test_the_demo_checks_its_own_numbers_and_ends_its_daemon(start, tmp_path):
    demo = start()
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 0, out + err
    assert "All numbers are those computed here" in out
    assert out.count("checked:") == 7
    assert "Traceback" not in out + err
    assert gate_of(tmp_path) is None


@more
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(how, start, tmp_path):
    demo = start()
    seen = next(line for line in demo.stdout if line.startswith("$ fedq device ls"))
    assert seen
    assert gate_of(tmp_path) is not None
    os.killpg(demo.pid, how)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode != 0
    assert "Traceback" not in err
    assert gate_of(tmp_path) is None
