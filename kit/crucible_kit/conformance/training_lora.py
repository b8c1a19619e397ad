"""Training adapters that train LoRA adapters."""

from __future__ import annotations

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.conformance.expect import check, check_equal, check_refused
from crucible_kit.conformance.training_session import (
    SUITE,
    Training,
    check_same,
    check_same_logprobs,
    create_request,
    open_session,
)

_GROUPS = ("train_mlp", "train_attention", "train_unembedding")


@SUITE.requirement(
    "TRN-LORA-01",
    "A session's description MUST hold its LoRA adapter with the defaults filled in: alpha set, target_modules "
    "listed, the "
    "groups absent.",
    quote="The LoRA adapter with its defaults filled in: alpha set, target_modules listed, the groups absent.",
    capability="training.lora",
)
async def _described(context: Training) -> None:
    session = await open_session(context, lora=pb.LoraConfig(rank=2))
    lora = session.created.lora
    check_equal(lora.rank, 2, "lora.rank")
    check_equal((lora.HasField("alpha"), lora.alpha), (True, 2.0), "lora.alpha, where none was given")
    if not lora.target_modules and "training.lora_modules" not in context.capabilities:
        check(all(lora.HasField(name) for name in _GROUPS), "the groups, in place of target_modules", lora)
        return
    check(len(lora.target_modules) > 0, "lora.target_modules", "none")
    check_equal([name for name in _GROUPS if lora.HasField(name)], [], "groups in the description")


@SUITE.requirement(
    "TRN-LORA-06",
    "An adapter's alpha and target_modules MUST be those that were asked for.",
    quote="The matrices to adapt by the last part of their names, such as q_proj",
    capability="training.lora_modules",
)
async def _alpha_and_modules(context: Training) -> None:
    session = await open_session(context, lora=pb.LoraConfig(rank=2))
    lora = session.created.lora
    one = list(lora.target_modules[:1])
    chosen = await open_session(context, lora=pb.LoraConfig(rank=3, alpha=6.0, target_modules=one))
    got = (chosen.created.lora.rank, chosen.created.lora.alpha, list(chosen.created.lora.target_modules))
    check_equal(got, (3, 6.0, one), "(rank, alpha, target_modules) as given")
    fewer = chosen.created.trainable_parameters * 2 < session.created.trainable_parameters * 3
    more_modules = len(lora.target_modules) > 1
    check(fewer or not more_modules, "fewer trainable parameters with one module", chosen.created.trainable_parameters)


@SUITE.requirement(
    "TRN-LORA-02",
    "A LoRA adapter MUST change nothing before its first step: new ones of any rank and seed give the same logprobs.",
    capability="training.lora",
)
async def _new_adapters(context: Training) -> None:
    first = await open_session(context, lora=pb.LoraConfig(rank=1))
    expected = await first.logprobs(first.data(2))
    other = await open_session(context, lora=pb.LoraConfig(rank=4), seed=7)
    check_same_logprobs(context, await other.logprobs(first.data(2)), expected, "logprobs of a new adapter")


@SUITE.requirement(
    "TRN-LORA-03",
    "Adapters on one base model MUST have weights of their own: training one changes no other.",
    quote="LoRA sessions on one base model share its",
    capability="training.lora",
)
async def _adapters_apart(context: Training) -> None:
    idle = await open_session(context, lora=pb.LoraConfig(rank=2))
    data = idle.data(2)
    before = await idle.logprobs(data)
    busy = await open_session(context, lora=pb.LoraConfig(rank=2))
    for _ in range(3):
        await busy.train(busy.lesson(), learning_rate=0.1)
    check_same_logprobs(context, await idle.logprobs(data), before, "logprobs of an adapter beside one that trains")


@SUITE.requirement(
    "TRN-LORA-04",
    "The same seed MUST give an adapter the same first weights, another seed others.",
    quote="Number of every random choice inside the session, such as a LoRA's first weights. Absent: 0.",
    capability="training.lora",
)
async def _seeds(context: Training) -> None:
    norms = []
    for seed in ({}, {"seed": 0}, {"seed": 1}):
        session = await open_session(context, lora=pb.LoraConfig(rank=2), **seed)
        await session.train(session.data(2))
        norms.append((await session.train(session.data(2, seed=1))).grad_norm)
    check_same(context, norms[1], norms[0], "grad_norm of an adapter of seed 0, beside one without a seed")
    check(norms[2] != norms[0], "another grad_norm of an adapter of seed 1", norms[2])


@SUITE.requirement(
    "TRN-LORA-05",
    "A session with lora MUST be UNIMPLEMENTED CAPABILITY_MISSING where training.lora is not declared.",
    quote="LoRA adapter to train; needs `training.lora`.",
    without="training.lora",
)
async def _no_lora(context: Training) -> None:
    call = context.stub.CreateTrainingSession(create_request(context, lora=pb.LoraConfig(rank=2)))
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="a session with lora")


@SUITE.requirement(
    "TRN-LORA-07",
    "An alpha other than the rank, and target_modules, MUST be UNIMPLEMENTED CAPABILITY_MISSING where "
    "training.lora_modules is not declared.",
    quote="Another than the rank needs `training.lora_modules`.",
    capability="training.lora",
    without="training.lora_modules",
)
async def _no_alpha_and_modules(context: Training) -> None:
    asked = {
        "an alpha other than the rank": pb.LoraConfig(rank=2, alpha=6.0),
        "target_modules": pb.LoraConfig(rank=2, target_modules=["q_proj"]),
    }
    for what, lora in asked.items():
        call = context.stub.CreateTrainingSession(create_request(context, lora=lora))
        await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what=f"a session with {what}")
