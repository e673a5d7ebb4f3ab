"""Which limits apply to whom, what a request is taken to use, and what a call has used. Pure functions."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import status_pb2
from headgate import v1 as pb

from headgate_server.config import Limit, LimitRule
from headgate_server.config.budgets import Budget
from headgate_server.config.limits import LimitEstimate
from headgate_server.errors import RateLimited, ReachedLimit
from headgate_server.interceptors.status import MAX_DETAILS_BYTES, to_status
from headgate_server.limits import truth
from headgate_server.limits.estimate import TOOL_PROMPT_TOKENS, Estimator
from headgate_server.limits.quota import NANOS, Scoped
from headgate_server.limits.rules import OF_PROVIDER, Rules
from headgate_server.principal import ANONYMOUS, Principal
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import Host
from headgate_server.routing import AliasRoute, Candidate, Routes, Rule
from headgate_server.validation import check_embed, check_generate
from tests.headgate_process import ask

ACME = Principal(tenant="acme", key_id="k1")
ACME_TOO = Principal(tenant="acme", key_id="k2")
OTHER = Principal(tenant="other", key_id="k3")


def rules(*configured: dict[str, Any]) -> Rules:
    """Rules as a configuration file has them."""
    return Rules(
        [LimitRule.model_validate({"unit": "requests", "limit": 5, "window": 60, **each}) for each in configured]
    )


def keys(scoped: Any) -> set[str]:
    """The counters' keys."""
    return {each.key for each in scoped}


def only(scoped: Any) -> Scoped:
    """The one limit that applies."""
    (found,) = scoped
    assert isinstance(found, Scoped)
    return found


@pytest.mark.parametrize(
    "per", [[], ["key"], ["tenant"], ["model"], ["tenant", "model"], ["key", "model"], ["key", "tenant", "model"]]
)
def test_each_combination_of_scopes_has_counters_of_its_own(per: list[str]) -> None:
    """Those share a counter who are the same in every scope of the rule, and nobody else does."""

    def place(principal: Principal, model: str) -> list[str]:
        values = {"key": principal.key_id, "tenant": principal.tenant, "model": model}
        return [values[scope] for scope in per]

    found = rules({"per": per})
    callers = [(who, model) for who in (ACME, ACME_TOO, OTHER, ANONYMOUS) for model in ("m", "n")]
    for one in callers:
        for another in callers:
            shared = keys(found.of_call(*one)) == keys(found.of_call(*another))
            assert shared == (place(*one) == place(*another))


def test_rules_that_share_a_counter_take_from_it_once() -> None:
    """Two bursts at one rate, or two limits of one window: what the lower allows the higher does, too."""
    bucket = {"per": ["key"], "algorithm": "token_bucket"}
    for higher, lower in (
        ({**bucket, "limit": 600, "window": 60}, {**bucket, "limit": 10, "window": 1}),
        ({"limit": 7}, {"limit": 3}),
    ):
        for both in ((higher, lower), (lower, higher)):
            assert only(rules(*both).of_call(ACME, "m")).limit.capacity == lower["limit"]


def test_a_budget_that_only_counts_does_not_hide_one_that_refuses() -> None:
    """A caller's own two of one period are one counter, whichever is written first."""
    counting = Budget.model_validate({"amount": 5, "period": "month", "hard": False})
    refusing = Budget.model_validate({"amount": 10, "period": "month"})
    for budgets in ((counting, refusing), (refusing, counting)):
        found = rules().of_call(Principal(key_id="k1", budgets=budgets), "m")
        assert only(found).limit.capacity == 10 * NANOS


def test_the_order_of_scopes_does_not_matter() -> None:
    """A counter outlives a reload that writes its rule differently."""
    assert keys(rules({"per": ["model", "tenant"]}).of_call(ACME, "m")) == keys(
        rules({"per": ["tenant", "model"], "limit": 9}).of_call(ACME, "m")
    )


def test_callers_cannot_feign_or_stretch_a_key() -> None:
    """Separators in names are quoted, long names are hashed; the subject tells who it is."""
    found = rules({"per": ["tenant", "model"]})
    feigned = found.of_call(Principal(tenant="a|model=x"), "y")
    assert keys(feigned) != keys(found.of_call(Principal(tenant="a"), "x|model=y"))
    assert "|model=x" not in only(feigned).key
    assert len(only(found.of_call(ACME, "m" * 10_000)).key) < 300
    assert only(found.of_call(ACME, "m")).subject == "model:m tenant:acme"


