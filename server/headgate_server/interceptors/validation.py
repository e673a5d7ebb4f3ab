"""Refuses what breaks the contract, before anybody else looks into the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from headgate import v1 as pb

from headgate_server.call import Call
from headgate_server.validation import check_embed, check_generate, check_list_models

CHECKS: Mapping[type[Any], Callable[[Any], bool]] = MappingProxyType(
    {
        pb.GenerateRequest: check_generate,
        pb.EmbedRequest: check_embed,
        pb.ListModelsRequest: check_list_models,
    }
)


def validate(call: Call) -> None:
    """Raises InvalidRequest with every violation. First of all: permissions and limits go by what is checked here."""
    if check := CHECKS.get(type(call.request)):
        call.has_media = check(call.request)
