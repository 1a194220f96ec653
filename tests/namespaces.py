"""Run Python as root of namespaces of its own: mounts, full disks, limits; no rights needed."""

import subprocess
import sys

import pytest


def in_namespace(setup, script, argument):
    """Its output, after these shell lines, in which ``$2`` is the argument; skips where that is impossible."""
    shell = f'set -e; {setup}; exec "$0" -c "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", shell, sys.executable, script, str(argument)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    return done.stdout
