from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq import config, ids
from fedq.errors import UsageError


def find(cwd, environ=None, **given):
    return config.find(environ={"HOME": "/home/a", "FEDQ_USER": "alice"} | (environ or {}), cwd=cwd, **given)


def test_without_a_file_the_roots_are_here(tmp_path):
    found = find(tmp_path)
    assert (found.queue, found.devices) == (tmp_path / "queue", tmp_path / "devices")
    assert (found.home, found.user, found.durability) == (Path("/home/a/.fedq"), "alice", "full")


def test_the_nearest_file_upward_says_where_relative_to_itself(tmp_path):
    (tmp_path / "fedq.toml").write_text('queue = "../share"\nuser = "bob"\ndurability = "none"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = find(below, {"FEDQ_USER": ""})
    assert (found.queue, found.devices) == (tmp_path.parent / "share", tmp_path / "devices")
    assert (found.user, found.durability) == ("bob", "none")
    (tmp_path / "a" / "fedq.toml").write_text("")
    assert find(below).queue == tmp_path / "a" / "queue"


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path):
    (tmp_path / "fedq.toml").write_text('queue = "from_file"\ndevices = "from_file"\nhome = "h"\n')
    found = find(tmp_path, {"FEDQ_QUEUE": "from_env", "FEDQ_DEVICES": "from_env"}, queue="given")
    assert (found.queue, found.devices, found.home) == (tmp_path / "given", tmp_path / "from_env", tmp_path / "h")
    assert find(tmp_path, {"FEDQ_HOME": "/x"}).home == Path("/x")


def test_a_tilde_in_the_file_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/b")
    (tmp_path / "fedq.toml").write_text('queue = "~/share"\n')
    assert find(tmp_path).queue == Path("/home/b/share")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qeue = 'x'", "unknown key 'qeue'"),
        ("queue = 3", "text"),
        ("queue = ['a']", "text"),
        ("queue", "fedq.toml"),
        ("durability = 'some'", "durability"),
        (b"queue = '\xff'", "fedq.toml"),
    ],
)
def test_a_wrong_file_is_a_usage_error_that_says_what(tmp_path, text, says):
    (tmp_path / "fedq.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=says):
        find(tmp_path)


def test_a_directory_of_the_files_name_is_not_it(tmp_path):
    (tmp_path / "fedq.toml").mkdir()
    assert find(tmp_path).queue == tmp_path / "queue"


def test_without_any_name_the_user_is_user(tmp_path, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    assert find(tmp_path, {"FEDQ_USER": ""}).user == "user"


@given(st.text(max_size=60))
def test_any_name_of_a_user_becomes_one_for_a_directory(text):
    assert ids.is_name(config.user_name(text) + "-3f9a1c2e")
