"""Embedding requests cut to what a message may hold, and answers joined to one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from headgate import v1 as pb

if TYPE_CHECKING:
    import numpy.typing as npt

    Vectors: TypeAlias = npt.NDArray[Any]
else:
    Vectors: TypeAlias = Any

EmbedInputLike: TypeAlias = str | Sequence[int] | Sequence[pb.Part] | pb.EmbedInput
"""Text, token ids, text and media as parts, or the contract's own."""

EmbedInputs: TypeAlias = str | pb.EmbedInput | Sequence[EmbedInputLike]
"""One input, or a list of them."""

EMBEDS_AT_ONCE = 4
MAX_ROWS = 1024
MAX_BYTES = 4 * 1024 * 1024
_FORMATS = {pb.ELEMENT_TYPE_FLOAT16: ("<f2", "e"), pb.ELEMENT_TYPE_INT8: ("<i1", "b")}
_COUNTS = [field.name for field in pb.Usage.DESCRIPTOR.fields if field.name.endswith("_tokens")]
_AMOUNTS = [field.name for field in pb.Cost.DESCRIPTOR.fields if field.name.endswith("_nanos")]


def add_input(request: pb.EmbedRequest, given: EmbedInputLike) -> None:
    """Adds one input, in place: building it first and copying it in costs three times as much.

    Raises:
        TypeError: it is none.
    """
    if isinstance(given, str):
        request.inputs.add(text=given)
    elif isinstance(given, pb.EmbedInput):
        request.inputs.append(given)
    else:
        items: Any = list(given)
        if items and all(isinstance(item, pb.Part) for item in items):
            request.inputs.add(content=pb.EmbedContent(parts=items))
        else:
            request.inputs.add(token_ids=pb.TokenIds(values=items))


def batches(request: pb.EmbedRequest) -> list[pb.EmbedRequest]:
    """The request in pieces of at most MAX_ROWS inputs and, with more than one input, MAX_BYTES."""
    if len(request.inputs) <= MAX_ROWS and request.ByteSize() <= MAX_BYTES:
        return [request]
    shared = pb.EmbedRequest()
    shared.CopyFrom(request)
    shared.ClearField("inputs")
    pieces: list[pb.EmbedRequest] = []
    size = MAX_BYTES
    for each in request.inputs:
        size += each.ByteSize()
        if size > MAX_BYTES or len(pieces[-1].inputs) == MAX_ROWS:
            piece = pb.EmbedRequest()
            piece.CopyFrom(shared)
            pieces.append(piece)
            size = each.ByteSize()
        pieces[-1].inputs.append(each)
    return pieces


def joined(responses: Sequence[pb.EmbedResponse]) -> pb.EmbedResponse:
    """One answer for the answers to all pieces: rows in order, tokens and money summed, warnings once."""
    first = responses[0]
    if len(responses) == 1:
        return first
    whole = pb.EmbedResponse(
        data=b"".join(response.data for response in responses),
        dimensions=first.dimensions,
        rows=sum(response.rows for response in responses),
        element_type=first.element_type,
        id=first.id,
        model=first.model,
        provider=first.provider,
    )
    for response in responses:
        whole.vectors.extend(response.vectors)
        whole.attempts.extend(response.attempts)
        whole.warnings.extend(warning for warning in response.warnings if warning not in whole.warnings)
    _sum_usage(whole, responses)
    _sum_cost(whole, responses)
    return whole


def vectors(*responses: pb.EmbedResponse) -> Vectors:
    """The matrix of answers, rows below each other: a numpy array that may be written to.

    Without numpy it is a two-dimensional memoryview of the same numbers, which cannot be written to.

    Raises:
        ValueError: the answers are not of one size or in FLOAT_LIST layout, or numpy is needed for float16.
    """
    first = responses[0]
    if first.vectors:
        raise ValueError("the rows of a FLOAT_LIST answer are in its `vectors`")
    if any(r.dimensions != first.dimensions or r.element_type != first.element_type for r in responses):
        raise ValueError("the answers have rows of different sizes")
    array_type, plain = _FORMATS.get(first.element_type, ("<f4", "f"))
    try:
        import numpy as np
    except ImportError:
        rows = sum(response.rows for response in responses)
        flat = memoryview(b"".join(response.data for response in responses))
        shaped = flat.cast(plain, shape=[rows, first.dimensions])  # type: ignore[call-overload]  # any of our formats
        return cast("Vectors", shaped)
    whole: Vectors = np.concatenate(
        [np.frombuffer(each.data, array_type).reshape(each.rows, each.dimensions) for each in responses]
    )
    return whole


def _sum_usage(whole: pb.EmbedResponse, responses: Sequence[pb.EmbedResponse]) -> None:
    for name in _COUNTS:
        usages: list[Any] = [response.usage for response in responses]
        known = [getattr(usage, name) for usage in usages if usage.HasField(name)]
        if known:
            setattr(whole.usage, name, sum(known))
    if any(response.usage.estimated for response in responses):
        whole.usage.estimated = True


def _sum_cost(whole: pb.EmbedResponse, responses: Sequence[pb.EmbedResponse]) -> None:
    """All costs or none: a sum that leaves out the unknown would be too low."""
    if not all(response.HasField("cost") for response in responses):
        return
    whole.cost.CopyFrom(responses[0].cost)
    for name in _AMOUNTS:
        setattr(whole.cost, name, sum(getattr(response.cost, name) for response in responses))
