"""Which servers are measured: each mode is a configuration, and what callers send with each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headgate import v1 as pb

from headgate_server.identity.keys import digest, new_key


@dataclass(frozen=True, slots=True)
class Mode:
    """`sections` go over the configuration; `metadata` is sent with each call as NAME=VALUE,... `prefix` stands before
    the fake vendor's model in what callers ask for. `environment` is added to the server's; with `redis` a Redis of its
    own shares the limits. It may cost `budget` CPU-µs a unary call, and `event_budget` an event, more
    than the mode `over` which it goes.
    """

    name: str
    sections: Mapping[str, Any] = field(default_factory=dict)
    metadata: str = ""
    prefix: str = "vendor/"
    environment: Mapping[str, str] = field(default_factory=dict)
    redis: bool = False
    over: str = ""
    budget: float | None = None
    event_budget: float | None = None


QUIET = {"telemetry": {"log_level": "warning"}, "admin": {"enabled": False}}
NO_POLICIES = {
    "routing": {"retry": {"max_attempts": 1}, "breaker": {"consecutive_failures": 0}, "health": {"interval": 0}}
}
ALL_POLICIES = {
    "models": {
        name: {
            "strategy": "latency",
            "targets": [{"provider": provider, "model": name} for provider in ("vendor", "twin")],
        }
        for name in ("plain", "burst", "paced", "embed", "idle", "endless*", "silent*")
    },
    "routing": {
        "concurrency": {"limit": 4000},
        "rules": [
            {"labels": {"task": "bulk_*"}, "model": "plain"},
            {"labels": {"task": "long_context"}, "model": "plain"},
        ],
    },
}
LIMITS = {
    "rules": [
        {"unit": "requests", "limit": 100_000_000, "window": 60, "per": ["key"]},
        {
            "unit": "total_tokens",
            "limit": 10**12,
            "window": 60,
            "per": ["tenant", "model"],
            "algorithm": "token_bucket",
        },
        {"unit": "concurrency", "limit": 100_000, "per": ["tenant"]},
    ]
}
PEPPER = "a pepper of thirty-two characters"
KEY = new_key()
AUTH = {"pepper": PEPPER, "keys": {KEY.id: {"tenant": "bench", "hash": digest(PEPPER.encode(), KEY.text).hex()}}}
BEARER = f"authorization=Bearer {KEY.text}"
SAMPLED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
OBSERVED = {
    "telemetry": {
        "log_level": "info",
        "log_format": "json",
        "traces": {"enabled": True, "exporters": ["none"]},
    }
}
LEDGER = {"ledger": {"url": "sqlite:///ledger.db"}}
BARE = {**QUIET, **NO_POLICIES}
GUARDED = {"auth": AUTH, "limits": LIMITS}
MODES = (
    Mode("bare", BARE),
    Mode("routed", {**QUIET, **ALL_POLICIES}, prefix="", over="bare", budget=60),
    Mode("guarded", {**BARE, **GUARDED}, BEARER, over="bare", budget=60),
    Mode("shared", {**BARE, **GUARDED}, BEARER, redis=True, over="guarded", budget=60),
    Mode("ledgered", {**BARE, **LEDGER}, over="bare", budget=30),
    Mode("observed", {**NO_POLICIES, **OBSERVED}, environment=SAMPLED, over="bare", budget=60, event_budget=2),
    Mode(
        "full", {**ALL_POLICIES, **GUARDED, **OBSERVED, **LEDGER}, BEARER, prefix="", environment=SAMPLED, over="bare"
    ),
)


def configuration(mode: Mode, vendor: str, redis: str = "") -> dict[str, Any]:
    """The server's configuration in this mode, in front of the fake vendor at that address, with that Redis."""
    provider = {"adapter": "openai", "base_url": f"http://{vendor}/v1", "api_key": "key", "max_connections": 4096}
    sections = dict(mode.sections)
    if redis:
        sections["limits"] = {**sections["limits"], "store": {"type": "redis", "url": f"redis://{redis}/0"}}
    return {
        "server": {"listen": "127.0.0.1:0", "drain_delay": 0, "drain_grace": 1},
        "admin": {"listen": "127.0.0.1:0"},
        "auth": {"anonymous": True},
        "providers": {"vendor": provider, "twin": provider},
        **sections,
    }


def generate_request() -> bytes:
    """A conversation of five messages, 948 bytes with its model."""
    turns = (
        (pb.ROLE_SYSTEM, "You answer questions about gateways, briefly and exactly. " * 5),
        (pb.ROLE_USER, "What does a gateway in front of model vendors do? " * 3),
        (pb.ROLE_ASSISTANT, "It gives callers one contract and the operator one place for keys and limits. " * 3),
        (pb.ROLE_USER, "And what does it cost per call? " * 3),
        (pb.ROLE_ASSISTANT, "That is what this measures."),
        (pb.ROLE_USER, "Then say how."),
    )
    request = pb.GenerateRequest(
        messages=[pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in turns],
        config=pb.GenerationConfig(temperature=0.7, max_output_tokens=256),
        labels={"team": "bench"},
    )
    return request.SerializeToString()


def embed_request() -> bytes:
    """A hundred short texts."""
    inputs = [pb.EmbedInput(text=f"Sentence {number} of a hundred that want a vector.") for number in range(100)]
    return pb.EmbedRequest(inputs=inputs).SerializeToString()
