"""JSON Schemas of types, values of those types, and structured answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema
import pytest
from headgate import InvalidOutput, v1 as pb
from headgate.schemas import schema_of, strict, value_of
from headgate.testing import Reply, ScriptedServer
from pydantic import BaseModel, Field, create_model


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Options(TypedDict):
    size: int
    colour: NotRequired[Colour]


class Inner(BaseModel):
    name: str = Field(description="What it is called.")


class Node(BaseModel):
    children: list[Node]


class Model(BaseModel):
    inner: Inner
    score: float = 0.5


@dataclass
class Listed:
    colours: set[Colour]
    level: Literal[1, 2] = 1


@dataclass
class Everything:
    text: str
    number: int | None
    amount: float
    flag: bool
    kind: Literal["a", "b"]
    options: Options
    model: Inner
    pair: tuple[int, str]
    many: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list)
    unique: set[int] = field(default_factory=set)
    table: dict[str, float] = field(default_factory=dict)
    when: datetime | None = None
    day: Annotated[date | None, "Which day."] = None
    anything: Any = None


DATA = {
    "text": "x",
    "number": None,
    "amount": 1,
    "flag": True,
    "kind": "a",
    "options": {"size": 1, "colour": "red"},
    "model": {"name": "n"},
    "pair": [1, "x"],
    "many": [1, 2],
    "names": ["a"],
    "unique": [1],
    "table": {"a": 1.5},
    "when": "2026-01-02T03:04:05",
    "day": "2026-01-02",
    "anything": {"x": [1]},
}


def test_a_schema_allows_what_can_be_read_and_nothing_else() -> None:
    """The schema of every known type, read by a validator, agrees with the reader."""
    schema = schema_of(Everything)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(DATA, schema)
    assert value_of(Everything, DATA) == Everything(
        text="x",
        number=None,
        amount=1.0,
        flag=True,
        kind="a",
        options={"size": 1, "colour": Colour.RED},
        model=Inner(name="n"),
        pair=(1, "x"),
        many=(1, 2),
        names=["a"],
        unique={1},
        table={"a": 1.5},
        when=datetime(2026, 1, 2, 3, 4, 5),
        day=date(2026, 1, 2),
        anything={"x": [1]},
    )
    assert schema["properties"]["day"]["description"] == "Which day."


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"text": 1}, "$.text"),
        ({"number": "1"}, "$.number"),
        ({"number": True}, "$.number"),
        ({"flag": 1}, "$.flag"),
        ({"kind": "c"}, "$.kind"),
        ({"options": {}}, "$.options"),
        ({"options": {"size": 1, "colour": "green"}}, "$.options.colour"),
        ({"pair": [1]}, "$.pair"),
        ({"names": ["a", 1]}, r"$.names[1]"),
        ({"table": []}, "$.table"),
        ({"day": "tomorrow"}, "$.day"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_is_of_another_type_is_refused_by_place(changes: dict[str, Any], place: str) -> None:
    """Reader and schema refuse the same things."""
    wrong = {**DATA, **changes}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the place is in its text
        value_of(Everything, wrong)
    assert place in str(caught.value)
    if "day" not in changes:  # formats are not checked by validators
        assert not jsonschema.Draft202012Validator(schema_of(Everything)).is_valid(wrong)


@pytest.mark.parametrize("kind", [complex, bytes, dict[int, str], object.__init__])
def test_what_json_does_not_have_is_refused(kind: Any) -> None:
    """A type without a schema is a TypeError before anything is sent."""
    with pytest.raises(TypeError):
        schema_of(kind)


def test_strict_schemas_are_closed_and_whole() -> None:
    """As vendors enforce them: all fields required, no others; open objects cannot be enforced."""
    closed = strict(schema_of(Model))
    assert closed is not None
    assert closed["required"] == ["inner", "score"]
    assert closed["$defs"]["Inner"]["additionalProperties"] is False
    assert "default" not in closed["properties"]["score"]
    assert strict(schema_of(Everything)) is None
    assert strict(schema_of(list[str])) is None
    closed = strict(schema_of(Node))
    assert closed is not None
    assert (closed["type"], closed["required"]) == ("object", ["children"])
    assert closed == strict(Node.model_json_schema())
    assert strict(schema_of(Listed)) == {
        "type": "object",
        "properties": {
            "colours": {"type": "array", "items": {"type": "string", "enum": ["red", "blue"]}},
            "level": {"type": "integer", "enum": [1, 2]},
        },
        "required": ["colours", "level"],
        "additionalProperties": False,
    }


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    """As JSON Schema has it."""
    assert value_of(int, 3.0) == 3
    with pytest.raises(ValueError, match=r"3\.5"):
        value_of(int, 3.5)


def test_two_models_of_one_name_are_refused() -> None:
    """One of them would be described as the other."""

    def nested(kind: Any) -> Any:
        inner = create_model("Same", value=(kind, ...))
        return create_model("Outer", inner=(inner, ...))

    first, second = nested(int), nested(str)
    with pytest.raises(TypeError, match="Same"):
        schema_of(first | second)


@dataclass
class Weather:
    """The weather somewhere."""

    city: str
    celsius: float


class WeatherModel(BaseModel):
    city: str
    celsius: float


class WeatherDict(TypedDict):
    city: str
    celsius: float


@pytest.mark.parametrize("form", [Weather, WeatherModel, WeatherDict])
async def test_answers_are_read_into_types(client: Any, server: ScriptedServer, form: type[Any]) -> None:
    """The schema goes out, strict; the text comes back as a value of the type."""
    server.script("json", Reply(text='{"city": "Oslo", "celsius": -3}'))
    answer = await client.generate("json", "Weather?", response_format=form)
    assert answer.parse(form) == form(city="Oslo", celsius=-3.0)
    asked = server.calls[0].request.config.response_format
    assert (asked.type, asked.name, asked.strict) == (pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, form.__name__, True)
    assert json.loads(asked.schema)["required"] == ["city", "celsius"]


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ('{"city": "Oslo"}', pb.FINISH_REASON_STOP, "celsius"),
        ("Cold.", pb.FINISH_REASON_STOP, "no Weather"),
        pytest.param("[" * 100_000, pb.FINISH_REASON_STOP, "nested too deeply", id="deep"),
        ('{"city": "Os', pb.FINISH_REASON_MAX_TOKENS, "MAX_TOKENS"),
        ("", pb.FINISH_REASON_REFUSAL, "REFUSAL"),
    ],
)
async def test_an_answer_that_is_not_the_type_is_an_error_with_the_answer(
    client: Any, server: ScriptedServer, text: str, reason: pb.FinishReason.ValueType, words: str
) -> None:
    """Whether the model erred, was cut off, or refused, the answer itself is at hand."""
    response = Reply(text=text).unary()
    response.candidates[0].finish.reason = reason
    server.script("json", Reply(response=response))
    answer = await client.generate("json", "Weather?", response_format=Weather)
    with pytest.raises(InvalidOutput, match=words) as caught:
        answer.parse(Weather)
    assert caught.value.answer is answer


def test_a_set_of_what_cannot_be_in_one_is_refused_in_its_place() -> None:
    """As everything else that is not of the type."""
    with pytest.raises(ValueError, match=r"\$: unhashable"):
        value_of(set[Any], [[1]])
