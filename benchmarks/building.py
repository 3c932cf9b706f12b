"""How many vectors a second go into an HNSW index, as it grows and by how many processes: constants of the cost model.

    python -m benchmarks.building [--rows 20000,40000,80000] [--dimensions 384] [--processes 1,2] [--store vector]

Vectors are random: the worst that a graph can meet. All of it fits into ``maintenance_work_mem``; beyond that a build
is many times slower. What is printed per size is the rate by the time of the whole build, and what the cost model makes
of it: the rate of one core at 100,000 vectors of 384 dimensions, as if time went with n log n.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

from benchmarks import common
from pgvec_queue.database import Connection
from pgvec_queue.estimate import hnsw
from pgvec_queue.estimate.cost import Constants

_FILL = """
INSERT INTO vectors
SELECT i, (SELECT array_agg(random() - 0.5 + i * 0 + k * 0) FROM generate_series(1, {dimensions}) k)::{store}
FROM generate_series((SELECT count(*) + 1 FROM vectors), {rows}) i
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", default="20000,40000,80000", help="sizes, one after the other")
    options.add_argument("--dimensions", type=int, default=384)
    options.add_argument("--processes", default="1,2", help="that build, the first one included")
    options.add_argument("--store", choices=["vector", "halfvec"], default="vector")
    chosen = options.parse_args()
    known = Constants()
    memory = 0.0
    with common.server() as (_, connection):
        connection.execute(f"CREATE TABLE vectors (id bigint, embedding {chosen.store}({chosen.dimensions}))".encode())
        print("   rows | processes | seconds | vectors/s | per core at 100,000 of 384 | memory of the graph, MB")
        for rows in map(int, chosen.rows.split(",")):
            connection.execute(_FILL.format(rows=rows, dimensions=chosen.dimensions, store=chosen.store).encode())
            connection.execute("VACUUM ANALYZE vectors")
            memory = rows * hnsw.memory_bytes(chosen.dimensions, chosen.store)
            for processes in map(int, chosen.processes.split(",")):
                seconds = _build(connection, chosen.store, processes, memory)
                slower = math.log(rows) / math.log(known.build_at) * chosen.dimensions / known.build_dimensions
                cores = 1 + (processes - 1) * known.build_scaling
                print(
                    f"{rows:7,} | {processes:9} | {seconds:7.1f} | {rows / seconds:9,.0f} |"
                    f" {rows / seconds * slower / cores:26,.0f} | {memory / 1e6:10,.0f}",
                    flush=True,
                )
    return 0


def _build(connection: Connection, store: str, processes: int, memory: float) -> float:
    connection.execute(f"SET maintenance_work_mem = '{int(memory * 1.2 / 1024) + 65_536}kB'".encode())
    connection.execute(f"SET max_parallel_maintenance_workers = {processes - 1}".encode())
    # Small tables get no helpers unless told so.
    connection.execute(f"ALTER TABLE vectors SET (parallel_workers = {processes - 1})".encode())
    began = time.monotonic()
    connection.execute(f"CREATE INDEX building ON vectors USING hnsw (embedding {store}_cosine_ops)".encode())
    seconds = time.monotonic() - began
    connection.execute("DROP INDEX building")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
