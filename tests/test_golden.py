"""Golden files: today's code writes them byte for byte and reads them; so does a reader made from the page."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq import ids
from fedq.errors import BadFile, BadSignature
from fedq.plan.codec import canonical, decode, sha256
from fedq.plan.file import decode_plan, encode_plan
from fedq.plan.graph import show
from fedq.queue.message import (
    decode_message,
    decode_reply,
    encode_message,
    encode_reply,
    message_to_json,
    reply_to_json,
)
from fedq.queue.pair import Card, Catalog, Heartbeat
from fedq.trust.keys import signer_of, unseal
from tests import second_reader
from tests.golden import contents
from tests.golden.contents import ALICE, DEVICE, FOLDER, MESSAGE, PLAN, REPLY

PAGE = Path(__file__).parent.parent / "docs" / "format.md"
KINDS = {
    "double_abs": "plan", "plan": "plan", "params": "plan", "variants": "plan", "control": "plan",
    "worked": "message", "message": "message", "fold": "message", "fold-options": "message", "noted": "message",
    "asked": "message",
    "reply": "reply",
}  # fmt: skip
FILES = {name: (kind, (FOLDER / f"{name}-v1.safetensors").read_bytes()) for name, kind in KINDS.items()}
SEALED = {c.KIND: (c, (FOLDER / f"{c.KIND}-v1.json").read_bytes()) for c in (Card, Catalog, Heartbeat)}


def read(kind, raw):
    """The file's content by today's code, in a form that can be compared, and as it would be written again."""
    file = decode(raw)
    tensors = {n: (t.dtype, t.shape, bytes(t.data)) for n, t in file.tensors.items()}
    if kind == "plan":
        plan = decode_plan(file)
        return plan, tensors, encode_plan(plan, ALICE)
    if kind == "message":
        message = decode_message(file)
        return message, tensors, encode_message(message, file.tensors, ALICE)
    reply = decode_reply(file)
    return reply, tensors, encode_reply(reply, file.tensors, DEVICE)


@pytest.mark.parametrize("name", contents.golden())
def test_todays_code_writes_the_golden_bytes(name):
    assert contents.golden()[name] == (FOLDER / name).read_bytes()


def test_golden_files_are_never_taken_away():
    here = {p.name for p in FOLDER.iterdir() if "-v" in p.name}
    assert here == contents.golden().keys()


def test_todays_code_reads_what_was_written():
    assert repr(read("message", FILES["message"][1])[0]) == repr(MESSAGE)  # it holds a nan
    assert read("reply", FILES["reply"][1])[0] == REPLY
    plan = read("plan", FILES["plan"][1])[0]
    assert (plan.graph, plan.about, plan.id) == (PLAN.graph, PLAN.about, PLAN.id)
    assert read("plan", FILES["double_abs"][1])[0] == contents.DOUBLE
    assert read("plan", FILES["params"][1])[0] == contents.PARAMS
    assert read("plan", FILES["variants"][1])[0] == contents.VARIANTS
    assert read("plan", FILES["control"][1])[0] == contents.CONTROL
    assert read("message", FILES["worked"][1])[0] == contents.WORKED
    assert read("message", FILES["fold"][1])[0] == contents.FOLDED
    assert read("message", FILES["fold-options"][1])[0] == contents.FOLD_OPTIONS
    assert read("message", FILES["asked"][1])[0] == contents.ASKED


@pytest.mark.parametrize("name", FILES)
def test_what_was_read_is_written_again_byte_for_byte(name):
    kind, raw = FILES[name]
    assert b"".join(read(kind, raw)[2]) == raw


def test_sealed_files_are_read_as_they_were_written():
    for kind, value in (("card", contents.CARD), ("catalog", contents.CATALOG), ("heartbeat", contents.HEARTBEAT)):
        what, raw = SEALED[kind]
        assert unseal(what, raw, DEVICE.public, "device_1", contents.TO_ALICE) == value


def test_a_heartbeat_of_a_device_that_is_held_up_is_read_as_it_was_written():
    raw = (FOLDER / "heartbeat-held-up-v1.json").read_bytes()
    assert unseal(Heartbeat, raw, DEVICE.public, "device_1", contents.TO_ALICE) == contents.HELD_UP


def test_the_progress_of_a_fold_is_read_as_it_was_written():
    assert (
        unseal(Heartbeat, (FOLDER / "folding-v1.json").read_bytes(), DEVICE.public, "device_1", contents.TO_ALICE)
        == contents.FOLDING
    )


def test_the_printed_form_is_as_it_was():
    plan = read("plan", FILES["plan"][1])[0]
    assert show(plan.graph, plan.about) + "\n" == (FOLDER / "plan-v1.txt").read_text("utf-8")


# -- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_and_every_truncation_is_refused_by_the_signature(name):
    kind, raw = FILES[name]
    for at in range(len(raw)):
        with pytest.raises(BadSignature):
            signer_of(kind, raw[:at])
        for bit in range(8) if at % 7 == 0 or at >= len(raw) - 96 or at < 16 else (at % 8,):
            mutant = bytearray(raw)
            mutant[at] ^= 1 << bit
            with pytest.raises(BadSignature):
                signer_of(kind, mutant)


@pytest.mark.parametrize("kind", SEALED)
def test_every_flipped_bit_of_a_sealed_file_is_refused(kind):
    what, raw = SEALED[kind]
    for at in range(len(raw)):
        mutant = bytearray(raw)
        mutant[at] ^= 1 << at % 8
        with pytest.raises(BadFile):
            unseal(what, bytes(mutant), DEVICE.public, "device_1", contents.TO_ALICE)


def test_one_kind_is_never_taken_for_another():
    for name, (kind, raw) in FILES.items():
        for other in {"plan", "message", "reply", "card"} - {kind}:
            with pytest.raises(BadSignature):
                signer_of(other, raw)
            assert name


def signed_again(kind, raw, key):
    front = raw[:-96] + key.public
    return front + key.sign(kind, sha256([front]))


def check_consistent(kind, raw):
    """Whatever is accepted is written again in a form that is accepted as the same."""
    key = DEVICE if kind == "reply" else ALICE
    raw = signed_again(kind, raw, key)
    assert signer_of(kind, raw) == key.public
    try:
        content, tensors, again = read(kind, raw)
    except BadFile:
        return False
    content_again, tensors_again, third = read(kind, b"".join(again))
    assert type(content_again) is type(content)
    assert tensors_again == tensors
    assert b"".join(third) == b"".join(again)
    return True


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_under_a_new_signature_is_refused_or_read_consistently(name):
    kind, raw = FILES[name]
    accepted = 0
    for at in range(len(raw) - 96):
        mutant = bytearray(raw)
        mutant[at] ^= 1 << at * 5 % 8
        accepted += check_consistent(kind, bytes(mutant))
    assert accepted < len(raw)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_under_a_new_signature_is_refused_or_read_consistently(name, data):
    kind, raw = FILES[name]
    draw = data.draw
    start = draw(st.integers(0, len(raw) - 97))
    stop = draw(st.integers(start, min(len(raw) - 97, start + 40)))
    pieces = st.sampled_from(
        [b"", b"null", b"[]", b"{}", b"true", b"1e999", b"-1", b'"', b"\\u0000", b"9" * 50, b"[" * 40]
    )
    middle = draw(pieces | st.binary(max_size=8))
    check_consistent(kind, raw[:start] + middle + raw[stop:])


# -- the second reader -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_reader_made_from_the_page_reads_the_same(name):
    kind, raw = FILES[name]
    public, body, tensors = getattr(second_reader, f"read_{kind}")(raw)
    content, ours, _ = read(kind, raw)
    assert public == (DEVICE if kind == "reply" else ALICE).public.hex()
    assert tensors == ours
    if kind == "plan":
        assert (second_reader.graph_id(body["plan"][2]), body["plan"][1]) == (content.graph.id, content.id)
    else:
        written = message_to_json(content) if kind == "message" else reply_to_json(content)
        assert json.dumps(body) == json.dumps(json.loads(canonical(written)))


@pytest.mark.parametrize("name", FILES)
def test_a_reader_made_from_the_page_refuses_what_was_changed(name):
    kind, raw = FILES[name]
    for at in (0, 9, len(raw) // 2, len(raw) - 97, len(raw) - 96, len(raw) - 1):
        mutant = bytearray(raw)
        mutant[at] ^= 1
        with pytest.raises(second_reader.Refused):
            second_reader.read_file(kind, bytes(mutant))


def test_a_reader_made_from_the_page_reads_sealed_files():
    for kind, (what, raw) in SEALED.items():
        public, body = second_reader.read_sealed(kind, raw)
        assert public == DEVICE.public.hex()
        del body["v"], body["kind"]
        assert what.from_json(body) == unseal(what, raw, DEVICE.public, "device_1", contents.TO_ALICE)


def test_a_reader_made_from_the_page_derives_the_same_seeds():
    for part in ("0197a3c4" * 4, "", 0, 7):
        assert second_reader.seed_of(81207, part) == ids.derive_seed(81207, part)
    assert second_reader.call_seed(81207, ["0197a3c4" * 4, "f" * 32]) == ids.derive_seed(81207, "0197a3c4" * 4)


def test_the_second_reader_knows_nothing_of_fedq():
    source = Path(second_reader.__file__).read_text("utf-8")
    assert not re.search(r"import fedq|from fedq", source)


# -- the page --------------------------------------------------------------------------------


def test_the_page_shows_the_worked_message_as_it_is():
    assert worked() in PAGE.read_text("utf-8"), "write it there: python -m tests.test_golden"


def worked():
    """Section 9: the message in parts, with offsets."""
    raw = FILES["worked"][1]
    size = int.from_bytes(raw[:8], "little")
    end = 8 + size
    parts = [
        (0, 8, f"length of the header: {size}"),
        (8, end, "header: signature and `t0` by place, and the body, padded with spaces"),
        (end, end + 8, "`t0`: 1.0 and -2.0 as `f32`"),
        (end + 8, end + 40, "public key"),
        (end + 40, end + 104, 'signature over PAE("fedq/v1/message", SHA-256 of bytes 0 to ' + f"{end + 39})"),
    ]
    lines = ["```"]
    for start, stop, what in parts:
        lines.append(f"# {start}-{stop - 1}: {what.replace('`', '')}")
        lines += [_row(raw, at, min(at + 16, stop)) for at in range(start, stop, 16)]
    digest = sha256([raw[:-64]])
    type_ = b"fedq/v1/message"
    pae = b"DSSEv1 15 " + type_ + b" 32 " + digest
    return "\n".join(
        [
            *lines,
            "```",
            "",
            "What was signed:",
            "",
            "```",
            *(_row(pae, at, at + 16) for at in range(0, len(pae), 16)),
            "```",
            "",
        ]
    )


def _row(raw, start, stop):
    row = raw[start:stop]
    text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
    return f"{start:04x}  {row.hex(' '):<47}  {text}"


def main():
    text = PAGE.read_text("utf-8")
    head, mark, _ = text.partition("<!-- worked message -->\n")
    PAGE.write_text(f"{head}{mark}\n{worked()}", "utf-8")


if __name__ == "__main__":
    main()
