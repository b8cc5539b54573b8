"""A PEFT adapter as the directory that `PeftModel.from_pretrained` and inference servers open.

Two files, as PEFT's own `save_pretrained` writes them: `adapter_config.json` and `adapter_model.safetensors`.
Unlike PEFT, sets in the configuration are sorted, so that equal adapters make equal bytes.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from holdfast.channel.model import unwrapped
from holdfast.channel.payload import Payload, check_payload
from holdfast.channel.sources import BytesSource
from holdfast.channel.tensors import copy_state_dict, dtype_name, safetensors_source, view_state_dict
from holdfast.errors import UsageError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Per model: (adapter, vocabulary size) -> whether the embedding belongs to the adapter.
_embedding_answers: weakref.WeakKeyDictionary[object, dict[tuple[str, object], bool]] = weakref.WeakKeyDictionary()


def adapter_payload(
    model_or_tensors: object,
    config: object = None,
    *,
    adapter: str | None = None,
    save_embedding_layers: bool | Literal["auto"] = "auto",
    copy: bool = False,
) -> Payload:
    """A LoRA adapter (or another PEFT one), ready to be written.

    Args:
        model_or_tensors: a PEFT model, or a mapping of tensors as `get_peft_model_state_dict` names them.
        config: with tensors only: a PeftConfig, or the content of adapter_config.json.
        adapter: with a model only: which adapter; by default the active one.
        save_embedding_layers: as in PEFT. "auto" may make PEFT ask the Hugging Face hub for the base model's
            configuration; that is done once per model, not at every publish.
        copy: own a copy of the tensors, so that training may go on while the payload is written.

    Raises:
        UsageError: code "not_peft", "no_such_adapter", "bad_adapter_config", or as `view_state_dict`.
    """
    if isinstance(model_or_tensors, Mapping):
        state: Mapping[str, object] = model_or_tensors
        settings = _settings(config)
    elif config is not None:
        raise UsageError("a config is given beside a model", code="bad_adapter_config", hint="the model has its own")
    else:
        state, settings = _of_model(model_or_tensors, adapter, save_embedding_layers)
    views = view_state_dict(copy_state_dict(state) if copy else state, aliases="write")
    requires = {
        "base_model": settings.get("base_model_name_or_path"),
        "dtype": dtype_name(views.values()),
        "rank": _rank(settings),
    }
    return check_payload(
        Payload(
            files=((CONFIG, BytesSource([_json(settings)])), (WEIGHTS, safetensors_source(views))),
            kind="adapter",
            requires={key: value for key, value in requires.items() if value is not None},
        )
    )


def _of_model(
    model: Any, adapter: str | None, save_embedding_layers: bool | Literal["auto"]
) -> tuple[dict[str, object], dict[str, Any]]:
    model = unwrapped(model)
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping) or not hasattr(model, "base_model"):
        raise UsageError(
            f"a {type(model).__name__} is not a PEFT model",
            code="not_peft",
            hint="pass peft.get_peft_model(…), or the adapter's tensors and its config; whole models go to publish()",
        )
    name = _adapter_name(model, adapter)
    if name not in configs:
        raise UsageError(f"the model has no adapter {name!r}", code="no_such_adapter", adapters=sorted(configs))
    return _unshared(_tensors(model, name, save_embedding_layers)), _settings_of_model(model, configs[name])


def _adapter_name(model: Any, adapter: str | None) -> str:
    if adapter is not None:
        return adapter
    active = model.active_adapters
    names = [active] if isinstance(active, str) else list(active)
    if len(names) != 1:
        raise UsageError(
            f"{len(names)} adapters are active: {names}", code="no_such_adapter", hint="say which one: adapter=…"
        )
    return str(names[0])


def _tensors(model: Any, adapter: str, save_embedding_layers: bool | Literal["auto"]) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    def ask(save: bool | Literal["auto"]) -> dict[str, Any]:
        return dict(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=save))

    if save_embedding_layers != "auto":
        return ask(save_embedding_layers)
    answers = _embedding_answers.setdefault(model, {})
    key = (adapter, getattr(getattr(model, "config", None), "vocab_size", None))
    if key not in answers:
        state = ask("auto")
        answers[key] = state.keys() != ask(save=False).keys()
        return state
    return ask(answers[key])


def _unshared(state: dict[str, Any]) -> dict[str, object]:
    """Tensors that share a storage with an earlier one are cloned: what PEFT does before it saves."""
    seen: set[tuple[object, int]] = set()
    result = {}
    for name, tensor in state.items():
        if hasattr(tensor, "untyped_storage") and not tensor.is_meta:
            storage = (tensor.device, tensor.untyped_storage().data_ptr())
            tensor = tensor.clone() if storage in seen and tensor.numel() else tensor
            seen.add(storage)
        result[name] = tensor
    return result


def _settings_of_model(model: Any, config: Any) -> dict[str, Any]:
    settings = _settings(config)
    base = model.base_model if config.is_prompt_learning else model.base_model.model
    if settings.get("base_model_name_or_path") is None:
        settings["base_model_name_or_path"] = getattr(base, "name_or_path", None) or None
    if settings.get("task_type") is None:  # how PeftModel finds the class of a model of the user's own
        kind = type(base)
        settings["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return settings


def _settings(config: Any) -> dict[str, Any]:
    """The content of adapter_config.json, ready for inference."""
    settings = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(settings, Mapping) or "peft_type" not in settings:
        raise UsageError(
            f"{type(config).__name__} is not the configuration of an adapter",
            code="bad_adapter_config",
            hint="pass a PeftConfig, or the content of adapter_config.json as a dictionary (it has a peft_type)",
        )
    return {**{str(key): _plain(value) for key, value in settings.items()}, "inference_mode": True}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _rank(settings: Mapping[str, Any]) -> int | None:
    """The highest rank of any layer: what an inference server has to make room for."""
    pattern = settings.get("rank_pattern") or {}
    ranks = [rank for rank in (settings.get("r"), *pattern.values()) if isinstance(rank, int)]
    return max(ranks, default=None)


def _json(settings: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(settings, indent=2, sort_keys=True, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise UsageError(f"the adapter's configuration is not JSON: {error}", code="bad_adapter_config") from error
