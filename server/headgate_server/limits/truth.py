"""What a call has really used, of all the attempts that reached a vendor. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headgate import v1 as pb

TOKENS = ("input_tokens", "output_tokens", "total_tokens")


def of_attempts(attempts: Iterable[pb.Attempt], estimate: Mapping[str, int], most_estimates: int) -> dict[str, int]:
    """Requests and tokens. An attempt that may have used something and does not say what counts as the estimate, but
    no more than `most_estimates` of them do: the parts of one batch make one together."""
    requests = input_tokens = output_tokens = total_tokens = estimated = 0
    for attempt in attempts:
        if attempt.HasField("usage"):
            requests += 1
            of_input, of_output, of_all = _tokens(attempt.usage, estimate)
            input_tokens += of_input
            output_tokens += of_output
            total_tokens += of_all
        elif may_have_used(attempt):
            requests += 1
            estimated += 1
        elif attempt.http_status:
            requests += 1
    used = {
        "requests": requests,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": total_tokens,
    }
    if estimated:
        for unit in TOKENS:
            used[unit] += estimate[unit] * min(estimated, most_estimates)
    return used


def may_have_used(attempt: pb.Attempt) -> bool:
    """A vendor that answered an error, or was never reached, has generated nothing; one that was left may have."""
    if attempt.http_status:
        return attempt.http_status < 300
    return attempt.outcome != pb.ATTEMPT_OUTCOME_FAILED


def _tokens(usage: pb.Usage, estimate: Mapping[str, int]) -> tuple[int, int, int]:
    """Input, output and total; what the vendor does not say counts as the estimate."""
    input_tokens = usage.input_tokens if usage.HasField("input_tokens") else estimate["input_tokens"]
    output_tokens = usage.output_tokens if usage.HasField("output_tokens") else estimate["output_tokens"]
    total_tokens = usage.total_tokens if usage.HasField("total_tokens") else input_tokens + output_tokens
    return input_tokens, output_tokens, total_tokens
