"""docs/review.md is played by two users of one machine: its commands run, and show what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.test_docs import HEX, ROOT, blocks, learn, plain

PAGE = "docs/review.md"
USERS = {"olga": 65501, "rosa": 65502}
GROUP = "games"
"""In the place of the page's ``lab``: a group that every machine has."""
READINGS = "70,5.5\n61.5,4\n64.5,7\n66,4.5\n"
COMMAND = re.compile(rf"^({'|'.join(USERS)})\$ ", re.M)
AGE = re.compile(r"\b\d+ (s|min)\b")


@pytest.fixture
def place():
    """A folder that both may write to, and a home for each that only they may enter."""
    root = Path(tempfile.mkdtemp(prefix="fedq-page-"))
    root.chmod(0o755)
    work = root / "fedq"
    work.mkdir()
    work.chmod(0o777)
    for name, uid in USERS.items():
        (root / name).mkdir(mode=0o700)
        os.chown(root / name, uid, -1)
    yield work
    shutil.rmtree(root)


def opened() -> str:
    """Shell lines, in a mount namespace, that let every user run this Python, wherever it lies."""
    needed = {os.path.realpath(p) for p in (sys.base_prefix, sys.prefix, ROOT)}
    closed = {str(a) for p in needed for a in Path(p).parents if not a.stat().st_mode & 0o001}
    lines = ["set -e"]
    for folder in sorted(f for f in closed if not any(f.startswith(f"{other}/") for other in closed)):
        inside = [p for p in needed if p.startswith(f"{folder}/")]
        lines += [f"d{n}=$(mktemp -d); mount --bind {shlex.quote(p)} $d{n}" for n, p in enumerate(inside)]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(folder)}")
        lines += [f"mkdir -p {shlex.quote(p)}; mount --bind $d{n} {shlex.quote(p)}" for n, p in enumerate(inside)]
    return "\n".join(lines)


def type_in(command: str, user: str, place: Path) -> str:
    """What a user sees who types this in the folder."""
    home = place.parent / user
    environ = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(home),
        "FEDQ_HOME": str(home / ".fedq"), "FEDQ_USER": user, "FEDQ_DURABILITY": "none", "NO_COLOR": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    become = f"exec setpriv --reuid={USERS[user]} --regid={GROUP} --clear-groups bash -c {shlex.quote(command)}"
    script = f"{opened()}\ncd {shlex.quote(str(place))}\numask 077\n{become}"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-c", script],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    if "unshare:" in done.stdout or "mount:" in done.stdout:
        pytest.skip(f"no mount namespace here: {done.stdout.strip()[:100]}")
    assert (done.returncode == 0) == ("error: " not in done.stdout), f"{user}$ {command}\n{done.stdout}"
    return done.stdout


def simple(text: str, place: Path) -> str:
    """Output without ids, times, ages, who the users are here, and the widths that follow from them."""
    text = text.replace(str(place), "/srv/fedq")
    text = re.sub(r"by \w+$", "by USER", AGE.sub("AGE", text), flags=re.M)
    return re.sub(r" {2,}", "  ", plain(text, place))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two other users")
def test_two_users_play_the_page_and_see_what_it_shows(place):
    (place.parent / "olga" / "readings.csv").write_text(READINGS)
    known: dict[str, str] = {}
    for block in blocks(PAGE):
        if block.file is not None:
            (place / block.file).write_text(block.code)
            (place / block.file).chmod(0o644)
        if block.kind != "console":
            continue
        _, *parts = COMMAND.split(block.code)
        for user, part in zip(parts[::2], parts[1::2], strict=True):
            command, _, shown = part.partition("\n")
            typed = HEX.sub(lambda m: known.get(m[0], m[0]), command).replace("--group lab", f"--group {GROUP}")
            came = type_in(typed, user, place)
            came = "".join(line for line in came.splitlines(True) if not line.startswith("waiting for "))
            came = came.replace(f"everybody in {GROUP} ", "everybody in lab ")
            learn(known, shown, came)
            assert simple(came, place) == simple(shown, place), f"{PAGE}:{block.line}: {user}$ {command}"
    assert not os.listdir(place / "queue" / "ward" / os.listdir(place / "queue" / "ward")[0] / "in")


def test_olgas_home_and_her_device_are_closed_to_rosa():
    """The page's premise, as the code has it: a device's home is made for its owner alone."""
    from fedq import fs

    with tempfile.TemporaryDirectory() as folder:
        fs.make_dir(Path(folder) / "devices" / "ward")
        assert (Path(folder) / "devices").stat().st_mode & 0o077 == 0
