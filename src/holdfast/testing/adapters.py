"""Adapter directories for tests without torch: written by `adapter_files`, read as an inference server reads them."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
from collections.abc import Sequence
from typing import Any

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class AdapterMissing(Exception):
    """There is no such directory, or no adapter_config.json in it."""


class AdapterUnusable(Exception):
    """Its files cannot be read as an adapter, in words."""


def adapter_files(seed: int, rank: int = 8, size: int = 4096) -> dict[str, bytes]:
    """The files of a LoRA adapter, a different one for each seed: name -> bytes.

    Args:
        rank: its LoRA rank.
        size: bytes of tensors; a multiple of four.
    """
    data = random.Random(seed).randbytes(size)  # the same at every run
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": tensor}).encode()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["down_proj"]}
    return {CONFIG: json.dumps(config).encode(), WEIGHTS: len(header).to_bytes(8, "little") + header + data}


def write_adapter(directory: pathlib.Path, seed: int, rank: int = 8) -> pathlib.Path:
    """Write `adapter_files(seed)` into a new `directory`."""
    directory.mkdir(parents=True)
    for name, body in adapter_files(seed, rank).items():
        directory.joinpath(name).write_bytes(body)
    return directory


def read_adapter(path: str, max_rank: int = 16) -> bytes:
    """The digest of the adapter's tensors, as whoever loads it would see them. Content is not checked: nobody does.

    Raises:
        AdapterMissing, AdapterUnusable.
    """
    directory = pathlib.Path(path)
    try:
        config = _config(directory)
        body = directory.joinpath(WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        if error.filename == str(directory / CONFIG) or not directory.is_dir():
            raise AdapterMissing(path) from error
        raise AdapterUnusable(f"{path} doesn't contain tensors") from error
    except OSError as error:
        raise AdapterUnusable(f"{type(error).__name__}: {error}") from error
    rank = config.get("r")
    if not isinstance(rank, int) or rank > max_rank:
        raise AdapterUnusable(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
    return _digest(body)


def read_weights(path: str) -> bytes:
    """The digest of a whole model's *.safetensors files. AdapterUnusable: none is there, or one cannot be read."""
    try:
        files = sorted(pathlib.Path(path).glob("*.safetensors"))
        if not files:
            raise AdapterUnusable(f"Cannot find any model weights with `{path}`")
        return hashlib.sha256(b"".join(_digest(file.read_bytes()) for file in files)).digest()
    except OSError as error:
        raise AdapterUnusable(f"{type(error).__name__}: {error}") from error


def tokens(weights: bytes, prompt: str | Sequence[int], max_tokens: int) -> tuple[int, ...]:
    """What a fake server answers: tokens that tell from which weights they came."""
    said = json.dumps(prompt if isinstance(prompt, str) else list(prompt)).encode()
    return tuple(hashlib.sha256(weights + said + bytes([at % 256])).digest()[0] for at in range(max_tokens))


def _config(directory: pathlib.Path) -> dict[str, Any]:
    text = directory.joinpath(CONFIG).read_bytes()
    try:
        config = json.loads(text)
    except ValueError as error:
        raise AdapterUnusable(f"JSONDecodeError: {error}") from error
    if not isinstance(config, dict):
        raise AdapterUnusable("'list' object has no attribute 'get'")
    return config


def _digest(body: bytes) -> bytes:
    """Of a safetensors file whose header fits its length, as safetensors itself looks."""
    size = int.from_bytes(body[:8], "little")
    try:
        header = json.loads(body[8 : 8 + size])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise AdapterUnusable("Error while deserializing header: InvalidHeaderDeserialization") from error
    if len(body) != 8 + size + max(ends, default=0):
        raise AdapterUnusable("Error while deserializing header: MetadataIncompleteBuffer")
    return hashlib.sha256(body).digest()
