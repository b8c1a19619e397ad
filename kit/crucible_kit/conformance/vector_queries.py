"""Vector stores: what queries, filters and lists find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible_kit.conformance.expect import check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.paging import check_pages
from crucible_kit.conformance.vector import (
    DIMENSION,
    SUITE,
    Vectors,
    condition,
    create,
    distances,
    ids,
    items,
    pages,
    query,
    upsert,
)

_COUNT = 32
_EXACT: dict[int, Callable[[NDArray[np.floating], NDArray[np.floating]], NDArray[np.floating]]] = {
    pb.METRIC_COSINE: lambda items_ND, query_D: (
        1 - (items_ND @ query_D) / (np.linalg.norm(items_ND, axis=1) * np.linalg.norm(query_D))
    ),
    pb.METRIC_L2: lambda items_ND, query_D: ((items_ND - query_D) ** 2).sum(axis=1),
    pb.METRIC_INNER_PRODUCT: lambda items_ND, query_D: 1 - items_ND @ query_D,
}
# Every kind of value, a missing key, and types that are not each other's.
_METADATAS: list[dict[str, Any]] = [
    {"n": 1, "t": "a", "b": True},
    {"n": 2, "t": "b", "b": False},
    {"n": 3, "t": "a"},
    {"t": "c", "n": 3.5},
    {"n": "3"},
    {},
]


@SUITE.requirement(
    "VEC-QUERY-01",
    "QueryItems MUST find the nearest items by the collection's metric, nearest first, with their distances.",
    quote="nearest first, equal distances sorted by id.",
)
async def _nearest(context: Vectors) -> None:
    generator = np.random.default_rng(0)
    vectors_ND = generator.normal(size=(_COUNT, DIMENSION)).astype(np.float32)
    queries_QD = generator.normal(size=(3, DIMENSION)).astype(np.float32)
    names = [f"i{number:02}" for number in range(_COUNT)]
    for metric, exact in _EXACT.items():
        name = (await create(context, metric=metric)).name
        what = pb.Metric.Name(metric)
        documents = [f"document of {each}" for each in names]
        await upsert(context, name, names, vectors_ND, documents=documents, metadatas=[{"id": each} for each in names])
        results = await query(context, name, queries_QD, num_results=7)
        for query_D, result in zip(queries_QD, results, strict=True):
            expected = exact(vectors_ND.astype(np.float64), query_D.astype(np.float64))
            order = np.argsort(expected, kind="stable")[:7]
            check_equal(list(result.ids), [names[place] for place in order], f"the nearest by {what}")
            apart = float(np.abs(distances(result) - expected[order]).max())
            check(apart <= context.settings.absolute * 10, f"exact distances by {what}", f"some {apart} off")
            check_equal(list(result.documents), [documents[place] for place in order], "their documents")
            check_equal([each["id"] for each in result.metadatas], list(result.ids), "their metadata")


@SUITE.requirement(
    "VEC-QUERY-02",
    "Equal distances MUST be sorted by id; without num_results at most 10 items come, and fewer when there are no "
    "more.",
    quote="At most so many items for each query, up to 1,000. 0: 10.",
)
async def _ties(context: Vectors) -> None:
    name = (await create(context, metric=pb.METRIC_L2)).name
    names = [f"i{number:02}" for number in range(12)]
    await upsert(context, name, names[::-1], np.tile(np.eye(1, DIMENSION), (12, 1)))
    [result] = await query(context, name, np.eye(1, DIMENSION))
    check_equal(list(result.ids), names[:10], "the nearest of equal distances, without num_results")
    [result] = await query(context, name, np.eye(1, DIMENSION), num_results=1000)
    check_equal(list(result.ids), names, "the nearest when more are asked for than there are")
    empty = (await create(context, dimension=DIMENSION)).name
    [result] = await query(context, empty, np.eye(1, DIMENSION))
    check_equal(list(result.ids), [], "the nearest of an empty collection")


@SUITE.requirement(
    "VEC-QUERY-03",
    "The cosine distance to or from a vector of zeros MUST be 1.",
    quote="1 where either is all zeros.",
)
async def _zeros(context: Vectors) -> None:
    name = (await create(context)).name
    await upsert(context, name, ["one", "zero"], [[1, 0, 0, 0], [0, 0, 0, 0]])
    [from_one, from_zero] = await query(context, name, [[1, 0, 0, 0], [0, 0, 0, 0]])
    check_equal(list(from_one.ids), ["one", "zero"], "the nearest of a vector")
    check_equal(distances(from_one).tolist(), [0.0, 1.0], "their distances")
    check_equal(distances(from_zero).tolist(), [1.0, 1.0], "the distances from zeros")


@SUITE.requirement(
    "VEC-FILTER-01",
    "Filters MUST match by key and type: equal, not equal, less, greater, in and not in, all and any.",
    quote="Values of different types are different and have no order.",
)
async def _filters(context: Vectors) -> None:
    name = (await create(context)).name
    names = [f"i{number}" for number in range(len(_METADATAS))]
    await upsert(context, name, names, np.ones((len(names), DIMENSION)), metadatas=_METADATAS)
    few, both = condition("n", "LESS", 3), condition("t", "EQUAL", "a")
    cases: dict[str, tuple[pb.Filter, list[int]]] = {
        "n = 3": (condition("n", "EQUAL", 3), [2]),
        "n = '3'": (condition("n", "EQUAL", "3"), [4]),
        "n != 3": (condition("n", "NOT_EQUAL", 3), [0, 1, 3, 4, 5]),
        "n < 3": (few, [0, 1]),
        "n <= 3": (condition("n", "LESS_OR_EQUAL", 3), [0, 1, 2]),
        "n > 2": (condition("n", "GREATER", 2), [2, 3]),
        "n >= 2": (condition("n", "GREATER_OR_EQUAL", 2), [1, 2, 3]),
        "t in a, c": (condition("t", "IN", ["a", "c"]), [0, 2, 3]),
        "t not in a, c": (condition("t", "NOT_IN", ["a", "c"]), [1, 4, 5]),
        "b = true": (condition("b", "EQUAL", True), [0]),
        "n < 3 and t = a": (pb.Filter(all=pb.FilterList(filters=[few, both])), [0]),
        "n < 3 or t = a": (pb.Filter(any=pb.FilterList(filters=[few, both])), [0, 1, 2]),
        "no key": (condition("x", "EQUAL", 1), []),
    }
    for what, (matching, places) in cases.items():
        expected = [names[place] for place in places]
        check_equal(await ids(context, name, filter=matching), expected, f"the listed items where {what}")
        [result] = await query(context, name, np.ones((1, DIMENSION)), filter=matching)
        check_equal(sorted(result.ids), expected, f"the items found where {what}")


@SUITE.requirement(
    "VEC-FILTER-02",
    "A filter that says nothing, or compares what has no order, MUST be INVALID_ARGUMENT FIELD_INVALID.",
    quote="What to compare with: a string, a finite number, a boolean, or a list of them",
)
async def _no_filters(context: Vectors) -> None:
    name = (await create(context, dimension=DIMENSION)).name
    cases = {
        "nothing": pb.Filter(),
        "an order of texts": condition("t", "LESS", "b"),
        "one of no list": condition("t", "IN", "a"),
        "one of nothing": condition("t", "IN", []),
        "equal to a list": condition("t", "EQUAL", ["a"]),
    }
    for what, matching in cases.items():
        calls = {
            "ListItems": items(context, name, filter=matching),
            "QueryItems": query(context, name, np.eye(1, DIMENSION), filter=matching),
        }
        for method, call in one_by_one(calls):
            await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"{method} with a filter of {what}")


@SUITE.requirement(
    "VEC-LIST-01",
    "ListItems MUST list the items by id, all or those that are named, in pages of any size.",
    quote="ListItems reads items by id or filter, sorted by id.",
)
async def _lists(context: Vectors) -> None:
    name = (await create(context)).name
    names = [f"i{number:02}" for number in range(53)]
    await upsert(context, name, names[::-1], np.ones((53, DIMENSION)))
    await check_pages(pages(context, name), [(each, "", {}) for each in names], "the items")
    chosen = await ids(context, name, ids=["i07", "none", "i03"])
    check_equal(chosen, ["i03", "i07"], "the items that are named")


@SUITE.requirement(
    "VEC-LIST-02",
    "A page token MUST be taken only for the list it comes from: otherwise INVALID_ARGUMENT PAGE_TOKEN_INVALID.",
)
async def _tokens(context: Vectors) -> None:
    name, other = (await create(context)).name, (await create(context)).name
    for each in (name, other):
        await upsert(context, each, ["a", "b"], np.ones((2, DIMENSION)))
    token = (await pages(context, name)(1, "")).next_token
    check(bool(token), "a token behind the first of two items", "none")
    calls = {
        "another collection": pages(context, other)(1, token),
        "another filter": pages(context, name, filter=condition("x", "NOT_EQUAL", 1))(1, token),
        "nobody": pages(context, name)(1, "no-token-of-yours"),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=f"the token of {what}")


@SUITE.requirement(
    "VEC-DELETE-01",
    "DeleteItems MUST remove those of the ids that match, count them, and refuse a request of neither.",
    quote="Ids and filter together: those of the ids that match. Neither: refused.",
)
async def _deletes(context: Vectors) -> None:
    name = (await create(context)).name
    names = list("abcdef")
    await upsert(context, name, names, np.ones((6, DIMENSION)), metadatas=[{"n": n} for n in range(6)])

    async def delete(**fields: Any) -> int:
        return (await context.stub.DeleteItems(pb.DeleteItemsRequest(collection=name, **fields))).num_deleted

    check_equal(await delete(ids=["a", "none"]), 1, "num_deleted of an item and one that is not there")
    few = condition("n", "LESS", 3)
    check_equal(await delete(ids=["b", "f"], filter=few), 1, "num_deleted of those of two that match")
    check_equal(await ids(context, name), ["c", "d", "e", "f"], "the items left")
    check_equal(await delete(filter=few), 1, "num_deleted of those that match")
    await check_refused(delete(), "INVALID_ARGUMENT", "FIELD_INVALID", what="DeleteItems of nothing")
    check_equal(await ids(context, name), ["d", "e", "f"], "the items left at last")
    [result] = await query(context, name, np.ones((1, DIMENSION)))
    check_equal(sorted(result.ids), ["d", "e", "f"], "the items found after deleting")
