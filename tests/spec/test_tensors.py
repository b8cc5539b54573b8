"""State dicts become safetensors files: byte for byte the library's own, and every bad one is refused by name."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st

from holdfast.channel.header import DTYPES
from holdfast.channel.sources import BytesSource, Source
from holdfast.channel.tensors import (
    copy_state_dict,
    dtype_name,
    model_files,
    plan_shards,
    safetensors_source,
    view_state_dict,
)
from holdfast.errors import UsageError


def _bytes(source: Source, scratch_bytes: int = 64) -> bytes:
    with source.open() as opened:
        return b"".join(bytes(p) for p in opened.pieces(0, source.size, memoryview(bytearray(scratch_bytes))))


def _file(state: Mapping[str, object], **kwargs: Any) -> bytes:
    return _bytes(safetensors_source(view_state_dict(state, **kwargs)))


def _of_dtype(name: str) -> torch.Tensor:
    dtype = getattr(torch, name)
    if dtype is torch.bool:
        return torch.tensor([[True, False, True], [False, True, True]])
    size = 6 * torch.empty(0, dtype=dtype).element_size()
    return torch.arange(size, dtype=torch.uint8).view(dtype).reshape(2, 3)


# The file


def test_every_dtype_makes_the_very_file_of_the_safetensors_library() -> None:
    names = [name for name in DTYPES if hasattr(torch, name)]
    state = {f"model.{name}": _of_dtype(name) for name in names}
    state |= {
        "z.0d": torch.tensor(1.5),
        "a.empty": torch.empty(0, 3),
        "a.0d": torch.tensor(2),
        'é\n"\\\x7f': torch.ones(1),
    }
    assert {"bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "complex64"} <= set(names)
    assert _file(state) == safetensors.torch.save(state, metadata={"format": "pt"})


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(["float32", "float16", "bfloat16", "int64", "uint8"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 70),
)
def test_any_state_dict_makes_the_very_file_of_the_safetensors_library(
    shapes: dict[str, tuple[str, list[int]]], scratch_bytes: int
) -> None:
    state = {name: torch.randn(shape).mul(100).to(getattr(torch, dtype)) for name, (dtype, shape) in shapes.items()}
    found = _bytes(safetensors_source(view_state_dict(state)), scratch_bytes)
    assert found == safetensors.torch.save(state, metadata={"format": "pt"})


def test_numpy_arrays_make_the_same_file_as_tensors() -> None:
    state = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(3.5, dtype=np.float64),
        "c": np.array([True, False]),
        "d": np.arange(6, dtype=np.float16).reshape(2, 3)[:, ::-1],
        "e": np.arange(6, dtype=">i4").reshape(2, 3),
        "f": np.empty((0, 2), dtype=np.uint16),
    }
    loaded = safetensors.numpy.load(_file(state))
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].shape == array.shape
    plain = {name: torch.from_numpy(np.ascontiguousarray(state[name])) for name in "ac"}
    assert _file(plain) == _file({name: state[name] for name in "ac"})


@given(st.permutations([0, 1, 2, 3]), st.integers(1, 3), st.data())
def test_strided_tensors_are_written_as_if_they_were_contiguous(
    order: list[int], step: int, data: st.DataObject
) -> None:
    itemsize = data.draw(st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.int64]))
    base = torch.arange(3 * 4 * 5 * 2).to(itemsize).reshape(3, 4, 5, 2)
    view = base.permute(order)[:, ::step]
    contiguous = _file({"x": view.contiguous()})
    assert _bytes(safetensors_source(view_state_dict({"x": view})), data.draw(st.integers(1, 64))) == contiguous
    assert _file({"x": view.numpy()} if itemsize is not torch.bfloat16 else {"x": view}) == contiguous


def test_views_that_torch_evaluates_late_are_written_as_they_read() -> None:
    values = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    assert _file({"x": values.conj()}) == _file({"x": values.conj().resolve_conj().clone()})
    assert _file({"x": values.conj().imag}) == _file({"x": torch.tensor([-2.0, 4.0])})
    assert _file({"x": torch.tensor([1.0]).expand(3, 2)}) == _file({"x": torch.ones(3, 2)})


def test_contiguous_tensors_are_not_copied() -> None:
    tensor = torch.zeros(1000)
    source = safetensors_source(view_state_dict({"x": torch.nn.Parameter(tensor)}))
    tensor[-1] = 1.0
    assert _bytes(source)[-4:] == torch.ones(1).numpy().tobytes()


# Names that share memory


def test_a_tied_weight_is_kept_once_under_the_name_that_comes_first() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    state = {"model.embed_tokens.weight": weight, "norm": torch.ones(3), "lm_head.weight": weight}
    assert set(safetensors.torch.load(_file(state))) == {"model.embed_tokens.weight", "norm"}
    assert set(safetensors.torch.load(_file(dict(reversed(state.items()))))) == {"lm_head.weight", "norm"}
    both = safetensors.torch.load(_file(state, aliases="write"))
    assert torch.equal(both["lm_head.weight"], both["model.embed_tokens.weight"])


def test_parts_of_one_buffer_that_do_not_overlap_are_fine() -> None:
    flat = torch.arange(10.0)
    state = {"b": flat[5:], "a": flat[:5], "nothing": flat[3:3]}
    loaded = safetensors.torch.load(_file(state))
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        "a": [0, 1, 2, 3, 4],
        "b": [5, 6, 7, 8, 9],
        "nothing": [],
    }


BASE = torch.zeros(4, 4)
ARRAY = np.zeros((4, 4), dtype=np.float32)


@pytest.mark.parametrize("aliases", ["drop", "write"])
@pytest.mark.parametrize(
    "state",
    [
        {"x": BASE, "y": BASE[1:]},
        {"x": BASE[:3], "y": BASE[2:]},
        {"x": BASE, "y": BASE.t()},
        {"x": BASE, "y": BASE.view(16)},
        {"x": BASE, "y": BASE.view(torch.int32)},
        {"x": BASE[:, :2], "y": BASE[:, 2:]},
        {"x": BASE, "far": torch.zeros(1), "y": BASE[3, 3]},
        {"x": ARRAY, "y": ARRAY[::-1]},
        {"x": torch.from_numpy(ARRAY)[1:], "y": ARRAY},
    ],
)
def test_tensors_that_share_memory_are_refused_by_name(state: dict[str, object], aliases: Any) -> None:
    with pytest.raises(UsageError) as caught:
        view_state_dict(state, aliases=aliases)
    assert caught.value.code == "shared_tensors"
    assert [sorted(pair) for pair in caught.value.fields["pairs"]] == [["x", "y"]]  # type: ignore[attr-defined]
    assert "clone()" in caught.value.hint


def test_many_pairs_are_counted_not_listed() -> None:
    with pytest.raises(UsageError, match="and 10 more"):
        view_state_dict({f"t{i}": BASE.view(-1)[: i + 1] for i in range(16)})


# What is refused


class Sharded(torch.Tensor):
    """Looks as a DTensor does: a tensor that only all ranks together can give in full."""

    def full_tensor(self) -> torch.Tensor:
        raise AssertionError("a collective call from one rank would hang")


BAD_VALUES = {
    "not_a_tensor": [None, 1.5, [1.0], "text", b"bytes", {"nested": torch.ones(1)}, torch.float32],
    "meta_tensor": [torch.empty(2, device="meta"), torch.nn.parameter.UninitializedParameter()],
    "unsupported_dtype": [
        torch.zeros(2, dtype=torch.complex128),
        torch.zeros(4, dtype=torch.uint8).view(torch.complex32),
        np.zeros(2, dtype=np.complex128),
        np.array(["text"]),
        np.array([None]),
        np.zeros(2, dtype=[("a", "f4")]),
    ],
    "unsupported_layout": [torch.eye(3).to_sparse()],
    "sharded_tensor": [torch.zeros(2).as_subclass(Sharded)],  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize(("code", "value"), [(code, value) for code, values in BAD_VALUES.items() for value in values])
def test_values_that_safetensors_cannot_hold_are_refused_by_name(code: str, value: object) -> None:
    state = {"good": torch.ones(1), "bad.weight": value}
    for call in (view_state_dict, copy_state_dict):
        with pytest.raises(UsageError) as caught:
            call(state)  # type: ignore[operator]
        assert caught.value.code == code
        assert "'bad.weight'" in str(caught.value)
        assert caught.value.fields["tensor"] == "bad.weight"
        assert caught.value.hint


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_tensor_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        view_state_dict({"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
    assert caught.value.code == "unsupported_dtype"


@pytest.mark.parametrize("name", [1, None, b"x", ("a",), "__metadata__", "\ud800"])
def test_names_that_are_no_names_are_refused(name: Any) -> None:
    with pytest.raises(UsageError) as caught:
        view_state_dict({name: torch.ones(1)})
    assert caught.value.code == "bad_tensor_name"


def test_an_empty_state_dict_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        view_state_dict({})
    assert caught.value.code == "empty_state_dict"


# Copies


def test_a_copy_is_independent_and_writes_the_same_file() -> None:
    names = [name for name in DTYPES if hasattr(torch, name)]
    tied = torch.nn.Parameter(torch.randn(3, 3))
    state: dict[str, object] = {name: _of_dtype(name) for name in names}
    state |= {"tied.1": tied, "tied.2": tied, "t": torch.randn(3, 2).t(), "np": np.ones((2, 2))[:, ::-1].T}
    before = _file(state)
    copies = copy_state_dict(state)
    assert copies["tied.1"] is copies["tied.2"]
    assert _file(copies) == before
    with torch.no_grad():
        tied.zero_()
        state["t"].zero_()  # type: ignore[attr-defined]
    state["np"][:] = 0  # type: ignore[index]
    assert _file(copies) == before
    assert _file(state) != before


# Shards


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_shards_are_dealt_out_as_hugging_face_does(sizes: list[int], shard_bytes: int) -> None:
    state = {f"t{i}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    expected = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    assert plan_shards(((name, t.nbytes) for name, t in state.items()), shard_bytes) == [
        list(names) for names in expected.filename_to_tensors.values()
    ]
    files = dict(model_files(view_state_dict(state), shard_bytes))
    assert {path for path in files if path.endswith(".safetensors")} == set(expected.filename_to_tensors)
    if expected.is_sharded:
        index = json.loads(_bytes(files["model.safetensors.index.json"]))
        assert index == {"metadata": expected.metadata, "weight_map": expected.tensor_to_filename}


@pytest.mark.parametrize("shard_bytes", [0, -1])
def test_shards_have_a_positive_size(shard_bytes: int) -> None:
    with pytest.raises(UsageError) as caught:
        plan_shards([("a", 1)], shard_bytes)
    assert caught.value.code == "bad_shard_bytes"


def test_three_shards_open_as_files(tmp_path: pathlib.Path) -> None:
    state = {f"layer.{i}": torch.full((10,), float(i)) for i in range(3)}
    for path, source in model_files(view_state_dict(state), shard_bytes=40):
        (tmp_path / path).write_bytes(_bytes(source))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for name, tensor in state.items():
        with safetensors.safe_open(str(tmp_path / index["weight_map"][name]), "pt") as file:
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.metadata() == {"format": "pt"}


def test_the_dtype_with_most_bytes_is_named_first() -> None:
    views = view_state_dict(
        {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.zeros(1), "c": torch.zeros(1).bfloat16()}
    )
    assert dtype_name(views.values()) == "bfloat16+float32"
    assert isinstance(safetensors_source(views), BytesSource)
