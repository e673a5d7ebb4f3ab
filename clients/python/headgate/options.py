"""The keyword arguments of calls; what is absent or None is left to vendor, operator, or the client's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from headgate import v1 as pb
from headgate.tools import ToolLike

Json: TypeAlias = str | Mapping[str, Any]
"""A JSON object, or its text, which is passed on byte for byte."""


class CallOptions(TypedDict, total=False):
    """How a call is made."""

    timeout: float | None
    """Seconds until the call fails with DeadlineExceeded; None is the client's own."""
    request_id: str | None
    """Goes as `x-request-id`, into logs and traces of the gateway; one is made otherwise."""
    metadata: Mapping[str, str] | None
    """Further gRPC metadata, such as `x-provider-key-openai`."""


class SamplingOptions(TypedDict, total=False):
    """Every field of GenerationConfig by its own name."""

    max_output_tokens: int | None
    """Most tokens to generate, reasoning included."""
    temperature: float | None
    """Mostly 0 to 2."""
    top_p: float | None
    """Probability mass considered, 0 to 1."""
    top_k: int | None
    """Number of most likely tokens considered."""
    stop_sequences: Sequence[str] | None
    """Texts at which generation stops."""
    seed: int | None
    """For repeatable sampling, where the vendor offers it."""
    presence_penalty: float | None
    """Mostly -2 to 2."""
    frequency_penalty: float | None
    """Mostly -2 to 2."""
    candidate_count: int | None
    """Number of alternative answers; streams' `text` is the first one's."""
    response_format: Literal["text", "json"] | type[Any] | Mapping[str, Any] | pb.ResponseFormat | None
    """`json` for any JSON object; a pydantic model, dataclass or TypedDict, then `answer.parse(...)`; a JSON Schema."""
    logprobs: bool | None
    """Return log probabilities of the tokens."""
    top_logprobs: int | None
    """Number of most likely tokens to return at each place."""
    logit_bias: Mapping[int, float] | None
    """Bias by token id, -100 to 100."""
    output_modalities: Sequence[str] | None
    """text, audio, image."""
    verbosity: str | None
    """low, medium, high, or what the vendor offers."""


class RoundOptions(SamplingOptions, CallOptions, total=False):
    """What generate and stream take besides model, messages and tools."""

    system: str | None
    """Instructions, put before all messages."""
    config: pb.GenerationConfig | None
    """Sampling, limits and format at once; single ones beside it go before its own."""
    tool_choice: Literal["auto", "none", "required"] | str | pb.ToolChoice | None
    """Whether tools are called; any other text is the name of the tool that must be."""
    parallel_tool_calls: bool | None
    """The model may make several calls in one turn."""
    reasoning: str | int | pb.ReasoningConfig | None
    """Effort (none, minimal, low, medium, high, …) or most tokens to think with."""
    routing: pb.RoutingPolicy | None
    """Preference among providers and models."""
    fallbacks: Sequence[str] | None
    """Models to try next, in order."""
    execution: pb.ExecutionPolicy | None
    """The gateway's timeouts, attempts and hedging for this call."""
    stream: pb.StreamOptions | None
    """Shape of the stream."""
    end_user_id: str | None
    """Opaque id of your user, for vendors that ask for one."""
    labels: Mapping[str, str] | None
    """Attribution tags: at most 16."""
    provider_options: Mapping[str, Json] | None
    """Issuer to a JSON object that is merged into that vendor's request."""
    prompt_cache_key: str | None
    """Routing hint for the vendor's prompt cache."""


class GenerateOptions(RoundOptions, total=False):
    """What generate and stream take besides model and messages."""

    tools: Sequence[ToolLike] | None
    """Typed functions, dicts in OpenAI's shape, or the contract's own."""


class EmbedOptions(CallOptions, total=False):
    """What embed takes besides model and inputs."""

    dimensions: int | None
    """Numbers in a row, where the model can be asked."""
    task_type: str | None
    """retrieval-query, retrieval-document, similarity, classification, clustering, or what the vendor offers."""
    element_type: Literal["float32", "float16", "int8"] | None
    """Number format of the matrix; int8 rows are scaled so that their largest magnitude is 127."""
    routing: pb.RoutingPolicy | None
    """Preference among providers and models."""
    execution: pb.ExecutionPolicy | None
    """The gateway's timeouts and attempts for this call."""
    end_user_id: str | None
    """Opaque id of your user, for vendors that ask for one."""
    labels: Mapping[str, str] | None
    """Attribution tags: at most 16."""
    provider_options: Mapping[str, Json] | None
    """Issuer to a JSON object that is merged into that vendor's request."""


def call_options(options: CallOptions) -> CallOptions:
    """Those of some options that say how a call is made."""
    return {
        "timeout": options.get("timeout"),
        "request_id": options.get("request_id"),
        "metadata": options.get("metadata"),
    }
