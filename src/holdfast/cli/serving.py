"""`holdfast serve`: the small inference server."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from holdfast.cli.options import Flag
from holdfast.cli.output import clean, to_json
from holdfast.cli.schema import Serving
from holdfast.errors import UsageError

Count = Annotated[int, Parameter(validator=Number(gte=1))]
NEEDED = ("torch", "transformers", "peft", "safetensors", "starlette", "uvicorn", "prometheus_client")


def serve(
    model_dir: pathlib.Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000,
    served_model_name: str | None = None,
    max_loras: Count = 8,
    max_cpu_loras: Count | None = None,
    max_lora_rank: Count = 64,
    max_model_len: Count | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    api_key_file: pathlib.Path | None = None,
    json: Flag = False,
) -> int:
    """Serve a model over HTTP, as vLLM would, on a laptop. Ends with SIGTERM.

    Clients speak the OpenAI API; `holdfast sync` brings new weights in. One request's token at a time: it is there to
    be right, not to be fast.

    Args:
        model_dir: a Hugging Face directory with the model and its tokenizer.
        host: the address to listen on. Whoever reaches it can load any adapter that this process can read.
        port: the port; 0 takes a free one, which is printed.
        served_model_name: the name that clients give; otherwise the directory as it was given.
        max_loras: requests run with at most this many adapters at a time; others wait.
        max_cpu_loras: at most this many adapters are loaded; a further one is refused. Without it, as many as fit.
        max_lora_rank: the largest rank that is taken.
        max_model_len: prompt and answer together, in tokens; otherwise what the model was made for.
        device: where torch computes, such as cpu or cuda.
        dtype: how it computes; float32 gives the very tokens that transformers gives.
        api_key_file: a file with the key that clients must send as a bearer token.
        json: print the line on stdout as JSON; errors too.
    """
    _check_extra()
    key = None if api_key_file is None else _key(api_key_file)
    from holdfast.serve.process import run
    from holdfast.serve.server import Config

    config = Config(
        model=model_dir,
        host=host,
        port=port,
        served_model_name=served_model_name,
        max_loras=max_loras,
        max_cpu_loras=max_cpu_loras,
        max_lora_rank=max_lora_rank,
        max_model_len=max_model_len,
        device=device,
        dtype=dtype,
        api_key=key,
    )

    def ready(url: str) -> None:
        line = to_json(Serving(url=url, model=config.name)) if json else f"serving {clean(config.name)} at {url}"
        print(line, flush=True)

    return run(config, ready)


def _check_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"`holdfast serve` needs {', '.join(missing)}",
            code="missing_extra",
            hint="pip install 'holdfast[serve]'",
            missing=missing,
        )


def _key(path: pathlib.Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path}: {error}", code="no_api_key", hint="give a readable file") from error
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(
            f"--api-key-file {path} holds no key", code="no_api_key", hint="one line of printable ASCII, the key alone"
        )
    return key
