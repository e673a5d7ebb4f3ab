"""An LLM of LlamaIndex's over Headgate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headgate.answer import Answer
from headgate.fold import text_of
from headgate.frameworks import Connected
from headgate.llamaindex.messages import to_headgate, to_llamaindex
from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class HeadgateLLM(Connected, FunctionCallingLLM):
    """Any model behind Headgate, by its alias or as provider/model.

    `raw` of a response is the contract's GenerateResponse; signatures of reasoning travel in the message and go back
    byte for byte. Raises the errors of headgate.errors; ValueError for content that the contract cannot say.
    """

    model: str
    """An alias, or provider/model."""
    temperature: float | None = None
    """Mostly 0 to 2."""
    max_tokens: int | None = None
    """Most tokens to generate, reasoning included."""
    context_window: int = 32_768
    """Tokens that LlamaIndex may fill."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of Client.generate."""

    @classmethod
    def class_name(cls) -> str:
        return "HeadgateLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans by."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or 1024,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _response(self.client.generate(self.model, to_headgate(messages), **self._call(kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _response(await self.async_client.generate(self.model, to_headgate(messages), **self._call(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        def responses() -> ChatResponseGen:
            text = ""
            with self.client.stream(self.model, to_headgate(messages), **self._call(kwargs)) as stream:
                for delta in stream.text:
                    text += delta
                    yield _growing(text, delta)
                yield _response(stream.final(), delta="")

        return responses()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def responses() -> ChatResponseAsyncGen:
            text = ""
            async with self.async_client.stream(self.model, to_headgate(messages), **self._call(kwargs)) as stream:
                async for event in stream:
                    if delta := text_of(event):
                        text += delta
                        yield _growing(text, delta)
                yield _response(await stream.final(), delta="")

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return await achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a response; ValueError if there must be one and is none."""
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError("the model called no tool")
        return [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=call.tool_kwargs)
            for call in calls
        ]

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            said = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(said)
        asked: dict[str, Any] = {"messages": messages, **kwargs}
        if tools:
            asked |= {
                "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
                "tool_choice": "required" if tool_required else "auto",
                "parallel_tool_calls": allow_parallel_tool_calls,
            }
        return asked

    def _call(self, given: dict[str, Any]) -> Any:
        """The keyword arguments of a call: the model's own, then `options`, then those of this call."""
        limit = given.pop("max_tokens", self.max_tokens)
        own = {"temperature": self.temperature, "max_output_tokens": limit}
        return {**own, **self.options, **given}


def _response(answer: Answer, delta: str | None = None) -> ChatResponse:
    return ChatResponse(message=to_llamaindex(answer.message), raw=answer.proto, delta=delta)


def _growing(text: str, delta: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)
