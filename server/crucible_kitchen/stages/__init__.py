"""The stages, and the one registry of them."""

from crucible_kitchen.stages.build_datums import BuildDatums
from crucible_kitchen.stages.data import LoadDataset
from crucible_kitchen.stages.results import Deploy, Evaluate, RegisterModel, SaveCheckpoint, SaveFinal
from crucible_kitchen.stages.session import Cleanup, InitTokenizer, StartSession
from crucible_kitchen.stages.training import BeginEpoch, ForwardBackward, GetBatch, LogMetrics, OptimStep
from crucible_kitchen.workflows.stage import StageRegistry

STAGES = StageRegistry(
    [
        BeginEpoch(),
        BuildDatums(),
        Cleanup(),
        Deploy(),
        Evaluate(),
        ForwardBackward(),
        GetBatch(),
        InitTokenizer(),
        LoadDataset(),
        LogMetrics(),
        OptimStep(),
        RegisterModel(),
        SaveCheckpoint(),
        SaveFinal(),
        StartSession(),
    ]
)

__all__ = ["STAGES"]
