"""The table of hosts: who speaks which wire, where, with which quirks. A new host is one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OPENAI_ONLY = frozenset({"verbosity", "prompt_cache_key"})
LOCAL_ONLY = frozenset({"top_k"})
SAMPLING = frozenset({"top_k", "presence_penalty", "frequency_penalty"})
COMPATIBLE_NAMES = {"max_completion_tokens": "max_tokens", "safety_identifier": "user"}


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a host departs from OpenAI's own behaviour; the defaults suit an unknown compatible server."""

    renames: Mapping[str, str] = field(default_factory=lambda: COMPATIBLE_NAMES)
    """OpenAI's name of a request field -> the host's."""
    lacks: frozenset[str] = OPENAI_ONLY
    """Request fields, by OpenAI's name, that the host refuses or ignores: they become warnings."""
    stream_usage: bool = True
    """Takes stream_options.include_usage; without it some hosts count no tokens in streams."""
    developer_role: bool = False
    """Knows the role developer; elsewhere it is sent as system."""
    json_schema: bool = True
    """Takes response_format json_schema; elsewhere json_object stands in for it."""
    free_text_tools: bool = False
    """Takes tools of type custom."""
    allowed_tools: bool = False
    """Takes tool_choice allowed_tools; elsewhere only the allowed tools are sent."""
    refusals: bool = False
    """Takes `refusal` in an assistant message; elsewhere it is sent as its text."""
    call_ids: str = ""
    """Pattern that tool call ids must match; others are replaced by a hash of theirs."""
    cache_control: bool = False
    """Takes Anthropic's cache_control on parts and tools."""
    prompt_cache_breakpoint: bool = False
    """Takes OpenAI's prompt_cache_breakpoint on what is said to the model."""
    responses_fields: frozenset[str] = frozenset()
    """Request fields of Chat Completions that the host's Responses wire takes too, unlike OpenAI's."""
    tool_media: bool = False
    """Takes images in tool messages."""
    audio_url: bool = False
    """Takes audio by address, as audio_url."""
    video_url: bool = False
    """Takes video, as video_url."""
    document_url: Literal["", "document_url", "file"] = ""
    """How a document is given by address: not at all, as document_url, or as a file whose data is the address."""
    image_history: bool = False
    """Takes generated images back in assistant messages."""
    reasoning_effort: bool = True
    """Takes reasoning_effort."""
    reasoning_object: bool = False
    """Takes OpenRouter's `reasoning` object instead of reasoning_effort."""
    thinking_switch: Literal["", "enable_thinking", "thinking", "chat_template_kwargs"] = ""
    """The field that turns thinking on and off."""
    thinking_budget: Literal["", "thinking_budget"] = ""
    """The field that limits thinking tokens."""
    reasoning_format: bool = False
    """Takes Groq's reasoning_format: parsed or hidden."""
    reasoning_echo: Literal["", "reasoning_content", "reasoning", "thinking"] = ""
    """Where an assistant message carries thinking back: a field of it, or Mistral's content item thinking."""
    think_tags: bool = False
    """Puts thinking between <think> and </think> at the start of the text."""
    embed_path: str = "/embeddings"
    """Path of the embeddings call."""
    embed_format: Literal["float", "base64", "base64_int8"] = "float"
    """Form in which embeddings are asked for: base64 is of float32, base64_int8 of signed bytes."""
    embed_task: str = ""
    """The field that says what embeddings are for."""
    embed_batch: int = 0
    """Most inputs of one embeddings call; 0 for no limit."""


@dataclass(frozen=True, slots=True)
class Host:
    """One known host. `issuer` names it in opaque values and provider options; by default its name.

    `base_url` is empty where it depends on the operator's account or machine. `credential` is how one without a key
    is authenticated. `api_version` is the dated API of Azure that the operator asks for.
    """

    name: str
    adapter: str
    base_url: str
    key_variable: str = ""
    issuer: str = ""
    credential: Literal["", "google"] = ""
    api_version: str = ""
    quirks: Quirks = field(default_factory=Quirks)


HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host(
            "openai",
            "openai",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            quirks=Quirks(
                renames={},
                lacks=LOCAL_ONLY,
                developer_role=True,
                free_text_tools=True,
                allowed_tools=True,
                refusals=True,
                call_ids=r".{1,40}",
                prompt_cache_breakpoint=True,
                embed_format="base64",
                embed_batch=2048,
            ),
        ),
        Host(
            # https://NAME.openai.azure.com
            "azure",
            "azure-openai",
            "",
            "AZURE_OPENAI_API_KEY",
            issuer="azure-openai",
            quirks=Quirks(
                renames={"safety_identifier": "user"},
                lacks=LOCAL_ONLY,
                developer_role=True,
                free_text_tools=True,
                allowed_tools=True,
                refusals=True,
                call_ids=r".{1,40}",
                embed_format="base64",
                embed_batch=2048,
            ),
        ),
        Host(
            "anthropic",
            "anthropic",
            "https://api.anthropic.com/v1",
            "ANTHROPIC_API_KEY",
            quirks=Quirks(call_ids=r"[a-zA-Z0-9_-]+", cache_control=True),
        ),
        Host(
            "gemini",
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            "GEMINI_API_KEY",
            quirks=Quirks(embed_batch=100),
        ),
        Host(
            # https://LOCATION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/LOCATION
            "vertex",
            "vertex",
            "",
            credential="google",
            quirks=Quirks(embed_batch=1),
        ),
        Host(
            "vllm",
            "openai",
            "http://localhost:8000/v1",
            quirks=Quirks(
                developer_role=True,
                tool_media=True,
                audio_url=True,
                video_url=True,
                thinking_switch="chat_template_kwargs",
                reasoning_echo="reasoning",
                embed_format="base64",
            ),
        ),
        Host(
            "ollama",
            "openai",
            "http://localhost:11434/v1",
            "OLLAMA_API_KEY",
            quirks=Quirks(
                lacks=OPENAI_ONLY | {"top_k", "n", "logit_bias", "parallel_tool_calls", "safety_identifier"},
                tool_media=True,
                reasoning_echo="reasoning",
            ),
        ),
        Host(
            "llamacpp",
            "openai",
            "http://localhost:8080/v1",
            quirks=Quirks(
                developer_role=True,
                responses_fields=SAMPLING | {"seed", "stop", "logit_bias", "response_format"},
                thinking_switch="chat_template_kwargs",
                reasoning_echo="reasoning_content",
                embed_format="base64",
            ),
        ),
        Host("lmstudio", "openai", "http://localhost:1234/v1"),
        Host(
            "gpustack",
            "openai",
            "",
            "GPUSTACK_API_KEY",
            quirks=Quirks(thinking_switch="enable_thinking", reasoning_echo="reasoning_content"),
        ),
        Host(
            "deepseek",
            "openai",
            "https://api.deepseek.com",
            "DEEPSEEK_API_KEY",
            quirks=Quirks(
                lacks=OPENAI_ONLY | {"top_k", "n", "seed", "logit_bias", "parallel_tool_calls", "safety_identifier"},
                json_schema=False,
                thinking_switch="thinking",
                reasoning_echo="reasoning_content",
            ),
        ),
        Host(
            "openrouter",
            "openai",
            "https://openrouter.ai/api/v1",
            "OPENROUTER_API_KEY",
            quirks=Quirks(
                lacks=frozenset(),
                developer_role=True,
                cache_control=True,
                prompt_cache_breakpoint=True,
                responses_fields=SAMPLING,
                tool_media=True,
                video_url=True,
                document_url="file",
                image_history=True,
                reasoning_object=True,
                reasoning_echo="reasoning",
                embed_format="base64",
                embed_task="input_type",
            ),
        ),
        Host(
            "qwen",
            "openai",
            "https://dashscope.aliyuncs.com/compatible-mode/v1",
            "DASHSCOPE_API_KEY",
            quirks=Quirks(
                lacks=OPENAI_ONLY | {"logit_bias", "frequency_penalty", "safety_identifier"},
                cache_control=True,
                video_url=True,
                reasoning_effort=False,
                thinking_switch="enable_thinking",
                thinking_budget="thinking_budget",
                reasoning_echo="reasoning_content",
                embed_batch=10,
            ),
        ),
        Host(
            "mistral",
            "openai",
            "https://api.mistral.ai/v1",
            "MISTRAL_API_KEY",
            quirks=Quirks(
                renames={"max_completion_tokens": "max_tokens", "seed": "random_seed"},
                lacks=OPENAI_ONLY
                | {"top_k", "logit_bias", "logprobs", "top_logprobs", "safety_identifier", "modalities"},
                stream_usage=False,
                call_ids=r"[A-Za-z0-9]{9}",
                tool_media=True,
                document_url="document_url",
                reasoning_echo="thinking",
            ),
        ),
        Host(
            "groq",
            "openai",
            "https://api.groq.com/openai/v1",
            "GROQ_API_KEY",
            quirks=Quirks(
                renames={"safety_identifier": "user"},
                lacks=OPENAI_ONLY | {"top_k", "logit_bias", "logprobs", "top_logprobs", "modalities"},
                tool_media=True,
                reasoning_format=True,
                reasoning_echo="reasoning",
            ),
        ),
        Host(
            "xai",
            "openai",
            "https://api.x.ai/v1",
            "XAI_API_KEY",
            quirks=Quirks(
                renames={"safety_identifier": "user"},
                lacks=OPENAI_ONLY | {"top_k", "logit_bias"},
                developer_role=True,
                reasoning_echo="reasoning_content",
            ),
        ),
        Host(
            "together",
            "openai",
            "https://api.together.xyz/v1",
            "TOGETHER_API_KEY",
            quirks=Quirks(video_url=True, reasoning_echo="reasoning", think_tags=True),
        ),
        Host(
            "perplexity",
            "openai",
            "https://api.perplexity.ai",
            "PERPLEXITY_API_KEY",
            quirks=Quirks(
                lacks=OPENAI_ONLY
                | {"n", "seed", "logit_bias", "logprobs", "top_logprobs", "stop", "safety_identifier"}
                | {"parallel_tool_calls", "modalities"},
                think_tags=True,
                embed_path="/v1/embeddings",
                embed_format="base64_int8",
                embed_batch=512,
            ),
        ),
        Host(
            "cerebras",
            "openai",
            "https://api.cerebras.ai/v1",
            "CEREBRAS_API_KEY",
            quirks=Quirks(
                renames={"safety_identifier": "user"},
                lacks=OPENAI_ONLY
                | {"top_k", "n", "logit_bias", "presence_penalty", "frequency_penalty", "modalities"}
                | {"parallel_tool_calls"},
                reasoning_echo="reasoning",
            ),
        ),
        Host(
            "fireworks",
            "openai",
            "https://api.fireworks.ai/inference/v1",
            "FIREWORKS_API_KEY",
            quirks=Quirks(reasoning_echo="reasoning_content", think_tags=True),
        ),
        Host(
            "huggingface",
            "openai",
            "https://router.huggingface.co/v1",
            "HF_TOKEN",
            quirks=Quirks(lacks=OPENAI_ONLY | LOCAL_ONLY),
        ),
        Host(
            "cohere",
            "cohere",
            "https://api.cohere.com/v2",
            "CO_API_KEY",
            quirks=Quirks(embed_batch=96),
        ),
        Host(
            "cohere-compatible",
            "openai",
            "https://api.cohere.ai/compatibility/v1",
            "COHERE_API_KEY",
            quirks=Quirks(
                lacks=OPENAI_ONLY
                | {"top_k", "n", "logit_bias", "top_logprobs", "parallel_tool_calls", "safety_identifier"},
                stream_usage=False,
                developer_role=True,
                embed_batch=96,
            ),
        ),
        Host(
            # https://<account-identifier>.snowflakecomputing.com/api/v2/cortex/v1
            "snowflake",
            "openai",
            "",
            "SNOWFLAKE_TOKEN",
            quirks=Quirks(
                renames={"safety_identifier": "user"},
                lacks=OPENAI_ONLY | LOCAL_ONLY,
                reasoning_object=True,
            ),
        ),
        Host(
            "zai",
            "openai",
            "https://api.z.ai/api/paas/v4",
            "ZAI_API_KEY",
            quirks=Quirks(
                renames={"max_completion_tokens": "max_tokens", "safety_identifier": "user_id"},
                lacks=OPENAI_ONLY
                | {"top_k", "n", "seed", "logit_bias", "logprobs", "top_logprobs"}
                | {"presence_penalty", "frequency_penalty", "parallel_tool_calls", "modalities"},
                json_schema=False,
                video_url=True,
                thinking_switch="thinking",
                reasoning_echo="reasoning_content",
            ),
        ),
        Host(
            "crusoe",
            "openai",
            "https://api.inference.crusoecloud.com/v1",
            "CRUSOE_API_KEY",
            quirks=Quirks(thinking_switch="chat_template_kwargs", reasoning_echo="reasoning"),
        ),
    )
}
