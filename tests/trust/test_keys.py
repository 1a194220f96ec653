"""Keys: signatures that bind kind and bytes; key files nobody else can read."""

import hashlib
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.errors import BadSignature, Unreachable
from fedq.trust.keys import Key, load_or_create, signer_of, verify

KEY = Key.from_seed(bytes(range(32)))


def sealed(kind, data):
    body = data + KEY.public
    return body + KEY.sign(kind, hashlib.sha256(body).digest())


@given(st.binary(max_size=200), st.data())
def test_a_signed_file_names_its_signer_and_any_changed_bit_does_not(data, draw):
    raw = bytearray(sealed("message", data))
    assert signer_of("message", bytes(raw)) == KEY.public
    bit = draw.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        signer_of("message", bytes(raw))


def test_a_file_of_one_kind_is_not_one_of_another():
    with pytest.raises(BadSignature, match="not a signed fedq reply"):
        signer_of("reply", sealed("message", b"x"))


@pytest.mark.parametrize("size", [0, 1, 95])
def test_too_few_bytes_are_said_to_be_truncated(size):
    with pytest.raises(BadSignature, match="truncated"):
        signer_of("message", bytes(size))


def test_a_signature_of_another_length_is_refused():
    for size in (0, 32, 95, 97):
        with pytest.raises(BadSignature):
            verify("message", bytes(32), bytes(size))


def test_a_seed_gives_one_key_and_its_secret_is_not_printed():
    assert Key.from_seed(bytes(range(32))) == KEY
    assert KEY.fingerprint == KEY.public.hex()[:8] and len(KEY.public) == 32
    assert KEY._secret.hex()[:8] not in repr(KEY) and repr(KEY) == f"Key({KEY.fingerprint})"


def test_a_key_file_is_made_once_private_in_a_private_directory(tmp_path):
    path = tmp_path / "home" / "key"
    key = load_or_create(path)
    assert load_or_create(path) == key != load_or_create(tmp_path / "other" / "key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Key.from_seed(bytes.fromhex(path.read_text())) == key


@pytest.mark.parametrize(
    ("file", "folder"), [(0o640, 0o700), (0o604, 0o700), (0o660, 0o700), (0o600, 0o770), (0o600, 0o707)]
)
def test_a_key_that_others_may_read_or_swap_is_refused_with_the_cure(tmp_path, file, folder):
    path = tmp_path / "home" / "key"
    load_or_create(path)
    path.chmod(file)
    path.parent.chmod(folder)
    with pytest.raises(Unreachable, match=f"^{path.parent}") as caught:
        load_or_create(path)
    assert caught.value.hint.startswith("chmod ")


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 33, "é" * 32])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Unreachable, match="holds no key"):
        load_or_create(path)
    assert path.read_text() == text


def test_processes_that_start_together_agree_on_the_key(tmp_path):
    code = "import sys, pathlib, fedq.trust.keys as k; print(k.load_or_create(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, tmp_path / "home" / "key"]
    starting = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in starting}) == 1
