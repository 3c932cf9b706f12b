"""``pgvec.search``: nearest chunks, words, both; every layout of a destination; pages, filters, neighbours, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgvec_queue import schema, vectorizer
from pgvec_queue.async_database import async_connect
from pgvec_queue.database import Database
from pgvec_queue.embedders import DEFAULT_MODEL, DeviceOptions, load
from pgvec_queue.errors import DefinitionError, SchemaOutdatedError
from pgvec_queue.search import Answer, DestinationError, Hit, Search, SearchError, nearest, nearest_async, search
from pgvec_queue.vectorizer import Vectorizer
from tests.support import Bench

SEED = 6


def chunked(bench: Bench, chunks: Sequence[tuple[int, int, str, Sequence[float]]], **options: Any) -> Vectorizer:
    """A vectorizer over ``docs`` whose chunks are (document, index, text, vector), written as a worker would."""
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, metadata jsonb)")
    defined = bench.define("docs", "body", chunk_size=20, **options).vectorizer
    for document in sorted({chunk[0] for chunk in chunks}):
        bench.sql(
            "INSERT INTO docs VALUES (%s, %s, jsonb_build_object('even', %s::bigint %% 2 = 0, 'id', %s::bigint))",
            document,
            " ".join(text for key, _, text, _ in chunks if key == document),
            document,
            document,
        )
    with bench.connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO docs_vectors (id, chunk_index, chunk, embedding, source_hash)"
            " VALUES (%s, %s, %s, %s::real[], '')",
            [(key, index, text, [*map(float, vector)]) for key, index, text, vector in chunks],
        )
    return defined


def texts(bench: Bench, *bodies: str) -> Vectorizer:
    """A vectorizer over ``docs`` with these texts, from 1, all with vectors that have nothing to do with them."""
    vectors = np.random.default_rng(SEED).normal(size=(len(bodies), 8))
    return chunked(bench, [(i, 0, body, vectors[i - 1].tolist()) for i, body in enumerate(bodies, 1)])


def many(bench: Bench, documents: int, chunks: int = 1, **options: Any) -> tuple[Vectorizer, NDArray[np.float64]]:
    vectors = np.random.default_rng(SEED).normal(size=(documents * chunks, 8))
    rows = [(i // chunks + 1, i % chunks, f"chunk {i}", vectors[i].tolist()) for i in range(len(vectors))]
    return chunked(bench, rows, **options), vectors


def indexed(bench: Bench) -> None:
    """Gives ``docs_vectors`` an HNSW index, and such pages that the planner takes it."""
    bench.sql("ALTER TABLE docs_vectors ALTER embedding SET STORAGE EXTERNAL")
    bench.sql("CREATE INDEX docs_hnsw ON docs_vectors USING hnsw (embedding public.vector_cosine_ops)")
    bench.sql("ANALYZE docs_vectors, docs")


def asked(bench: Bench, defined: Vectorizer, vector: Any, text: str = "x", **options: Any) -> Answer:
    vector = None if vector is None else np.asarray(vector, np.float32)
    return nearest(bench.connection, defined, Search(text, **options), vector)


def keys(answer: Answer) -> list[int]:
    return [int(hit.key[0]) for hit in answer.hits]


def chunks_of(answer: Answer) -> list[tuple[int, int | None]]:
    return [(int(hit.key[0]), hit.chunk_index) for hit in answer.hits]


ONE = [1.0] * 8


# Vectors


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8).filter(lambda q: max(map(abs, q)) > 1e-3),
    limit=st.integers(1, 70),
    offset=st.integers(0, 70),
    threshold=st.none() | st.floats(-1, 1),
    all_chunks=st.booleans(),
)
def test_an_exact_search_is_the_ranking_of_all_cosines(
    bench: Bench, query: list[float], limit: int, offset: int, threshold: float | None, all_chunks: bool
) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(60, 8)).astype(np.float32)
    defined = vectorizer.find(bench.connection, "docs") or many(bench, 20, 3)[0]
    asked_for = np.asarray(query, np.float32).astype(np.float64)
    cosines = (vectors.astype(np.float64) @ asked_for) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(asked_for)
    ranking = np.argsort(-cosines)
    if not all_chunks:
        first = {int(i) // 3: int(i) for i in ranking[::-1]}
        ranking = np.array(sorted(first.values(), key=lambda i: -cosines[i]))
    wanted = [i for i in ranking if threshold is None or cosines[i] >= threshold][offset : offset + limit]
    answer = asked(bench, defined, query, limit=limit, offset=offset, threshold=threshold, all_chunks=all_chunks)
    assert [hit.score for hit in answer.hits] == pytest.approx([cosines[i] for i in wanted], abs=1e-6)
    for hit in answer.hits:
        own = (int(hit.key[0]) - 1) * 3 + (hit.chunk_index or 0)
        assert hit.score == pytest.approx(cosines[own], abs=1e-6)
        assert hit.chunk == f"chunk {own}"
    if not answer.hits:
        assert answer.best_score == pytest.approx(cosines.max(), abs=1e-6)


class Scans:
    """Counts how often tables and indexes are read from here on, in one transaction.

    What the connection did before is among its counters as well, until it tells the server of it.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._before: dict[str, int] = {}
        self._before = {name: self.of(name) for name in ("docs_hnsw", "docs_vectors", "docs_words")}

    def of(self, name: str) -> int:
        count: int = self._bench.value("SELECT coalesce(pg_stat_get_xact_numscans(to_regclass(%s)), 0)", name)
        return count - self._before.get(name, 0)


