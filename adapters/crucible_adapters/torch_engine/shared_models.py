"""Base models that several sessions compute with: loaded once, freed with the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from crucible_adapters.threads import retrieve
from crucible_adapters.torch_engine.models import LoadedModel

Key = tuple[Path, str]
"""A model's folder and the type of its weights."""


@dataclass(eq=False)
class _Shared:
    loading: asyncio.Task[LoadedModel]
    users: int = 0


class SharedModels:
    """Frozen models by folder and type."""

    def __init__(self, load: Callable[[Path, str], Awaitable[LoadedModel]]) -> None:
        self._load = load
        self._models: dict[Key, _Shared] = {}

    def __len__(self) -> int:
        """Models in memory or being loaded."""
        return len(self._models)

    async def acquire(self, folder: Path, dtype: str) -> tuple[LoadedModel, Callable[[], None]]:
        """The model, and the function that gives it back; callers that come while it is loading wait for the same one.

        Raises what loading raises; the next caller tries again.
        """
        key = (folder, dtype)
        shared = self._models.get(key)
        if shared is None:
            shared = self._models[key] = _Shared(asyncio.create_task(self._load_frozen(folder, dtype)))
            shared.loading.add_done_callback(retrieve)
        shared.users += 1

        def release() -> None:
            shared.users -= 1
            if not shared.users and self._models.get(key) is shared:
                del self._models[key]

        try:
            # a caller that goes away must not take the model from those who wait with it
            return await asyncio.shield(shared.loading), release
        except BaseException:
            release()
            raise

    async def close(self) -> None:
        """Ends what is being loaded."""
        tasks = [shared.loading for shared in self._models.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_frozen(self, folder: Path, dtype: str) -> LoadedModel:
        model = await self._load(folder, dtype)
        model.net.requires_grad_(False)
        return model
