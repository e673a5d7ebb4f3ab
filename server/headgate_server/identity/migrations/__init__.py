"""How the tables of the key store came to be."""

from __future__ import annotations

from pathlib import Path

from headgate_server.sql.migrations import Migrations

MIGRATIONS = Migrations(Path(__file__).parent / "versions", "headgate_keys_version", lock=0x6865_6164_6761_7465)
