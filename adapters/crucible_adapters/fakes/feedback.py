"""A feedback store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field

from crucible.port.feedback.v1 import feedback_pb2 as pb
from crucible.port.feedback.v1 import feedback_pb2_grpc
from crucible_adapters.fakes.feedback_rules import Entry, batches, curate, mean_score, preference_pairs
from crucible_adapters.fakes.seeded import Requests, content_of, logical_time
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, field_error

_CORRECTION, _RATING = pb.SIGNAL_KIND_CORRECTION, pb.SIGNAL_KIND_RATING


class FakeFeedbackOptions(AdapterOptions):
    """When it sees drift."""

    seed: int = Field(default=0, description="Without effect: everything follows from what was stored.")
    drift_threshold: float = Field(default=0.1, ge=0, description="Difference of mean scores from which on it drifts.")
    min_scored: int = Field(
        default=5, ge=1, description="Scored interactions that baseline and what is new must have each."
    )


class FakeFeedback(feedback_pb2_grpc.FeedbackServiceServicer):
    """Interactions and signals in memory. Its clock goes on by a second with every change."""

    description = AdapterDescription(name="fake-feedback", port="feedback", options=FakeFeedbackOptions)

    def __init__(self, options: FakeFeedbackOptions, context: AdapterContext) -> None:
        self._options = options
        self._entries: dict[str, Entry] = {}
        # As they came, to know a repeat by.
        self._signals: dict[str, bytes] = {}
        self._ingested: dict[str, bytes] = {}
        self._baselines: dict[str, tuple[pb.Baseline, int]] = {}
        self._curations: dict[str, list[pb.Example]] = {}
        self._curated: Requests[pb.Curation] = Requests()
        self._updated: Requests[pb.Baseline] = Requests()
        self._ticks = 0

    async def close(self) -> None:
        """Forgets everything."""
        self._entries.clear()

    async def IngestInteractions(
        self, request: pb.IngestInteractionsRequest, context: Any
    ) -> pb.IngestInteractionsResponse:
        fresh: dict[str, bytes] = {}
        for number, each in enumerate(request.interactions):
            key, content = each.interaction_id, content_of(each)
            known = self._ingested.get(key, fresh.get(key))
            if known not in (None, content):
                raise AlreadyExistsError(
                    f"interactions[{number}].interaction_id: {key!r} is stored with other content: take another id",
                    reason="INTERACTION_EXISTS",
                    metadata={"field": f"interactions[{number}].interaction_id", "interaction_id": key},
                )
            if known is None:
                fresh[key] = content
        for key, content in fresh.items():
            interaction = pb.Interaction.FromString(content)
            if not interaction.HasField("time"):
                interaction.time.CopyFrom(self._tick())
            self._entries[key] = Entry(interaction, len(self._entries))
        self._ingested |= fresh
        return pb.IngestInteractionsResponse(num_added=len(fresh))

    async def RecordSignals(self, request: pb.RecordSignalsRequest, context: Any) -> pb.RecordSignalsResponse:
        fresh: dict[str, bytes] = {}
        for number, each in enumerate(request.signals):
            _check_signal(each, f"signals[{number}]")
            if each.interaction_id not in self._entries:
                raise NotFoundError(
                    f"signals[{number}].interaction_id: there is no {each.interaction_id!r}: ingest it first",
                    reason="INTERACTION_NOT_FOUND",
                    metadata={"field": f"signals[{number}].interaction_id", "interaction_id": each.interaction_id},
                )
            key, content = each.signal_id, content_of(each)
            known = self._signals.get(key, fresh.get(key))
            if known not in (None, content):
                raise AlreadyExistsError(
                    f"signals[{number}].signal_id: {key!r} is stored with other content: take another id",
                    reason="SIGNAL_EXISTS",
                    metadata={"field": f"signals[{number}].signal_id", "signal_id": key},
                )
            if known is None:
                fresh[key] = content
        for content in fresh.values():
            signal = pb.Signal.FromString(content)
            if not signal.HasField("time"):
                signal.time.CopyFrom(self._tick())
            self._entries[signal.interaction_id].signals.append(signal)
        self._signals |= fresh
        return pb.RecordSignalsResponse(num_added=len(fresh))

    async def CheckTriggers(self, request: pb.CheckTriggersRequest, context: Any) -> pb.CheckTriggersResponse:
        results = [self._check(request.model_name, each, number) for number, each in enumerate(request.triggers)]
        return pb.CheckTriggersResponse(should_retrain=any(each.fired for each in results), results=results)

    def _check(self, model_name: str, trigger: pb.Trigger, number: int) -> pb.TriggerResult:
        new = self._new(model_name)
        value: float | None
        match trigger.WhichOneof("condition"):
            case "min_new_interactions":
                value, limit, what = len(new), trigger.min_new_interactions, "new interactions"
                fired = value >= limit
            case "min_new_signals":
                value, limit, what = sum(len(each.signals) for each in new), trigger.min_new_signals, "new signals"
                fired = value >= limit
            case "mean_score_below":
                value, limit, what = mean_score(new), trigger.mean_score_below, "mean score of what is new"
                fired = value is not None and value < limit
            case "drift_above":
                drifts = self._drifts(model_name)
                value, limit, what = max((each.drift for each in drifts), default=None), trigger.drift_above, "drift"
                fired = value is not None and value > limit
            case "baseline_older_than":
                limit, what = (
                    trigger.baseline_older_than.ToTimedelta().total_seconds(),
                    "age of the baseline in seconds",
                )
                value = self._baseline_age(model_name)
                fired = value is not None and value > limit
            case _:
                raise field_error(f"triggers[{number}].condition", "is empty: set one of the reasons")
        shown = "nothing to measure" if value is None else f"{value:g}"
        return pb.TriggerResult(fired=fired, value=value, explanation=f"{what}: {shown}, the trigger has {limit:g}")

    async def CurateExamples(self, request: pb.CurateExamplesRequest, context: Any) -> pb.CurateExamplesResponse:
        return pb.CurateExamplesResponse(curation=self._curated.once(request, lambda: self._curate(request)))

    def _curate(self, request: pb.CurateExamplesRequest) -> pb.Curation:
        considered = self._new(request.model_name) if request.only_new else self._of(request.model_name)
        curated = curate(considered, request)
        curation_id = f"curation-{len(self._curations) + 1}"
        self._curations[curation_id] = curated.examples
        return pb.Curation(
            curation_id=curation_id,
            num_considered=len(considered),
            num_examples=len(curated.examples),
            num_dropped=curated.dropped,
            fingerprint=curated.fingerprint,
        )

    async def ExportExamples(
        self, request: pb.ExportExamplesRequest, context: Any
    ) -> AsyncIterator[pb.ExportExamplesResponse]:
        if request.curation_id not in self._curations:
            raise NotFoundError(
                f"curation_id: there is no curation {request.curation_id!r}: make one with CurateExamples",
                reason="CURATION_NOT_FOUND",
                metadata={"curation_id": request.curation_id},
            )
        for batch in batches(self._curations[request.curation_id]):
            yield pb.ExportExamplesResponse(examples=batch)

    async def ExportPreferencePairs(
        self, request: pb.ExportPreferencePairsRequest, context: Any
    ) -> AsyncIterator[pb.ExportPreferencePairsResponse]:
        new = {each.id for each in self._new(request.model_name)}
        for batch in batches(preference_pairs(self._of(request.model_name), request, new)):
            yield pb.ExportPreferencePairsResponse(pairs=batch)

    async def UpdateBaseline(self, request: pb.UpdateBaselineRequest, context: Any) -> pb.UpdateBaselineResponse:
        return pb.UpdateBaselineResponse(baseline=self._updated.once(request, lambda: self._update(request)))

    def _update(self, request: pb.UpdateBaselineRequest) -> pb.Baseline:
        entries = self._of(request.model_name)
        time = self._tick()
        baseline = pb.Baseline(
            baseline_id=f"baseline-{self._ticks}",
            model_name=request.model_name,
            version_id=request.version_id,
            time=time,
            num_interactions=len(entries),
            mean_score=mean_score(entries),
        )
        self._baselines[request.model_name] = baseline, len(self._entries)
        return baseline

    async def GetDriftStatus(self, request: pb.GetDriftStatusRequest, context: Any) -> pb.GetDriftStatusResponse:
        if request.model_name not in self._baselines:
            raise FailedPreconditionError(
                f"the model line {request.model_name!r} has no baseline: set one with UpdateBaseline",
                reason="BASELINE_MISSING",
                metadata={"model_name": request.model_name},
            )
        drifts = self._drifts(request.model_name)
        state = pb.DRIFT_STATE_TOO_LITTLE_DATA
        if drifts:
            drifted = any(each.drift > each.threshold for each in drifts)
            state = pb.DRIFT_STATE_DRIFTED if drifted else pb.DRIFT_STATE_STABLE
        return pb.GetDriftStatusResponse(
            state=state,
            baseline=self._baselines[request.model_name][0],
            num_new_interactions=len(self._new(request.model_name)),
            drifts=drifts,
        )

    async def GetQualityMetrics(
        self, request: pb.GetQualityMetricsRequest, context: Any
    ) -> pb.GetQualityMetricsResponse:
        entries = self._new(request.model_name) if request.only_new else self._of(request.model_name)
        entries = [each for each in entries if request.version_id in ("", each.interaction.version_id)]
        kinds = Counter(signal.kind for each in entries for signal in each.signals)
        return pb.GetQualityMetricsResponse(
            num_interactions=len(entries),
            num_scored=sum(bool(each.signals) for each in entries),
            mean_score=mean_score(entries),
            signals=[pb.SignalCount(kind=kind, count=kinds[kind]) for kind in sorted(kinds)],
        )

    def _tick(self) -> Any:
        self._ticks += 1
        return logical_time(self._ticks)

    def _of(self, model_name: str) -> list[Entry]:
        return [each for each in self._entries.values() if each.interaction.model_name == model_name]

    def _new(self, model_name: str) -> list[Entry]:
        _, first = self._baselines.get(model_name, (None, 0))
        return [each for each in self._of(model_name) if each.number >= first]

    def _drifts(self, model_name: str) -> list[pb.Drift]:
        """What was compared with the baseline; nothing without one, or with too little data."""
        if model_name not in self._baselines:
            return []
        baseline, first = self._baselines[model_name]
        before = [each for each in self._of(model_name) if each.number < first]
        new = self._new(model_name)
        now = mean_score(new)
        enough = min(sum(bool(each.signals) for each in part) for part in (before, new)) >= self._options.min_scored
        if not enough or now is None or not baseline.HasField("mean_score"):
            return []
        return [
            pb.Drift(
                measure="mean_score",
                baseline_value=baseline.mean_score,
                new_value=now,
                drift=abs(now - baseline.mean_score),
                threshold=self._options.drift_threshold,
            )
        ]

    def _baseline_age(self, model_name: str) -> float | None:
        if model_name not in self._baselines:
            return None
        return float(logical_time(self._ticks).seconds - self._baselines[model_name][0].time.seconds)


def _check_signal(signal: pb.Signal, where: str) -> None:
    if (signal.kind == _RATING) != signal.HasField("value"):
        raise field_error(f"{where}.value", "must be set for a RATING, and only for one")
    if (signal.kind == _CORRECTION) != bool(signal.correction):
        raise field_error(f"{where}.correction", "must be set for a CORRECTION, and only for one")
