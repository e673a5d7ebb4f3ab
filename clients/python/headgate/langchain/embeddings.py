"""Embeddings of LangChain's over Headgate."""

from __future__ import annotations

from typing import Any

from headgate.frameworks import Connected
from langchain_core.embeddings import Embeddings
from pydantic import Field


class HeadgateEmbeddings(Connected, Embeddings):
    """Any embedding model behind Headgate; texts of any number go in batches.

    Documents and queries are told apart (`task_type` retrieval-document and retrieval-query) for models that know the
    difference. Raises the errors of headgate.errors.
    """

    model: str
    """An alias, or provider/model."""
    dimensions: int | None = None
    """Numbers in a row, where the model can be asked."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of Client.embed."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A row for each text."""
        return self._rows(self.client.embed(self.model, texts, **self._asked("retrieval-document"))) if texts else []

    def embed_query(self, text: str) -> list[float]:
        """One row."""
        return self._rows(self.client.embed(self.model, [text], **self._asked("retrieval-query")))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """A row for each text."""
        if not texts:
            return []
        return self._rows(await self.async_client.embed(self.model, texts, **self._asked("retrieval-document")))

    async def aembed_query(self, text: str) -> list[float]:
        """One row."""
        return self._rows(await self.async_client.embed(self.model, [text], **self._asked("retrieval-query")))[0]

    def _asked(self, task_type: str) -> Any:
        return {"task_type": task_type, "dimensions": self.dimensions, **self.options}

    @staticmethod
    def _rows(matrix: Any) -> list[list[float]]:
        rows: list[list[float]] = matrix.tolist()
        return rows
