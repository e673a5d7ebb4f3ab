"""Headgate for LlamaIndex (the extra `headgate[llamaindex]`): an LLM that calls functions, and embeddings.

Settings.llm = HeadgateLLM(model="fast")
Settings.embed_model = HeadgateEmbedding(model="minilm")
"""

try:
    import llama_index.core  # noqa: F401
except ImportError as _missing:
    raise ImportError("headgate.llamaindex needs the extra headgate[llamaindex]") from _missing

from headgate.llamaindex.embedding import HeadgateEmbedding
from headgate.llamaindex.llm import HeadgateLLM

__all__ = ["HeadgateEmbedding", "HeadgateLLM"]
