"""What is written opens with `from_pretrained`, and computes the same."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load

from holdfast.channel.adapter import adapter_payload
from holdfast.channel.model import model_payload, small_files
from holdfast.channel.payload import Payload
from holdfast.errors import UsageError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = torch.arange(12).reshape(2, 6)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **changes})).eval()


def _qwen(**changes: Any) -> Any:
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**SIZES, **changes})).eval()


def _mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).eval()


def _with_adapter(model: Any, **changes: Any) -> Any:
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return wrapped


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=TOKENS).logits
    return logits


def _content(payload: Payload) -> dict[str, bytes]:
    content = {}
    for path, source in payload.files:
        with source.open() as opened:
            pieces = opened.pieces(0, source.size, memoryview(bytearray(4096)))
            content[path] = b"".join(bytes(piece) for piece in pieces)
    return content


def _write(payload: Payload, directory: pathlib.Path) -> str:
    directory.mkdir()
    for path, data in _content(payload).items():
        (directory / path).write_bytes(data)
    return str(directory)


def _tensors(directory: pathlib.Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor in a directory's safetensors files: dtype and bytes."""
    found = {}
    for path in directory.glob("*.safetensors"):
        for name, item in safetensors.deserialize(path.read_bytes()):
            assert name not in found
            found[name] = (item["dtype"], bytes(item["data"]))
    return found


# Whole models


@pytest.mark.parametrize(
    "make",
    [
        _llama,
        _qwen,
        _mixtral,
        lambda: _qwen(tie_word_embeddings=True),
        lambda: _llama(tie_word_embeddings=True).to(torch.bfloat16),
    ],
    ids=["llama", "qwen", "mixtral", "tied qwen", "tied bf16 llama"],
)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_model_opens_with_from_pretrained_and_computes_the_same(
    tmp_path: pathlib.Path, make: Callable[[], Any], shard_bytes: int
) -> None:
    model = make()
    payload = model_payload(model, shard_bytes=shard_bytes)
    directory = _write(payload, tmp_path / "ours")
    files = set(pathlib.Path(directory).iterdir())
    assert (tmp_path / "ours" / "model.safetensors.index.json" in files) == (shard_bytes == 20_000)
    reopened, notes = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=model.dtype, output_loading_info=True
    )
    assert type(reopened) is type(model)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert torch.equal(_logits(reopened.eval()), _logits(model))
    assert payload.kind == "full"
    assert payload.requires == {"dtype": str(model.dtype).removeprefix("torch.")}
    # The same names and tensors, byte for byte, that the model itself would save.
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    assert _tensors(tmp_path / "ours") == _tensors(tmp_path / "theirs")
    if shard_bytes == 10**9:
        assert {path.name for path in files} == {path.name for path in (tmp_path / "theirs").iterdir()}
        weights = (tmp_path / "theirs" / "model.safetensors").read_bytes()
        assert (tmp_path / "ours" / "model.safetensors").read_bytes() == weights


def test_a_state_dict_with_its_files_opens_too(tmp_path: pathlib.Path) -> None:
    model = _qwen(tie_word_embeddings=True)
    payload = model_payload(model.state_dict(), files=[model.config, {"notes.txt": "step 3", "extra.json": {"a": 1}}])
    content = _content(payload)
    assert content["notes.txt"] == b"step 3"
    assert json.loads(content["extra.json"]) == {"a": 1}
    reopened = transformers.Qwen2ForCausalLM.from_pretrained(_write(payload, tmp_path / "model"))
    assert torch.equal(_logits(reopened.eval()), _logits(model))