def test_a_provider_s_limits_wait_for_the_provider() -> None:
    """A rule that speaks of providers is asked when one is chosen, and only then."""
    found = rules({"per": ["provider"]}, {"only": {"provider": ["open*"]}, "per": ["tenant"]})
    assert found.of_call(ACME, "m") == ()
    at_openai, at_rack = (found.of_attempt(OF_PROVIDER, target(name, "x"), ACME, "m") for name in ("openai", "rack"))
    assert (len(at_openai), len(at_rack)) == (2, 1)
    assert keys(at_openai).isdisjoint(keys(at_rack))


def test_patterns_choose_whom_a_rule_is_for() -> None:
    """Every scope that has patterns must match one of them."""
    found = rules({"only": {"tenant": ["ac*", "b"], "model": ["gpt-*"]}})
    assert found.of_call(ACME, "gpt-5")
    assert not found.of_call(ACME, "claude")
    assert not found.of_call(OTHER, "gpt-5")


def test_a_caller_s_own_limits_are_added() -> None:
    """They count for its key alone; of two on the same counter the lower holds, and a change is seen at once."""

    def limited(*limits: int) -> Principal:
        own = tuple(Limit(unit="requests", limit=limit, window=60) for limit in limits)
        return Principal(tenant="acme", key_id="k1", limits=own)

    found = rules({"per": ["tenant"]})
    assert len(found.of_call(ACME, "m")) == 1
    configured, own = found.of_call(limited(7, 3), "m")
    assert (configured.subject, own.subject, own.limit.capacity) == ("tenant:acme", "key:k1", 3)
    assert found.of_call(limited(4), "m")[1].limit.capacity == 4
    assert found.of_call(limited(4), "m")[1].key == own.key
    assert keys(Rules([]).of_call(limited(2), "m")) == {own.key}


def target(provider: str, model: str) -> Target:
    """A model of that provider."""
    return Target(provider, model, Host("v", "mock", ""), provider)


def estimator(**estimate: Any) -> Estimator:
    """Two models that have cards, aliases of them, and a provider that sends a limit of 32,000 of its own."""

    def alias(*models: str) -> AliasRoute:
        return AliasRoute([Candidate(target("v", model)) for model in models])

    aliases = {"both": alias("m", "n"), "some": alias("m", "n", "x"), "any-*": alias("*")}
    cards = {"m": 1000, "n": 3000}
    routes = Routes(aliases, target, [Rule("v/n", {"rule": "yes"}, ["v/m"])])
    return Estimator(
        LimitEstimate(**estimate),
        routes.targets,
        lambda target: cards.get(target.model),
        lambda target: 32_000 if target.provider == "strict" else None,
        lambda target: None,
    )


