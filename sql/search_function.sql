-- Search, one implementation for SQL, the command line and HTTP; created again by every `pgvec init`.
-- A ranking is held as places of rows (tableoid, ctid): all statements of a STABLE function see one snapshot.

-- name: cjk
-- Letters of scripts that are written without spaces, or of words with endings grown on: Han, kana, Hangul, Bopomofo.
CREATE OR REPLACE FUNCTION pgvec.cjk() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT U&'\1100-\11FF\2E80-\2FDF\3005-\3007\3041-\3096\309D-\309F\30A1-\30FA\30FC-\30FF\3105-\312F\3131-\318E\31A0-\31BF\31F0-\31FF\3400-\4DBF\4E00-\9FFF\A960-\A97C\AC00-\D7FB\F900-\FAFF\FF66-\FFDC\+01B000-\+01B16F\+020000-\+03FFFF' $$;
COMMENT ON FUNCTION pgvec.cjk() IS 'Ranges of a regular expression: the letters that are searched in pairs, since no space says where a word ends';

-- name: cjk_terms
-- Each letter by itself and with the one after it; a place is the letter's in the text, so that a word is a phrase of pairs.
CREATE OR REPLACE FUNCTION pgvec.cjk_terms(document text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(string_agg(term || ':' || place, ' '), '')::tsvector
    FROM (
        SELECT letter, place, lead(letter) OVER (ORDER BY place) AS after, lead(place) OVER (ORDER BY place) AS after_place
        FROM string_to_table(left(document, 16000), NULL) WITH ORDINALITY AS l(letter, place)
        WHERE letter ~ ('[' || pgvec.cjk() || ']')
    ) letters
    CROSS JOIN LATERAL (VALUES (letter), (CASE WHEN after_place = place + 1 THEN letter || after END)) AS t(term)
    WHERE term IS NOT NULL
$$;
COMMENT ON FUNCTION pgvec.cjk_terms(text) IS 'The CJK letters of a text, single and in pairs, as pgvec.search_terms has them';

-- name: search_terms
CREATE OR REPLACE FUNCTION pgvec.search_terms(document text, language regconfig) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    same text;
BEGIN
    -- A tsvector holds 1 MB: of a document that stays whole and is longer than this, the rest is not searched.
    same := left(document, 250000);
    -- One form for what differs in width, or in how it is put together; as in the query.
    IF octet_length(same) > length(same) THEN
        same := normalize(same, NFKC);
    END IF;
    IF same !~ ('[' || pgvec.cjk() || ']') THEN
        RETURN to_tsvector(language, same);
    END IF;
    RETURN pgvec.cjk_terms(same) || to_tsvector(language, regexp_replace(same, '[' || pgvec.cjk() || ']+', ' ', 'g'));
END
$$;
COMMENT ON FUNCTION pgvec.search_terms(text, regconfig) IS 'What a text is searched by: words of the language, and CJK letters in pairs; IMMUTABLE, so that it can be indexed (GIN)';

-- name: search_query
CREATE OR REPLACE FUNCTION pgvec.search_query(query_text text, language regconfig) RETURNS tsquery
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning
AS $$
DECLARE
    letters text := pgvec.cjk();
    words text := normalize(query_text, NFKC);
    runs tsquery[] := '{}';
    run text;
    found tsquery;
    name text;
BEGIN
    -- A run of CJK letters becomes a word of its own that no dictionary changes, and then a phrase of pairs.
    words := regexp_replace(words, '([^-\s"' || letters || '])([' || letters || '])', '\1 \2', 'g');
    words := regexp_replace(words, '([' || letters || '])([^\s"' || letters || '])', '\1 \2', 'g');
    LOOP
        run := substring(words FROM '[' || letters || ']+');
        EXIT WHEN run IS NULL OR cardinality(runs) = 100;
        runs := runs || (
            SELECT string_agg(CASE WHEN length(run) = 1 THEN run ELSE substr(run, i, 2) END, ' <-> ' ORDER BY i)::tsquery
            FROM generate_series(1, greatest(length(run) - 1, 1)) i);
        words := regexp_replace(words, '[' || letters || ']+', 'pgveccjk' || cardinality(runs));
    END LOOP;
    found := websearch_to_tsquery(language, words);
    FOR i IN REVERSE cardinality(runs) .. 1 LOOP
        name := quote_literal('pgveccjk' || i);
        IF position(name IN found::text) > 0 THEN
            found := ts_rewrite(found, name::tsquery, runs[i]);
        ELSE
            found := found && runs[i];
        END IF;
    END LOOP;
    RETURN found;
END
$$;
COMMENT ON FUNCTION pgvec.search_query(text, regconfig) IS 'The query that finds texts with all these words by pgvec.search_terms; "phrase", OR and -word as in websearch_to_tsquery';

-- name: search_parts
-- For a query that is a plain list: what of it may be found alone. Pairs of CJK letters are such parts, phrases in quotes are one.
CREATE OR REPLACE FUNCTION pgvec.search_parts(query tsquery, OUT wanted tsquery[], OUT unwanted tsquery[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(DISTINCT part::tsquery) FILTER (WHERE part NOT LIKE '!%'), '{}'),
           coalesce(array_agg(DISTINCT part::tsquery) FILTER (WHERE part LIKE '!%'), '{}')
    FROM unnest(CASE WHEN query::text LIKE '% | %' OR numnode(query) = 0 THEN '{}' ELSE string_to_array(query::text, ' & ') END) AS a(whole)
    CROSS JOIN LATERAL unnest(CASE WHEN whole NOT LIKE '!%' AND whole ~ ('[' || pgvec.cjk() || ']') THEN string_to_array(whole, ' <-> ')
                                   ELSE ARRAY[whole] END) AS b(part)
$$;
COMMENT ON FUNCTION pgvec.search_parts(tsquery) IS 'Of a query that is a plain list: the parts that may be found alone, and those that must not be found';

-- name: search_equality
-- The operator by which two keys of a type are the same, whatever the search path hides.
CREATE OR REPLACE FUNCTION pgvec.search_equality(type oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((
        SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
        FROM pg_type t
        JOIN pg_opclass c ON c.opcintype = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END AND c.opcdefault
        JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
        JOIN pg_amop a ON a.amopfamily = c.opcfamily AND a.amopstrategy = 3
                      AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
        JOIN pg_operator o ON o.oid = a.amopopr
        JOIN pg_namespace n ON n.oid = o.oprnamespace
        WHERE t.oid = search_equality.type LIMIT 1), 'OPERATOR(pg_catalog.=)')
$$;
COMMENT ON FUNCTION pgvec.search_equality(oid) IS 'The operator by which two keys of a type are the same';

-- name: search_context
-- The expression of the chunks from so many before or after d to so many; NULL where there are none to tell.
CREATE OR REPLACE FUNCTION pgvec.search_context(v pgvec.vectorizers, destination regclass, same_doc text, low integer, high integer) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN low > high OR NOT v.destination_roles ?& '{chunk, chunk_index}' THEN 'NULL::text'
        ELSE format('(SELECT string_agg(n.%1$I::text, E''\n'' ORDER BY n.%2$I) FROM %3$s n'
                    ' WHERE %4$s AND n.%2$I BETWEEN d.%2$I + (%5$s) AND d.%2$I + (%6$s))',
                    v.destination_roles ->> 'chunk', v.destination_roles ->> 'chunk_index', destination, same_doc, low, high)
    END
$$;
COMMENT ON FUNCTION pgvec.search_context(pgvec.vectorizers, regclass, text, integer, integer) IS 'The expression of the chunks around a hit, for pgvec.search';

-- name: search
CREATE OR REPLACE FUNCTION pgvec.search(
    vectorizer bigint, query real[], query_text text DEFAULT NULL, max_hits integer DEFAULT 10, skip integer DEFAULT 0,
    threshold double precision DEFAULT NULL, filter jsonb DEFAULT NULL, mode text DEFAULT 'vector', exact boolean DEFAULT false,
    ef_search integer DEFAULT NULL, all_chunks boolean DEFAULT false, neighbours integer DEFAULT 0,
    language regconfig DEFAULT 'pg_catalog.english')
RETURNS TABLE (key text[], chunk_index integer, chunk text, score double precision, fused double precision,
               context_before text, context_after text, metadata jsonb)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning
-- Keys are written as everywhere in pgvec.
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET extra_float_digits = '1'
AS $$
DECLARE
    -- Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): the sum of 1 / (60 + place) over the rankings. As deep as this each
    -- of them counts, whatever page is asked for, so that pages fit together; hits beyond follow in the order of their vectors.
    depth CONSTANT integer := 100;
    v pgvec.vectorizers%ROWTYPE;
    wanted integer;
    into_column boolean;
    destination regclass;
    source regclass;
    has_metadata boolean;
    pgvector_schema name;
    pgvector_version integer[];
    doc text;        -- the key as text[]
    same_doc text;   -- d and n are chunks of one document
    matches text;    -- d is a chunk of s
    body text;       -- the text of a chunk
    body_source text := '';
    distance text;
    condition text;
    sorted text;
    through_index boolean;
    halved boolean := false;  -- the index is over the vectors cast to halfvec
    nearness text;            -- what an index sorts by
    old_ef text;
    old_scan text;
    statement text;
    most bigint;
    fetched bigint;
    beyond boolean;  -- the furthest of them is below the threshold
    all_of tsquery;
    any_of tsquery;
    parts tsquery[];
    unwanted tsquery[];
    vector_t oid[] := '{}';
    vector_c tid[] := '{}';
    text_t oid[] := '{}';
    text_c tid[] := '{}';
    hit_t oid[];
    hit_c tid[];
    hit_fused double precision[];
BEGIN
    SELECT * INTO v FROM pgvec.vectorizers t WHERE t.id = search.vectorizer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no vectorizer with the id %', coalesce(vectorizer::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT id, name FROM pgvec.vectorizers lists them.';
    END IF;
    IF mode IS NULL OR mode NOT IN ('vector', 'text', 'hybrid') THEN
        RAISE EXCEPTION 'there is no mode %; say vector, text or hybrid', quote_nullable(mode) USING ERRCODE = 'invalid_parameter_value';
    ELSIF query IS NULL AND mode <> 'text' THEN
        RAISE EXCEPTION 'a search by vectors needs the query''s vector; give it, or mode => ''text''' USING ERRCODE = 'invalid_parameter_value';
    ELSIF query IS NULL AND threshold IS NOT NULL THEN
        RAISE EXCEPTION 'a threshold needs the query''s vector' USING ERRCODE = 'invalid_parameter_value';
    ELSIF cardinality(query) <> v.dimensions THEN
        RAISE EXCEPTION 'the query has % dimensions, the vectors of % have %; embed it with the same model, %',
            cardinality(query), quote_literal(v.name), v.dimensions, v.model USING ERRCODE = 'invalid_parameter_value';
    ELSIF mode <> 'vector' AND (query_text IS NULL OR pgvec.is_blank(query_text)) THEN
        RAISE EXCEPTION 'a search by words needs the query''s text' USING ERRCODE = 'invalid_parameter_value';
    ELSIF max_hits IS NULL OR max_hits NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'max_hits is %; give 1 to 10,000', coalesce(max_hits::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    ELSIF skip IS NULL OR skip NOT BETWEEN 0 AND 100000 THEN
        RAISE EXCEPTION 'skip is %; give 0 to 100,000', coalesce(skip::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    ELSIF neighbours IS NULL OR neighbours NOT BETWEEN 0 AND 100 THEN
        RAISE EXCEPTION 'neighbours is %; give 0 to 100', coalesce(neighbours::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    ELSIF ef_search NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'ef_search is %; give 1 to 1,000', ef_search USING ERRCODE = 'invalid_parameter_value';
    ELSIF threshold NOT BETWEEN -1 AND 1 THEN
        RAISE EXCEPTION 'threshold is %; it is a cosine, -1 to 1', threshold USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT EXISTS (SELECT FROM unnest(query) AS u(x) WHERE x <> 0) AND query IS NOT NULL THEN
        RAISE EXCEPTION 'the query''s vector is zero, and has no direction' USING ERRCODE = 'invalid_parameter_value';
    ELSIF language IS NULL THEN
        RAISE EXCEPTION 'language is NULL; name a text search configuration' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT n.nspname, string_to_array(substring(e.extversion FROM '^[0-9]+[.][0-9]+'), '.')::integer[] INTO pgvector_schema, pgvector_version
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector';
    wanted := skip + max_hits;
    into_column := v.destination_kind = 'column';
    destination := to_regclass(format('%I.%I', v.destination_schema, v.destination_table));
    source := to_regclass(format('%I.%I', v.source_schema, v.source_table));
    IF destination IS NULL THEN
        RAISE EXCEPTION 'table %.% is not there', v.destination_schema, v.destination_table USING ERRCODE = 'undefined_table';
    END IF;
    has_metadata := source IS NOT NULL AND EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = source AND a.attname = 'metadata' AND a.atttypid = 'jsonb'::regtype AND NOT a.attisdropped);
    IF filter IS NOT NULL AND NOT has_metadata THEN
        RAISE EXCEPTION '%.% has no column metadata of type jsonb to filter by', v.source_schema, v.source_table
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- The parts of all statements. Names come quoted, types from the catalog.
    SELECT format('ARRAY[%s]', string_agg(format('d.%I::text', k.name), ', ' ORDER BY k.place)),
           string_agg(format('n.%1$I %2$s d.%1$I', k.name, pgvec.search_equality(a.atttypid)), ' AND ' ORDER BY k.place),
           string_agg(format('d.%I %s %s', k.name, pgvec.search_equality(a.atttypid),
                             format(CASE WHEN b.atttypid IS DISTINCT FROM a.atttypid THEN 's.%1$I::%2$s' ELSE 's.%1$I' END,
                                    v.key_columns[k.place], format_type(a.atttypid, NULL))), ' AND ' ORDER BY k.place)
    INTO doc, same_doc, matches
    FROM jsonb_array_elements_text(v.destination_roles -> 'key') WITH ORDINALITY AS k(name, place)
    LEFT JOIN pg_attribute a ON a.attrelid = destination AND a.attname = k.name AND NOT a.attisdropped
    LEFT JOIN pg_attribute b ON b.attrelid = source AND b.attname = v.key_columns[k.place] AND NOT b.attisdropped;
    IF v.destination_roles ? 'chunk' THEN
        body := format('d.%I::text', v.destination_roles ->> 'chunk');
    ELSE
        body := format(CASE WHEN cardinality(v.text_columns) = 1 THEN '%s' ELSE 'concat_ws(E''\n\n'', %s)' END,
            (SELECT string_agg(format('%s.%I::text', CASE WHEN into_column THEN 'd' ELSE 's' END, t.name), ', ' ORDER BY t.place)
             FROM unnest(v.text_columns) WITH ORDINALITY AS t(name, place)));
        IF NOT into_column THEN
            IF source IS NULL THEN
                RAISE EXCEPTION 'table %.%, which has the text, is not there', v.source_schema, v.source_table USING ERRCODE = 'undefined_table';
            END IF;
            body_source := format('JOIN %s s ON %s', source, matches);
        END IF;
    END IF;
    distance := format('(d.%I OPERATOR(%I.<=>) $1::%I.%I)', v.destination_roles ->> 'embedding', pgvector_schema, pgvector_schema, v.store);
    condition := format('d.%I IS NOT NULL', v.destination_roles ->> 'embedding');
    IF filter IS NOT NULL AND into_column THEN
        condition := condition || ' AND d.metadata @> $2';
    ELSIF filter IS NOT NULL THEN
        condition := condition || format(' AND EXISTS (SELECT FROM %s s WHERE %s AND s.metadata @> $2)', source, matches);
    END IF;

    IF mode <> 'text' THEN
        nearness := distance;
        SELECT NOT exact AND coalesce(bool_or(by_itself OR by_half), false),
               NOT exact AND coalesce(bool_or(by_half) AND NOT bool_or(by_itself), false)
        INTO through_index, halved
        FROM (
            -- Another column of the table may have one as well.
            SELECT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                           AND a.attname = v.destination_roles ->> 'embedding') AS by_itself,
                   v.store = 'vector' AND i.indkey[0] = 0 AND pg_get_expr(i.indexprs, i.indrelid)
                       = format('(%I)::%s', v.destination_roles ->> 'embedding',
                                format_type(to_regtype(format('%I.halfvec', pgvector_schema)), v.dimensions)) AS by_half
            FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_am m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
            WHERE i.indisvalid AND (i.indrelid = destination OR i.indrelid IN (SELECT relid FROM pg_partition_tree(destination)))
        ) indexes;
        IF halved THEN
            nearness := format('((d.%1$I::%2$I.halfvec(%3$s)) OPERATOR(%2$I.<=>) $1::%2$I.halfvec(%3$s))',
                               v.destination_roles ->> 'embedding', pgvector_schema, v.dimensions);
        END IF;
        old_ef := current_setting('hnsw.ef_search', true);
        old_scan := current_setting('hnsw.iterative_scan', true);
        wanted := greatest(wanted, CASE WHEN mode = 'hybrid' THEN depth ELSE 0 END);
        most := wanted * CASE WHEN all_chunks OR v.chunk_size IS NULL THEN 1 ELSE 4 END;
        LOOP
            IF through_index THEN
                -- Strict order: what a longer list begins with is the shorter list, so that pages fit together. Where pgvector cannot
                -- go on with a scan, before 0.8, no more rows come than ef_search.
                PERFORM set_config('hnsw.ef_search', coalesce(ef_search, least(greatest(nullif(old_ef, '')::integer, depth,
                    CASE WHEN pgvector_version < '{0,8}' THEN most END), 1000))::text, true);
                IF pgvector_version >= '{0,8}' THEN
                    PERFORM set_config('hnsw.iterative_scan', 'strict_order', true);
                END IF;
            END IF;
            -- An index gives its own order of equals; without one the place decides. One of halfvec errs in the fourth decimal of a
            -- cosine: by hundreds, so that a longer list still begins with the shorter, the vectors themselves decide.
            halved := halved AND through_index;
            sorted := CASE WHEN through_index THEN nearness ELSE distance || ' + 0, d.tableoid, d.ctid' END;
            most := CASE WHEN halved THEN (most + depth - 1) / depth * depth ELSE most END;
            statement := format($statement$
                SELECT coalesce(array_agg(t ORDER BY place) FILTER (WHERE kept), '{}'),
                       coalesce(array_agg(c ORDER BY place) FILTER (WHERE kept), '{}'),
                       count(*), coalesce(1 - max(nearness) FILTER (WHERE nearness < 'Infinity') < $5 - %s, false)
                FROM (
                    SELECT t, c, place, distance, nearness,
                           ($4 OR row_number() OVER (PARTITION BY doc ORDER BY place) = 1)
                           AND ($5 IS NULL OR 1 - distance >= $5) AND distance < 'Infinity' AS kept
                    FROM (
                        SELECT *, row_number() OVER (%s) AS place
                        FROM (SELECT nearest.*, %s AS nearness, row_number() OVER () AS met
                              FROM (SELECT d.tableoid AS t, d.ctid AS c, %s AS doc, %s AS distance, %s AS by_half
                                    FROM %s d WHERE %s ORDER BY %s LIMIT $3) nearest) met
                    ) placed
                ) looked_at
                $statement$, CASE WHEN halved THEN 0.001 ELSE 0 END,
                CASE WHEN halved THEN format('ORDER BY (met - 1) / %s, distance, met', depth) END,
                CASE WHEN halved THEN 'by_half' ELSE 'distance' END,
                doc, distance, CASE WHEN halved THEN nearness ELSE 'NULL::double precision' END, destination, condition, sorted);
            EXECUTE statement INTO vector_t, vector_c, fetched, beyond USING query, filter, most, all_chunks, threshold;
            EXIT WHEN cardinality(vector_t) >= wanted OR beyond;
            IF fetched < most THEN
                -- An index may end before the rows do; without one, there are no more.
                EXIT WHEN NOT through_index;
                through_index := false;
            ELSIF through_index THEN
                -- Many chunks are of few documents.
                most := most * 4;
            ELSE
                EXIT WHEN most IS NULL;
                most := NULL;
            END IF;
        END LOOP;
        -- What the caller has set stays so.
        PERFORM set_config('hnsw.ef_search', nullif(old_ef, ''), true) WHERE current_setting('hnsw.ef_search', true) IS DISTINCT FROM old_ef;
        PERFORM set_config('hnsw.iterative_scan', nullif(old_scan, ''), true) WHERE current_setting('hnsw.iterative_scan', true) IS DISTINCT FROM old_scan;
    END IF;

    IF mode <> 'vector' THEN
        all_of := pgvec.search_query(query_text, language);
        SELECT p.wanted, p.unwanted INTO parts, unwanted FROM pgvec.search_parts(all_of) p;
        any_of := all_of;
        IF cardinality(parts) > 1 THEN
            SELECT concat_ws(' & ', '( ' || string_agg(part::text, ' | ') || ' )', nullif(array_to_string(unwanted, ' & '), ''))::tsquery
            INTO any_of FROM unnest(parts) AS u(part);
        END IF;
        -- Texts with all the words come first; only where they are too few, those with some are looked for.
        -- A word weighs the more the fewer of the texts have it, as in BM25; ts_rank_cd alone knows nothing of that. Beside vectors a text
        -- counts with half of the weight: one common word of many would only push away what they found.
        statement := format($statement$
            WITH found AS MATERIALIZED (
                SELECT d.tableoid AS t, d.ctid AS c, %1$s AS doc, terms
                FROM %2$s d %3$s CROSS JOIN LATERAL (SELECT pgvec.search_terms(%4$s, %5$L::regconfig) AS terms OFFSET 0) own
                WHERE pgvec.search_terms(%4$s, %5$L::regconfig) @@ $8 AND %6$s AND ($5 IS NULL OR 1 - %7$s >= $5)
            ), weights AS MATERIALIZED (
                SELECT part, ln(1 + ((SELECT count(*) FROM found) - greatest(count(t), 1) + 0.5) / (greatest(count(t), 1) + 0.5)) AS weight
                FROM unnest($7) AS u(part) LEFT JOIN found ON terms @@ part GROUP BY part
            ), ranked AS (
                SELECT t, c, doc, terms @@ $6 AS all_words, ts_rank_cd(terms, $8, 1) AS rank,
                       (SELECT coalesce(sum(weight), 0) FROM weights WHERE terms @@ part) AS words
                FROM found
            ), best AS (
                SELECT *, row_number() OVER (PARTITION BY doc ORDER BY all_words DESC, words DESC, rank DESC, t, c) AS nth
                FROM ranked WHERE NOT $9 OR 2 * words >= (SELECT coalesce(sum(weight), 0) FROM weights)
            )
            SELECT coalesce(array_agg(t ORDER BY place), '{}'), coalesce(array_agg(c ORDER BY place), '{}')
            FROM (
                SELECT t, c, row_number() OVER (ORDER BY all_words DESC, words DESC, rank DESC, t, c) AS place
                FROM best WHERE nth = 1 OR $4
                ORDER BY place LIMIT $3
            ) placed
            $statement$, doc, destination, body_source, body, language, condition,
            CASE WHEN query IS NULL THEN 'NULL::double precision' ELSE distance END);
        most := CASE mode WHEN 'text' THEN wanted ELSE depth END;
        IF numnode(all_of) > 0 THEN
            EXECUTE statement INTO text_t, text_c USING query, filter, most, all_chunks, threshold, all_of, parts, all_of, mode = 'hybrid';
            IF cardinality(text_t) < most AND any_of IS DISTINCT FROM all_of THEN
                EXECUTE statement INTO text_t, text_c USING query, filter, most, all_chunks, threshold, all_of, parts, any_of, mode = 'hybrid';
            END IF;
        END IF;
    END IF;

    IF mode = 'vector' THEN
        hit_t := vector_t;
        hit_c := vector_c;
    ELSE
        EXECUTE format($statement$
            SELECT array_agg(t ORDER BY place), array_agg(c ORDER BY place), array_agg(fused ORDER BY place)
            FROM (
                SELECT CASE WHEN v.place <= $5 OR x.place IS NULL THEN v.t ELSE x.t END AS t,
                       CASE WHEN v.place <= $5 OR x.place IS NULL THEN v.c ELSE x.c END AS c, both_.fused,
                       row_number() OVER (ORDER BY both_.fused DESC NULLS LAST, v.place, x.place) AS place
                FROM (SELECT u.t, u.c, u.place, %1$s AS doc FROM unnest($1, $2) WITH ORDINALITY AS u(t, c, place)
                      JOIN %2$s d ON d.tableoid = u.t AND d.ctid = u.c) v
                FULL JOIN (SELECT u.t, u.c, u.place, %1$s AS doc FROM unnest($3, $4) WITH ORDINALITY AS u(t, c, place)
                           JOIN %2$s d ON d.tableoid = u.t AND d.ctid = u.c) x ON %3$s
                CROSS JOIN LATERAL (
                    SELECT nullif(coalesce(1 / (60.0 + CASE WHEN v.place <= $5 THEN v.place END), 0)
                                  + coalesce(1 / (60.0 + x.place), 0), 0)::double precision AS fused
                ) both_
            ) ranked
            $statement$, doc, destination, CASE WHEN all_chunks THEN 'x.t = v.t AND x.c = v.c' ELSE 'x.doc = v.doc' END)
        INTO hit_t, hit_c, hit_fused USING vector_t, vector_c, text_t, text_c, depth;
    END IF;

    RETURN QUERY EXECUTE format($statement$
        SELECT %1$s, %2$s::integer, %3$s, %4$s::double precision, u.fused, %5$s, %6$s, %7$s
        FROM unnest($3, $4, $5) WITH ORDINALITY AS u(t, c, fused, place)
        JOIN %8$s d ON d.tableoid = u.t AND d.ctid = u.c
        %9$s
        ORDER BY u.place
        $statement$,
        doc,
        CASE WHEN v.destination_roles ? 'chunk_index' THEN format('d.%I', v.destination_roles ->> 'chunk_index') ELSE 'NULL' END,
        body,
        CASE WHEN query IS NULL THEN 'NULL' ELSE '1 - ' || distance END,
        pgvec.search_context(v, destination, same_doc, -neighbours, -1),
        pgvec.search_context(v, destination, same_doc, 1, neighbours),
        CASE WHEN NOT has_metadata THEN 'NULL::jsonb' WHEN into_column THEN 'd.metadata' WHEN has_table_privilege(source, 'SELECT') THEN 's.metadata'
             ELSE 'NULL::jsonb' END,
        destination,
        CASE WHEN into_column THEN '' WHEN body_source <> '' OR has_metadata AND has_table_privilege(source, 'SELECT')
             THEN format('LEFT JOIN %s s ON %s', source, matches) ELSE '' END)
    USING query, filter, hit_t[skip + 1 : skip + max_hits], hit_c[skip + 1 : skip + max_hits], hit_fused[skip + 1 : skip + max_hits];
END
$$;
COMMENT ON FUNCTION pgvec.search(bigint, real[], text, integer, integer, double precision, jsonb, text, boolean, integer, boolean, integer, regconfig)
    IS 'The chunks of a vectorizer (its id) nearest to a vector of its model, by cosine; mode: vector, text or hybrid; docs/search.md';
