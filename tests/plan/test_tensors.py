import pytest
import torch
from hypothesis import given
from safetensors.torch import load

from fedq.errors import BadFile, CannotRecord
from fedq.plan.codec import RawTensor, encode
from fedq.plan.graph import ITEMSIZE, Type
from fedq.plan.tensors import DTYPES, from_raw, to_raw, type_of
from fedq.trust.keys import Key
from tests.strategies import raw_tensors


@given(raw_tensors())
def test_a_raw_tensor_goes_to_torch_and_back(raw):
    tensor = from_raw(raw)
    assert (tensor.dtype, tuple(tensor.shape)) == (DTYPES[raw.dtype], raw.shape)
    again = to_raw(tensor)
    assert (again.dtype, again.shape, bytes(again.data)) == (raw.dtype, raw.shape, raw.data)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_the_size_torch_gives_it_and_is_read_by_the_stock_library(name):
    tensor = torch.arange(4).to(DTYPES[name]).reshape(2, 2)
    assert tensor.element_size() == ITEMSIZE[name]
    raw = b"".join(encode("x", {}, {"a": to_raw(tensor)}, Key.from_seed(bytes(32))))
    theirs = load(raw)["a"]
    assert theirs.dtype == tensor.dtype
    assert bytes(to_raw(theirs).data) == bytes(to_raw(tensor).data)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3).t(),
        torch.arange(6.0)[::2],
        torch.ones(1).expand(3, 4),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
        torch.ones(2, 2, requires_grad=True),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.tensor(3),
        torch.zeros(0, 3),
    ],
)
def test_any_layout_is_written_row_by_row(tensor):
    assert torch.equal(from_raw(to_raw(tensor)), tensor.detach().resolve_conj().resolve_neg())


def test_what_comes_from_a_file_has_memory_of_its_own():
    buffer = bytearray(8)
    tensor = from_raw(RawTensor("f32", (2,), memoryview(buffer)))
    tensor += 1
    assert buffer == bytes(8)


def test_a_bool_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(BadFile, match="bool"):
        from_raw(RawTensor("bool", (3,), memoryview(b"\0\1\2")))


def test_a_dtype_that_has_no_name_is_refused_with_those_that_have():
    with pytest.raises(CannotRecord, match="complex128") as caught:
        to_raw(torch.ones(1, dtype=torch.complex128))
    assert "f32" in str(caught.value.hint)


def test_types_of_tensors_and_numbers():
    assert type_of(torch.ones(2, 3)) == Type("f32", (2, 3))
    assert [str(type_of(v)) for v in (3, 2.5, True, "a")] == ["int=3", "float=2.5", "bool=true", 'str="a"']
