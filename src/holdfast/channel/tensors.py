"""State dicts as safetensors files, without a second copy of the weights in memory.

A state dict is checked as a whole first; then each file is a header and the tensors' own memory, end to end
(`BytesSource`). Contiguous tensors in host memory are never copied. Strided tensors, and tensors on another
device, are put together piece by piece (1 MiB) while they are written.

torch and numpy are not imported here: a value can only be one of theirs if the caller has imported them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from holdfast.channel.header import DTYPES, METADATA, build_header, file_order
from holdfast.channel.sources import BytesSource, Segment, Source
from holdfast.errors import UsageError

SHARD_BYTES = 5 * 10**9  # Hugging Face's default
INDEX = "model.safetensors.index.json"

Aliases = Literal["drop", "write"]
Copy = Callable[[Any, Any], None]  # (to, from): fill an array with the elements of another of the same shape


class TensorView(msgspec.Struct, frozen=True):
    """A checked tensor of a state dict, and where its bytes are. The memory is borrowed from the caller."""

    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    nbytes: int
    data: Segment
    region: tuple[str, int, int]  # device, first and last + 1 address that the tensor reaches
    layout: tuple[object, ...]  # with the region: what makes two tensors the very same


def view_state_dict(state: Mapping[str, object], *, aliases: Aliases = "drop") -> dict[str, TensorView]:
    """Check a whole state dict; nothing is copied.

    A tensor that appears under several names (tied weights: the very same memory, dtype, shape and strides) is
    kept under the first one in the state dict's order, as models register the input embedding before the head
    (`aliases="drop"`, what Hugging Face does with models, which tie them again on loading), or written under each
    name ("write", what PEFT does with adapters, which don't).

    Raises:
        UsageError: fix the state dict. Codes "empty_state_dict", "not_a_tensor", "bad_tensor_name",
            "unsupported_dtype", "unsupported_layout", "meta_tensor", "sharded_tensor", "shared_tensors".
    """
    assert sys.byteorder == "little", "safetensors files are little-endian, and tensors' memory is written as it is"
    if not state:
        raise UsageError("the state dict is empty", code="empty_state_dict", hint="pass model.state_dict()")
    views = {_checked_name(name): _view(name, value) for name, value in state.items()}
    names: dict[tuple[object, ...], str] = {}
    kept = {}
    for name, view in views.items():
        first = names.setdefault((view.region, *view.layout), name) if view.nbytes else name
        if first == name:
            kept[name] = view
    _refuse_overlaps(kept)
    return views if aliases == "write" else kept


def safetensors_source(views: Mapping[str, TensorView]) -> BytesSource:
    """One safetensors file, byte for byte what the safetensors library writes with metadata {"format": "pt"}."""
    order = file_order({name: view.dtype for name, view in views.items()})
    header = build_header((name, views[name].dtype, views[name].shape, views[name].nbytes) for name in order)
    return BytesSource([header, *(views[name].data for name in order)])


def plan_shards(sizes: Iterable[tuple[str, int]], shard_bytes: int = SHARD_BYTES) -> list[list[str]]:
    """The tensors of each shard, as huggingface_hub's `split_torch_state_dict_into_shards` deals them out.

    In the order given, a shard is filled up to `shard_bytes` (bytes of tensors, the header not counted); a tensor
    larger than that is a shard of its own.
    """
    if shard_bytes < 1:
        raise UsageError(f"shard_bytes is {shard_bytes}", code="bad_shard_bytes", hint="use a positive number of bytes")
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, size in sizes:
        if size > shard_bytes:
            shards.append([name])
            continue
        if filled + size > shard_bytes:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    return [*shards, current] if current else shards


def model_files(views: Mapping[str, TensorView], shard_bytes: int = SHARD_BYTES) -> list[tuple[str, Source]]:
    """`model.safetensors`, or `model-00001-of-0000N.safetensors` … and their index."""
    shards = plan_shards(((name, view.nbytes) for name, view in views.items()), shard_bytes)
    if len(shards) == 1:
        return [("model.safetensors", safetensors_source(views))]
    files: list[tuple[str, Source]] = []
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        path = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append((path, safetensors_source({name: views[name] for name in names})))
        weight_map.update(dict.fromkeys(names, path))
    index = {"metadata": {"total_size": sum(view.nbytes for view in views.values())}, "weight_map": weight_map}
    data = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return [*files, (INDEX, BytesSource([data.encode("utf-8")]))]


def copy_state_dict(state: Mapping[str, object]) -> dict[str, object]:
    """A copy in host memory, contiguous, that training may not touch: for publishing in the background.

    What is the very same tensor under several names stays so.

    Raises:
        UsageError: as `view_state_dict`; nothing was copied.
    """
    views = view_state_dict(state, aliases="write")
    copies: dict[tuple[object, ...], object] = {}
    result = {}
    for name, view in views.items():
        key = (view.region, *view.layout) if view.nbytes else (name,)
        if key not in copies:
            copies[key] = _copy(state[name])
        result[name] = copies[key]
    return result


def dtype_name(views: Iterable[TensorView]) -> str:
    """The dtype of the tensors as torch calls it; several are joined with "+", the one with the most bytes first."""
    sizes: dict[str, int] = {}
    for view in views:
        sizes[view.dtype] = sizes.get(view.dtype, 0) + view.nbytes
    names = {ours: theirs for theirs, ours in DTYPES.items()}
    return "+".join(names[dtype] for dtype in sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


class _Strided:
    """The contiguous bytes of a strided array, or of one on another device, in pieces."""

    def __init__(self, array: Any, itemsize: int, copy: Copy) -> None:
        self._array = array
        self._itemsize = itemsize
        self._copy = copy
        self.nbytes = math.prod(array.shape) * itemsize

    def fill(self, start: int, out: memoryview) -> None:
        import numpy as np

        first, last = start // self._itemsize, -(-(start + len(out)) // self._itemsize)
        elements = np.empty(last - first, dtype=f"i{self._itemsize}")
        _gather(self._array, first, last, elements, self._copy)
        skip = start - first * self._itemsize
        out[:] = elements.data.cast("B")[skip : skip + len(out)]


def _gather(array: Any, first: int, last: int, out: Any, copy: Copy) -> None:
    """Elements `first` to `last` of `array`, counted in row-major order, into `out` (one-dimensional)."""
    if array.ndim <= 1:
        copy(out, array.reshape(-1)[first:last])
        return
    row = math.prod(array.shape[1:])
    head, tail = -(-first // row), last // row  # the rows from head to tail are wanted whole
    if head > tail:
        _gather(array[tail], first - tail * row, last - tail * row, out, copy)
        return
    begin, end = head * row - first, tail * row - first
    if begin:
        _gather(array[head - 1], row - begin, row, out[:begin], copy)
    if tail > head:
        copy(out[begin:end].reshape(tail - head, *array.shape[1:]), array[head:tail])
    if end < last - first:
        _gather(array[tail], 0, last - tail * row, out[end:], copy)


def _checked_name(name: object) -> str:
    if isinstance(name, str) and name != METADATA and not any(0xD800 <= ord(c) < 0xE000 for c in name):
        return name
    raise UsageError(
        f"{name!r} cannot name a tensor", code="bad_tensor_name", hint="the keys of a state dict are plain strings"
    )


def _view(name: str, value: object) -> TensorView:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _view_torch(name, value, torch)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _view_numpy(name, value, numpy)
    raise UsageError(
        f"{name!r} is a {type(value).__name__}, not a tensor",
        code="not_a_tensor",
        hint="leave out what is not a torch tensor or a numpy array",
        tensor=name,
    )


def _view_torch(name: str, tensor: Any, torch: Any) -> TensorView:
    _check_torch(name, tensor, torch)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    dtype, shape, itemsize = (
        _dtype(name, str(tensor.dtype).removeprefix("torch.")),
        tuple(tensor.shape),
        tensor.itemsize,
    )
    nbytes = tensor.numel() * itemsize
    start = tensor.data_ptr()
    stop = start + itemsize * (1 + sum((n - 1) * s for n, s in zip(shape, tensor.stride(), strict=True)))
    data: Segment
    if nbytes == 0:
        data = b""
    elif tensor.device.type == "cpu" and tensor.is_contiguous():
        data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    else:
        raw = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize])
        if raw.is_contiguous():
            raw = raw.reshape(-1)
        if raw.device.type != "cpu":
            torch.accelerator.synchronize(raw.device)  # the pieces are copied by other threads, on other streams
        data = _Strided(raw, itemsize, _copy_torch)
    if dtype == "F4":  # two elements in each byte; the header counts elements
        shape = (*shape[:-1], shape[-1] * 2)
    return TensorView(
        dtype, shape, nbytes, data, (str(tensor.device), start, stop), (dtype, shape, tuple(tensor.stride()))
    )


def _copy_torch(to: Any, elements: Any) -> None:
    if elements.ndim == 2 and elements.stride(0) < elements.stride(1):
        # Read a transposed matrix along its memory first; it is turned round within the cache, ten times as fast.
        elements = elements.t().contiguous().t()
    sys.modules["torch"].from_numpy(to).copy_(elements)


def _check_torch(name: str, tensor: Any, torch: Any) -> None:
    if hasattr(tensor, "full_tensor"):
        raise UsageError(
            f"{name!r} is sharded over several ranks (a DTensor)",
            code="sharded_tensor",
            hint="gather it first: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))",
            tensor=name,
        )
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise UsageError(
            f"{name!r} has no data (a meta tensor, or a parameter that is not initialised yet)",
            code="meta_tensor",
            hint="materialise the model before publishing it",
            tensor=name,
        )
    if tensor.is_quantized:
        _dtype(name, str(tensor.dtype).removeprefix("torch."))
    if tensor.layout != torch.strided or tensor.is_nested or hasattr(tensor, "__tensor_flatten__"):
        raise UsageError(
            f"{name!r} is a {type(tensor).__name__} of layout {tensor.layout}; safetensors holds plain dense tensors",
            code="unsupported_layout",
            hint="convert it first, for instance with to_dense()",
            tensor=name,
        )


def _view_numpy(name: str, array: Any, numpy: Any) -> TensorView:
    dtype = _dtype(name, array.dtype.name)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    itemsize = array.dtype.itemsize
    start = stop = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        start, stop = start + min(0, (length - 1) * stride), stop + max(0, (length - 1) * stride)
    data: Segment
    if array.nbytes == 0:
        data = b""
    elif array.flags.c_contiguous:
        data = memoryview(array.reshape(-1).view(numpy.uint8))
    else:
        data = _Strided(array.view(f"i{itemsize}"), itemsize, numpy.copyto)
    region = ("cpu", start, stop + itemsize)
    return TensorView(dtype, tuple(array.shape), array.nbytes, data, region, (dtype, array.shape, array.strides))


def _dtype(name: str, dtype: str) -> str:
    found = DTYPES.get(dtype)
    if found is None:
        raise UsageError(
            f"{name!r} has the dtype {dtype}, which safetensors cannot hold",
            code="unsupported_dtype",
            hint=f"convert it to one of {', '.join(DTYPES)}",
            tensor=name,
            dtype=dtype,
        )
    return found


def _refuse_overlaps(views: Mapping[str, TensorView]) -> None:
    """UsageError code "shared_tensors" if two tensors reach into the same memory without being the very same.

    Tensors that interleave (columns of one matrix) count as sharing, as they do for Hugging Face.
    """
    pairs: list[tuple[str, str]] = []
    reach: tuple[str, int, str] = ("", 0, "")  # device, furthest address so far, the tensor that reaches it
    for name, view in sorted(views.items(), key=lambda item: item[1].region):
        device, start, stop = view.region
        if not view.nbytes:
            continue
        if reach[0] == device and start < reach[1]:
            pairs.append((reach[2], name))
        if reach[0] != device or stop > reach[1]:
            reach = (device, stop, name)
    if pairs:
        more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
        raise UsageError(
            f"tensors share memory: {_pairs(pairs[:5])}{more}",
            code="shared_tensors",
            hint="clone() one of each pair, or leave it out",
            pairs=pairs,
        )


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{one!r} with {other!r}" for one, other in pairs)


def _copy(value: Any) -> object:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value.copy(order="C")
    value = value.detach()
    if value.device.type != "cpu":
        return value.to("cpu").contiguous()
    return value.clone(memory_format=torch.contiguous_format)
