"""The header of a safetensors file: built for what is published, checked in what is read.

A file is 8 bytes (length of the header, little-endian), the header (JSON, padded with spaces to a multiple of 8)
and the tensors' bytes, end to end in the header's order without a gap. The header names each tensor's dtype, shape
and place. Tensors are laid out by dtype, widest first, then by name, as the safetensors library does: equal tensors
make equal bytes, whoever wrote the file.

Source: https://github.com/huggingface/safetensors, README "Format" and `safetensors/src/tensor.rs` (limits, order).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

import msgspec

from holdfast.channel.storage import Reader
from holdfast.errors import IntegrityError, UsageError

HEADER_BYTES_MAX = 100_000_000
METADATA = "__metadata__"

# In the order of the file. Bits per element; the library's name -> the name that torch and numpy (ml_dtypes) use.
_BITS = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32, "BF16": 16, "F16": 16, "U16": 16,
    "I16": 16, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
_ORDER = {name: place for place, name in enumerate(_BITS)}
DTYPES: Mapping[str, str] = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64", "float32": "F32", "uint32": "U32",
    "int32": "I32", "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8",
    "float4_e2m1fn_x2": "F4", "bool": "BOOL",
}  # fmt: skip


class Tensor(msgspec.Struct, frozen=True):
    """One tensor in a header. `data_offsets` count from the end of the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def file_order(dtypes: Mapping[str, str]) -> list[str]:
    """Tensor names in the order of the file; `dtypes` maps a name to its safetensors dtype."""
    return sorted(dtypes, key=lambda name: (_ORDER[dtypes[name]], name.encode("utf-8")))


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The length and the header for (name, dtype, shape, size in bytes) in `file_order`.

    Raises:
        UsageError: code "header_too_large"; no reader would open the file.
    """
    header: dict[str, object] = {METADATA: {"format": "pt"}}
    at = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + size)}
        at += size
    data = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    data += b" " * (-len(data) % 8)
    if len(data) > HEADER_BYTES_MAX:
        raise UsageError(
            f"the tensors' names make a header of {len(data)} bytes, the limit is {HEADER_BYTES_MAX}",
            code="header_too_large",
            hint="publish fewer tensors per file: a smaller shard_bytes",
        )
    return len(data).to_bytes(8, "little") + data


def read_safetensors_header(reader: Reader, path: str) -> dict[str, Tensor]:
    """The tensors of an open safetensors file, every offset checked against the file's size.

    Raises:
        IntegrityError: code "bad_safetensors"; no reader can use this file: publish it again.
    """
    prefix = _read(reader, 0, min(8, reader.size))
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8:
        raise _bad(path, f"{reader.size} bytes are too few for a header")
    if length > HEADER_BYTES_MAX:
        raise _bad(path, f"a header of {length} bytes is over the limit of {HEADER_BYTES_MAX}")
    if length > reader.size - 8:
        raise _bad(path, f"a header of {length} bytes is longer than the file of {reader.size} bytes")
    data = _read(reader, 8, length)
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if METADATA in raw:
            msgspec.json.decode(raw.pop(METADATA), type=dict[str, str] | None)
        tensors = {name: msgspec.json.decode(item, type=Tensor) for name, item in raw.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _bad(path, f"the header is not the JSON of a header: {error}") from error
    problem = _problem(tensors, reader.size - 8 - length)
    if problem:
        raise _bad(path, problem)
    return tensors


def _problem(tensors: Mapping[str, Tensor], num_bytes: int) -> str | None:
    """Why the header's offsets don't fit `num_bytes` of tensor data, or None."""
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if begin != at or end < begin:
            return f"tensor {name!r} lies at {begin}..{end}, expected it to begin at {at}"
        if any(length < 0 for length in tensor.shape):
            return f"tensor {name!r} has the shape {tensor.shape}"
        bits = _BITS.get(tensor.dtype)  # a dtype newer than this table is not a fault of the file
        if bits is not None and math.prod(tensor.shape) * bits != (end - begin) * 8:
            return f"tensor {name!r} ({tensor.dtype} {tensor.shape}) does not fit its {end - begin} bytes"
        at = end
    return None if at == num_bytes else f"the tensors cover {at} bytes, the file holds {num_bytes}"


def _read(reader: Reader, offset: int, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    return bytes(data[: reader.read_into(offset, memoryview(data))])


def _bad(path: str, problem: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is not a safetensors file: {problem}",
        code="bad_safetensors",
        hint="no reader can open it; write the file again",
        path=path,
    )
