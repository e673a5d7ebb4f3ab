"""What an attempt has used whose vendor did not say, or not all of it. Pure.

Nothing is tokenized: a token has about four bytes of text, media have a usual size, and output is what was streamed
before the end. Where a vendor answered an error or was never reached, nothing was used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from headgate import v1 as pb

from headgate_server.config.limits import LimitEstimate
from headgate_server.limits.estimate import Request, input_tokens
from headgate_server.limits.truth import may_have_used

if TYPE_CHECKING:
    from headgate_server.attempt import Attempt

BYTES_PER_TOKEN = 4
USUAL = LimitEstimate(
    bytes_per_token=BYTES_PER_TOKEN,
    image_tokens=1_000,
    audio_tokens=2_000,
    video_tokens=20_000,
    document_tokens=5_000,
)


def account_of(attempt: Attempt, request: Request) -> tuple[pb.Usage, pb.Cost | None]:
    """What an attempt has used and cost, by its vendor or else estimated; no cost where no price is known."""
    usage = usage_of(attempt.record, attempt.uncounted_bytes, request, attempt.share)
    cost = attempt.cost
    if attempt.prices and (cost is None or (usage.estimated and cost.source != pb.COST_SOURCE_PROVIDER)):
        cost = attempt.prices.cost(usage)
    return usage, cost


def usage_of(record: pb.Attempt, uncounted_bytes: int, request: Request, share: float) -> pb.Usage:
    """The attempt's usage, as its vendor counted it or else `estimated`.

    `uncounted_bytes` of content came after the vendor's last word on usage, if it said any; `share` of the request was
    sent in this attempt.
    """
    usage = record.usage
    has_output = usage.HasField("output_tokens") or isinstance(request, pb.EmbedRequest)
    if usage.HasField("input_tokens") and has_output and not uncounted_bytes:
        return usage
    if not record.HasField("usage") and not may_have_used(record):
        return pb.Usage(input_tokens=0, output_tokens=0, total_tokens=0)
    known = pb.Usage()
    known.CopyFrom(usage)
    if not known.HasField("input_tokens"):
        known.input_tokens = math.ceil(input_tokens(request, USUAL) * share)
    known.output_tokens += math.ceil(uncounted_bytes / BYTES_PER_TOKEN)
    known.total_tokens = known.input_tokens + known.output_tokens
    known.estimated = True
    return known


def uncounted_tokens(attempt: Attempt) -> int:
    """Output that came after the vendor's last word on it; none where it said nothing at all."""
    if not attempt.uncounted_bytes or not attempt.record.usage.HasField("output_tokens"):
        return 0
    return math.ceil(attempt.uncounted_bytes / BYTES_PER_TOKEN)


def content_bytes(events: Iterable[pb.StreamGenerateResponse]) -> int:
    """Bytes of text, thinking and tool arguments in events of a stream; media count nothing."""
    size = 0
    for event in events:
        match event.WhichOneof("event"):
            case "text_delta":
                size += len(event.text_delta.encode())
            case "reasoning_delta":
                size += len(event.reasoning_delta.encode())
            case "arguments_delta":
                size += len(event.arguments_delta.encode())
            case "refusal_delta":
                size += len(event.refusal_delta.encode())
            case "part_start":
                size += _part_bytes(event.part_start.part)
    return size


def answer_bytes(answer: pb.GenerateResponse) -> int:
    """The same of a whole answer."""
    return sum(_part_bytes(part) for candidate in answer.candidates for part in candidate.message.parts)


def _part_bytes(part: pb.Part) -> int:
    match part.WhichOneof("content"):
        case "text":
            return len(part.text.encode())
        case "reasoning":
            return len(part.reasoning.text.encode())
        case "refusal":
            return len(part.refusal.encode())
        case "tool_call":
            return len(part.tool_call.name.encode()) + len(part.tool_call.arguments.encode())
        case _:
            return 0