def test_text_has_no_more_tokens_than_bytes() -> None:
    """The whole request's size stands for its input, multi-byte letters counted as their bytes."""
    text = "naïve 漢字 " * 50
    amounts = estimator().amounts(ask("v/m", text))
    assert len(text.encode()) < amounts["input_tokens"] < len(text.encode()) + 40
    quarter = estimator(bytes_per_token=4).amounts(ask("v/m", text))
    assert quarter["input_tokens"] == pytest.approx(amounts["input_tokens"] / 4, abs=1)
    assert amounts["total_tokens"] == amounts["input_tokens"] + amounts["output_tokens"]


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("v/m", {"max_output_tokens": 7}, 7),
        ("v/m", {"max_output_tokens": 7, "candidate_count": 3}, 21),
        ("v/m", {"max_output_tokens": 0}, 0),
        ("v/m", {}, 1000),
        ("both", {}, 3000),
        ("some", {}, 4096),
        ("v/x", {}, 4096),
        ("v/m", {"candidate_count": 2}, 2000),
    ],
)
def test_output_is_what_was_asked_for_or_what_the_model_can(model: str, config: dict[str, Any], expected: int) -> None:
    """max_output_tokens of the caller, else the most of the targets' cards, else the configured default."""
    assert estimator().amounts(ask(model, config=pb.GenerationConfig(**config)))["output_tokens"] == expected


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("any-m", {}, 1000),
        ("any-x", {}, 4096),
        ("strict/x", {}, 32_000),
        ("strict/m", {}, 1000),
        ("strict/x", {"reasoning": pb.ReasoningConfig(budget_tokens=50_000)}, 82_000),
        ("v/m", {"routing": pb.RoutingPolicy(fallbacks=["v/n"])}, 3000),
        ("v/m", {"routing": pb.RoutingPolicy(fallbacks=["strict/x", "nobody"])}, 32_000),
        ("v/m", {"labels": {"rule": "yes"}}, 3000),
        ("nobody", {}, 4096),
    ],
)
def test_output_is_what_any_target_can_that_may_answer(model: str, fields: dict[str, Any], expected: int) -> None:
    """Those of wildcards, fallbacks and routing rules, too; an adapter's own limit counts where no card says less."""
    assert estimator().amounts(ask(model, **fields))["output_tokens"] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('{"max_tokens": 500}', 500),
        ('{"max_completion_tokens": 500}', 500),
        ('{"max_output_tokens": 500, "max_tokens": 9}', 500),
        ('{"generationConfig": {"maxOutputTokens": 500, "candidateCount": 2}}', 1000),
        ('{"n": 3}', 30),
        ('{"max_tokens": 3}', 10),
        ('{"max_tokens": 1e300}', 2**31 - 1),
        ('{"max_tokens": "500", "n": null}', 10),
        ("[1]", 10),
        ("no JSON", 10),
        ("[" * 100_000, 10),
    ],
)
def test_limits_in_provider_options_count_where_they_are_larger(options: str, expected: int) -> None:
    """They replace what the gateway writes, so whoever states more there may use more."""
    request = ask("v/m", config=pb.GenerationConfig(max_output_tokens=10), provider_options={"v": options})
    assert estimator().amounts(request)["output_tokens"] == expected


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (pb.Media(kind=pb.MEDIA_KIND_IMAGE, mime_type="image/jpeg", data=b"x" * 90_000), 5000),
        (pb.Media(mime_type="image/png", uri="https://example.com/a.png"), 5000),
        (pb.Media(mime_type="audio/wav", data=b"x" * 90_000), 20_000),
        (pb.Media(mime_type="video/mp4", data=b"x" * 90_000), 100_000),
        (pb.Media(mime_type="application/pdf", data=b"x" * 90_000), 50_000),
        (pb.Media(mime_type="text/plain", data=b"x" * 90_000), 90_000),
        (pb.Media(file=pb.FileRef(issuer="v", id="f")), 50_000),
    ],
)
@pytest.mark.parametrize("place", ["message", "tool result", "embed"])
def test_media_have_written_defaults_wherever_they_stand(media: pb.Media, expected: int, place: str) -> None:
    """Their bytes say little of their tokens; a text document's do."""
    part = pb.Part(media=media)
    request: pb.GenerateRequest | pb.EmbedRequest = ask("v/m")
    if isinstance(request, pb.GenerateRequest) and place == "message":
        request.messages[0].parts.append(part)
    elif isinstance(request, pb.GenerateRequest) and place == "tool result":
        call = pb.Part(tool_call=pb.ToolCall(id="c", name="look"))
        result = pb.Part(tool_result=pb.ToolResult(call_id="c", parts=[part]))
        request.messages.append(pb.Message(role=pb.ROLE_ASSISTANT, parts=[call]))
        request.messages.append(pb.Message(role=pb.ROLE_TOOL, parts=[result]))
    else:
        request = pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(content=pb.EmbedContent(parts=[part]))])
    amounts = estimator().amounts(request)
    assert expected <= amounts["input_tokens"] < expected + 150
    has_media = check_generate(request) if isinstance(request, pb.GenerateRequest) else check_embed(request)
    assert estimator().amounts(request, has_media=has_media, size=len(request.SerializeToString())) == amounts


