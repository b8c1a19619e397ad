"""Tokenizers and datasets with a defect: the built-in ones, changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_kit.tensors import pack_tokens, unpack_tokens
from tests.conformance.mutants.mutant import adapter_mutant, changed


class AlwaysAddsTokens(TokenizersFolder):
    async def EncodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.EncodeBatchResponse:
        response = await super().EncodeBatch(request, context)
        for sequence in response.sequences:
            sequence.tokens_int32 = pack_tokens([0]) + sequence.tokens_int32
        return response


class TextsReversed(TokenizersFolder):
    async def EncodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.EncodeBatchResponse:
        response = await super().EncodeBatch(request, context)
        return tokenizer_pb2.EncodeBatchResponse(sequences=list(response.sequences)[::-1])


class BigEndianTokens(TokenizersFolder):
    async def EncodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.EncodeBatchResponse:
        response = await super().EncodeBatch(request, context)
        for sequence in response.sequences:
            sequence.tokens_int32 = unpack_tokens(sequence.tokens_int32).astype(">i4").tobytes()
        return response


class StripsTexts(TokenizersFolder):
    async def DecodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.DecodeBatchResponse:
        response = await super().DecodeBatch(request, context)
        return tokenizer_pb2.DecodeBatchResponse(texts=[text.replace("\n\n  ", "\n") for text in response.texts])


class KeepsSpecialTokens(TokenizersFolder):
    async def DecodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.DecodeBatchResponse:
        return await super().DecodeBatch(changed(request, skip_special_tokens=False), context)


class BadIdsAreSkipped(TokenizersFolder):
    async def DecodeBatch(self, request: Any, context: Any) -> tokenizer_pb2.DecodeBatchResponse:
        copy = changed(request)
        for sequence in copy.sequences:
            whole = unpack_tokens(sequence.tokens_int32[: len(sequence.tokens_int32) // 4 * 4])
            sequence.tokens_int32 = pack_tokens(whole[whole >= 0])
        return await super().DecodeBatch(copy, context)


class TrainsOnEverything(TokenizersFolder):
    async def ApplyChatTemplate(self, request: Any, context: Any) -> tokenizer_pb2.ApplyChatTemplateResponse:
        response = await super().ApplyChatTemplate(request, context)
        for rendered in response.rendered:
            rendered.train_mask_uint8 = b"\x01" * len(rendered.train_mask_uint8)
        return response


class ShiftedMasks(TokenizersFolder):
    async def ApplyChatTemplate(self, request: Any, context: Any) -> tokenizer_pb2.ApplyChatTemplateResponse:
        response = await super().ApplyChatTemplate(request, context)
        for rendered in response.rendered:
            rendered.train_mask_uint8 = rendered.train_mask_uint8[1:]
        return response


class NoGenerationPrompt(TokenizersFolder):
    async def ApplyChatTemplate(self, request: Any, context: Any) -> tokenizer_pb2.ApplyChatTemplateResponse:
        return await super().ApplyChatTemplate(changed(request, add_generation_prompt=False), context)


class OneFingerprint(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        response = changed(await super().OpenDataset(request, context))
        response.dataset.fingerprint = "0" * 64
        return response


class OtherShuffles(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        copy = changed(request)
        for transform in copy.transforms:
            if transform.WhichOneof("transform") == "shuffle_seed":
                transform.shuffle_seed += 1
        return await super().OpenDataset(copy, context)


class TransformsReversed(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        copy = dataset_pb2.OpenDatasetRequest(source=request.source, transforms=list(request.transforms)[::-1])
        return await super().OpenDataset(copy, context)


class StreamingIsIgnored(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        return await super().OpenDataset(changed(request, streaming=False), context)


class RepeatsAreLeftOut(LocalDatasets):
    async def ReadRows(self, request: Any, context: Any) -> AsyncIterator[dataset_pb2.ReadRowsResponse]:
        copy = changed(request)
        if request.WhichOneof("rows") == "select":
            del copy.select.indices[:]
            copy.select.indices.extend(dict.fromkeys(request.select.indices))
        async for response in super().ReadRows(copy, context):
            yield response


class RowsBeforeRefusal(LocalDatasets):
    async def ReadRows(self, request: Any, context: Any) -> AsyncIterator[dataset_pb2.ReadRowsResponse]:
        if request.WhichOneof("rows") == "select" and len(request.select.indices) > 1:
            first = dataset_pb2.ReadRowsRequest(dataset_id=request.dataset_id)
            first.select.indices.append(request.select.indices[0])
            async for response in super().ReadRows(first, context):
                yield response
            rest = changed(request)
            del rest.select.indices[0]
            request = rest
        async for response in super().ReadRows(request, context):
            yield response


class NeverCloses(LocalDatasets):
    async def CloseDataset(self, request: Any, context: Any) -> dataset_pb2.CloseDatasetResponse:
        return dataset_pb2.CloseDatasetResponse()


class DefaultsStayOut(LocalDatasets):
    async def FindDataset(self, request: Any, context: Any) -> dataset_pb2.FindDatasetResponse:
        await super().FindDataset(request, context)
        return dataset_pb2.FindDatasetResponse(source=dataset_pb2.DatasetSource(uri=request.source.uri))


class FieldsAreKept(LocalDatasets):
    async def OpenDataset(self, request: Any, context: Any) -> dataset_pb2.OpenDatasetResponse:
        copy = changed(request)
        kept = [each for each in copy.transforms if each.WhichOneof("transform") != "fields"]
        del copy.transforms[:]
        copy.transforms.extend(kept)
        return await super().OpenDataset(copy, context)


TEXT_MUTANTS = (
    adapter_mutant(AlwaysAddsTokens, "special tokens are always added", "TOK-ENCODE-03", others=2),
    adapter_mutant(TextsReversed, "sequences come in another order", "TOK-ENCODE-01", others=2),
    adapter_mutant(BigEndianTokens, "tokens are big-endian", "TOK-ENCODE-01", others=1),
    adapter_mutant(StripsTexts, "texts lose line breaks", "TOK-DECODE-01"),
    adapter_mutant(KeepsSpecialTokens, "special tokens are never skipped", "TOK-DECODE-02"),
    adapter_mutant(BadIdsAreSkipped, "bad ids are skipped", "TOK-DECODE-03"),
    adapter_mutant(ShiftedMasks, "masks are one byte short", "TOK-CHAT-01", others=1),
    adapter_mutant(TrainsOnEverything, "everything is trained on", "TOK-CHAT-02"),
    adapter_mutant(NoGenerationPrompt, "there is no generation prompt", "TOK-CHAT-03"),
    adapter_mutant(OneFingerprint, "all datasets have one fingerprint", "DST-TRANSFORM-03", others=1),
    adapter_mutant(OtherShuffles, "another order of shuffling", "DST-TRANSFORM-02"),
    adapter_mutant(TransformsReversed, "transforms apply from the end", "DST-TRANSFORM-01", others=2),
    adapter_mutant(FieldsAreKept, "fields are not mapped", "DST-TRANSFORM-04"),
    adapter_mutant(StreamingIsIgnored, "streaming is ignored", "DST-STREAMING-02"),
    adapter_mutant(RepeatsAreLeftOut, "repeated rows are left out", "DST-READ-01"),
    adapter_mutant(RowsBeforeRefusal, "rows come before the refusal", "DST-READ-02"),
    adapter_mutant(NeverCloses, "closed handles go on", "DST-CLOSE-01"),
    adapter_mutant(DefaultsStayOut, "defaults are not filled in", "DST-FIND-01"),
)
