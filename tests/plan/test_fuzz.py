import subprocess
import sys

from tests.marks import MORE, scaled


@scaled
def test_no_allowed_op_kills_the_process_whatever_it_is_given():
    """A few calls of each; `make fuzz` runs more. Of enough calls every op took one, so it is shown."""
    words = [sys.executable, "-m", "tests.plan.fuzz", "--calls", "20" if MORE else "3"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert not MORE or "\n0 ops took no call" in done.stdout
