"""The model with its adapters: one version of the full weights, and any number of adapters over it.

All of it belongs to the engine's thread, once that has started.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from typing import Any

import torch
import transformers
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache

from holdfast.serve.errors import internal
from holdfast.serve.reading import Adapter, Tensors, fingerprint

# What transformers says of missing and mismatched tensors, our own errors say as well.
transformers.utils.logging.set_verbosity(logging.CRITICAL)
transformers.utils.logging.disable_progress_bar()


class Weights:
    """One version of the full weights with the adapters that are installed over it.

    Attributes:
        fingerprint: of the full weights' tensors.
        unexpected: names of tensors that were given and that the model has no place for.
    """

    def __init__(self, config: Any, tensors: Tensors, *, dtype: torch.dtype, device: str) -> None:
        """Build the model from its config and all of its tensors.

        Raises:
            ApiError: 500; a tensor is missing or has the wrong shape.
        """
        self.fingerprint = fingerprint(tensors)
        self.config = config
        self._device = device
        model, told = _build(config, tensors, dtype)
        if told["missing_keys"]:
            raise internal(f"weights are missing: {_names(told['missing_keys'])}")
        self.unexpected = frozenset(told["unexpected_keys"])
        self._model = model.to(device).eval().requires_grad_(False)
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._tuned: PeftModel | None = None
        self._layers: list[BaseTunerLayer] = []
        self._installed: dict[str, Adapter] = {}
        self._active: str | None = None

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.config)

    @torch.inference_mode()
    def logits(self, token_ids: list[int], cache: DynamicCache, adapter: Adapter | None) -> torch.Tensor:
        """Next-token logits, [V] float32 on the CPU, after `token_ids`, which are added to `cache`.

        One request at a time, in the shapes that `generate` uses, so that the figures are the same to the last bit.
        """
        return self._forward(token_ids, cache, adapter, 1)[-1]

    @torch.inference_mode()
    def all_logits(self, token_ids: list[int], cache: DynamicCache, adapter: Adapter | None) -> torch.Tensor:
        """As `logits`, after each of the `token_ids`: [T, V]."""
        return self._forward(token_ids, cache, adapter, len(token_ids))

    def _forward(self, token_ids: list[int], cache: DynamicCache, adapter: Adapter | None, keep: int) -> torch.Tensor:
        """The logits after each of the last `keep` tokens: [keep, V]."""
        self._activate(adapter)
        ids = torch.tensor([token_ids], dtype=torch.long, device=self._device)
        more = {"logits_to_keep": keep} if self._last_only else {}
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
        logits: torch.Tensor = out.logits[0, -keep:].to(device="cpu", dtype=torch.float32)
        return logits

    def _activate(self, adapter: Adapter | None) -> None:
        key = None if adapter is None else adapter.key
        if key == self._active:
            return
        for layer in self._layers:
            layer.set_adapter([] if key is None else [key], inference_mode=True)
        self._active = key

    @property
    def installed(self) -> list[Adapter]:
        return list(self._installed.values())

    def install(self, adapter: Adapter) -> None:
        """Put the adapter beside those that are there; nothing changes for them.

        Raises:
            ApiError: 500; it doesn't fit this model. The model is as it was.
        """
        if adapter.key in self._installed:
            return
        try:
            with warnings.catch_warnings():  # of deprecations between PEFT and transformers
                warnings.simplefilter("ignore", FutureWarning)
                self._add(adapter)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            self._take_out(adapter)
            raise internal(f"Loading lora {adapter.name} failed: it does not fit the model: {error}") from error
        self._installed[adapter.key] = adapter
        self._look_at_layers()

    def _add(self, adapter: Adapter) -> None:
        if self._tuned is None:
            tuned = PeftModel(self._model, adapter.config, adapter_name=adapter.key, low_cpu_mem_usage=True)
            self._tuned = tuned
        else:
            tuned = self._tuned
            tuned.add_adapter(adapter.key, adapter.config, low_cpu_mem_usage=True)
        told = set_peft_model_state_dict(tuned, adapter.tensors, adapter_name=adapter.key, low_cpu_mem_usage=True)
        missing = [name for name in told.missing_keys if f".{adapter.key}." in name]
        if missing or told.unexpected_keys:
            what = f"missing {_names(missing)}" if missing else f"unexpected {_names(told.unexpected_keys)}"
            raise ValueError(what)
        tuned.to(self._device)
        tuned.eval().requires_grad_(False)

    def remove(self, adapter: Adapter) -> None:
        """Drop the adapter and its memory. No request may be using it."""
        if self._installed.pop(adapter.key, None) is not None:
            self._take_out(adapter)

    def _take_out(self, adapter: Adapter) -> None:
        if self._tuned is not None and adapter.key in self._tuned.peft_config:
            with warnings.catch_warnings():  # PEFT tells which adapter it makes active instead: we choose at every step
                warnings.simplefilter("ignore")
                self._tuned.delete_adapter(adapter.key)
        self._look_at_layers()

    def _look_at_layers(self) -> None:
        self._layers = [layer for layer in self._model.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in self._layers:
            layer.set_adapter([], inference_mode=True)
        self._active = None


def _build(config: Any, tensors: Tensors, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    try:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError as error:
        raise internal(f"{type(config).__name__} is not the config of a causal language model") from error
    try:
        model, told = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        wrong = _mismatched(kind, config, tensors)
        raise internal(f"the weights do not fit the model: {wrong or error}") from error
    return model, told


def _mismatched(kind: Any, config: Any, tensors: Tensors) -> str:
    """Which shapes differ, for the message; transformers only says it to its log."""
    with torch.device("meta"):
        wanted = kind(config).state_dict()
    return _names(
        f"{name} is {list(tensors[name].shape)}, not {list(wanted[name].shape)}"
        for name in sorted(tensors.keys() & wanted.keys())
        if tensors[name].shape != wanted[name].shape
    )


def _names(names: Any, shown: int = 3) -> str:
    names = sorted(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
