"""What stands on the disk: what others can write is not believed, and a pair is for those whom it is for."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedq import config as configs
from fedq import fs
from fedq.cli.app import app
from fedq.cli.call import guarded
from fedq.device.home import Home, Requester, init
from fedq.errors import UnknownDevice, Unreachable, UsageError
from fedq.local import introduce
from fedq.queue import pair as pairs
from tests.marks import more
from tests.rig import config_of

STRANGER = 65503
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
ALICE = Requester("alice-" + "ab" * 4, "ab" * 32)


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# -- a fedq.toml that others may have written ----------------------------------------------------

EVIL = 'home = "evil"\nuser = "mallory"\ndevices = "theirs"\ndurability = "none"\nqueue = "share"\n'


def find(cwd):
    return configs.find(environ={"HOME": "/home/a", "FEDQ_USER": ""}, cwd=cwd)


@pytest.mark.parametrize("how", ["group", "others", pytest.param("owner", marks=as_root), "link"])
def test_a_file_that_others_can_write_sets_nothing_that_picks_keys_and_that_is_said_once(tmp_path, how, caplog):
    file = tmp_path / "fedq.toml"
    (tmp_path / "theirs").mkdir()
    real = tmp_path / "theirs" / "fedq.toml" if how == "link" else file
    real.write_text(EVIL)
    real.chmod({"group": 0o664, "others": 0o646, "link": 0o666}.get(how, 0o644))
    if how == "owner":
        os.chown(file, STRANGER, -1)
    if how == "link":
        file.symlink_to(real)
    below = tmp_path / "below"
    below.mkdir()
    for _ in range(3):
        found = find(below)
    assert (found.home, found.devices) == (Path("/home/a/.fedq"), below / "devices")
    assert (found.durability, found.queue) == ("full", tmp_path / "share")
    assert found.user != "mallory"
    (said,) = caplog.messages
    assert f"{file} " in said and "sets no home" in said and ("chmod go-w" in said or "FEDQ_HOME" in said)


@pytest.mark.parametrize("text", ["queue", "[[[", "home = 3", "x = 1", "\x00", "a." * 40_000 + "b = 1"])
def test_no_strangers_file_stops_anybody(tmp_path, text):
    (tmp_path / "fedq.toml").write_text(text)
    (tmp_path / "fedq.toml").chmod(0o666)
    assert find(tmp_path).home == Path("/home/a/.fedq")


def test_a_file_of_ones_own_is_believed_without_a_word(tmp_path, caplog):
    (tmp_path / "fedq.toml").write_text(EVIL)
    (tmp_path / "fedq.toml").chmod(0o644)
    found = find(tmp_path)
    assert (found.home, found.devices, found.user) == (tmp_path / "evil", tmp_path / "theirs", "mallory")
    assert not caplog.messages


@as_root
def test_the_command_line_says_it_on_stderr_and_makes_no_key_in_the_strangers_folder(tmp_path):
    share, home = tmp_path / "share", tmp_path / "a"
    (share / "evil").mkdir(parents=True)
    home.mkdir(mode=0o700)
    (share / "fedq.toml").write_text(EVIL)
    os.chown(share / "fedq.toml", STRANGER, -1)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDQ_")}
    fedq = Path(sys.executable).with_name("fedq")
    done = subprocess.run(
        [fedq, "whoami"], cwd=share, env={**kept, "HOME": str(home)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.count("fedq.toml") == 2 or done.stderr.count("sets no home") == 1
    assert (home / ".fedq" / "key").exists() and os.listdir(share / "evil") == []


# -- homes that others can write -----------------------------------------------------------------

OF_A_DEVICE = ["", "key", "journal.sqlite", "values", "spool", "failed", "trust", "trust/*", "device.json", "../.gate"]
OF_A_REQUESTER = ["", "key", "outbox.sqlite", "trust", "trust/*"]


def there(folder: Path, name: str) -> Path:
    (found,) = folder.glob(name) if "*" in name else [folder / name]
    found.mkdir(mode=0o700, exist_ok=True) if name in ("values", "spool", "failed") else None
    return Path(os.path.normpath(found))


@pytest.fixture
def made(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    introduce(config, "ward")
    for key, value in (("HOME", config.home), ("USER", "alice"), ("DURABILITY", "none")):
        monkeypatch.setenv(f"FEDQ_{key}", str(value))
    monkeypatch.chdir(tmp_path)
    guarded(app, ["search", "ward"])
    return config


def refused(capsys, *words) -> str:
    code = guarded(app, list(words))
    said = capsys.readouterr().err
    assert code == 9, said
    return said


@pytest.mark.parametrize(
    ("name", "words"),
    [(n, "device up ward") for n in OF_A_DEVICE]
    + [("trust", w) for w in ("data ls ward", "device step ward", "review")],
)
def test_a_device_is_refused_whose_home_others_can_write_with_the_command_that_mends_it(made, capsys, name, words):
    path = there(made.devices / "ward", name)
    path.chmod(mode(path) | 0o022)
    said = refused(capsys, *words.split())
    assert str(path) in said
    (mends,) = re.findall(r"hint:\S* (chmod \S+ \S+)", said)
    subprocess.run(mends.split(), check=True)
    assert guarded(app, ["data", "ls", "ward"]) == 0


@pytest.mark.parametrize("name", ["key", "journal.sqlite", "values", "spool", "failed"])
def test_what_holds_secrets_is_not_even_read_by_others(made, name):
    path = there(made.devices / "ward", name)
    path.chmod(mode(path) | 0o044)
    with pytest.raises(Unreachable, match="open to others"):
        Home(made.devices / "ward", made)


@as_root
@pytest.mark.parametrize("name", OF_A_DEVICE)
def test_another_users_home_is_not_served(made, capsys, name):
    path = there(made.devices / "ward", name)
    os.chown(path, STRANGER, -1)
    said = refused(capsys, "device", "up", "ward")
    assert f"{path} belongs to " in said and f"sudo chown -R root {path}" in said


@pytest.mark.parametrize("name", OF_A_REQUESTER)
@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=as_root)])
def test_a_requesters_home_that_is_anothers_or_open_is_refused(made, capsys, name, how):
    path = there(made.home, name.replace("*", pairs.root_id(made.queue)))
    path.chmod(mode(path) | 0o022) if how == "mode" else os.chown(path, STRANGER, -1)
    said = refused(capsys, "search", "ward")
    assert str(path) in said and ("chmod" in said or "chown" in said)


@as_root
def test_no_key_is_made_in_a_folder_of_anothers(tmp_path, monkeypatch, capsys):
    (tmp_path / "planted").mkdir()
    os.chown(tmp_path / "planted", STRANGER, -1)
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "planted"))
    refused(capsys, "whoami")
    assert os.listdir(tmp_path / "planted") == []


# -- init ----------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o177], ids=oct)
def umask(request):
    before = os.umask(request.param & 0o077 if os.getuid() else request.param)
    yield request.param
    os.umask(before)


def test_a_pair_is_this_users_alone_whatever_the_umask(tmp_path, umask):
    before, _ = os.umask(0o022), (tmp_path / "w").mkdir()
    os.umask(before)
    config = config_of(tmp_path / "w")
    init(config, "ward", requester=ALICE).close()
    pair = config.queue / "ward" / ALICE.name
    assert {mode(p) for p in (pair, *pair.iterdir()) if p.is_dir()} == {0o700}
    assert {mode(p) for p in pair.iterdir() if p.is_file()} == {0o600}
    assert not mode(config.queue) & 0o022 and not mode(config.queue / "ward") & 0o022
    assert mode(config.devices / "ward" / "key") == 0o600


def group() -> str:
    import grp

    return "games" if os.getuid() == 0 else grp.getgrgid(os.getgid()).gr_name


def test_a_pair_of_a_group_is_the_groups_whatever_the_umask_also_when_it_was_made_before(tmp_path, umask):
    before, _ = os.umask(0o022), (tmp_path / "w").mkdir()
    os.umask(before)
    config = config_of(tmp_path / "w")
    init(config, "other", requester=ALICE, group=group()).close()
    init(config, "ward", requester=ALICE).close()
    init(config, "ward", requester=ALICE, group=group()).close()
    for name in ("ward", "other"):
        pair = config.queue / name / ALICE.name
        assert {mode(p) for p in (pair, *pair.iterdir()) if p.is_dir()} == {0o2770}
        assert {mode(p) for p in pair.iterdir() if p.is_file()} == {0o660}


@pytest.mark.parametrize("rights", [0o1777, 0o2775, 0o755, 0o700])
@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_that_was_there_stays_as_it_is_and_works(tmp_path, rights, shared):
    config = config_of(tmp_path)
    config.queue.mkdir()
    config.queue.chmod(rights)
    init(config, "ward", requester=ALICE, group=group() if shared else None).close()
    assert mode(config.queue) == rights
    assert Home(config.devices / "ward", config).trusted() == [ALICE]


def test_what_a_group_planted_in_its_pair_is_not_followed_when_it_is_shared_again(tmp_path):
    config = config_of(tmp_path)
    init(config, "ward", requester=ALICE, group=group()).close()
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("mine")
    (secret / "file").chmod(0o600)
    pair = config.queue / "ward" / ALICE.name
    (pair / "out").rmdir()
    (pair / "out").symlink_to(secret)
    os.link(secret / "file", pair / "in" / "hard")
    (pair / "card.json").unlink()
    (pair / "card.json").symlink_to(secret / "file")
    try:
        init(config, "ward", requester=ALICE, group=group()).close()
    except Unreachable:
        pass
    assert (mode(secret), mode(secret / "file"), (secret / "file").read_text()) == (0o700, 0o600, "mine")


@as_root
def test_a_folder_that_a_stranger_made_for_the_device_is_refused(tmp_path):
    config = config_of(tmp_path)
    (config.queue / "ward").mkdir(parents=True)
    os.chown(config.queue / "ward", STRANGER, -1)
    with pytest.raises(Unreachable, match="belongs to"):
        init(config, "ward", requester=ALICE)


@pytest.mark.parametrize(
    "wrong", [{"group": "nosuchgroup"}, {"deadline_s": 0.0}, {"requester": Requester("../x-abababab", "ab" * 32)}]
)
def test_a_word_that_is_wrong_makes_nothing(tmp_path, wrong):
    config = config_of(tmp_path)
    with pytest.raises(UsageError):
        init(config, "ward", **{"requester": ALICE, **wrong})
    assert os.listdir(tmp_path) == []


STOPS = """
import os, signal, sys
from pathlib import Path
from fedq import config as configs, fs
from fedq.device.home import Home, Requester, homes, init

