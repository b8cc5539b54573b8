"""What the routes share: the engine, the names, the texts, and the limits of one server."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from transformers import AutoConfig

from holdfast.errors import UsageError
from holdfast.serve.adapters import Adapters
from holdfast.serve.bodies import Limits
from holdfast.serve.engine import Engine
from holdfast.serve.errors import ApiError, internal
from holdfast.serve.metrics import registry
from holdfast.serve.reading import Tensors, read_json, read_tensors
from holdfast.serve.text import Texts
from holdfast.serve.weights import Weights

MODEL_LEN_DEFAULT = 4096  # for configs that don't say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How the server is to be.

    Attributes:
        max_loras: adapters that requests run with at one time; requests for others wait.
        max_cpu_loras: adapters that are loaded at one time; more are refused. None: as many as memory holds.
    """

    model: pathlib.Path
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    max_loras: int = 8
    max_cpu_loras: int | None = None
    max_lora_rank: int = 64
    max_model_len: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    api_key: str | None = None

    @property
    def name(self) -> str:
        return self.served_model_name or str(self.model)


class Server:
    """One model that is served.

    Attributes:
        weight_version: the label that was last set; a label only, what was loaded is told by the fingerprints.
    """

    def __init__(self, config: Config, model_config: Any, tensors: Tensors) -> None:
        self.config = config
        self.texts = Texts(config.model)
        self.created = int(time.time())
        self.weight_version = "default"
        self._model_config = model_config
        weights = self._weights(tensors)
        self._unexpected = weights.unexpected
        self.adapters = Adapters(config.name, max_rank=config.max_lora_rank, max_loaded=config.max_cpu_loras)
        self.engine = Engine(weights, self.adapters.find, max_loras=config.max_loras)
        self.limits = _limits(config, model_config, self.texts)
        self.metrics: CollectorRegistry = registry(self.engine, config.name, config.max_loras)

    def _weights(self, tensors: Tensors) -> Weights:
        dtype = getattr(torch, self.config.dtype)
        return Weights(self._model_config, tensors, dtype=dtype, device=self.config.device)

    def replace_weights(self, tensors: Tensors) -> None:
        """Serve these full weights from the next request on, with the adapters that are loaded. For `engine.call`.

        Raises:
            ApiError: 500; they don't fit, and what was served before is served on.
        """
        weights = self._weights(tensors)
        if strange := weights.unexpected - self._unexpected:
            raise internal(f"the weights do not fit the model: it has no {min(strange)}")
        self.engine.swap(weights)


def open_server(config: Config) -> Server:
    """Read the model and everything beside it.

    Raises:
        UsageError: the directory holds no model that can be served.
    """
    _check_device(config.device)
    hint = "MODEL_DIR is what save_pretrained wrote: config.json, model*.safetensors and the tokenizer's files"
    try:
        model_config = AutoConfig.from_pretrained(config.model, local_files_only=True)
        return Server(config, model_config, read_tensors(config.model))
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{config.model} is not a model: {error}", code="not_a_model", hint=hint) from error
    except ApiError as error:
        raise UsageError(f"{config.model} can't be served: {error.message}", code="not_a_model", hint=hint) from error


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise UsageError(
            f"torch can't compute on --device {device}: {error}", code="no_device", hint="use --device cpu"
        ) from error


def _limits(config: Config, model_config: Any, texts: Texts) -> Limits:
    """The model's own `generation_config.json` says what ends an answer and which sampling it prefers, as for vLLM."""
    preferred = read_json(config.model / "generation_config.json")
    text_config = model_config.get_text_config()
    eos = preferred.get("eos_token_id", getattr(text_config, "eos_token_id", None))
    eos_ids = {*(eos if isinstance(eos, list) else [eos]), texts.eos_id} - {None}
    longest = int(getattr(text_config, "max_position_embeddings", None) or MODEL_LEN_DEFAULT)
    if config.max_model_len is not None and config.max_model_len > longest:
        raise UsageError(
            f"--max-model-len {config.max_model_len} is more than the model's {longest} positions",
            code="model_len",
            hint=f"use at most --max-model-len {longest}",
        )
    sampling = {name: preferred[name] for name in ("temperature", "top_p", "top_k") if preferred.get(name) is not None}
    return Limits(
        max_model_len=config.max_model_len or longest,
        vocab_size=int(text_config.vocab_size),
        eos_ids=frozenset(eos_ids),
        **sampling,
    )
