"""The names of the ledger's columns, for those who cannot wait for SQLAlchemy."""

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
