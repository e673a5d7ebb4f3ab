"""A chat model of LangChain's over Headgate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

from headgate import v1 as pb
from headgate.answer import Answer
from headgate.frameworks import Connected
from headgate.langchain.messages import to_headgate, to_langchain
from headgate.langchain.streaming import Chunks
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, Field

SETTINGS = ("temperature", "top_p", "seed")


class ChatHeadgate(Connected, BaseChatModel):
    """Any model behind Headgate, by its alias or as provider/model.

    Tools, structured output, images, files, reasoning and usage work as far as the model can. What LangChain cannot
    say, such as signatures of reasoning, travels in `additional_kwargs` and goes back byte for byte. `options` are
    keyword arguments of Client.generate for every call; those of single calls go by `bind(options={...})`.

    Raises the errors of headgate.errors; ValueError for content that the contract cannot say.
    """

    model: str
    """An alias, or provider/model."""
    temperature: float | None = None
    """Mostly 0 to 2."""
    top_p: float | None = None
    """Probability mass considered, 0 to 1."""
    max_tokens: int | None = None
    """Most tokens to generate, reasoning included."""
    seed: int | None = None
    """For repeatable sampling, where the vendor offers it."""
    stop: list[str] | None = None
    """Texts at which generation stops."""
    reasoning: str | int | None = None
    """Effort, or most tokens to think with."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of Client.generate."""

    @property
    def _llm_type(self) -> str:
        return "headgate"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, **{name: getattr(self, name) for name in (*SETTINGS, "max_tokens", "stop")}}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with these tools; `tool_choice` is auto, none, any (or True), or a tool's name."""
        declared = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        choice = _tool_choice(tool_choice)
        return self.bind(tools=declared, tool_choice=choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """The model with answers of this schema, which the vendor enforces, or that it gives by calling a tool."""
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, strict=strict, **kwargs)
        form: Any = "json"
        if method == "json_schema":
            form = _response_format(schema, strict)
        about = {"kwargs": {"method": method}, "schema": schema}
        model = self.bind(response_format=form, ls_structured_output_format=about, **kwargs)
        is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
        parser: Any = PydanticOutputParser(pydantic_object=schema) if is_model else JsonOutputParser()
        if not include_raw:
            answers: Runnable[LanguageModelInput, dict[str, Any] | BaseModel] = model | parser
            return answers
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self.client.generate(*self._asked(messages, kwargs), **self._call(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await self.async_client.generate(*self._asked(messages, kwargs), **self._call(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = Chunks()
        with self.client.stream(*self._asked(messages, kwargs), **self._call(stop, kwargs)) as stream:
            for event in stream:
                if chunk := chunks.chunk(event):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
            yield chunks.last(stream.final())

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = Chunks()
        async with self.async_client.stream(*self._asked(messages, kwargs), **self._call(stop, kwargs)) as stream:
            async for event in stream:
                if chunk := chunks.chunk(event):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
            yield chunks.last(await stream.final())

    def _asked(self, messages: list[BaseMessage], given: Mapping[str, Any]) -> tuple[str, list[pb.Message]]:
        return given.get("model") or self.model, to_headgate(messages)

    def _call(self, stop: list[str] | None, given: Mapping[str, Any]) -> Any:
        """The keyword arguments of a call: the model's own, then `options`, then those of this call."""
        given = {name: value for name, value in given.items() if name not in ("model", "ls_structured_output_format")}
        own = {name: getattr(self, name) for name in (*SETTINGS, "reasoning")}
        limit = given.pop("max_tokens", self.max_tokens)
        own |= {"max_output_tokens": limit, "stop_sequences": stop or given.pop("stop", None) or self.stop}
        return {**own, **self.options, **given.pop("options", {}), **given}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return {**super()._get_ls_params(stop=stop, **kwargs), "ls_provider": "headgate"}


def _result(answer: Answer) -> ChatResult:
    """One generation for each candidate; usage is that of the whole answer and stands at the first."""
    generations: list[ChatGeneration] = []
    for candidate in answer.proto.candidates:
        message = to_langchain(candidate, answer.proto if not generations else None)
        generations.append(ChatGeneration(message=message, generation_info=dict(message.response_metadata)))
    output = {"model_name": answer.model, "request_id": answer.request_id}
    return ChatResult(generations=generations, llm_output=output)


def _tool_choice(choice: str | bool | Mapping[str, Any] | None) -> str | None:
    match choice:
        case "any" | True:
            return "required"
        case {"function": {"name": str(name)}}:
            return name
        case None | False:
            return None
        case str():
            return choice
    raise ValueError(f"tool_choice: cannot read {choice!r}")


def _response_format(schema: dict[str, Any] | type, strict: bool | None) -> pb.ResponseFormat:
    import json

    from headgate.schemas import strict as strict_schema

    described = convert_to_json_schema(schema)
    closed = strict_schema(described) if strict is not False else None
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name=described.get("title", "answer"))
    form.description = described.get("description", "")
    form.schema = json.dumps(closed or described, ensure_ascii=False)
    if closed or strict:
        form.strict = True
    return form
