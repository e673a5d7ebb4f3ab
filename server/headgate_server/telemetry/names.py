"""Every metric that Headgate serves: name, help, labels, buckets.

GenAI metrics are named by https://github.com/open-telemetry/semantic-conventions-genai and the RPC metric by
https://opentelemetry.io/docs/specs/semconv/rpc/rpc-metrics/, spelt as Prometheus spells them. Headgate is a client of
the vendors: an "operation" is one upstream attempt. Labels take values of closed sets only; a model that the
configuration does not name is `other`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headgate.v1 import inference_service_pb2

SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
METHODS = tuple(method.name for method in SERVICE.methods)
SECONDS = tuple(0.01 * 2**power for power in range(14))
"""10 ms to 82 s, doubling."""
OVERHEAD_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.5)
LAG_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
TOKENS = tuple(4**power for power in range(14))
"""1 to 67,108,864, times four."""


@dataclass(frozen=True, slots=True)
class Name:
    """One metric. `buckets` are a histogram's."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

CALL_DURATION = Name(
    "rpc_server_call_duration_seconds",
    "Time of calls, from their first byte to their status.",
    ("rpc_method", "rpc_response_status_code"),
    SECONDS,
)
CALL_OVERHEAD = Name(
    "headgate_call_overhead_seconds",
    "Time of calls less the time in which a vendor had them.",
    ("rpc_method",),
    OVERHEAD_SECONDS,
)
CALL_ERRORS = Name("headgate_call_errors", "Calls that failed, by reason.", ("rpc_method", "reason"))
CALLS_IN_FLIGHT = Name("headgate_calls_in_flight", "Calls in flight.", ("rpc_method",))
ATTEMPTS = Name(
    "headgate_attempts",
    "Upstream attempts: how they ended, and why they were made (first, retry, fallback, hedge).",
    ("provider", "model", "outcome", "reason", "cause"),
)
OPERATION_DURATION = Name(
    "gen_ai_client_operation_duration_seconds", "Time of upstream attempts.", (*OPERATION, "error_type"), SECONDS
)
FIRST_CHUNK = Name(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time of upstream attempts to their first content, of streams.",
    OPERATION,
    SECONDS,
)
OUTPUT_CHUNK = Name(
    "gen_ai_client_operation_time_per_output_chunk_seconds",
    "Time for each output token after the first content, of streams.",
    OPERATION,
    TOKEN_SECONDS,
)
TOKEN_USAGE = Name(
    "gen_ai_client_token_usage",
    "Tokens of upstream attempts. cache_read and cache_write are part of input, reasoning is part of output.",
    (*OPERATION, "gen_ai_token_type"),
    TOKENS,
)
COST = Name("headgate_cost", "Cost of answers, in units of the currency.", ("provider", "model", "currency"))
CIRCUIT = Name("headgate_circuit_state", "Circuit: 0 closed, 1 half open, 2 open.", ("provider", "model"))
COOLDOWN = Name(
    "headgate_target_cooldown_seconds", "Time for which the vendor asked not to be called.", ("provider", "model")
)
TARGET_IN_FLIGHT = Name("headgate_target_in_flight", "Attempts in flight.", ("provider", "model"))
TARGET_QUEUE = Name("headgate_target_queue_depth", "Calls that wait for a place at the target.", ("provider", "model"))
REACHABLE = Name("headgate_provider_reachable", "0 when the last check found no way to the provider.", ("provider",))
SUCCESS_RATE = Name("headgate_provider_success_ratio", "Recent share of attempts that answered.", ("provider",))
CONNECTIONS = Name("headgate_connections_in_use", "Connections to the provider in use.", ("provider",))
CONNECTIONS_LIMIT = Name("headgate_connections_limit", "Most connections to the provider.", ("provider",))
LIMIT_DECISIONS = Name(
    "headgate_limit_decisions", "What limits said of calls: allowed or refused.", ("rule", "decision")
)
LIMIT_HEADROOM = Name(
    "headgate_limit_headroom_ratio",
    "Share that is left of the rule's fullest counter, of those that were asked in the last seconds.",
    ("rule",),
)
BUDGET_AMOUNT = Name(
    "headgate_budget_amount_dollars", "What each caller of a budget may spend in a period.", ("budget",)
)
BUDGET_SPENT = Name("headgate_budget_spent_dollars", "What all callers of a budget have spent.", ("budget",))
BUDGET_EVENTS = Name(
    "headgate_budget_events",
    "Counters of a budget that passed a share of the amount, such as 0.8, or had no money for a call: exceeded.",
    ("budget", "event"),
)
BUDGETS_UNRESTORED = Name(
    "headgate_budgets_unrestored", "1 while the ledger cannot be read, and budgets may count less than was spent."
)
LIMITER_DEGRADED = Name(
    "headgate_limiter_degraded", "1 while limits are counted by this server alone, or refuse for want of their store."
)
LEDGER_CALLS = Name(
    "headgate_ledger_calls",
    "Calls that the ledger has written to its file or shipped to PostgreSQL, or that it lost: dropped, refused.",
    ("event",),
)
LEDGER_FAILURES = Name(
    "headgate_ledger_failures",
    "Failed writes to the ledger's file, and failed shipments to PostgreSQL; both are tried again.",
    ("to",),
)
LEDGER_QUEUE = Name("headgate_ledger_queue_rows", "Rows of the ledger in memory.")
LEDGER_SPOOLED = Name("headgate_ledger_spooled_calls", "Calls on the local disk that PostgreSQL does not have yet.")
LEDGER_LAG = Name("headgate_ledger_lag_seconds", "Time since the ledger last had every call where it belongs.")
LEDGER_DEGRADED = Name("headgate_ledger_degraded", "1 while the ledger's file or PostgreSQL does not take rows.")
LOOP_LAG = Name("headgate_event_loop_lag_seconds", "How late the event loop runs what is due.", (), LAG_SECONDS)
DRAINING = Name("headgate_draining", "1 while the server drains.")
RELOADS = Name("headgate_config_reloads", "Reloads of the configuration, by result.", ("result",))
RELOADED = Name("headgate_config_loaded_timestamp_seconds", "When the configuration that is served was loaded.")
CERTIFICATE_CHANGED = Name(
    "headgate_certificate_changed_timestamp_seconds", "When the listener's certificate was written."
)
CERTIFICATE_REFUSALS = Name(
    "headgate_certificate_refusals", "Changed certificates that could not be used, so that the last one goes on."
)
BUILD = Name("headgate_build_info", "Versions of what runs.", ("version", "python", "grpc"))