root, group, kill = Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3] == "kill"
alice = Requester("alice-abababab", "ab" * 32)

def make(config, stop):
    count = 0
    def each(name, call, *args, **kwargs):
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL) if kill else None
            raise OSError(5, "input/output error")
        return call(*args, **kwargs)
    fs.FAILPOINTS["*"] = each
    init(config, "ward", requester=alice, group=group).close()
    return count

def state(config):
    pair = config.queue / "ward" / alice.name
    there = (p for p in pair.iterdir() if p.is_dir() or not p.name.startswith(fs.TEMP))  # files are swept by age
    files = [config.queue, pair.parent, pair, *there]
    found = {str(p.relative_to(config.queue)): oct(p.stat().st_mode) for p in files}
    home = Home(config.devices / "ward", config)
    assert home.trusted() == [alice] and homes(config) == ["ward"]
    home.close()
    return found

def roots(n):
    (root / str(n)).mkdir()
    return configs.find(cwd=root / str(n), environ={"FEDQ_USER": "alice", "HOME": str(root), "FEDQ_DURABILITY": "none"})

os.umask(0o077)
whole = roots("whole")
total = make(whole, 0)
fs.FAILPOINTS.clear()
wanted = state(whole)
for stop in range(1, total + 1, int(sys.argv[4])):
    config = roots(stop)
    if (child := os.fork()) == 0:
        try:
            make(config, stop)
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (-9, 3, 0), status
    for name in homes(config):
        Home(config.devices / name, config).close()
    init(config, "ward", requester=alice, group=group).close()
    assert state(config) == wanted, (stop, state(config), wanted)