def test_an_index_is_used_unless_it_must_not_be(bench: Bench) -> None:
    defined, vectors = many(bench, 3_000)
    indexed(bench)
    with bench.connection.transaction():
        scans = Scans(bench)
        near = asked(bench, defined, ONE)
        assert scans.of("docs_hnsw") == 1
        exact = asked(bench, defined, ONE, exact=True)
        assert scans.of("docs_hnsw") == 1
        best = np.argsort(-(vectors @ np.ones(8)) / np.linalg.norm(vectors, axis=1))[:10] + 1
        assert keys(exact) == best.tolist()
        assert len(set(keys(near)) & set(keys(exact))) >= 8


def test_what_is_set_for_a_search_is_set_for_it_alone(bench: Bench) -> None:
    defined, _ = many(bench, 300)
    indexed(bench)
    names = ("hnsw.ef_search", "hnsw.iterative_scan", "search_path", "timezone", "enable_seqscan")
    bench.sql("SET hnsw.ef_search = 77; SET hnsw.iterative_scan = relaxed_order")

    def present() -> list[Any]:
        return [bench.value("SELECT current_setting(%s, true)", name) for name in names]

    with bench.connection.transaction():
        before = present()
        bench.sql("SELECT * FROM pgvec.search(%s, %s::real[], ef_search => 5)", defined.id, ONE)
        assert present() == before
    assert present() == before


@pytest.mark.parametrize("way", ["index", "exact"])
def test_a_document_with_many_near_chunks_leaves_room_for_the_others(bench: Bench, way: str) -> None:
    rng = np.random.default_rng(SEED)
    rows: list[tuple[int, int, str, Sequence[float]]] = [
        (1, i, f"crowd {i}", (np.ones(8) + rng.normal(size=8) / 50).tolist()) for i in range(400)
    ]
    rows += [(i, 0, "other", rng.normal(size=8).tolist()) for i in range(2, 30)]
    defined = chunked(bench, rows)
    indexed(bench)
    found = asked(bench, defined, ONE, exact=way == "exact", limit=20)
    assert len(set(keys(found))) == len(found.hits) == 20
    assert keys(found)[0] == 1
    assert set(keys(asked(bench, defined, ONE, exact=way == "exact", limit=20, all_chunks=True))) == {1}
    assert len(asked(bench, defined, ONE, exact=way == "exact", limit=100).hits) == 29


def test_an_index_goes_on_until_there_are_enough(bench: Bench) -> None:
    defined, _ = many(bench, 3_000)
    indexed(bench)
    with bench.connection.transaction():
        scans = Scans(bench)
        bench.sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        assert len(asked(bench, defined, ONE, limit=400, all_chunks=True).hits) == 400
        assert (scans.of("docs_hnsw"), scans.of("docs_vectors")) == (1, 0)


