"""The tables that the NDIF API reads keys from, with one known key: ``keys.py DATABASE KEY``.

Run with the server's Python. The columns are those of the server's own schema
(``docker/postgres/init.sql`` in its repository) that its key query reads.
"""

from __future__ import annotations

import asyncio
import sys

import asyncpg

TABLES = """
CREATE TABLE users (user_id UUID PRIMARY KEY DEFAULT gen_random_uuid(), email TEXT UNIQUE NOT NULL);
CREATE TABLE user_tags (user_tag_id UUID PRIMARY KEY DEFAULT gen_random_uuid(), name TEXT UNIQUE);
CREATE TABLE keys (key_id UUID PRIMARY KEY, user_id UUID NOT NULL REFERENCES users);
CREATE TABLE key_user_tag_assignments (
    key_id UUID NOT NULL REFERENCES keys,
    user_tag_id UUID NOT NULL REFERENCES user_tags,
    PRIMARY KEY (key_id, user_tag_id)
);
CREATE USER ndifapi;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO ndifapi;
"""


async def fill(database: str, key: str) -> None:
    """Make the tables and a user whose key is trusted."""
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    user = await connection.fetchval(
        "INSERT INTO users (email) VALUES ('someone@example.org') RETURNING user_id"
    )
    tag = await connection.fetchval(
        "INSERT INTO user_tags (name) VALUES ('trusted') RETURNING user_tag_id"
    )
    await connection.execute("INSERT INTO keys VALUES ($1, $2)", key, user)
    await connection.execute("INSERT INTO key_user_tag_assignments VALUES ($1, $2)", key, tag)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(fill(*sys.argv[1:]))
