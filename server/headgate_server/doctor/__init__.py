"""Looks at all that a configuration needs: vendors, Redis, databases, certificates, clocks and the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headgate_server.config import Config
from headgate_server.doctor.finding import Finding
from headgate_server.doctor.machine import certificates, open_files
from headgate_server.doctor.stores import databases, redis
from headgate_server.doctor.vendors import vendors


async def examine(config: Config) -> Sequence[Finding]:
    """All that was looked at, in this order. Nothing is changed, and no vendor asked to generate."""
    found = await asyncio.gather(vendors(config), redis(config), databases(config))
    return [*(finding for findings in found for finding in findings), *certificates(config), *open_files(config)]
