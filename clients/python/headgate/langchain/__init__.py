"""Headgate for LangChain (the extra `headgate[langchain]`): a chat model and embeddings.

model = ChatHeadgate(model="fast")
print(model.invoke("Hello").text)
agent = model.bind_tools([weather])
"""

try:
    import langchain_core  # noqa: F401
except ImportError as _missing:
    raise ImportError("headgate.langchain needs the extra headgate[langchain]") from _missing

from headgate.langchain.chat_model import ChatHeadgate
from headgate.langchain.embeddings import HeadgateEmbeddings

__all__ = ["ChatHeadgate", "HeadgateEmbeddings"]
