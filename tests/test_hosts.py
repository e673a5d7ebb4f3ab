"""The table of hosts."""

from __future__ import annotations

import re

import pytest

from headgate_server.providers import ADAPTERS, openai
from headgate_server.providers.hosts import HOSTS, Host

every_host = pytest.mark.parametrize("host", HOSTS.values(), ids=lambda host: host.name)


@every_host
def test_a_row_can_be_used(host: Host) -> None:
    """A known adapter; an address to which paths can be appended, or none where only the operator knows it."""
    assert host.adapter in ADAPTERS
    assert re.fullmatch(r"(https://[^/]+(/.*[^/])?|http://localhost:\d+/v1)?", host.base_url)
    assert re.fullmatch(r"[A-Z_]*", host.key_variable)


@every_host
def test_quirks_name_fields_that_there_are(host: Host) -> None:
    """A misspelt name would be ignored."""
    assert host.quirks.lacks <= openai.FIELDS.keys()
    assert host.quirks.renames.keys() <= openai.FIELDS.keys()
    assert re.compile(host.quirks.call_ids)
