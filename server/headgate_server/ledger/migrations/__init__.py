"""How the tables of the ledger came to be."""

from __future__ import annotations

from pathlib import Path

from headgate_server.sql.migrations import Migrations

MIGRATIONS = Migrations(Path(__file__).parent / "versions", "headgate_ledger_version", lock=0x6C65_6467_6572_2121)
