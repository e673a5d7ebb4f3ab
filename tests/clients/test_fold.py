"""The fold of a stream is the plain answer, however the stream was cut."""

from __future__ import annotations

from typing import Any

from headgate import v1 as pb
from headgate.fold import fold
from headgate.testing import events_of
from hypothesis import given, settings, strategies as st

TEXT = st.text(max_size=20)
PARTS = st.one_of(
    st.builds(pb.Part, text=TEXT.filter(bool), citations=st.lists(st.builds(pb.Citation, cited_text=TEXT), max_size=2)),
    st.builds(
        pb.Part, reasoning=st.builds(pb.Reasoning, text=TEXT), signature=st.binary(max_size=5), issuer=st.just("openai")
    ),
    st.builds(pb.Part, tool_call=st.builds(pb.ToolCall, id=TEXT, name=TEXT, arguments=st.just('{"a": 1}'))),
    st.builds(pb.Part, media=st.builds(pb.Media, data=st.binary(max_size=9), transcript=TEXT)),
    st.builds(pb.Part, refusal=TEXT.filter(bool), incomplete=st.booleans()),
)
MESSAGES = st.builds(pb.Message, role=st.just(pb.ROLE_ASSISTANT), parts=st.lists(PARTS, max_size=4))


@st.composite
def responses(draw: Any) -> pb.GenerateResponse:
    candidates = [
        pb.Candidate(index=index, message=message, finish=pb.Finish(reason=pb.FINISH_REASON_STOP))
        for index, message in enumerate(draw(st.lists(MESSAGES, max_size=3)))
    ]
    return pb.GenerateResponse(
        id=draw(TEXT),
        model=draw(TEXT),
        candidates=candidates,
        warnings=[pb.Warning(code="x")],
        attempts=[pb.Attempt(number=1)],
        provider_metadata={"openai": "{}"},
        usage=pb.Usage(input_tokens=0) if draw(st.booleans()) else None,
    )


@given(responses())
@settings(deadline=None)
def test_a_response_survives_its_stream(response: pb.GenerateResponse) -> None:
    """What testing makes of a response folds to the same response."""
    assert fold(events_of(response)) == response


@given(st.permutations(range(12)))
@settings(deadline=None, max_examples=50)
def test_open_parts_may_interleave(order: list[int]) -> None:
    """Parts of several candidates grow in any order, each by its own deltas."""
    places = [(candidate, part) for candidate in range(2) for part in range(2)]
    pieces = {place: iter("abc") for place in places}
    events = [started(*place) for place in places]
    for number in order:
        candidate, part = places[number % 4]
        delta = next(pieces[candidate, part])
        events.append(pb.StreamGenerateResponse(text_delta=delta, candidate_index=candidate, part_index=part))
    answer = fold(events)
    assert [[part.text for part in each.message.parts] for each in answer.candidates] == [["abc", "abc"]] * 2


def test_every_kind_of_delta_grows_its_part() -> None:
    """Late state of part_end is set on the part; metadata is merged."""
    events = [
        pb.StreamGenerateResponse(part_start=pb.PartStart(part=part), part_index=index)
        for index, part in enumerate(
            [
                pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_FULL), provider_metadata={"a": "1"}),
                pb.Part(tool_call=pb.ToolCall(id="1", name="f")),
                pb.Part(refusal="N"),
                pb.Part(media=pb.Media(mime_type="audio/wav")),
                pb.Part(text="he"),
            ]
        )
    ]
    for _ in range(2):
        events += [
            pb.StreamGenerateResponse(reasoning_delta="h", part_index=0),
            pb.StreamGenerateResponse(arguments_delta="7", part_index=1),
            pb.StreamGenerateResponse(refusal_delta="o", part_index=2),
            pb.StreamGenerateResponse(media_delta=pb.MediaDelta(data=b"d", transcript="t"), part_index=3),
            pb.StreamGenerateResponse(
                text_delta="y", part_index=4, logprobs=pb.LogProbs(tokens=[pb.TokenLogProb(token="y")])
            ),
        ]
    events += [
        pb.StreamGenerateResponse(citation=pb.Citation(uri="u"), part_index=4),
        pb.StreamGenerateResponse(
            part_end=pb.PartEnd(signature=b"s", issuer="i", item_id="x", provider_metadata={"b": "2"}), part_index=0
        ),
        pb.StreamGenerateResponse(part_end=pb.PartEnd(incomplete=True), part_index=1),
    ]
    (candidate,) = fold(events).candidates
    assert list(candidate.message.parts) == [
        pb.Part(
            reasoning=pb.Reasoning(text="hh", kind=pb.REASONING_KIND_FULL),
            signature=b"s",
            issuer="i",
            item_id="x",
            provider_metadata={"a": "1", "b": "2"},
        ),
        pb.Part(tool_call=pb.ToolCall(id="1", name="f", arguments="77"), incomplete=True),
        pb.Part(refusal="Noo"),
        pb.Part(media=pb.Media(mime_type="audio/wav", data=b"dd", transcript="tt")),
        pb.Part(
            text="heyy",
            citations=[pb.Citation(uri="u")],
            logprobs=pb.LogProbs(tokens=[pb.TokenLogProb(token="y")] * 2),
        ),
    ]


def started(candidate: int, part: int) -> pb.StreamGenerateResponse:
    return pb.StreamGenerateResponse(
        part_start=pb.PartStart(part=pb.Part(text="")), candidate_index=candidate, part_index=part
    )