def test_a_request_without_media_is_not_searched_for_it_again() -> None:
    """Validation has looked, in all that a request may have; should it be wrong, bytes of media count as text does."""
    asked, embedded = ask("v/m", "text"), pb.EmbedRequest(model="v/m")
    embedded.inputs.add().content.parts.add(text="text")
    assert (check_generate(asked), check_embed(embedded)) == (False, False)
    asked.messages[0].parts.add(media=pb.Media(mime_type="image/png", data=b"x" * 90_000))
    assert check_generate(asked)
    assert estimator().amounts(asked, has_media=False)["input_tokens"] > 90_000


def test_tools_cost_their_schema_and_the_vendor_s_words_around_it() -> None:
    """Some vendors write a prompt of their own when there are tools."""
    tool = pb.Tool(function=pb.FunctionTool(name="f", parameters_schema="{}" * 500))
    without, with_tools = ask("v/m"), ask("v/m", tools=[tool])
    amounts = [estimator().amounts(request)["input_tokens"] for request in (without, with_tools)]
    assert amounts[1] - amounts[0] > 1000 + TOOL_PROMPT_TOKENS


def test_embeddings_are_bounded_by_their_bytes_and_have_no_output() -> None:
    """Text and token ids alike."""
    request = pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="x" * 100)])
    request.inputs.add().token_ids.values.extend(range(200))
    amounts = estimator().amounts(request)
    assert (300 <= amounts["input_tokens"] < 540, amounts["output_tokens"]) == (True, 0)


ESTIMATE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


def attempt(outcome: str, http_status: int = 0, **usage: int) -> pb.Attempt:
    """An attempt's record; no usage without any."""
    record = pb.Attempt(outcome=pb.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome}"), http_status=http_status)
    if usage:
        record.usage.CopyFrom(pb.Usage(**usage))  # type: ignore[arg-type]  # counts alone
    return record


@pytest.mark.parametrize(
    ("record", "requests", "total"),
    [
        (attempt("OK", 200, input_tokens=7, output_tokens=2, total_tokens=9), 1, 9),
        (attempt("OK", 200, input_tokens=7, output_tokens=2), 1, 9),
        (attempt("OK", 200, output_tokens=2), 1, 102),
        (attempt("OK", 200), 1, 150),
        (attempt("FAILED", 200, input_tokens=7, output_tokens=1), 1, 8),
        (attempt("FAILED", 200), 1, 150),
        (attempt("FAILED", 429), 1, 0),
        (attempt("FAILED", 0), 0, 0),
        (attempt("CANCELLED", 200), 1, 150),
        (attempt("CANCELLED", 0), 1, 150),
        (attempt("TIMED_OUT", 0), 1, 150),
        (attempt("SUPERSEDED", 200), 1, 150),
        (attempt("UNSPECIFIED", 0), 1, 150),
    ],
)
def test_an_attempt_counts_as_what_it_says_or_may_have_used(record: pb.Attempt, requests: int, total: int) -> None:
    """Its usage; the estimate if it has none and a vendor may have worked for it; nothing if none can have."""
    used = truth.of_attempts([record], ESTIMATE, 1)
    assert (used["requests"], used["total_tokens"]) == (requests, total)


def test_the_parts_of_a_batch_make_one_estimate_together() -> None:
    """Sub-batches without usage count as one estimate for each time that the whole was tried."""
    silent = [attempt("OK", 200) for _ in range(5)]
    assert truth.of_attempts(silent, ESTIMATE, 1)["input_tokens"] == 100
    assert truth.of_attempts(silent, ESTIMATE, 2)["input_tokens"] == 200


def test_a_quota_failure_stays_within_the_budget_of_details() -> None:
    """As many violations as fit; ErrorInfo, RequestInfo and RetryInfo always do."""
    reached = [ReachedLimit("requests", f"tenant:{n}" + "x" * 300, "y" * 300) for n in range(30)]
    status = to_status(RateLimited("no", reached_limits=reached, retry_after=1.5), "request", [])
    packed = dict(status.trailing_metadata)["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    assert len(packed) <= MAX_DETAILS_BYTES
    details = {detail.TypeName().rpartition(".")[2]: detail for detail in status_pb2.Status.FromString(packed).details}
    assert set(details) == {"ErrorInfo", "RequestInfo", "RetryInfo", "QuotaFailure"}
