"""SQL as an operator would write it, in whichever database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from headgate_server.sql.engine import engine

EMPTY = ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


async def execute(url: str, *statements: str) -> list[Any]:
    """Runs statements in one transaction; the rows of the last."""
    connections = engine(url)
    try:
        async with connections.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await connections.dispose()


async def entered(url: str) -> tuple[int, int, int]:
    """How many calls there are, by how many names, and how many attempts of theirs."""
    ((calls, names),) = await execute(url, "SELECT count(*), count(DISTINCT request_id) FROM headgate_calls")
    ((attempts,),) = await execute(url, "SELECT count(*) FROM headgate_attempts JOIN headgate_calls ON call_id = id")
    return calls, names, attempts
