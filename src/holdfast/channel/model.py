"""A whole model as the directory that `from_pretrained` and inference servers open.

Weights are one `model.safetensors` or shards with an index; beside them lie the small files that make the directory
complete (config.json, the tokenizer's), as the caller gives them or as the model itself would save them.
"""

from __future__ import annotations

import copy as copying
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.channel.payload import Payload, check_payload
from holdfast.channel.sources import BytesSource, Source, local_error
from holdfast.channel.tensors import SHARD_BYTES, copy_state_dict, dtype_name, model_files, view_state_dict
from holdfast.errors import UsageError

SMALL_FILE_BYTES_MAX = 256 * 2**20
_SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")


def model_payload(
    weights: object,
    files: object = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    copy: bool = False,
) -> Payload:
    """Full weights, ready to be written.

    Args:
        weights: a state dict (torch tensors or numpy arrays by name, as the model's files name them), or a
            transformers model, whose tied and converted weights are then treated as its `save_pretrained` does.
        files: what lies beside the weights, see `small_files`; of a transformers model, config.json and
            generation_config.json are there without asking.
        shard_bytes: the most bytes of tensors in one file.
        copy: own a copy of the tensors, so that training may go on while the payload is written.

    Raises:
        UsageError: code "not_a_model", "adapter_model", "quantized_model", or as `view_state_dict` and `small_files`.
    """
    own: dict[str, bytes] = {}
    if isinstance(weights, Mapping):
        state: Mapping[str, object] = weights
    else:
        state, own = _of_model(weights)
    small = {**own, **small_files(files)}
    views = view_state_dict(copy_state_dict(state) if copy else state, aliases="drop")
    every: list[tuple[str, Source]] = [
        *((path, BytesSource([data])) for path, data in sorted(small.items())),
        *model_files(views, shard_bytes),
    ]
    return check_payload(Payload(files=tuple(every), kind="full", requires={"dtype": dtype_name(views.values())}))


def small_files(files: object) -> dict[str, bytes]:
    """File names and contents from any of: a mapping of names to bytes, str or JSON values; the path of a model's
    directory (its configuration and tokenizer files, not its weights); an object with `save_pretrained` that writes
    such files (a configuration, a tokenizer, a processor); a list of these, where later ones win.

    Raises:
        UsageError: code "bad_files" (nothing of the above, or not JSON), "missing_file", "file_too_large".
    """
    if files is None:
        return {}
    if isinstance(files, Mapping):
        return {str(name): _content(str(name), value) for name, value in files.items()}
    if isinstance(files, str | os.PathLike):
        return _small_files_in(pathlib.Path(files))
    if isinstance(files, list | tuple):
        return {name: data for item in files for name, data in small_files(item).items()}
    if hasattr(files, "save_pretrained") and not hasattr(files, "state_dict"):
        with tempfile.TemporaryDirectory(prefix="holdfast-") as directory:
            files.save_pretrained(directory)
            return _read_all(path for path in pathlib.Path(directory).iterdir() if path.is_file())
    raise UsageError(
        f"a {type(files).__name__} does not say which files lie beside the weights",
        code="bad_files",
        hint="pass {name: content}, a model's directory, or an object with save_pretrained, such as a tokenizer",
    )


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while hasattr(model, "named_children"):
        children = dict(model.named_children())
        inner = children.get("_orig_mod")
        if inner is None and not hasattr(model, "save_pretrained"):
            inner = children.get("module")
        if inner is None:
            break
        model = inner
    return model


def _of_model(model: Any) -> tuple[dict[str, object], dict[str, bytes]]:
    model = unwrapped(model)
    if not (hasattr(model, "state_dict") and hasattr(model, "save_pretrained") and hasattr(model, "config")):
        raise UsageError(
            f"a {type(model).__name__} is neither a state dict nor a transformers model",
            code="not_a_model",
            hint="pass model.state_dict(), and the files that belong beside it",
        )
    if getattr(model, "peft_config", None):
        raise UsageError(
            "the model carries a PEFT adapter",
            code="adapter_model",
            hint="publish_adapter() publishes the adapter; merge_and_unload() gives the whole model",
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise UsageError(
            "the model is quantized",
            code="quantized_model",
            hint="save_pretrained() it into a local directory, and publish_directory() that",
        )
    state = dict(model.state_dict())
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    return _as_saved(model, _untied(model, state)), _own_files(model)


def _untied(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Drop those names of tied weights that the model's class declares to be copies of another name.

    Source: transformers, `remove_tied_weights_from_state_dict`.
    """
    declared = [
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        for key in getattr(module, "_tied_weights_keys", None) or ()
    ]
    names_at: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        if hasattr(tensor, "data_ptr") and tensor.numel() and not tensor.is_meta:
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            names_at.setdefault(place, []).append(name)
    dropped: set[str] = set()
    for names in names_at.values():
        copies = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in declared)]
        dropped.update(copies[: len(names) - 1])
    return {name: tensor for name, tensor in state.items() if name not in dropped}


def _as_saved(model: Any, state: dict[str, Any]) -> dict[str, object]:
    """Weights that transformers 5 merges on loading (experts, for instance), as they were in the files."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 keeps them as they are in the files
        return state
    return dict(revert_weight_conversion(model, state))


def _own_files(model: Any) -> dict[str, bytes]:
    config = copying.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    parts = [config]
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        parts.append(model.generation_config)
    return small_files(parts)


def _content(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    try:
        return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} cannot be written as JSON: {error}", code="bad_files", hint="pass bytes, str or JSON values"
        ) from error


def _small_files_in(directory: pathlib.Path) -> dict[str, bytes]:
    # Symlinks are followed here: a model in the Hugging Face cache consists of them, and these files are only read.
    try:
        paths = [path for path in directory.iterdir() if path.suffix in _SMALL and path.is_file()]
    except OSError as error:
        raise local_error(directory, error) from error
    return _read_all(path for path in paths if not path.name.endswith(".index.json"))


def _read_all(paths: Iterable[pathlib.Path]) -> dict[str, bytes]:
    result = {}
    for path in sorted(paths):
        try:
            size = path.stat().st_size
            if size > SMALL_FILE_BYTES_MAX:
                raise UsageError(
                    f"{path} has {size} bytes: too large for a file beside the weights", code="file_too_large"
                )
            result[path.name] = path.read_bytes()
        except OSError as error:
            raise local_error(path, error) from error
    return result
