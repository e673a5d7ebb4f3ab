"""Answers questions about a few notes, by retrieval: `python ask.py "How do I stop a stream?"`

    python minilm.py &                                  # embeddings, see there
    headgate serve --config headgate.yaml &
    pip install 'headgate[llamaindex]'

The mock that answers repeats its prompt, so that what was found for it can be seen.
"""

from __future__ import annotations

import sys
from pathlib import Path

from headgate.llamaindex import HeadgateEmbedding, HeadgateLLM
from llama_index.core import Document, VectorStoreIndex

NOTES = Path(__file__).with_name("notes.md")
TOP = 2


def index() -> VectorStoreIndex:
    """One document for each paragraph of the notes, by its embedding."""
    paragraphs = NOTES.read_text("utf-8").split("\n\n")
    documents = [Document(text=paragraph.strip()) for paragraph in paragraphs if paragraph.strip()]
    return VectorStoreIndex.from_documents(documents, embed_model=HeadgateEmbedding(model="minilm"))


def main() -> None:
    question = " ".join(sys.argv[1:]) or "How do I stop a stream?"
    engine = index().as_query_engine(llm=HeadgateLLM(model="answer"), similarity_top_k=TOP)
    response = engine.query(question)
    for found in response.source_nodes:
        print(f"{found.score or 0:.2f}  {found.text}")
    print(f"\n{response}")


if __name__ == "__main__":
    main()
