import json
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from fedq.errors import BadFile, BadSignature
from fedq.plan.codec import (
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    MAX_JSON_ITEMS,
    MAX_TENSORS,
    SIGNATURE,
    RawTensor,
    decode,
    encode,
    parse_json,
    sha256,
)
from fedq.trust.keys import Key, signer_of
from tests.strategies import raw_tensors, tensor_names

KEY = Key.from_seed(bytes(range(32)))
TENSOR = RawTensor("f32", (2,), b"\0\0\x80?\0\0\0@")
SIG = {"dtype": "U8", "shape": [96], "data_offsets": [8, 104]}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]}
META = {"fedq": '{"v":1,"kind":"x"}'}


def file(header, data=TENSOR.data, *, pad=True):
    """A file with any header, rightly signed."""
    head = (
        header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    head += b" " * (-len(head) % 8 if pad else 0)
    front = struct.pack("<Q", len(head)) + head + data + KEY.public
    return front + KEY.sign("x", sha256([front]))


def good(**changes):
    return {"__metadata__": META, "a": ENTRY, SIGNATURE: SIG} | changes


@given(
    st.dictionaries(tensor_names, raw_tensors(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
def test_a_file_reads_back_as_it_was_written(tensors, extra):
    raw = b"".join(encode("x", {"body": extra}, tensors, KEY))
    assert signer_of("x", raw) == KEY.public
    read = decode(raw)
    assert read.body == {"body": extra}
    assert {n: (t.dtype, t.shape, bytes(t.data)) for n, t in read.tensors.items()} == {
        n: (t.dtype, t.shape, t.data) for n, t in tensors.items()
    }


@given(st.dictionaries(tensor_names, raw_tensors(), max_size=4))
def test_every_tensor_starts_at_a_multiple_of_its_element_size(tensors):
    raw = b"".join(encode("x", {}, tensors, KEY))
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    assert size % 8 == 0
    assert all(
        header[n]["data_offsets"][0] % (t.size_bytes // max(1, _count(t.shape)) or 1) == 0 for n, t in tensors.items()
    )


def _count(shape):
    count = 1
    for n in shape:
        count *= n
    return count


def test_the_stock_library_opens_our_files(tmp_path):
    tensors = {
        "half": RawTensor("bf16", (3,), bytes(6)), "yes": RawTensor("bool", (5,), b"\1\0\1\1\0"),
        "größe.weight": TENSOR, "none": RawTensor("f64", (0, 3), b""), "one": RawTensor("i64", (), b"\7" + bytes(7)),
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(encode("x", {"v": 1}, tensors, KEY)))
    with safe_open(path, "np") as opened:
        assert set(opened.keys()) == {*tensors, SIGNATURE}
        assert json.loads(opened.metadata()["fedq"]) == {"v": 1}
        assert opened.get_tensor("größe.weight").tolist() == [1.0, 2.0]
        assert opened.get_tensor("one") == 7
        assert opened.get_tensor(SIGNATURE)[:32].tobytes() == KEY.public


SPLIT = {SIGNATURE: SIG | {"data_offsets": [16, 112]}}
HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x08\0\0\0\0\0\0",
    "zeros": bytes(200),
    "text": b"hello, this is not a file of any kind" * 9,
    "header longer than the file": struct.pack("<Q", 1 << 20) + b"{}" + bytes(200),
    "header length of all ones": b"\xff" * 300,
    "header above the cap": struct.pack("<Q", MAX_HEADER_BYTES + 8) + bytes(MAX_HEADER_BYTES + 200),
    "header empty": file(b""),
    "header a list": file([]),
    "header a number": file(b"1"),
    "header after a space": file(b" " + json.dumps(good()).encode()),
    "header not utf-8": file(b'{"\xff":1}'),
    "header in utf-16": file(json.dumps(good()).encode("utf-16-le")),
    "header with a byte order mark": file(b"\xef\xbb\xbf" + json.dumps(good()).encode()),
    "header with a comma too many": file(b'{"a":1,}'),
    "header twice": file(json.dumps(good()).encode() * 2),
    "key twice": file(json.dumps(good()).replace('"a"', '"a":{},"a"').encode()),
    "metadata twice": file(json.dumps(good()).replace('"a"', '"__metadata__":{},"a"').encode()),
    "nan": file(good(a=ENTRY | {"shape": [float("nan")]})),
    "infinity": file(good(a=ENTRY | {"shape": [float("inf")]})),
    "overflowing number": file(json.dumps(good()).replace("[2]", "[1e999]").encode()),
    "huge integer": file(json.dumps(good()).replace("[2]", "[" + "9" * 5000 + "]").encode()),
    "nested lists": file(b"[" * 100_000),
    "nested in an entry": file(good(a=ENTRY | {"shape": json.loads("[" * 40 + "]" * 40)})),
    "no metadata": file({"a": ENTRY, SIGNATURE: SIG}),
    "metadata null": file(good(__metadata__=None)),
    "metadata with more": file(good(__metadata__=META | {"format": "pt"})),
    "metadata not text": file(good(__metadata__={"fedq": {}})),
    "body not JSON": file(good(__metadata__={"fedq": "{"})),
    "body a list": file(good(__metadata__={"fedq": "[]"})),
    "body empty": file(good(__metadata__={"fedq": ""})),
    "body with a key twice": file(good(__metadata__={"fedq": '{"v":1,"v":1}'})),
    "body with half a surrogate pair": file(good(__metadata__={"fedq": '{"v":"\\ud800"}'})),
    "body with nan": file(good(__metadata__={"fedq": '{"v":NaN}'})),
    "body with 1e999": file(good(__metadata__={"fedq": '{"v":-1e999}'})),
    "body nested": file(good(__metadata__={"fedq": '{"v":' + "[" * 40 + "]" * 40 + "}"})),
    "body nested far": file(good(__metadata__={"fedq": '{"v":' + "[" * 90_000})),
    "body bomb of lists": file(good(__metadata__={"fedq": '{"v":[' + "[]," * 1_000_000 + "0]}"})),
    "body bomb of keys": file(good(__metadata__={"fedq": "{" + ",".join(f'"{i}":0' for i in range(300_000)) + "}"})),
    "signature missing": file({"__metadata__": META, "a": ENTRY | {"shape": [26], "data_offsets": [0, 104]}}),
    "signature not last": file(
        good(**{SIGNATURE: SIG | {"data_offsets": [0, 96]}}, a=ENTRY | {"data_offsets": [96, 104]})
    ),
    "signature too short": file(good(**{SIGNATURE: SIG | {"shape": [95], "data_offsets": [8, 103]}})),
    "signature of other dtype": file(good(**{SIGNATURE: SIG | {"dtype": "I8"}})),
    "signature of other shape": file(good(**{SIGNATURE: SIG | {"shape": [2, 48]}})),
    "signature of floats": file(good(**{SIGNATURE: SIG | {"shape": [96.0]}})),
    "bytes after the last tensor": file(good(), TENSOR.data + bytes(8)),
    "bytes missing": file(good(), TENSOR.data[:-1]),
    "dtype unknown": file(good(a=ENTRY | {"dtype": "F31"})),
    "dtype of ours": file(good(a=ENTRY | {"dtype": "f32"})),
    "dtype a list": file(good(a=ENTRY | {"dtype": ["F32"]})),
    "dtype null": file(good(a=ENTRY | {"dtype": None})),
    "wrong dtype for its bytes": file(good(a=ENTRY | {"dtype": "F64"})),
    "wrong size": file(good(a=ENTRY | {"shape": [3]})),
    "shape negative": file(good(a=ENTRY | {"shape": [-2]})),
    "shape of two negatives": file(good(a=ENTRY | {"shape": [-1, -2]})),
    "shape of floats": file(good(a=ENTRY | {"shape": [2.0]})),
    "shape true": file(good(a=ENTRY | {"shape": [2, True]})),
    "shape a text": file(good(a=ENTRY | {"shape": "2"})),
    "shape of 65 dimensions": file(good(a=ENTRY | {"shape": [2, *[1] * 64]})),
    "shape that overflows beside a zero": file(good(a=ENTRY | {"shape": [0, 1 << 40, 1 << 40]}) | SPLIT, bytes(16)),
    "shape beside a zero": file(good(a=ENTRY, b=ENTRY | {"shape": [0, 1 << 61], "data_offsets": [8, 8]})),
    "offsets backwards": file(good(a=ENTRY | {"data_offsets": [8, 0]})),
    "offsets outside": file(good(a=ENTRY | {"data_offsets": [1 << 40, (1 << 40) + 8]})),
    "offsets negative": file(good(a=ENTRY | {"data_offsets": [-8, 0]})),
    "offsets of three": file(good(a=ENTRY | {"data_offsets": [0, 4, 8]})),
    "offsets true": file(good(a=ENTRY | {"data_offsets": [False, 8]})),
    "into the signature": file(good(a=ENTRY | {"data_offsets": [8, 16]})),
    "overlap": file(good(b=ENTRY)),
    "overlap in part": file(good(b=ENTRY | {"data_offsets": [4, 12]}) | SPLIT, bytes(16)),
    "hole in front": file(good(a=ENTRY | {"data_offsets": [8, 16]}) | SPLIT, bytes(16)),
    "hole behind": file(good() | SPLIT, bytes(16)),
    "empty tensor inside another": file(good(b={"dtype": "U8", "shape": [0], "data_offsets": [4, 4]})),
    "entry a list": file(good(a=[])),
    "entry with more": file(good(a=ENTRY | {"x": 1})),
    "entry with less": file(good(a={"dtype": "F32", "shape": [2]})),
    "name that climbs": file(good(**{"../../x": EMPTY})),
    "name of windows": file(good(**{"c:\\x": EMPTY})),
    "name empty": file(good(**{"": EMPTY})),
    "name with a zero byte": file(good(**{"a\0": EMPTY})),
    "name with a line": file(good(**{"a\nb": EMPTY})),
    "name reserved": file(good(**{"~x": EMPTY})),
    "name of 301 characters": file(good(**{"a" * 301: EMPTY})),
    "name with half a surrogate pair": file(json.dumps(good(**{"\ud800": ENTRY})).encode()),
    "too many tensors": file(good(**{f"e{i}": EMPTY for i in range(MAX_TENSORS)})),
}  # fmt: skip


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_hostile_file_is_refused_in_little_memory(reason):
    raw = HOSTILE[reason]
    tracemalloc.start()
    with pytest.raises(BadFile):
        decode(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * (MAX_JSON_ITEMS // 2 - 1) + "0]",
        "[" + '{"a":0},' * (MAX_JSON_ITEMS // 2 - 1) + "0]",
        "[" + "12345678," * (MAX_JSON_ITEMS - 2) + "0]",
        "{" + ",".join(f'"{i:07}":{i}' for i in range(MAX_JSON_ITEMS - 1)) + "}",
        "[" + ",".join("9" * 4300 for _ in range(MAX_HEADER_BYTES // 4301)) + "]",
        '["' + "\\ud83d\\ude00" * (MAX_HEADER_BYTES // 12) + '"]',
    ],
    ids=["lists", "dicts", "ints", "keys", "digits", "escapes"],
)
def test_the_costliest_json_below_the_caps_stays_within_memory_bounds(text):
    assert len(text) <= MAX_HEADER_BYTES
    tracemalloc.start()
    parse_json(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_good_file_of_the_same_making_is_read():
    assert decode(file(good())).tensors["a"].shape == (2,)
    assert decode(file(good(), pad=False)).body == {"v": 1, "kind": "x"}


def test_depth_is_counted_in_containers():
    parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(BadFile):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("name", ["", "~a", SIGNATURE, "__metadata__", "a/b", "..\\x", "a\n", "\ud800", "a" * 301])
def test_a_tensor_of_such_a_name_is_not_written(name):
    with pytest.raises(BadFile):
        encode("x", {}, {name: TENSOR}, KEY)


def test_a_tensor_without_the_bytes_of_its_shape_is_not_written():
    with pytest.raises(BadFile):
        encode("x", {}, {"a": RawTensor("f32", (2,), bytes(7))}, KEY)


def test_what_is_too_large_for_one_file_is_not_written():
    with pytest.raises(BadFile, match="too large"):
        encode("x", {}, {f"t{i}": RawTensor("u8", (0,), b"") for i in range(MAX_TENSORS + 1)}, KEY)
    with pytest.raises(BadFile, match="too large"):
        encode("x", {"a": "x" * MAX_HEADER_BYTES}, {}, KEY)


@pytest.mark.parametrize(
    "body", [{"a": [0] * MAX_JSON_ITEMS}, {"a": json.loads("[" * 40 + "]" * 40)}], ids=["items", "depth"]
)
def test_what_could_not_be_read_back_is_not_written(body):
    with pytest.raises(BadFile):
        encode("x", body, {}, KEY)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_bad_file(raw):
    with pytest.raises(BadFile):
        decode(raw)
    with pytest.raises(BadSignature):
        signer_of("x", raw)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_json_or_a_bad_file(text):
    try:
        value = parse_json(text)
    except BadFile:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
