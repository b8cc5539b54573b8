"""Names for models: the base model's, and one for each adapter that is loaded.

A name stands for one adapter, from the moment at which all of it is in memory until it is unloaded.
"""

from __future__ import annotations

import asyncio
import itertools

from holdfast.serve.engine import Engine
from holdfast.serve.errors import ApiError, invalid_input, not_found, unavailable
from holdfast.serve.reading import Adapter, read_adapter


class Adapters:
    def __init__(self, base_name: str, *, max_rank: int, max_loaded: int | None) -> None:
        self.base_name = base_name
        self._max_rank = max_rank
        self._max_loaded = max_loaded
        self._by_name: dict[str, Adapter] = {}
        self._numbers = itertools.count(1)
        self._changing = asyncio.Lock()

    @property
    def loaded(self) -> list[Adapter]:
        return list(self._by_name.values())

    def find(self, name: str) -> Adapter | None:
        """What `name` stands for now; None is the model itself. Callable in any thread.

        Raises:
            LookupError: nothing has this name.
        """
        return None if name == self.base_name else self._by_name[name]

    def unknown(self, name: str) -> ApiError:
        known = ", ".join([self.base_name, *self._by_name])
        return not_found(f"The model `{name}` does not exist. Valid aliases: {known}.", "model")

    async def load(self, engine: Engine, name: str, path: str, *, in_place: bool) -> None:
        """Read the adapter, put it into the model, then let `name` stand for it.

        Raises:
            ApiError: nothing changed; 400 as asked, it can't be; 404 no adapter there; 500 it can't be used; 503 no
                room.
        """
        async with self._changing:
            self._check(name, path, in_place=in_place)
            key = f"adapter{next(self._numbers)}"
            adapter = await asyncio.to_thread(read_adapter, name, key, path, self._max_rank)
            adapter.registered = True  # else the engine might drop it before it has its name
            try:
                await asyncio.wrap_future(engine.call(lambda: engine.weights.install(adapter)))
            except ApiError:
                adapter.registered = False
                raise
            self._by_name[name] = adapter

    def _check(self, name: str, path: str, *, in_place: bool) -> None:
        if not name or not path:
            raise invalid_input("Both 'lora_name' and 'lora_path' must be provided.")
        if name == self.base_name:
            raise invalid_input(f"The lora adapter '{name}' conflicts with a served base model.")
        if in_place:
            raise invalid_input("'load_inplace' mixes two versions in one answer: load under a fresh name instead.")
        if name in self._by_name:
            raise invalid_input(f"The lora adapter '{name}' has already been loaded.")
        if self._max_loaded is not None and len(self._by_name) >= self._max_loaded:
            raise unavailable(f"{self._max_loaded} adapters are loaded (--max-cpu-loras): unload one first.")

    async def unload(self, engine: Engine, name: str) -> None:
        """Forget the name. Requests that run with the adapter go on, and its memory is freed after the last of them.

        Raises:
            ApiError: 404, there is no such name.
        """
        async with self._changing:
            if not name:
                raise invalid_input("'lora_name' needs to be provided to unload a LoRA adapter.")
            adapter = self._by_name.pop(name, None)
            if adapter is None:
                raise not_found(f"The lora adapter '{name}' cannot be found.")
            adapter.registered = False
            engine.call(engine.collect)
