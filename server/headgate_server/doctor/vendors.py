"""Whether every provider can be reached, and accepts its key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime

from headgate_server.config import Config
from headgate_server.doctor.finding import Finding, State, skew
from headgate_server.errors import (
    GatewayError,
    ProviderCredentialsRejected,
    ProviderQuotaExhausted,
    ProviderTimeout,
    ProviderUnreachable,
)
from headgate_server.runtime import Runtime, ServedProvider

TOKEN_SECONDS = 10.0
ADVICE: Mapping[type[GatewayError], str] = {
    ProviderCredentialsRejected: "replace its api_key or credential: every call would be refused",
    ProviderQuotaExhausted: "see to its credit",
    ProviderUnreachable: "check base_url, name resolution, firewall, ca_file, and HTTPS_PROXY or the provider's proxy",
    ProviderTimeout: "check firewall and proxy on the way to it, or raise routing.health.timeout",
}
OTHERWISE = "it may pass: see the vendor's own status page"


async def vendors(config: Config) -> Sequence[Finding]:
    """Asks each provider for its models, as the running server does."""
    runtime = Runtime(config)
    try:
        found = await asyncio.gather(*(_vendor(runtime, served) for served in runtime.providers.values()))
        return [finding for findings in found for finding in findings]
    finally:
        await runtime.close()


async def _vendor(runtime: Runtime, served: ServedProvider) -> Sequence[Finding]:
    endpoint = served.endpoint
    if served.configured.adapter == "mock":
        return [Finding("vendor", endpoint.name, State.OK, "answers from inside the process")]
    if endpoint.credential:
        endpoint.credential.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(TOKEN_SECONDS):
                await endpoint.credential.tried()
    try:
        headers = await runtime.upstream.check(endpoint, runtime.config.routing.health.timeout)
    except GatewayError as error:
        advice = ADVICE.get(type(error), OTHERWISE)
        detail = f"{error.reason}: {error.message}" + (f" ({error.vendor_detail})" if error.vendor_detail else "")
        return [Finding("vendor", endpoint.name, State.FAILED, detail, advice)]
    findings = [Finding("vendor", endpoint.name, State.OK, "answers, and accepts what it was shown")]
    with suppress(KeyError, ValueError):
        findings.append(skew(endpoint.name, time.time() - parsedate_to_datetime(headers["date"]).timestamp()))
    return findings
