"""PostgreSQL through psycopg 3: a store for any number of machines (extra `postgres`).

`dialect` says what SQLAlchemy must spell differently, `connections` run statements, `engine` lends them out, `watch` tells of
commits, `codes` of errors.
"""

from ruv_swarm_store.engines.postgresql.engine import PostgreSQLEngine

__all__ = ["PostgreSQLEngine"]
