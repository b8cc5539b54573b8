"""Weights from their files: read wholly, once, with all that can be checked about them.

Nothing read here stays mapped to a file: a file that is deleted, cut short or overwritten afterwards changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from peft import LoraConfig, PeftConfig

from holdfast.serve.errors import internal, not_found

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(eq=False, kw_only=True)
class Adapter:
    """A LoRA adapter in memory.

    Attributes:
        key: its name inside the model; never used twice in a process, as a name may be.
        path: where it was read, as the client wrote it; for display only.
        fingerprint: of its tensors; equal bytes, equal fingerprint.
        registered: whether its name still stands for it. Requests that began with it go on when it does not.
    """

    name: str
    key: str
    path: str
    config: LoraConfig
    tensors: Tensors
    fingerprint: str
    registered: bool = False


def read_adapter(name: str, key: str, path: str, max_rank: int) -> Adapter:
    """Read an adapter from a PEFT directory.

    Raises:
        ApiError: 404 if there is no directory or no `adapter_config.json` (it may not be visible yet, or was swept);
            500 if there is one and it can't be used: don't just try again.
    """
    folder = pathlib.Path(path)
    config = _adapter_config(folder, name, max_rank)
    try:
        raw = (folder / ADAPTER_WEIGHTS).read_bytes()
    except OSError as error:
        raise internal(f"Loading lora {name} failed: {ADAPTER_WEIGHTS}: {error.strerror or error}") from error
    tensors = _parse(raw, ADAPTER_WEIGHTS)
    if not tensors:
        raise internal(f"Loading lora {name} failed: {ADAPTER_WEIGHTS} holds no tensors")
    return Adapter(name=name, key=key, path=path, config=config, tensors=tensors, fingerprint=fingerprint(tensors))


def _adapter_config(folder: pathlib.Path, name: str, max_rank: int) -> LoraConfig:
    try:
        raw = (folder / ADAPTER_CONFIG).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise not_found(f"Loading lora {name} failed: No adapter found for <path>") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise internal(f"Loading lora {name} failed: {ADAPTER_CONFIG}: {error}") from error
    try:
        values = json.loads(raw)
        if values["peft_type"] != "LORA":
            raise internal(f"Loading lora {name} failed: its peft_type is {values['peft_type']!r}, not 'LORA'")
        config: LoraConfig = PeftConfig.from_peft_type(**values)
        rank = max([config.r, *config.rank_pattern.values()])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise internal(f"Loading lora {name} failed: {ADAPTER_CONFIG} can't be used: {error!r}") from error
    for field in ("modules_to_save", "trainable_token_indices"):
        if getattr(config, field, None):
            raise internal(f"Loading lora {name} failed: {field} is not supported")
    if config.bias != "none":
        raise internal(f"Loading lora {name} failed: bias is {config.bias!r}, only 'none' is supported")
    if rank > max_rank:
        raise internal(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
    config.inference_mode = True
    return config


def read_tensors(folder: pathlib.Path) -> Tensors:
    """All tensors of a Hugging Face directory, of all of its shards.

    Raises:
        ApiError: 500; something is missing or can't be read.
    """
    tensors: Tensors = {}
    for shard in _shards(folder):
        try:
            raw = (folder / shard).read_bytes()
        except OSError as error:
            raise internal(f"{shard} can't be read: {error.strerror or error}") from error
        part = _parse(raw, shard)
        if twice := tensors.keys() & part.keys():
            raise internal(f"{shard}: {min(twice)} is in two shards")
        tensors |= part
    return tensors


def _shards(folder: pathlib.Path) -> list[str]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        shards = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        return [SINGLE]
    except OSError as error:
        raise internal(f"{INDEX} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise internal(f"{INDEX} is not an index of shards: {error}") from error
    if not shards or any(pathlib.PurePath(shard).name != shard for shard in shards):
        raise internal(f"{INDEX} names no shards, or one in another directory")
    return shards


def _parse(raw: bytes, name: str) -> Tensors:
    try:
        tensors: Tensors = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise internal(f"{name} is not a whole safetensors file: {error}") from error
    return tensors


def fingerprint(tensors: Tensors) -> str:
    """Eight hexadecimal digits that stand for names, types, shapes and bytes of `tensors`."""
    digest = xxhash.xxh3_64()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; {} if there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
