"""Python sessions and episodes belong to whoever opened them."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import Any

from crucible.port.deployment.v1 import deployment_pb2
from crucible.port.environment.v1 import environment_pb2 as ep
from crucible.port.evaluator.v1 import evaluator_pb2
from crucible.port.llm.v1 import llm_pb2
from crucible.port.python_bridge.v1 import python_bridge_pb2 as pp
from crucible.type.v1 import message_pb2
from tests.relay.harness import ADA, ANNE, BERT, BOB, READ, Client, Kitchen, facts, refusal, relaying

NO_SESSION, NO_EPISODE = ("NOT_FOUND", "SESSION_NOT_FOUND"), ("NOT_FOUND", "EPISODE_NOT_FOUND")
ACTION = message_pb2.Message(role="assistant", content="0")


async def open_python(client: Client, request_id: str = "") -> str:
    request = pp.OpenSessionRequest(request_id=request_id or str(uuid.uuid4()))
    return (await client.python_bridge.OpenSession(request)).session_id


async def begin(client: Client, seed: int = 7, request_id: str = "") -> str:
    request = ep.ResetRequest(request_id=request_id or str(uuid.uuid4()), seed=seed)
    return (await client.environment.Reset(request)).episode_id


def add_one(session_id: str) -> pp.CallFunctionRequest:
    args = [pp.Value(integer=1)]
    return pp.CallFunctionRequest(session_id=session_id, library="toy", function="add", args=args)


def every_python_call(client: Client, session_id: str) -> list[partial]:
    on: dict[str, Any] = {"session_id": session_id}
    ref = pp.ObjectRef(ref_id="ref-1")
    stub = client.python_bridge
    return [
        partial(stub.CallFunction, add_one(session_id)),
        partial(stub.StreamFunction, pp.StreamFunctionRequest(**on, library="toy", function="count_to")),
        partial(stub.CallMethod, pp.CallMethodRequest(**on, ref=ref, method="increment")),
        partial(stub.GetAttribute, pp.GetAttributeRequest(**on, ref=ref, attribute="value")),
        partial(stub.ReleaseRef, pp.ReleaseRefRequest(**on, ref=ref)),
    ]


async def test_a_python_session_is_its_opener_s_alone(kitchen: Kitchen):
    ada, bob = kitchen.client(ADA), kitchen.client(BOB)
    session_id = await open_python(ada)
    for call in every_python_call(bob, session_id):
        assert facts(await refusal(call)) == NO_SESSION
    # Closing what is not there is OK, and closes nothing.
    await bob.python_bridge.CloseSession(pp.CloseSessionRequest(session_id=session_id))
    assert (await ada.python_bridge.CallFunction(add_one(session_id))).result.integer == 2
    stream = pp.StreamFunctionRequest(session_id=session_id, library="toy", function="count_to")
    stream.args.add(integer=3)
    assert [each.item.integer async for each in ada.python_bridge.StreamFunction(stream)] == [1, 2, 3]
    await ada.python_bridge.CloseSession(pp.CloseSessionRequest(session_id=session_id))
    assert facts(await refusal(ada.python_bridge.CallFunction(add_one(session_id)))) == NO_SESSION
    assert len(kitchen.host.adapters["python_bridge"]._sessions) == 0


async def test_an_episode_is_its_opener_s_alone(kitchen: Kitchen):
    anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
    episode_id = await begin(anne)
    step = ep.StepRequest(episode_id=episode_id, sequence=1, action=ACTION)
    assert facts(await refusal(bert.environment.Step(step))) == NO_EPISODE
    await bert.environment.Close(ep.CloseRequest(episode_id=episode_id))
    assert (await anne.environment.Step(step)).observation
    await anne.environment.Close(ep.CloseRequest(episode_id=episode_id))
    assert facts(await refusal(anne.environment.Step(step))) == NO_EPISODE
    assert not kitchen.host.adapters["environment"]._episodes


async def test_equal_request_ids_of_two_callers_begin_two_episodes(kitchen: Kitchen):
    anne, bert, request_id = kitchen.client(ANNE), kitchen.client(BERT), str(uuid.uuid4())
    first = await begin(anne, request_id=request_id)
    assert await begin(anne, request_id=request_id) == first
    assert await begin(bert, request_id=request_id) != first
    error = await refusal(begin(bert, seed=8, request_id=request_id))
    assert facts(error) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED") and error.metadata["request_id"] == request_id


async def test_sessions_and_episodes_are_limited(tmp_path: Path):
    async with relaying(
        tmp_path, max_client_episodes=2, max_episodes_of_clients=3, max_client_python_sessions=1
    ) as local:
        anne, bert, ada = local.client(ANNE), local.client(BERT), local.client(ADA)
        first, _ = await begin(anne), await begin(anne)
        error = await refusal(begin(anne))
        assert facts(error) == ("RESOURCE_EXHAUSTED", "TOO_MANY_EPISODES")
        assert error.metadata["option"] == "max_client_episodes" and error.retry_delay
        await begin(bert)
        assert (await refusal(begin(bert))).metadata["option"] == "max_episodes_of_clients"
        await anne.environment.Close(ep.CloseRequest(episode_id=first))
        await begin(bert)
        await open_python(ada)
        assert facts(await refusal(open_python(ada))) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")


async def test_the_python_session_idle_longest_makes_way_for_its_caller_s_next(tmp_path: Path):
    async with relaying(tmp_path, max_client_python_sessions=2, max_sessions_of_clients=3) as local:
        ada, bob, request_id = local.client(ADA), local.client(BOB), str(uuid.uuid4())
        theirs = await open_python(bob)
        local.clock.now += 1
        first, second = await open_python(ada, request_id), await open_python(ada)
        local.clock.now += 59
        await ada.python_bridge.CallFunction(add_one(first))
        local.clock.now += 2
        # Asked again, it is no new session.
        assert await open_python(ada, request_id) == first
        third = await open_python(ada)
        assert facts(await refusal(ada.python_bridge.CallFunction(add_one(second)))) == NO_SESSION
        for client, session_id in ((ada, first), (ada, third), (bob, theirs)):
            assert (await client.python_bridge.CallFunction(add_one(session_id))).result.integer == 2
        assert len(local.host.adapters["python_bridge"]._sessions) == 3
        # Nobody's but one's own, and none that was used within the minute.
        assert facts(await refusal(open_python(bob))) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
        assert facts(await refusal(open_python(ada))) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")


async def test_leases_end_by_the_server_s_clock(kitchen: Kitchen):
    anne, ada = kitchen.client(ANNE), kitchen.client(ADA)
    episode_id, session_id = await begin(anne), await open_python(ada)
    kitchen.clock.now += 601
    await kitchen.relay.close_expired()
    assert facts(await refusal(ada.python_bridge.CallFunction(add_one(session_id)))) == NO_SESSION
    await anne.environment.Step(ep.StepRequest(episode_id=episode_id, sequence=1, action=ACTION))
    kitchen.clock.now += 1801
    await kitchen.relay.close_expired()
    assert not kitchen.host.adapters["environment"]._episodes
    assert len(kitchen.host.adapters["python_bridge"]._sessions) == 0


async def test_who_may_call_what(local: Kitchen):
    reader, anne, ada = local.client(READ), local.client(ANNE), local.client(ADA)
    assert (await reader.python_bridge.ListLibraries(pp.ListLibrariesRequest())).libraries
    missing = ("PERMISSION_DENIED", "ROLE_MISSING")
    assert facts(await refusal(open_python(anne))) == missing
    assert facts(await refusal(begin(reader))) == missing
    deploy = deployment_pb2.DeployModelRequest(
        request_id=str(uuid.uuid4()), endpoint="chat", model=deployment_pb2.DeployedModel(checkpoint_uri="file:///c")
    )
    assert facts(await refusal(anne.deployment.DeployModel(deploy))) == missing
    deployed = (await ada.deployment.DeployModel(deploy)).deployment
    request = deployment_pb2.GetDeploymentRequest(deployment_id=deployed.deployment_id)
    assert (await reader.deployment.GetDeployment(request)).deployment == deployed
    chat = llm_pb2.ChatRequest(messages=[message_pb2.Message(role="user", content="hello")])
    assert facts(await refusal(reader.llm.Chat(chat))) == missing
    assert (await anne.llm.Chat(chat)).reply.content


async def test_a_checkpoint_is_named_as_its_owner_got_it(kitchen: Kitchen):
    anne, bert, ada = kitchen.client(ANNE), kitchen.client(BERT), kitchen.client(ADA)
    session_id = await anne.open_training()
    uri = await anne.save(session_id, 1, "final")

    def evaluate(client: Client, checkpoint_uri: str):
        model = evaluator_pb2.EvaluatedModel(checkpoint_uri=checkpoint_uri)
        request = evaluator_pb2.EvaluateRequest(tasks=[evaluator_pb2.TaskSelection(name="repeat")], model=model)
        return client.evaluator.Evaluate(request)

    assert [event async for event in evaluate(anne, uri)][-1].HasField("summary")
    error = await refusal(evaluate(bert, uri))
    assert facts(error) == ("NOT_FOUND", "CHECKPOINT_NOT_FOUND") and error.metadata["field"] == "model.checkpoint_uri"
    # An address that this server has not made is the adapter's to know.
    assert [event async for event in evaluate(bert, "file:///c")][-1].HasField("summary")
    mine = await ada.save(await ada.open_training(), 1, "final")
    deploy = deployment_pb2.DeployModelRequest(
        request_id=str(uuid.uuid4()), endpoint="chat", model=deployment_pb2.DeployedModel(checkpoint_uri=mine)
    )
    served = (await ada.deployment.DeployModel(deploy)).deployment.model.checkpoint_uri
    assert served and not served.startswith("kitchen-checkpoint:") and mine.endswith(served)
    deploy.request_id, deploy.model.checkpoint_uri = str(uuid.uuid4()), uri
    assert facts(await refusal(ada.deployment.DeployModel(deploy))) == ("NOT_FOUND", "CHECKPOINT_NOT_FOUND")
