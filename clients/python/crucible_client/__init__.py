"""Typed, asynchronous client of a kitchen: every call of its API, event streams that resume by themselves, progress.

Example:
    async with KitchenClient.connect("127.0.0.1:50051") as kitchen:
        run = await kitchen.create_run("sl_basic", preset="tiny")
        async for event in kitchen.watch(run.run_id):
            print(event.sequence, event.WhichOneof("payload"))
"""

from crucible_client.client import KitchenClient
from crucible_client.fold import RunView, Step, fold
from crucible_client.progress import Progress, ProgressTracker
from crucible_client.watch import WatchPolicy
from crucible_kit.errors import KitchenError

__all__ = [
    "KitchenClient",
    "KitchenError",
    "Progress",
    "ProgressTracker",
    "RunView",
    "Step",
    "WatchPolicy",
    "fold",
]
