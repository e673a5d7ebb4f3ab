"""Embedding matrices: sub-batches joined, converted to the element type and layout that was asked for. Pure."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import TypeVar

from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, ProviderProtocolError

ELEMENT_BYTES = {
    pb.ELEMENT_TYPE_UNSPECIFIED: 4,
    pb.ELEMENT_TYPE_FLOAT32: 4,
    pb.ELEMENT_TYPE_FLOAT16: 2,
    pb.ELEMENT_TYPE_INT8: 1,
}
SUMMED = ("input_tokens", "output_tokens", "total_tokens", "cache_read_tokens", "image_input_tokens")
INT8_MAX = 127

T = TypeVar("T")


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Runs of at most `size` items, in order; one run when `size` is 0."""
    if size <= 0 or len(items) <= size:
        return [items]
    return [items[start : start + size] for start in range(0, len(items), size)]


def check_reply_size(request: pb.EmbedRequest, dimensions: int, max_reply_bytes: int) -> None:
    """Refuses, before a vendor is called, a matrix that is known to be too large.

    Raises:
        InvalidRequest: as many rows of so many dimensions exceed `max_reply_bytes`.
    """
    width = 4 if request.layout == pb.EMBED_LAYOUT_FLOAT_LIST else ELEMENT_BYTES[request.element_type]
    size = len(request.inputs) * dimensions * width
    if size > max_reply_bytes:
        raise InvalidRequest.at(
            "inputs",
            f"the answer would take {size} bytes, more than server.max_reply_bytes ({max_reply_bytes})",
        )


def join(batches: Sequence[pb.EmbedResponse]) -> pb.EmbedResponse:
    """One answer of all sub-batches, in order.

    Raises:
        ProviderProtocolError: the sub-batches differ in dimensions.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if any(batch.dimensions != first.dimensions for batch in batches):
        raise ProviderProtocolError("the provider's embeddings differ in their number of dimensions")
    joined = pb.EmbedResponse(
        data=b"".join(batch.data for batch in batches),
        dimensions=first.dimensions,
        rows=sum(batch.rows for batch in batches),
        model=first.model,
    )
    for batch in batches:
        joined.warnings.extend(batch.warnings)
        if batch.HasField("usage"):
            _add(joined.usage, batch.usage)
    return joined


def convert(response: pb.EmbedResponse, request: pb.EmbedRequest) -> None:
    """Turns the float32 matrix of `response` into the element type and layout of `request`, in place."""
    element_type = request.element_type or pb.ELEMENT_TYPE_FLOAT32
    response.element_type = element_type
    if element_type == pb.ELEMENT_TYPE_FLOAT32 and request.layout != pb.EMBED_LAYOUT_FLOAT_LIST:
        return
    numbers = array("f", response.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    width = response.dimensions
    rows = [numbers[start : start + width] for start in range(0, len(numbers), width or 1)]
    if element_type == pb.ELEMENT_TYPE_INT8:
        rows = [_scaled(row) for row in rows]
    if request.layout == pb.EMBED_LAYOUT_FLOAT_LIST:
        response.ClearField("data")
        response.vectors.extend(pb.FloatVector(values=row) for row in rows)
    elif element_type == pb.ELEMENT_TYPE_INT8:
        response.data = b"".join(array("b", map(int, row)).tobytes() for row in rows)
    else:
        response.data = struct.pack(f"<{len(numbers)}e", *numbers)


def _scaled(row: array[float]) -> array[float]:
    """The row with its largest magnitude at 127, rounded."""
    largest = max(map(abs, row), default=0.0)
    if not largest:
        return row
    factor = INT8_MAX / largest
    return array("f", [round(number * factor) for number in row])


def _add(total: pb.Usage, usage: pb.Usage) -> None:
    for name in SUMMED:
        if usage.HasField(name):  # type: ignore[arg-type]  # a closed list of names
            setattr(total, name, getattr(total, name) + getattr(usage, name))