def test_a_copied_payload_does_not_see_later_training() -> None:
    model = _llama()
    borrowed, owned = model_payload(model), model_payload(model, copy=True)
    before = _content(owned)
    assert before == _content(borrowed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert _content(owned) == before
    assert _content(borrowed) != before


def test_the_payload_of_a_model_leaves_the_model_as_it_was() -> None:
    model = _llama(tie_word_embeddings=True)
    before = model.config.to_dict()
    names = list(model.state_dict())
    model_payload(model)
    assert model.config.to_dict() == before
    assert list(model.state_dict()) == names
    assert model.lm_head.weight is model.model.embed_tokens.weight


class Wrapper(torch.nn.Module):
    """As DistributedDataParallel wraps: the model is the child `module`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [Wrapper, torch.compile, lambda model: Wrapper(torch.compile(model))])
def test_wrapped_models_are_unwrapped(wrap: Callable[[Any], Any]) -> None:
    model = _llama()
    assert _content(model_payload(wrap(model))) == _content(model_payload(model))
    adapted = _with_adapter(_llama())
    assert _content(adapter_payload(wrap(adapted))) == _content(adapter_payload(adapted))


class Quantized(torch.nn.Module):
    hf_quantizer = object()
    config = object()

    def save_pretrained(self, directory: str) -> None: ...


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (torch.nn.Linear(2, 2), "not_a_model"),
        (None, "not_a_model"),
        (Quantized(), "quantized_model"),
        ({}, "empty_state_dict"),
    ],
)
def test_what_is_no_model_is_refused(weights: object, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_payload(weights)
    assert caught.value.code == code


def test_a_model_with_an_adapter_is_not_a_whole_model() -> None:
    with pytest.raises(UsageError) as caught:
        model_payload(_with_adapter(_llama()))
    assert caught.value.code == "adapter_model"
    model = _llama()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UsageError) as caught:
        model_payload(model)
    assert caught.value.code == "adapter_model"


# Files beside the weights


def test_the_small_files_of_a_model_directory_are_taken_and_its_weights_are_not(tmp_path: pathlib.Path) -> None:
    blobs, model = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    model.mkdir()
    (blobs / "1").write_text('{"vocab": 1}')
    (model / "tokenizer.json").symlink_to(blobs / "1")  # as in the Hugging Face cache
    (model / "config.json").write_text("{}")
    (model / "model.safetensors.index.json").write_text("{}")
    (model / "model-00001-of-00001.safetensors").write_bytes(b"weights")
    (model / "sub.json").mkdir()
    assert small_files(model) == {"config.json": b"{}", "tokenizer.json": b'{"vocab": 1}'}
    assert small_files([str(model), {"config.json": b"[]"}])["config.json"] == b"[]"
    with pytest.raises(UsageError) as caught:
        small_files(tmp_path / "missing")
    assert caught.value.code == "missing_file"


@pytest.mark.parametrize("files", [7, _llama, {"x.json": {1, 2}}, {"x.json": object()}, {"x.json": float("nan")}, [3]])
def test_files_that_cannot_be_written_are_refused(files: object) -> None:
    with pytest.raises(UsageError) as caught:
        small_files(files)
    assert caught.value.code == "bad_files"


def test_a_file_that_is_a_weight_file_s_name_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        model_payload({"a": torch.ones(1)}, files={"model.safetensors": b""})
    assert caught.value.code == "duplicate_path"


# Adapters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"], "r": 2},
        {"rank_pattern": {"q_proj": 8}, "use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"task_type": None},
    ],
    ids=["plain", "many modules", "rank pattern", "dora", "modules to save", "no task type"],
)
def test_an_adapter_opens_with_peft_and_computes_the_same(tmp_path: pathlib.Path, changes: dict[str, Any]) -> None:
    model = _with_adapter(_llama(), **changes)
    payload = adapter_payload(model)
    directory = _write(payload, tmp_path / "ours")
    reopened = peft.PeftModel.from_pretrained(_llama(), directory).eval()
    assert torch.equal(_logits(reopened), _logits(model))
    assert not torch.equal(_logits(reopened), _logits(_llama()))
    # The same tensors and settings that PEFT itself saves.
    model.save_pretrained(tmp_path / "theirs")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "ours" / weights).read_bytes() == (tmp_path / "theirs" / weights).read_bytes()
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    for config in (ours, theirs):
        config["target_modules"] = sorted(config["target_modules"])
    assert ours == theirs
    assert ours["inference_mode"] is True
    assert not model.peft_config["default"].inference_mode


def test_an_adapter_says_what_it_requires() -> None:
    model = _with_adapter(_llama(), rank_pattern={"q_proj": 16})
    model.peft_config["default"].base_model_name_or_path = "meta/llama"
    payload = adapter_payload(model.to(torch.bfloat16), save_embedding_layers=False)
    assert payload.kind == "adapter"
    assert payload.requires == {"base_model": "meta/llama", "dtype": "bfloat16", "rank": 16}


def test_tensors_with_a_config_are_the_same_adapter(tmp_path: pathlib.Path) -> None:
    model = _with_adapter(_llama())
    tensors = peft.get_peft_model_state_dict(model)
    content = _content(adapter_payload(model))
    config = model.peft_config["default"]
    assert _content(adapter_payload(tensors, config)) == content
    assert _content(adapter_payload(tensors, json.loads(content["adapter_config.json"]))) == content
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    directory = _write(adapter_payload(arrays, config), tmp_path / "numpy")
    assert torch.equal(_logits(peft.PeftModel.from_pretrained(_llama(), directory).eval()), _logits(model))


def test_equal_adapters_make_equal_bytes() -> None:
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = json.loads(
        _content(adapter_payload(_with_adapter(_llama(), target_modules=modules)))["adapter_config.json"]
    )
    assert config["target_modules"] == sorted(modules)


def test_the_active_adapter_is_published_unless_another_is_named() -> None:
    model = _with_adapter(_llama())
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert adapter_payload(model).requires["rank"] == 4
    assert adapter_payload(model, adapter="second").requires["rank"] == 2
    model.set_adapter("second")
    assert adapter_payload(model).requires["rank"] == 2
    assert b"second" not in _content(adapter_payload(model))["adapter_model.safetensors"]
    with pytest.raises(UsageError) as caught:
        adapter_payload(model, adapter="third")
    assert caught.value.code == "no_such_adapter"
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UsageError) as caught:
        adapter_payload(model)
    assert caught.value.code == "no_such_adapter"


def test_adapter_tensors_under_two_names_are_written_twice(tmp_path: pathlib.Path) -> None:
    model = _with_adapter(_llama())
    tensors = peft.get_peft_model_state_dict(model)
    one, other = sorted(name for name in tensors if "q_proj.lora_A" in name)[:2]
    tensors[other] = tensors[one]
    content = _content(adapter_payload(tensors, model.peft_config["default"]))
    loaded = load(content["adapter_model.safetensors"])
    assert set(loaded) == set(tensors)
    assert torch.equal(loaded[one], loaded[other])
    with torch.no_grad():  # layers of one model that share a storage: cloned, as PEFT does
        layers = [m for name, m in model.named_modules() if name.endswith("q_proj.lora_A.default")]
        layers[1].weight.data = layers[0].weight.data.view(-1).view(layers[1].weight.shape)
        storage = torch.randn(2 * layers[0].weight.numel())
        for layer in layers:
            layer.weight.data = storage[: layer.weight.numel()].view(layer.weight.shape)
    assert len(load(_content(adapter_payload(model))["adapter_model.safetensors"])) == len(tensors)


def test_the_hub_is_asked_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def file_exists(repository: str, *_: object, **__: object) -> bool:
        asked.append(repository)
        return False

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("peft.utils.other.file_exists", file_exists)
    model = _with_adapter(_llama())
    model.peft_config["default"].base_model_name_or_path = "meta/llama"
    contents = [_content(adapter_payload(model)) for _ in range(3)]
    assert asked == ["meta/llama"]
    assert contents[0] == contents[1] == contents[2]


def test_an_embedding_that_belongs_to_the_adapter_is_saved_every_time() -> None:
    model = _with_adapter(_llama(), target_modules=["q_proj", "embed_tokens"])
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        first = _content(adapter_payload(model))
    second = _content(adapter_payload(model))
    assert first == second
    assert b"embed_tokens.base_layer" in first["adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("model", "config", "code"),
    [
        (torch.nn.Linear(2, 2), None, "not_peft"),
        (None, None, "not_peft"),
        ({"a": torch.ones(1)}, None, "bad_adapter_config"),
        ({"a": torch.ones(1)}, {"r": 4}, "bad_adapter_config"),
        ({"a": torch.ones(1)}, {"peft_type": "LORA", "x": object()}, "bad_adapter_config"),
        ({}, {"peft_type": "LORA"}, "empty_state_dict"),
        ({"a": torch.ones(1, device="meta")}, {"peft_type": "LORA"}, "meta_tensor"),
        (torch.nn.Linear(2, 2), {"peft_type": "LORA"}, "bad_adapter_config"),
    ],
)
def test_what_is_no_adapter_is_refused(model: object, config: object, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        adapter_payload(model, config)
    assert caught.value.code == code


def test_a_plain_model_is_not_an_adapter() -> None:
    with pytest.raises(UsageError) as caught:
        adapter_payload(_llama())
    assert caught.value.code == "not_peft"
