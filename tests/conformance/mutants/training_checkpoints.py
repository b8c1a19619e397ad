"""Training adapters with a defect in checkpoints and their files."""

from __future__ import annotations

import hashlib

import numpy as np

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.errors import (
    AlreadyExistsError,
    NotFoundError,
)
from tests.conformance.mutants.mutant import Mutant, training_mutant
from tests.conformance.toy.checkpoints import Checkpoints, with_manifest
from tests.conformance.toy.model import Weights
from tests.conformance.toy.training import Session, ToyTraining


class NoOptimizerState(ToyTraining):
    """It is left out of checkpoints, and nobody says so."""

    def saved_files(self, session: Session, weights_only: bool) -> dict[str, bytes]:
        fresh = Weights(steps=session.weights.steps, version=session.weights.version, matrix=session.weights.matrix)
        return fresh.files(weights_only=weights_only)


class OptimizerAlwaysLoaded(ToyTraining):
    def load(self, session: Session, files: dict[str, bytes], *, weights_only: bool) -> None:
        moments, steps = session.weights.moments, session.weights.moment_steps
        super().load(session, files, weights_only=weights_only or "optimizer.bin" not in files)
        if weights_only and "optimizer.bin" not in files:
            session.weights.moments, session.weights.moment_steps = moments, steps


class RoundsWeights(ToyTraining):
    def saved_files(self, session: Session, weights_only: bool) -> dict[str, bytes]:
        rounded = Weights(**{**session.weights.__dict__, "matrix": np.round(session.weights.matrix, 1)})
        return rounded.files(weights_only=weights_only)


class LoadKeepsGradients(ToyTraining):
    def load(self, session: Session, files: dict[str, bytes], *, weights_only: bool) -> None:
        gradient = session.gradient
        super().load(session, files, weights_only=weights_only)
        session.gradient = gradient


def with_checkpoints(kind: type[Checkpoints]) -> type[ToyTraining]:
    """A toy with such checkpoints."""

    class Toy(ToyTraining):
        def __init__(self) -> None:
            super().__init__()
            self.checkpoints = kind()

    return Toy


class Overwrites(Checkpoints):
    def save(self, name: str, files: dict[str, bytes], ttl_seconds: int | None) -> pb.CheckpointResult:
        self._files.pop(name, None)
        return super().save(name, files, ttl_seconds)


class UnsortedFiles(Checkpoints):
    def describe(self, name: str) -> pb.CheckpointResult:
        result = super().describe(name)
        files = list(result.files)[::-1]
        del result.files[:]
        result.files.extend(files)
        return result


class WrongHashes(Checkpoints):
    def describe(self, name: str) -> pb.CheckpointResult:
        result = super().describe(name)
        for file in result.files:
            file.sha256 = hashlib.sha256(file.path.encode()).hexdigest()
        return result


class WrongManifestHash(Checkpoints):
    def describe(self, name: str) -> pb.CheckpointResult:
        result = super().describe(name)
        result.manifest_sha256 = "0" * 64
        return result


class AnyCheckpoint(Checkpoints):
    def name_of(self, uri: str) -> str:
        try:
            return super().name_of(uri)
        except NotFoundError:
            self._files["empty"] = with_manifest(Weights().files(weights_only=False))
            return "empty"


class DeleteNeedsOne(Checkpoints):
    def delete(self, uri: str) -> None:
        self.name_of(uri)
        super().delete(uri)


class NoExpiry(Checkpoints):
    def save(self, name: str, files: dict[str, bytes], ttl_seconds: int | None) -> pb.CheckpointResult:
        return super().save(name, files, None)


class UncheckedUploads(Checkpoints):
    def verify(self, header: pb.UploadCheckpointHeader, files: dict[str, bytes]) -> None:
        pass


class UploadsLeaveSomething(Checkpoints):
    """A refused upload takes the name."""

    def verify(self, header: pb.UploadCheckpointHeader, files: dict[str, bytes]) -> None:
        if header.name in self.taken:
            raise AlreadyExistsError("the name is taken", reason="CHECKPOINT_EXISTS")
        self.taken.append(header.name)
        super().verify(header, files)

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []


class UncheckedOrder(Checkpoints):
    def take(self, contents: list[bytearray], chunk: pb.UploadCheckpointChunk) -> None:
        contents[chunk.file_index] += chunk.data


class AnyFile(Checkpoints):
    def file(self, uri: str, path: str) -> bytes:
        try:
            return super().file(uri, path)
        except NotFoundError as error:
            if error.reason == "CHECKPOINT_FILE_NOT_FOUND":
                return b""
            raise


def _checkpoints(kind: type[Checkpoints], defect: str, *red: str, others: int = 0) -> Mutant:
    return training_mutant(with_checkpoints(kind), defect, *red, others=others)


TRAINING_CHECKPOINT_MUTANTS = (
    training_mutant(NoOptimizerState, "checkpoints lack the optimizer's state", "TRN-CKPT-03", others=1),
    training_mutant(OptimizerAlwaysLoaded, "a missing optimizer is not missed", "TRN-CKPT-04"),
    training_mutant(RoundsWeights, "checkpoints round the weights", "TRN-CKPT-02", others=4),
    training_mutant(LoadKeepsGradients, "loading keeps the gradients", "TRN-CKPT-07"),
    _checkpoints(Overwrites, "checkpoints are overwritten", "TRN-CKPT-05"),
    _checkpoints(UnsortedFiles, "files are not sorted", "TRN-CKPT-01"),
    _checkpoints(WrongHashes, "files have other hashes", "TRN-FILES-01"),
    _checkpoints(WrongManifestHash, "the manifest has another hash", "TRN-FILES-01"),
    _checkpoints(AnyCheckpoint, "a checkpoint that is not there is loaded", "TRN-CKPT-06", others=2),
    _checkpoints(DeleteNeedsOne, "deleting what is absent is refused", "TRN-CKPT-08"),
    _checkpoints(NoExpiry, "a ttl is ignored", "TRN-CKPT-09"),
    _checkpoints(UncheckedUploads, "uploads are not verified", "TRN-FILES-04"),
    _checkpoints(UploadsLeaveSomething, "refused uploads take the name", "TRN-FILES-04"),
    _checkpoints(UncheckedOrder, "chunks of uploads are not checked", "TRN-FILES-05"),
    _checkpoints(AnyFile, "a file that is not there is empty", "TRN-FILES-02"),
)
