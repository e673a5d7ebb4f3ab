"""What a request will use at most, before anybody has read it. Pure.

Nothing is tokenized: text has no more tokens than bytes, whatever the vendor, and media and output have written
defaults. The encoded size of the request stands for its text; what the encoding adds stands for the few tokens that
vendors put around each message. Where several targets may answer, the one that can use most counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from headgate import v1 as pb

from headgate_server.config.limits import LimitEstimate
from headgate_server.limits.quota import MOST as MOST_COUNTED
from headgate_server.prices import PriceList
from headgate_server.providers.base import Target
from headgate_server.providers.media import media_kind

Request = pb.GenerateRequest | pb.EmbedRequest

TOOL_PROMPT_TOKENS = 600
"""Some vendors write a system prompt of their own around tools, of up to about so many tokens."""


OUTPUT_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
CANDIDATE_COUNTS = ("n", "candidate_count", "candidateCount")
MOST = 2**31 - 1
DOLLARS = "USD"
UNKNOWN_COST = 1
"""A nano: what has no known price is not counted, but there must be money left."""


class Estimator:
    """Estimates by the settings of one configuration and by what may answer.

    `targets` are all that may answer a request; `card_output` is the most output of one of them as far as it is known,
    `default_output` what its adapter sends where the caller has no limit, `prices` what its tokens cost.
    """

    def __init__(
        self,
        settings: LimitEstimate,
        targets: Callable[[Request], Iterable[Target]],
        card_output: Callable[[Target], int | None],
        default_output: Callable[[Target], int | None],
        prices: Callable[[Target], PriceList | None],
    ) -> None:
        self._settings = settings
        self._targets = targets
        self._card_output = card_output
        self._default_output = default_output
        self.prices = prices

    def amounts(
        self,
        request: Request,
        callers_own: Collection[str] | None = None,
        *,
        has_media: bool = True,
        size: int | None = None,
    ) -> dict[str, int]:
        """The most of each unit; the cost, too, if it is told which issuers charge the caller's own account.

        `size` is what is known of the request's: its bytes as they came.
        """
        tokens = input_tokens(request, self._settings, has_media=has_media, size=size)
        if isinstance(request, pb.GenerateRequest) and request.tools:
            tokens += TOOL_PROMPT_TOKENS
        output_tokens = self._output_tokens(request) if isinstance(request, pb.GenerateRequest) else 0
        amounts = {
            "requests": 1,
            "input_tokens": tokens,
            "output_tokens": output_tokens,
            "total_tokens": tokens + output_tokens,
            "concurrency": 1,
        }
        if callers_own is not None:
            amounts["cost"] = self._cost(request, amounts, callers_own)
        return amounts

    def _cost(self, request: Request, amounts: Mapping[str, int], callers_own: Collection[str]) -> int:
        """Nanos of US dollars at the dearest target."""
        most = 0
        for target in self._targets(request):
            if target.issuer.lower() not in callers_own:
                prices = in_dollars(self.prices(target))
                cost = None
                if prices:
                    media = prices.tells_media_apart and _is_more_than_text(request)
                    cost = prices.most(amounts["input_tokens"], amounts["output_tokens"], media=media)
                most = max(most, UNKNOWN_COST if cost is None else cost)
        return min(most, MOST_COUNTED)

    def _output_tokens(self, request: pb.GenerateRequest) -> int:
        config = request.config
        capped = config.HasField("max_output_tokens")
        tokens = config.max_output_tokens if capped else self._most_output(request)
        candidates = max(config.candidate_count, 1)
        if request.provider_options:
            stated = list(_settings_in(request.provider_options.values()))
            tokens = max(tokens, _largest(stated, OUTPUT_CAPS))
            candidates = max(candidates, _largest(stated, CANDIDATE_COUNTS))
        return tokens * candidates

    def _most_output(self, request: pb.GenerateRequest) -> int:
        """Of a request that has no limit. Reasoning is output, and a card's number has it in it."""
        budget = max(request.reasoning.budget_tokens, 0)
        return max(
            (
                self._card_output(target) or (self._default_output(target) or self._settings.output_tokens) + budget
                for target in self._targets(request)
            ),
            default=self._settings.output_tokens + budget,
        )


def in_dollars(prices: PriceList | None) -> PriceList | None:
    """The prices, if budgets can count them."""
    return prices if prices and prices.currency == DOLLARS else None


def _is_more_than_text(request: Request) -> bool:
    """It has media in it, or may ask for some in a way that nobody here reads."""
    if request.provider_options or (isinstance(request, pb.GenerateRequest) and request.config.output_modalities):
        return True
    return any(next(_media(part), None) for parts in _parts_of(request) for part in parts)


def input_tokens(request: Request, settings: LimitEstimate, *, has_media: bool = True, size: int | None = None) -> int:
    """Tokens of the request's text and media by these settings, without what vendors add to tools."""
    size, tokens = request.ByteSize() if size is None else size, 0
    for parts in _parts_of(request) if has_media else ():
        for part in parts:
            if not part.HasField("text"):
                for media in _media(part):
                    size -= len(media.data)
                    tokens += _media_tokens(media, settings)
    return math.ceil(size / settings.bytes_per_token) + tokens


def _media_tokens(media: pb.Media, settings: LimitEstimate) -> int:
    match media_kind(media):
        case pb.MEDIA_KIND_IMAGE:
            return settings.image_tokens
        case pb.MEDIA_KIND_AUDIO:
            return settings.audio_tokens
        case pb.MEDIA_KIND_VIDEO:
            return settings.video_tokens
        case _:
            return settings.document_tokens


def _settings_in(options: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of provider_options, and those right within them; a text that is none is refused later."""
    for text in options:
        try:
            settings = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            continue
        if isinstance(settings, dict):
            yield settings
            yield from (inner for inner in settings.values() if isinstance(inner, dict))


def _largest(stated: Iterable[dict[str, Any]], names: Iterable[str]) -> int:
    """The largest number that any of these settings has; 0 without one."""
    values = (settings.get(name) for settings in stated for name in names)
    return max((math.ceil(min(value, MOST)) for value in values if isinstance(value, int | float)), default=0)


def _parts_of(request: Request) -> Iterable[Iterable[pb.Part]]:
    if isinstance(request, pb.GenerateRequest):
        return [message.parts for message in request.messages]
    return [given.content.parts for given in request.inputs if given.WhichOneof("input") == "content"]


def _media(part: pb.Part) -> Iterator[pb.Media]:
    """Media of the part and of the tool result that it is; not documents whose text is in the size of the request."""
    if part.HasField("tool_result"):
        for inner in part.tool_result.parts:
            yield from _media(inner)
    elif part.HasField("media") and not (part.media.data and part.media.mime_type.startswith("text/")):
        yield part.media