print("stops", total)
"""


@pytest.mark.parametrize(
    ("shared", "how", "every"),
    [
        (True, "kill", 12),
        *(pytest.param(shared, how, 1, marks=more) for shared in (False, True) for how in ("kill", "error")),
    ],
)
def test_whatever_stops_init_at_whichever_step_again_makes_it_whole(tmp_path, shared, how, every):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOPS), str(tmp_path), group() if shared else "", how, str(every)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 30


# -- words ---------------------------------------------------------------------------------------


def test_the_devices_that_are_there_are_named_where_one_is_mistyped(made, capsys):
    for words in ("approve wrad:0197a3c4", "deny wrad:0197a3c4", "review wrad", "data ls wrad"):
        assert guarded(app, words.split()) == UnknownDevice.exit_code
        said = capsys.readouterr().err
        assert "devices here: ward" in said and "device init" not in said


def test_filters_that_fit_nothing_are_not_found_and_a_tag_names_no_question(made, capsys):
    assert guarded(app, ["approve", "--requester", "nobody", "--yes"]) == 3
    assert "no question fits" in capsys.readouterr().err
    assert guarded(app, ["approve", "ward"]) == 2
    assert "as 'fedq review' prints it" in capsys.readouterr().err


def test_an_init_for_a_group_warns_that_all_of_it_reads(made, capsys):
    words = ["device", "init", "ward", "--requester", ALICE.name, "--key", ALICE.key, "--group", group()]
    assert guarded(app, words) == 0
    assert f"everybody in {group()} can read" in capsys.readouterr().err


def test_the_record_says_what_data_was_added_replaced_and_removed_and_by_whom(made, capsys, tmp_path):
    (tmp_path / "x.csv").write_text("1\n2\n")
    for words in ("data add ward x.csv --tag x", "data add ward x.csv --tag x --replace", "data rm ward x"):
        assert guarded(app, words.split()) == 0
    capsys.readouterr()
    assert guarded(app, ["device", "log", "ward", "--tag", "x"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"data \w+", line)[0] for line in lines] == ["data added", "data replaced", "data removed"]
    assert all("#x" in line and " by " in line and "i64[2,1]" in line for line in lines)


def test_a_files_own_rights_are_checked_by_name_not_by_luck(tmp_path):
    (tmp_path / "f").write_text("")
    (tmp_path / "f").chmod(0o640)
    fs.check_home(tmp_path, own=("f", "missing"))
    with pytest.raises(Unreachable) as error:
        fs.check_home(tmp_path, private=("f",))
    assert error.value.hint == f"chmod go-rwx {tmp_path / 'f'}"
