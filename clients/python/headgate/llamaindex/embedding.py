"""Embeddings of LlamaIndex's over Headgate."""

from __future__ import annotations

from typing import Any

from headgate.frameworks import Connected
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from pydantic import Field


class HeadgateEmbedding(Connected, BaseEmbedding):
    """Any embedding model behind Headgate.

    Texts and queries are told apart (`task_type` retrieval-document and retrieval-query) for models that know the
    difference. LlamaIndex sends `embed_batch_size` texts in a call. Raises the errors of headgate.errors.
    """

    model: str
    """An alias, or provider/model."""
    dimensions: int | None = None
    """Numbers in a row, where the model can be asked."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of Client.embed."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("model_name", settings.get("model", "unknown"))
        settings.setdefault("embed_batch_size", 256)
        super().__init__(**settings)

    @classmethod
    def class_name(cls) -> str:
        return "HeadgateEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([query], "retrieval-query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([query], "retrieval-query"))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([text], "retrieval-document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([text], "retrieval-document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed(texts, "retrieval-document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed(texts, "retrieval-document")

    def _embed(self, texts: list[str], task_type: str) -> list[Embedding]:
        return _rows(self.client.embed(self.model, texts, **self._asked(task_type)))

    async def _aembed(self, texts: list[str], task_type: str) -> list[Embedding]:
        return _rows(await self.async_client.embed(self.model, texts, **self._asked(task_type)))

    def _asked(self, task_type: str) -> Any:
        return {"task_type": task_type, "dimensions": self.dimensions, **self.options}


def _rows(matrix: Any) -> list[Embedding]:
    rows: list[Embedding] = matrix.tolist()
    return rows
