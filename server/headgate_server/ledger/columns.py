"""The columns of the ledger, in order, for those who cannot wait for SQLAlchemy. What they mean says tables.py."""

from __future__ import annotations

TOKENS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "audio_input_tokens",
    "image_input_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
    "accepted_prediction_tokens",
    "rejected_prediction_tokens",
    "tool_input_tokens",
)
"""The classes of pb.Usage, in its order."""

COSTS = ("cost_nanos", "input_nanos", "cache_read_nanos", "cache_write_nanos", "output_nanos")

CALLS = (
    *("id", "time", "method", "request_id", "tenant", "key_id", "end_user_id", "labels"),
    *("model", "routed_to", "arm", "provider", "provider_model", "attempts", "outcome", "reason"),
    *("latency_micros", "first_token_micros", *TOKENS, "estimated", "cost_nanos", "currency"),
)

ATTEMPTS = (
    *("call_id", "number", "time", "tenant", "key_id", "labels", "model", "provider", "provider_model", "cause"),
    *("outcome", "reason", "http_status", "provider_request_id", "caller_key", "latency_micros", "first_token_micros"),
    *(*TOKENS, "estimated", *COSTS, "currency", "cost_source", "price_version"),
)

CONTENTS = ("call_id", "time", "prompt", "answer")

TABLES = {"headgate_calls": CALLS, "headgate_attempts": ATTEMPTS, "headgate_contents": CONTENTS}

OPEN = "OPEN"
LOST = "LOST"
