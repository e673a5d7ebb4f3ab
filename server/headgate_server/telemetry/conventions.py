"""Every name that traces use: OpenTelemetry's conventions for RPC and generative AI, and Headgate's own.

https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/
https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "headgate"
DEFAULT_SERVICE: Final = "headgate"
EXEMPLAR: Final = "trace_id"
"""The label by which a metric's exemplar leads to its trace, as Prometheus and Grafana have it."""

RPC_SYSTEM: Final = "rpc.system.name"
GRPC: Final = "grpc"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
PEER_ADDRESS: Final = "network.peer.address"
PEER_PORT: Final = "network.peer.port"
HTTP_STATUS: Final = "http.response.status_code"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_STACK: Final = "exception.stacktrace"

OPERATION: Final = "gen_ai.operation.name"
CHAT: Final = "chat"
EMBEDDINGS: Final = "embeddings"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_SETTINGS: Final = {
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "candidate_count": "gen_ai.request.choice.count",
}
"""Fields of GenerationConfig that are numbers; its texts could hold anything."""
EMBEDDING_DIMENSIONS: Final = "gen_ai.embeddings.dimension.count"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
USAGE: Final = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}
"""Fields of Usage. Input includes what was cached, output includes reasoning, here as there."""
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

REQUEST_ID: Final = "headgate.request.id"
TENANT: Final = "headgate.tenant"
ARM: Final = "headgate.arm"
ROUTED_TO: Final = "headgate.routed_to"
ATTEMPTS: Final = "headgate.attempts"
COST: Final = "headgate.cost.nanos"
CURRENCY: Final = "headgate.cost.currency"
ATTEMPT_NUMBER: Final = "headgate.attempt.number"
ATTEMPT_CAUSE: Final = "headgate.attempt.cause"
ATTEMPT_OUTCOME: Final = "headgate.attempt.outcome"
CONFIGURED_PROVIDER: Final = "headgate.provider"
PROVIDER_REQUEST_ID: Final = "headgate.provider.request_id"

FIRST_TOKEN: Final = "headgate.first_token"
CAUSES: Final = {"retry": "headgate.retry", "fallback": "headgate.fallback", "hedge": "headgate.hedge"}
"""Events of the call's span by why an attempt was made; a first attempt is no event."""

VENDORS: Final = {
    "azure-openai": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "cohere-compatible": "cohere",
}
"""OpenTelemetry's names of vendors where they are not ours; other issuers keep their names."""
