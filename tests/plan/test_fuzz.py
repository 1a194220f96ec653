import subprocess
import sys


def test_no_allowed_op_kills_the_process_whatever_it_is_given():
    """A few calls of each; `make fuzz` runs more."""
    done = subprocess.run([sys.executable, "-m", "tests.plan.fuzz", "--calls", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