def test_a_pgvector_that_cannot_go_on_with_a_scan_finds_as_much(bench: Bench) -> None:
    """0.7 has no iterative scans, and ends at ef_search; so does a later one that is not told to go on."""
    defined, vectors = many(bench, 1_500, 2)
    indexed(bench)
    bench.sql("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    order = np.argsort(-(vectors @ np.ones(8)) / np.linalg.norm(vectors, axis=1))
    with bench.connection.transaction():
        scans = Scans(bench)
        bench.sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        assert len(asked(bench, defined, ONE, limit=150).hits) == 150
        assert (scans.of("docs_hnsw"), scans.of("docs_vectors")) == (1, 0)
        assert len(asked(bench, defined, ONE, limit=1_200, all_chunks=True).hits) == 1_200
        for last in order[-2:]:
            (hit,) = asked(bench, defined, ONE, filter={"id": int(last) // 2 + 1}).hits
            assert hit.key == [str(last // 2 + 1)]
        assert bench.value("SELECT current_setting('hnsw.iterative_scan')") == "off"


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"mode": "hybrid"}, {"mode": "text"}, {"all_chunks": True}])
def test_pages_follow_each_other_without_gap_or_double(bench: Bench, options: dict[str, Any]) -> None:
    defined, _ = many(bench, 300, 2)
    indexed(bench)
    text = "chunk 5 17 23"
    whole = chunks_of(asked(bench, defined, ONE, text, limit=240, **options))
    assert len(whole) == len(set(whole)) == 240
    pages = [chunks_of(asked(bench, defined, ONE, text, limit=30, offset=at, **options)) for at in range(0, 240, 30)]
    assert [hit for page in pages for hit in page] == whole
    assert asked(bench, defined, ONE, text, offset=1_000, **options).hits == []


def test_a_threshold_that_nothing_reaches_leaves_the_best_score(bench: Bench) -> None:
    defined, vectors = many(bench, 3_000)
    indexed(bench)
    cosines = vectors @ np.ones(8) / np.linalg.norm(vectors, axis=1) / np.sqrt(8)
    answer = asked(bench, defined, ONE, threshold=0.999)
    assert answer.hits == []
    assert answer.best_score == pytest.approx(cosines.max(), abs=1e-6)
    with bench.connection.transaction():
        scans = Scans(bench)
        over = asked(bench, defined, ONE, threshold=0.75, limit=100)
        assert 5 < len(over.hits) == pytest.approx((cosines >= 0.75).sum(), abs=2)
        assert scans.of("docs_hnsw") >= 1
        assert scans.of("docs_vectors") == 0, "all was read"


def test_vectors_without_a_direction_are_no_hits(bench: Bench) -> None:
    defined = chunked(bench, [(1, 0, "zero", [0.0] * 8), (2, 0, "one", ONE)])
    assert keys(asked(bench, defined, ONE)) == [2]


# Filters


@pytest.mark.parametrize("way", ["index", "exact"])
def test_a_filter_loses_none_of_what_it_lets_through(bench: Bench, way: str) -> None:
    defined, vectors = many(bench, 3_000)
    indexed(bench)
    order = np.argsort(-(vectors @ np.ones(8)) / np.linalg.norm(vectors, axis=1)) + 1
    found = asked(bench, defined, ONE, filter={"even": True}, exact=way == "exact", limit=20)
    assert all(key % 2 == 0 for key in keys(found))
    assert len(found.hits) == 20
    if way == "exact":
        assert keys(found) == [i for i in order if i % 2 == 0][:20]
    for last in order[-3:]:
        (hit,) = asked(bench, defined, ONE, filter={"id": int(last)}, exact=way == "exact").hits
        assert (hit.key, hit.metadata) == ([str(last)], {"id": last, "even": bool(last % 2 == 0)})
    assert keys(asked(bench, defined, ONE, "chunk", filter={"id": 7}, mode="hybrid")) == [7]


def test_a_filter_without_metadata_is_refused(bench: Bench) -> None:
    bench.sql("CREATE TABLE plain (id int PRIMARY KEY, body text, metadata json)")
    defined = bench.define("plain", "body").vectorizer
    with pytest.raises(SearchError, match=r"^public.plain has no column metadata of type jsonb to filter by$"):
        asked(bench, defined, ONE, filter={})


# Neighbours


def test_neighbours_of_a_chunk_come_as_context(bench: Bench) -> None:
    rows = [(1, i, f"part {i}", np.eye(8)[i].tolist()) for i in range(6)]
    defined = chunked(bench, [*rows, (2, 2, "stranger", (-np.ones(8)).tolist())])
    hit = asked(bench, defined, np.eye(8)[3], limit=1, neighbours=2).hits[0]
    assert (hit.context_before, hit.chunk, hit.context_after) == ("part 1\npart 2", "part 3", "part 4\npart 5")
    first = asked(bench, defined, np.eye(8)[0], limit=1, neighbours=1).hits[0]
    assert (first.context_before, first.context_after) == (None, "part 1")
    assert asked(bench, defined, np.eye(8)[3], limit=1).hits[0].context_before is None


# Layouts


def _layouts(bench: Bench) -> list[Vectorizer]:
    """All kinds of destination of one source with awkward names, types and texts."""
    schema_ = bench.value("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
    bench.sql("CREATE TYPE public.mood AS ENUM ('sad', 'o''k')")
    bench.sql(
        'CREATE TABLE public."so % \'urce" (id public.mood, "n%""o" timestamptz, title text, body text,'
        ' metadata jsonb, PRIMARY KEY (id, "n%""o"))'
    )
    bench.sql(
        "INSERT INTO public.\"so % 'urce\" SELECT m, timestamptz '2020-01-01 00:00Z' + i * interval '1 h',"
        " 'title ' || m, 'body ' || i, jsonb_build_object('n', i)"
        " FROM unnest(enum_range(NULL::public.mood)) m, generate_series(1, 4) i"
    )
    source = '"so % \'urce"'
    bench.sql(
        f'CREATE TABLE public."ot%hers" ("a""" text, "%b" timestamptz, "te xt" varchar, "em%b" {schema_}.halfvec(8),'
        ' h bytea, "i x" int)'
    )
    bench.sql(
        f"CREATE TABLE public.bare (a public.mood, b timestamptz, embedding {schema_}.vector, PRIMARY KEY (a, b))"
    )
    columns = {
        "key": ['a"', "%b"],
        "chunk": ["te xt"],
        "embedding": ["em%b"],
        "source_hash": ["h"],
        "chunk_index": ["i x"],
    }
    made = [
        bench.enqueue(f"public.{source}", "title", "body", name="own", chunk_size=20),
        bench.enqueue(f"public.{source}", "title", "body", name="own half", into="public.half", store="halfvec"),
        bench.enqueue(
            f"public.{source}",
            "title",
            "body",
            name="others",
            into='public."ot%hers"',
            columns=columns,
            store="halfvec",
        ),
        bench.enqueue(
            f"public.{source}", "title", "body", name="bare", into="public.bare", columns={"key": ["a", "b"]}
        ),
        bench.enqueue(f"public.{source}", "title", "body", name="column", into_column="v%'\""),
    ]
    bench.drain(listen=False)
    return made


def _found_in_all(bench: Bench) -> None:
    for defined in _layouts(bench):
        embedder = load(defined.spec, DeviceOptions())
        text = "title o'k\n\nbody 3"
        for mode in ("vector", "hybrid", "text"):
            for exact in (False, True):
                answer = search(
                    bench.connection,
                    defined,
                    embedder,
                    Search(text, mode=mode, exact=exact, filter={"n": 3}, neighbours=1, limit=5),
                )
                hit = answer.hits[0]
                assert hit.key == ["o'k", "2020-01-01 03:00:00+00"], (defined.name, mode)
                assert hit.chunk == text
                assert hit.score == pytest.approx(1, abs=1e-3)
                assert hit.metadata == {"n": 3}
                assert len(answer.hits) == 2
        assert len(search(bench.connection, defined, embedder, Search("title", mode="text")).hits) == 8


def test_every_layout_is_searched(bench: Bench) -> None:
    _found_in_all(bench)


def test_every_layout_is_searched_where_pgvector_has_a_schema_of_its_own(bench: Bench) -> None:
    bench.sql('DROP SCHEMA pgvec CASCADE; DROP EXTENSION vector; CREATE SCHEMA "Ext 100%"')
    bench.sql('CREATE EXTENSION vector SCHEMA "Ext 100%"')
    schema.initialize(bench.database)
    _found_in_all(bench)


def test_keys_are_compared_as_their_type_is_wherever_its_operator_lies(bench: Bench) -> None:
    bench.sql('CREATE SCHEMA "Ext 100%"; ALTER EXTENSION vector SET SCHEMA "Ext 100%"')
    bench.sql('CREATE DOMAIN public.own AS "Ext 100%".vector')
    for name, operator in {
        '"Ext 100%".vector': 'OPERATOR("Ext 100%".=)',
        "public.own": 'OPERATOR("Ext 100%".=)',
        "text": "OPERATOR(pg_catalog.=)",
        "pg_catalog.int4[]": "OPERATOR(pg_catalog.=)",
    }.items():
        assert bench.value("SELECT pgvec.search_equality(%s::regtype)", name) == operator


def test_a_partitioned_destination_is_searched(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'text ' || i FROM generate_series(1, 40) i")
    bench.sql("CREATE TABLE parts (id int, chunk text, chunk_index int, embedding vector(8)) PARTITION BY HASH (id)")
    for i in range(3):
        bench.sql(f"CREATE TABLE parts_{i} PARTITION OF parts FOR VALUES WITH (MODULUS 3, REMAINDER {i})")
    bench.sql("CREATE INDEX ON parts (id); CREATE INDEX ON parts USING hnsw (embedding vector_cosine_ops)")
    defined = bench.enqueue("docs", "body", into="parts")
    bench.drain()
    embedder = load(defined.spec, DeviceOptions())
    answer = search(bench.connection, defined, embedder, Search("text 7", limit=40))
    assert answer.hits[0].key == ["7"]
    assert answer.hits[0].score == pytest.approx(1)
    assert sorted(keys(answer)) == list(range(1, 41))


# Words


def test_hybrid_is_the_fusion_of_both_rankings(bench: Bench) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(150, 8))
    words = ["rare words here", "words", "other", "nothing", "rare"]
    defined = chunked(bench, [(i, 0, words[i % 5], vectors[i - 1].tolist()) for i in range(1, 151)])
    by_vector = keys(asked(bench, defined, ONE, limit=150))
    by_text = keys(asked(bench, defined, ONE, "rare words", mode="text", limit=100))
    assert len(by_text) == 90
    assert all(key % 5 == 0 for key in by_text[:30]), "texts with both words come first"
    fused: dict[int, float] = dict.fromkeys(by_vector, 0.0)
    for ranking in (by_vector[:100], by_text[:100]):
        for place, key in enumerate(ranking, 1):
            fused[key] += 1 / (60 + place)
    answer = asked(bench, defined, ONE, "rare words", mode="hybrid", limit=150)
    assert {int(hit.key[0]): hit.fused or 0.0 for hit in answer.hits} == pytest.approx(fused)
    assert [hit.fused or 0.0 for hit in answer.hits] == sorted((hit.fused or 0.0 for hit in answer.hits), reverse=True)
    cosines = vectors @ np.ones(8) / np.linalg.norm(vectors, axis=1) / np.sqrt(8)
    for hit in answer.hits:
        assert hit.score == pytest.approx(cosines[int(hit.key[0]) - 1], abs=1e-6)
    over = asked(bench, defined, ONE, "rare words", mode="hybrid", limit=150, threshold=0.2)
    assert set(keys(over)) == {i + 1 for i in range(150) if cosines[i] >= 0.2}


def test_one_word_of_many_counts_for_nothing_beside_the_vectors(bench: Bench) -> None:
    defined = texts(bench, "alpha beta gamma", "alpha", "alpha beta")
    assert keys(asked(bench, defined, None, "alpha beta gamma delta", mode="text")) == [1, 3, 2]
    hybrid = asked(bench, defined, ONE, "alpha beta gamma delta", mode="hybrid")
    by_vector = keys(asked(bench, defined, ONE))
    fused = {int(hit.key[0]): hit.fused for hit in hybrid.hits}
    expected = {key: 1 / (61 + place) for place, key in enumerate(by_vector)}
    expected[1] += 1 / 61
    assert fused == pytest.approx(expected)


def test_words_are_found_in_their_forms_and_as_asked(bench: Bench) -> None:
    defined = texts(bench, "The cats were running", "a dog runs", "a cat and a dog", "dog cat")

    def words(query: str, **options: Any) -> list[int]:
        return sorted(keys(asked(bench, defined, None, query, mode="text", **options)))

    assert words("running") == [1, 2]
    assert words("running", language="simple") == [1]
    assert words('"cat and a dog"') == [3]
    assert words("dog -runs") == [3, 4]
    assert words("running OR nothing") == [1, 2]
    assert keys(asked(bench, defined, None, "running cats", mode="text"))[0] == 1
    assert words("the") == words("?!") == []
    hybrid = asked(bench, defined, ONE, "the", mode="hybrid")
    assert (len(hybrid.hits), [hit.score for hit in asked(bench, defined, None, "dog", mode="text").hits]) == (
        4,
        [None] * 3,
    )


@pytest.mark.parametrize(
    ("query", "first", "not_found"),
    [
        ("全文検索", {1}, {4}),
        ("機械学習", {2}, {1, 4}),
        ("猫", {3}, {1, 2}),
        ("东京大学", {4}, {1, 2, 3}),
        ("カタカナ", {5}, {1, 2, 3, 4}),
        ("ｶﾀｶﾅ", {5}, {1, 2, 3, 4}),
        ("인공지능", {6}, {1, 2, 3, 4, 5}),
        ("PostgreSQL 全文検索", {1}, {4}),
        ("PostgreSQL全文検索", {1}, {4}),
        ('"機械学習" -深層', {7}, {1, 2, 3}),
        ("猫 OR 大学", {3, 4}, {1, 2}),
    ],
)
def test_chinese_japanese_and_korean_words_are_found_without_extensions(
    bench: Bench, query: str, first: set[int], not_found: set[int]
) -> None:
    defined = texts(
        bench,
        "PostgreSQLの全文検索について",
        "機械学習と深層学習の違い",
        "吾輩は猫である。名前はまだ無い。",
        "他在北京和东京大学学习",
        "長いカタカナの言葉",
        "인공지능은 사람의 지능을 흉내낸다",
        "機械学習の入門",
    )
    for options in ({"mode": "text", "vector": None}, {"mode": "hybrid", "vector": ONE}):
        vector = options.pop("vector")
        found = keys(asked(bench, defined, vector, query, **options))
        if options["mode"] == "text":
            # Two documents have the words of the second query; whatever has only a part of them comes later.
            assert first <= set(found[: len(first) + 1])
            assert not set(found) & not_found or query == "機械学習", found
    if query == "機械学習":
        assert set(found_ := keys(asked(bench, defined, None, query, mode="text"))[:2]) == {2, 7}, found_


@pytest.mark.parametrize(
    ("text", "query", "found"),
    [
        ("ﾃﾞｰﾀﾍﾞｰｽ", "データベース", True),
        ("データベース", "ﾃﾞｰﾀﾍﾞｰｽ", True),
        ("ＰｏｓｔｇｒｅＳＱＬ", "postgresql", True),
        ("cafe\u0301", "café", True),
        ("猫 犬", "猫犬", False),
        ("猫、犬", "猫犬", False),
        ("猫犬", "猫 犬", True),
        ("東京都", "京都", True),
        ("京の都", "京都", False),
        ("‘quoted’ – words…", "quoted words", True),
    ],
)
def test_words_are_the_same_in_any_width_and_go_no_further_than_their_letters(
    bench: Bench, text: str, query: str, found: bool
) -> None:
    matches = "SELECT pgvec.search_terms(%s, 'english') @@ pgvec.search_query(%s, 'english')"
    assert bench.value(matches, text, query) == found


def test_words_are_looked_up_in_an_index_where_there_is_one(bench: Bench) -> None:
    defined, _ = many(bench, 2_000)
    bench.sql("CREATE INDEX docs_words ON docs_vectors USING gin (pgvec.search_terms(chunk, 'english'))")
    bench.sql("ANALYZE docs_vectors")
    with bench.connection.transaction():
        scans = Scans(bench)
        assert keys(asked(bench, defined, None, "1234", mode="text")) == [1235]
        assert scans.of("docs_words") == 1


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_text_is_a_query(bench: Bench, query: str) -> None:
    for language in ("english", "simple"):
        bench.sql("SELECT pgvec.search_query(%s, %s::regconfig)", query, language)
        bench.sql("SELECT pgvec.search_parts(pgvec.search_query(%s, %s::regconfig))", query, language)
        bench.sql("SELECT pgvec.search_terms(%s, %s::regconfig)", query, language)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text('東京都大学猫인공지능カナ a-"b.', min_size=1, max_size=30).filter(lambda t: t.strip(' a-"b.')))
def test_a_text_of_cjk_words_is_found_by_each_run_of_its_letters(bench: Bench, text: str) -> None:
    import re

    for run in re.findall("[東京都大学猫인공지능カナ]+", text):
        assert bench.value("SELECT pgvec.search_terms(%s, 'simple') @@ pgvec.search_query(%s, 'simple')", text, run), (
            text,
            run,
        )


def test_a_document_of_any_length_is_searched_as_far_as_a_tsvector_goes(bench: Bench) -> None:
    words = " ".join(f"{i:x}" for i in range(200_000))
    cjk = "".join(chr(0x4E00 + i % 20_000) for i in range(300_000))
    for text, query in ((words, "1f"), (cjk, cjk[100:110])):
        assert bench.value("SELECT pgvec.search_terms(%s, 'english') @@ pgvec.search_query(%s, 'english')", text, query)


# Meaning


@pytest.mark.model
def test_a_question_finds_the_text_that_answers_it_in_other_words(bench: Bench) -> None:
    bodies = [
        "Recursively delete a directory tree.",
        "Return True for leap years, False for non-leap years.",
        "Prompt for a password, with echo turned off.",
        "Merge multiple sorted inputs into a single sorted output.",
        "Guess the type of a file based on its URL. Error code E1234 is raised where that fails.",
    ]
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    for i, body in enumerate(bodies, 1):
        bench.sql("INSERT INTO docs VALUES (%s, %s)", i, body)
    defined = bench.enqueue("docs", "body", model=DEFAULT_MODEL, chunk_size=128)
    bench.drain(device=DeviceOptions(runtime="torch", batch_tokens=1_024))
    embedder = load(defined.spec, DeviceOptions(runtime="torch"))
    try:
        for question, key in (
            ("remove a folder with everything in it", 1),
            ("has a year 366 days", 2),
            ("ask for a secret without showing what is typed", 3),
        ):
            for mode in ("vector", "hybrid"):
                found = search(bench.connection, defined, embedder, Search(question, mode=mode))
                assert keys(found)[0] == key
                assert found.best_score is not None
                assert 0.2 < found.best_score < 1
        assert keys(search(bench.connection, defined, embedder, Search("E1234", mode="hybrid")))[0] == 5
    finally:
        embedder.close()


# What cannot be answered


@pytest.mark.parametrize(
    ("vector", "text", "options", "words"),
    [
        ([1.0, 2.0], "x", {}, "the query has 2 dimensions, the vectors of 'docs' have 8"),
        ([0.0] * 8, "x", {}, "the query's vector is zero"),
        ([np.nan] * 8, "x", {}, "NaN not allowed in vector"),
        (ONE, "x", {"mode": "magic"}, "there is no mode 'magic'; say vector, text or hybrid"),
        (None, "x", {}, "a search by vectors needs the query's vector"),
        (None, "x", {"mode": "text", "threshold": 0.5}, "a threshold needs the query's vector"),
        (ONE, "x", {"limit": 0}, "max_hits is 0; give 1 to 10,000"),
        (ONE, "x", {"offset": -1}, "skip is -1"),
        (ONE, "x", {"neighbours": 101}, "neighbours is 101"),
        (ONE, "x", {"ef_search": 1001}, "ef_search is 1001"),
        (ONE, "x", {"threshold": 1.5}, "threshold is 1.5; it is a cosine"),
        (ONE, "x", {"language": "klingon"}, 'text search configuration "klingon" does not exist'),
        (ONE, "x", {"language": "a b"}, "invalid name syntax"),
        (ONE, " ", {}, "the query is blank"),
        (ONE, "a\0", {}, "the query holds a NUL character"),
    ],
)
def test_what_cannot_be_answered_says_why(
    bench: Bench, vector: Any, text: str, options: dict[str, Any], words: str
) -> None:
    defined = texts(bench, "one")
    with pytest.raises(SearchError) as refused:
        asked(bench, defined, vector, text, **options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_gone_is_named(bench: Bench) -> None:
    defined = texts(bench, "one")
    bench.sql("ALTER TABLE docs_vectors RENAME COLUMN chunk TO moved")
    with pytest.raises(DestinationError, match=r"^public\.docs_vectors is not what it was: .*chunk"):
        asked(bench, defined, ONE)
    bench.sql("DROP TABLE docs_vectors")
    with pytest.raises(DestinationError, match=r"^public\.docs_vectors is not what it was: table public\.docs_vectors"):
        asked(bench, defined, ONE)
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    with pytest.raises(DefinitionError, match="no vectorizer is called 'docs' any more"):
        asked(bench, defined, ONE)
    bench.sql(
        "DO $$ BEGIN EXECUTE"
        " (SELECT 'DROP FUNCTION ' || oid::regprocedure FROM pg_proc WHERE proname = 'search'); END $$"
    )
    with pytest.raises(SchemaOutdatedError, match="run: pgvec init"):
        asked(bench, defined, ONE)


def test_an_unknown_id_is_told_in_sql(bench: Bench) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no vectorizer with the id 99"):
        bench.sql("SELECT * FROM pgvec.search(99, '{1}')")


def test_who_may_only_read_may_search(bench: Bench) -> None:
    defined = texts(bench, "one")
    bench.sql("DO $$ BEGIN CREATE ROLE reader; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$")
    bench.sql("GRANT USAGE ON SCHEMA pgvec TO reader; GRANT SELECT ON pgvec.vectorizers TO reader")
    plain = Database(f"{bench.dsn}&options=-c%20role%3Dreader")
    with plain.connect("test") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="docs_vectors"):
            nearest(connection, defined, Search("x"), np.ones(8, np.float32))
        bench.sql("GRANT SELECT ON docs_vectors TO reader")
        for mode in ("vector", "text", "hybrid"):
            answer = nearest(connection, defined, Search("one", mode=mode), np.ones(8, np.float32))
            assert [(hit.key, hit.metadata) for hit in answer.hits] == [(["1"], None)]


def test_an_event_loop_gets_the_same_answer(bench: Bench) -> None:
    defined, _ = many(bench, 50, 2)
    requests = [
        Search("chunk", limit=5, offset=3),
        Search("chunk 7", mode="hybrid", neighbours=1),
        Search("chunk", threshold=0.9999),
    ]
    vector = np.ones(8, np.float32)

    async def ask() -> list[Answer]:
        async with await async_connect(bench.database, "test") as connection:
            answers = [await nearest_async(connection, defined, request, vector) for request in requests]
            bench.sql("DROP TABLE docs_vectors")
            with pytest.raises(DestinationError):
                await nearest_async(connection, defined, requests[0], vector)
            return answers

    expected = [nearest(bench.connection, defined, request, vector) for request in requests]
    assert asyncio.run(ask()) == expected


def test_a_hit_as_json_leaves_out_what_was_not_asked_for() -> None:
    plain = {"key": ["1"], "chunk_index": None, "score": 0.123457, "chunk": None}
    assert Hit(["1"], None, None, 0.1234567).as_json() == plain
    assert Hit(["1"], 0, "b", None, 0.5, "a", "c", {}).as_json() == {
        "key": ["1"],
        "chunk_index": 0,
        "score": None,
        "chunk": "b",
        "fused": 0.5,
        "context_before": "a",
        "context_after": "c",
        "metadata": {},
    }


# Through an index over halfvec


def _halved(bench: Bench) -> None:
    """Gives ``docs_vectors`` the index that is built where vectors are too long for one of their own type."""
    bench.sql("ALTER TABLE docs_vectors ALTER embedding SET STORAGE EXTERNAL")
    bench.sql("CREATE INDEX docs_hnsw ON docs_vectors USING hnsw ((embedding::halfvec(8)) public.halfvec_cosine_ops)")
    bench.sql("ANALYZE docs_vectors, docs")


@pytest.mark.parametrize("all_chunks", [False, True])
def test_an_index_over_halfvec_gives_exact_scores_in_their_order_and_pages_that_fit_together(
    bench: Bench, all_chunks: bool
) -> None:
    defined, _ = many(bench, 500, 2)
    _halved(bench)
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off; SET LOCAL hnsw.ef_search = 1000")
        scans = Scans(bench)
        whole = asked(bench, defined, ONE, limit=100, all_chunks=all_chunks)
        assert scans.of("docs_hnsw") == 1
        pages = [
            hit
            for offset in range(0, 100, 9)
            for hit in asked(bench, defined, ONE, limit=9, offset=offset, all_chunks=all_chunks).hits
        ][:100]
        exact = asked(bench, defined, ONE, limit=100, all_chunks=all_chunks, exact=True)
    assert [(hit.key, hit.chunk_index) for hit in pages] == [(hit.key, hit.chunk_index) for hit in whole.hits]
    assert [hit.score for hit in whole.hits] == pytest.approx([hit.score for hit in exact.hits], abs=1e-9)
    assert chunks_of(whole) == chunks_of(exact)


def test_vectors_that_halfvec_cannot_tell_apart_are_sorted_by_themselves(bench: Bench) -> None:
    vectors = 1 + np.random.default_rng(SEED).normal(size=(300, 8)) / 2_000
    defined = chunked(bench, [(i, 0, f"chunk {i}", vector.tolist()) for i, vector in enumerate(vectors, 1)])
    _halved(bench)
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off; SET LOCAL hnsw.ef_search = 1000")
        whole = asked(bench, defined, ONE, limit=100)
        pages = [
            hit for offset in range(0, 100, 20) for hit in asked(bench, defined, ONE, limit=20, offset=offset).hits
        ]
    scores = [hit.score or 0.0 for hit in whole.hits]
    assert scores == sorted(scores, reverse=True)
    assert [hit.key for hit in pages] == [hit.key for hit in whole.hits]


def test_a_threshold_is_of_the_vectors_themselves_though_the_index_is_over_halfvec(bench: Bench) -> None:
    defined, vectors = many(bench, 600)
    _halved(bench)
    cosines = sorted((vectors @ np.ones(8)) / np.linalg.norm(vectors, axis=1) / np.sqrt(8), reverse=True)
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off; SET LOCAL hnsw.ef_search = 1000")
        for place in (0, 5, 50, 299):
            threshold = (cosines[place] + cosines[place + 1]) / 2
            answer = asked(bench, defined, ONE, limit=500, threshold=threshold)
            assert len(answer.hits) == place + 1


def test_of_two_indexes_the_one_over_the_vectors_themselves_is_taken(bench: Bench) -> None:
    defined, _ = many(bench, 500)
    _halved(bench)
    bench.sql("ALTER INDEX docs_hnsw RENAME TO docs_words")
    bench.sql("CREATE INDEX docs_hnsw ON docs_vectors USING hnsw (embedding vector_cosine_ops)")
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off")
        scans = Scans(bench)
        asked(bench, defined, ONE)
        assert (scans.of("docs_hnsw"), scans.of("docs_words")) == (1, 0)


def test_an_index_on_another_column_of_the_table_is_not_taken_for_this_one_s(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text, small vector(8), large vector(2100))")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 40) i")
    bench.enqueue("docs", "body", name="small", into_column="small", model="hashing-8", index_new=True)
    large = bench.enqueue("docs", "body", name="large", into_column="large", model="hashing-2100", index_new=True)
    bench.drain()
    index = bench.value("SELECT index_name FROM pgvec.indexes WHERE vectorizer_id = %s", large.id)
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off")
        found = bench.sql("SELECT s.key FROM docs d, pgvec.search(%s, d.large::real[]) s WHERE d.id = 5", large.id)
        assert found[0] == (["5"],)
        assert bench.value("SELECT pg_stat_get_xact_numscans(%s::regclass)", index) == 1
