"""What the key store and the ledger share of SQL: engines, migrations, types. Needs the extra [sql] or [postgres]."""
