"""Configuration: what a file may say, where its values come from, and one test for each reason to refuse it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headgate_server.config import Config, ConfigError, load
from tests.tools import ROOT

DEMO = "providers: {demo: {adapter: mock}}\n"
KEY = "sk-very-secret"

Accept = Callable[..., Config]
Refuse = Callable[..., list[str]]


@pytest.fixture
def accept(tmp_path: Path) -> Accept:
    """The configuration of a file with this text, in an environment of these variables."""

    def load_text(text: str, **environment: str) -> Config:
        path = tmp_path / "headgate.yaml"
        path.write_text(text, "utf-8")
        return load(path, environment)

    return load_text


@pytest.fixture
def refuse(accept: Accept, tmp_path: Path) -> Refuse:
    """The problems of such a file, one a line, without the folder in front."""

    def problems(text: str, **environment: str) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            accept(text, **environment)
        return str(refused.value).replace(f"{tmp_path}/", "").splitlines()

    return problems


def test_values_of_a_file_arrive_in_the_tree(accept: Accept) -> None:
    """Every section, with numbers, sizes, switches and lists read from text."""
    config = accept(
        """
server: {listen: "[::1]:0", reflection: true, max_request_bytes: 4MiB, drain_grace: 1.5}
auth: {anonymous: yes}
providers:
  openai:
    api_key: 0123
    headers: {X-Team: 7}
    clocks: {idle: 9}
    models: [gpt-5, no]
models:
  chat: {targets: [{provider: openai, model: gpt-5}, {provider: openai, model: no}]}
telemetry: {log_level: DEBUG, log_format: console}
"""
    )
    assert config.server.listen == "[::1]:0"
    assert config.server.reflection is True
    assert config.server.max_request_bytes == 4 * 1024 * 1024
    assert config.server.drain_grace == 1.5
    assert config.auth.anonymous is True
    openai = config.providers["openai"]
    assert openai.api_key is not None
    assert openai.api_key.get_secret_value() == "0123"
    assert openai.headers == {"x-team": "7"}
    assert (openai.clocks.idle, openai.clocks.connect) == (9, 5)
    assert openai.models == ("gpt-5", "no")
    assert [target.model for target in config.models["chat"].targets] == ["gpt-5", "no"]
    assert (config.telemetry.log_level, config.telemetry.log_format) == ("debug", "console")


def test_an_empty_section_is_the_default(accept: Accept) -> None:
    """A section whose lines are all commented out is as good as absent."""
    assert accept(DEMO + "server:\nauth:\nmodels: {}\n") == accept(DEMO)


def test_the_tree_is_frozen(accept: Accept) -> None:
    """A configuration that is in use cannot change."""
    with pytest.raises(ValueError, match="frozen"):
        accept(DEMO).server.reflection = True  # type: ignore[misc]  # what the test is about


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("${MODEL}", "gpt-5"),
        ("a-${MODEL}-b", "a-gpt-5-b"),
        ("${ABSENT:-gpt-4}", "gpt-4"),
        ("${EMPTY:-gpt-4}", "gpt-4"),
        ("${MODEL:-gpt-4}", "gpt-5"),
        ("x${EMPTY}", "x"),
        ("${ABSENT:-}x", "x"),
        ("$${MODEL}", "${MODEL}"),
        ("$MODEL $5", "$MODEL $5"),
        ("${TRICKY}", "a: {b: [c]} # ${MODEL}"),
    ],
)
def test_variables_are_expanded_inside_values(accept: Accept, written: str, read: str) -> None:
    """The value of a variable is text: it is neither parsed as YAML nor expanded again."""
    config = accept(
        f"{DEMO}models: {{chat: {{targets: [{{provider: demo, model: '{written}'}}]}}}}",
        MODEL="gpt-5",
        EMPTY="",
        TRICKY="a: {b: [c]} # ${MODEL}",
    )
    assert config.models["chat"].targets[0].model == read


def test_the_environment_overrides_port_and_log_settings(accept: Accept) -> None:
    """PORT, LOG_LEVEL and LOG_FORMAT are what platforms set."""
    text = DEMO + "server: {listen: '127.0.0.2:50051'}\ntelemetry: {log_level: error}\n"
    config = accept(text, PORT="8080", LOG_LEVEL="WARNING", LOG_FORMAT="console")
    assert config.server.listen == "127.0.0.2:8080"
    assert (config.telemetry.log_level, config.telemetry.log_format) == ("warning", "console")
    assert accept(DEMO, PORT="8080").server.listen == "127.0.0.1:8080"


def test_headgate_config_names_the_file_when_the_caller_does_not(tmp_path: Path) -> None:
    """An argument wins over the variable."""
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(DEMO)
    other.write_text(DEMO.replace("demo", "other"))
    assert list(load(None, {"HEADGATE_CONFIG": str(one)}).providers) == ["demo"]
    assert list(load(other, {"HEADGATE_CONFIG": str(one)}).providers) == ["other"]


def test_without_a_file_the_mock_is_served_on_loopback() -> None:
    """The demo: no key, no file, and names that a first call can use."""
    config = load(None, {})
    assert config.server.listen == "127.0.0.1:50051"
    assert config.server.reflection
    assert config.auth.anonymous
    assert {name: provider.adapter for name, provider in config.providers.items()} == {"demo": "mock"}
    targets = {
        name: [(target.provider, target.model) for target in alias.targets] for name, alias in config.models.items()
    }
    assert targets == {name: [("demo", name)] for name in ("echo", "lorem", "tools", "embed")}


def test_without_a_file_hosts_whose_key_variable_is_set_are_served_too() -> None:
    """PORT alone does not open the listener to other machines."""
    config = load(None, {"OPENAI_API_KEY": KEY, "DEEPSEEK_API_KEY": "", "PORT": "0"})
    assert list(config.providers) == ["demo", "openai"]
    openai = config.providers["openai"]
    assert openai.api_key is not None
    assert openai.api_key.get_secret_value() == KEY
    assert config.server.listen == "127.0.0.1:0"


def test_a_key_file_is_read_relative_to_the_configuration(accept: Accept, tmp_path: Path) -> None:
    """The line end that editors add is no part of the key."""
    (tmp_path / "openai.key").write_text(f"{KEY}\n")
    provider = accept("providers: {openai: {api_key_file: openai.key}}").providers["openai"]
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == KEY


def test_secrets_do_not_print(accept: Accept, refuse: Refuse) -> None:
    """Neither a configuration nor a problem shows a key or a header's value."""
    text = f"providers: {{openai: {{api_key: {KEY}, headers: {{x-token: {KEY}}}}}}}\n"
    config = accept(text)
    shown = [repr(config), str(config), str(config.model_dump()), config.model_dump_json(), repr(config.providers)]
    assert not any(KEY in text for text in shown)
    assert json.loads(config.model_dump_json())["providers"]["openai"]["headers"] == {"x-token": "********"}
    broken = text.replace(KEY, f"'{KEY}\t'") + "auth: {anonymous: maybe}\n"
    problems = refuse(broken)
    assert len(problems) == 3
    assert KEY not in "\n".join(problems)


def test_every_problem_is_reported_at_once_with_its_line(refuse: Refuse) -> None:
    """One run names everything that is to be mended, in the order of the lines."""
    problems = refuse(
        """\
server:
  listen: 127.0.0.1
  lisen: 127.0.0.1:1
providers:
  openai:
    api_key: ${OPENAI_API_KEY}
    clocks: {idle: -1}
  rack: {adapter: opena, base_url: ftp://rack}
models:
  chat:
    targets:
      - provider: opnai
        model: gpt-5
""",
        LOG_LEVEL="loud",
    )
    assert problems == [
        "environment: LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error'",
        "headgate.yaml:2: server.listen: must be HOST:PORT, such as 127.0.0.1:50051",
        "headgate.yaml:3: server.lisen: is not a known key; did you mean listen?",
        "headgate.yaml:6: providers.openai.api_key: variable OPENAI_API_KEY is not set",
        "headgate.yaml:7: providers.openai.clocks.idle: must be greater than 0",
        "headgate.yaml:8: providers.rack.base_url: must be an http or https URL without query, such as "
        "https://api.example.com/v1",
        "headgate.yaml:8: providers.rack.adapter: there is no adapter opena; did you mean openai?",
        "headgate.yaml:12: models.chat.targets[0].provider: there is no provider opnai; did you mean openai?",
    ]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that was named is never replaced by the demo."""
    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read: No such file"):
        load(tmp_path / "nope.yaml", {})


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text have no line."""
    path = tmp_path / "headgate.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(path, {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: [1\n", "headgate.yaml:2: while parsing a flow sequence; expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n--- \nb: 2\n", "headgate.yaml:2: expected a single document in the stream; but found another document"),
        ("- server\n", "headgate.yaml: must hold a mapping of sections"),
        ("a: \0\n", "headgate.yaml: unacceptable character"),
        ("server: &s {}\nauth: *s\n", "headgate.yaml:2: aliases are not supported, write the value out"),
        ("? [a]\n: 1\n", "headgate.yaml: a key must be plain text"),
        ("[" * 5000, "headgate.yaml: is nested too deeply"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(refuse: Refuse, text: str, problem: str) -> None:
    """Syntax errors, several documents, aliases and keys that are no text."""
    assert refuse(text)[0].startswith(problem)


def test_a_tag_of_yaml_that_could_make_objects_is_refused(refuse: Refuse) -> None:
    """Nothing in a file is ever executed."""
    problem = "headgate.yaml:2: auth: the tag tag:yaml.org,2002:python/object/apply:os.getcwd is not supported"
    assert problem in refuse(DEMO + "auth: !!python/object/apply:os.getcwd []\n")


def test_a_key_that_stands_twice_is_refused(refuse: Refuse) -> None:
    """YAML parsers silently take the last one."""
    problems = refuse(DEMO + "auth:\n  anonymous: true\n  anonymous: false\n")
    assert problems == ["headgate.yaml:3: auth.anonymous: stands here and again in line 4"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("budget: {}", "budget: is not a known key"),
        ("server: {port: 1}", "server.port: is not a known key"),
        ("providers: {demo: {adaptor: mock, adapter: mock}}", "adaptor: is not a known key; did you mean adapter?"),
        ("providers: {demo: {adapter: mock, mock: {dely: 1}}}", "mock.dely: is not a known key; did you mean delay?"),
        (
            "providers: {demo: {adapter: mock, clocks: {idel: 1}}}",
            "clocks.idel: is not a known key; did you mean idle?",
        ),
        (
            "providers: {demo: {adapter: mock, quirks: {stream_usag: no}}}",
            "quirks.stream_usag: is not a known key; did you mean stream_usage?",
        ),
        (
            "models: {chat: {targets: [{provider: demo, modle: x, model: x}]}}",
            "models.chat.targets[0].modle: is not a known key; did you mean model?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(refuse: Refuse, text: str, problem: str) -> None:
    """At every depth of the tree."""
    problems = refuse(text if text.startswith("providers") else f"{DEMO}{text}")
    assert len(problems) == 1
    assert problems[0].endswith(problem)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("server: 5", "server: must be a mapping"),
        ("server: {reflection: perhaps}", "server.reflection: must be a valid boolean"),
        ("server: {max_concurrent_streams: many}", "server.max_concurrent_streams: must be a valid integer"),
        ("server: {max_concurrent_streams: 0}", "server.max_concurrent_streams: must be greater than or equal to 1"),
        ("server: {max_concurrent_calls: -1}", "server.max_concurrent_calls: must be greater than or equal to 0"),
        ("server: {max_reply_bytes: big}", "server.max_reply_bytes: must be a size, such as 4194304 or 4MiB"),
        ("server: {max_reply_bytes: 1}", "server.max_reply_bytes: must be greater than or equal to 1024"),
        ("server: {max_reply_bytes: 2GiB}", "server.max_reply_bytes: must be less than or equal to 1073741824"),
        ("server: {drain_delay: -1}", "server.drain_delay: must be greater than or equal to 0"),
        ("server: {keepalive_time: nan}", "server.keepalive_time: must be a finite number"),
        ("models: [chat]", "models: must be a mapping"),
        ("models: {chat: {}}", "models.chat.targets: is required"),
        ("models: {chat: {targets: []}}", "models.chat.targets: must not be empty"),
        ("models: {chat: {targets: demo/echo}}", "models.chat.targets: must be a list"),
        ("models: {chat: {targets: [{provider: demo}]}}", "models.chat.targets[0].model: is required"),
        ("models: {chat: {targets: [{provider: demo, model: ''}]}}", "model: must have at least 1 character"),
        ("models: {a/b: {targets: [{provider: demo, model: x}]}}", "models.a/b: an alias is a word without slash"),
        ("telemetry: {log_format: xml}", "telemetry.log_format: must be 'json' or 'console'"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(refuse: Refuse, setting: str, problem: str) -> None:
    """The reason says what is expected."""
    problems = refuse(f"{DEMO}{setting}\n")
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize("address", ["50051", ":50051", "localhost", "::1:50051", "127.0.0.1:x", "127.0.0.1:65536"])
def test_an_address_that_is_not_host_and_port_is_refused(refuse: Refuse, address: str) -> None:
    """An IPv6 host needs brackets."""
    (problem,) = refuse(f"{DEMO}server: {{listen: '{address}'}}\n")
    assert problem.startswith("headgate.yaml:2: server.listen: must ")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "headgate.internal"])
def test_an_open_listener_must_say_that_callers_are_anonymous(accept: Accept, refuse: Refuse, host: str) -> None:
    """There is no authentication yet, and nobody should find that out from a bill."""
    text = f"{DEMO}server: {{listen: '{host}:50051'}}\n"
    (problem,) = refuse(text)
    assert problem.startswith(f"headgate.yaml:2: server.listen: {host.strip('[]')} is open to other machines")
    assert accept(text + "auth: {anonymous: true}\n").server.listen == f"{host}:50051"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_a_loopback_listener_needs_no_authentication(accept: Accept, host: str) -> None:
    """Only this machine can reach it."""
    assert accept(f"{DEMO}server: {{listen: '{host}:1'}}\n").auth.anonymous is False


@pytest.mark.parametrize("port", ["x", "-1", "65536", "tcp://10.0.0.1:50051"])
def test_a_port_variable_that_is_no_port_is_refused(refuse: Refuse, port: str) -> None:
    """The variable is named, not the line of the file."""
    assert refuse(DEMO, PORT=port) == ["environment: PORT: must be a port number"]


def test_a_variable_that_is_not_set_is_refused(refuse: Refuse) -> None:
    """It is the only thing said about that value, whatever type it should have had."""
    problems = refuse(DEMO + "server: {max_concurrent_calls: '${CALLS}'}\n")
    assert problems == ["headgate.yaml:2: server.max_concurrent_calls: variable CALLS is not set"]


@pytest.mark.parametrize("text", ["${", "${1}", "${A-B}", "${A", "${}", "a ${ A } b"])
def test_a_malformed_reference_to_a_variable_is_refused(refuse: Refuse, text: str) -> None:
    """A typing mistake must not become a key that the vendor rejects."""
    problems = refuse(f"providers: {{openai: {{api_key: '{text}'}}}}", A="a")
    assert problems == ["headgate.yaml:1: providers.openai.api_key: a variable is written ${NAME} or ${NAME:-default}"]


def test_a_configuration_without_providers_is_refused(refuse: Refuse) -> None:
    """It could answer nothing."""
    assert refuse("") == ["headgate.yaml: providers: must name at least one provider"]


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        ("opnai: {}", "opnai.adapter: is required, because opnai is not a known host; did you mean openai?"),
        ("mine: {host: opnai}", "mine.host: there is no host opnai; did you mean openai?"),
        ("mine: {adapter: opnai, base_url: http://x}", "mine.adapter: there is no adapter opnai; did you mean openai?"),
        ("mine: {adapter: openai}", "mine.base_url: is required, because no address is known"),
        ("openai: {}", "openai.api_key: is required, such as api_key: ${OPENAI_API_KEY}; or give api_key_file"),
        ("openai: {api_key: ''}", "openai.api_key: must be printable ASCII text, and not empty"),
        ("openai: {api_key: schlüssel}", "openai.api_key: must be printable ASCII text, and not empty"),
        ("openai: {api_key: x, base_url: api.openai.com}", "openai.base_url: must be an http or https URL"),
        ("openai: {api_key: x, base_url: 'http://x/v1?a=b'}", "openai.base_url: must be an http or https URL"),
        ("openai: {api_key: x, base_url: 'http://a b/'}", "openai.base_url: must be an http or https URL"),
        ("openai: {api_key: x, base_url: 'http://a:99999/'}", "openai.base_url: Port out of range"),
        ("openai: {api_key: x, base_url: 'http://a:0/'}", "openai.base_url: must not have port 0"),
        ("openai: {api_key: x, base_url: 'http://me:pw@x/'}", "openai.base_url: must not hold a user name or password"),
        ("openai: {api_key: x, headers: {'x y': z}}", "openai.headers.x y: is not a header name"),
        ('openai: {api_key: x, headers: {x: "a\\r\\nb: c"}}', "openai.headers.x: must be printable ASCII text"),
        ("openai: {api_key: x, mock: {}}", "openai: mock is only for the adapter mock"),
        ("openai: {api_key: x, quirks: {stream_usage: 5}}", "openai.quirks.stream_usage: must be a valid boolean"),
        ("a/b: {adapter: mock}", "a/b: a provider's name is 1 to 64 letters, digits, dots, underscores or hyphens"),
        (
            "demo: {adapter: mock, mock: {failures: [{}]}}",
            "demo.mock.failures[0]: must have exactly one of",
        ),
    ],
)
def test_a_provider_that_could_not_be_called_is_refused(refuse: Refuse, provider: str, problem: str) -> None:
    """Unknown hosts and adapters, missing addresses and keys, and what no HTTP request could carry."""
    problems = refuse(f"providers:\n  {provider}\n")
    assert len(problems) == 1
    assert problems[0].startswith(f"headgate.yaml:2: providers.{problem}")


@pytest.mark.parametrize(
    "provider", ["openai: {base_url: http://proxy/v1}", "ollama: {}", "vllm: {}", "openai: {adapter: mock}"]
)
def test_a_host_of_ones_own_needs_no_key(accept: Accept, provider: str) -> None:
    """Only a known service at its known address does."""
    assert accept(f"providers: {{{provider}}}").providers


def test_a_key_and_a_key_file_together_are_refused(refuse: Refuse) -> None:
    """Which of them counts would be a guess."""
    problems = refuse("providers:\n  openai:\n    api_key: x\n    api_key_file: y\n")
    assert problems == [
        "headgate.yaml:4: providers.openai.api_key_file: must not stand beside api_key: the key comes from one place"
    ]


def test_a_key_file_that_cannot_be_read_is_refused(refuse: Refuse) -> None:
    """The file is read at start, not at the first call."""
    problems = refuse("providers: {openai: {api_key_file: nope}}")
    assert problems == ["headgate.yaml:1: providers.openai.api_key_file: cannot be read: No such file or directory"]


def test_a_key_file_without_a_key_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    """An empty file is a mount that went wrong."""
    (tmp_path / "empty").write_text("\n")
    problems = refuse("providers: {openai: {api_key_file: empty}}")
    assert problems == ["headgate.yaml:1: providers.openai.api_key_file: holds no key"]


def test_a_target_at_an_unknown_provider_is_refused(refuse: Refuse) -> None:
    """Every dangling reference is named, not only the first."""
    problems = refuse(DEMO + "models: {chat: {targets: [{provider: a, model: x}, {provider: dem, model: x}]}}\n")
    assert problems == [
        "headgate.yaml:2: models.chat.targets[0].provider: there is no provider a",
        "headgate.yaml:2: models.chat.targets[1].provider: there is no provider dem; did you mean demo?",
    ]


def test_an_installed_adapter_that_cannot_be_imported_is_one_line(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is broken, or lacks an extra of its own, is found at start."""
    _install_adapter(tmp_path, "import no_such_module\n", monkeypatch)
    (problem,) = refuse("providers: {mine: {adapter: third, base_url: http://x}}")
    assert problem == (
        "headgate.yaml:1: providers.mine.adapter: the adapter third cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_an_installed_adapter_is_found_by_its_entry_point(
    accept: Accept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other people's adapters need no change here."""
    _install_adapter(tmp_path, "", monkeypatch)
    assert accept("providers: {mine: {adapter: third, base_url: http://x}}").providers["mine"].adapter == "third"


def test_the_example_configuration_is_valid() -> None:
    """What the repository shows people works, and uses no more variables than it says."""
    example = ROOT / "headgate.example.yaml"
    variables = set(re.findall(r"\$\{(\w+)\}", re.sub(r"#.*", "", example.read_text())))
    config = load(example, dict.fromkeys(variables, "x"))
    assert {"openai", "demo"} <= config.providers.keys()
    assert variables == {"OPENAI_API_KEY", "DASHSCOPE_API_KEY"}


def _install_adapter(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a distribution on the path whose entry point `third` is a module with this source."""
    (folder / "third_adapter.py").write_text(source)
    metadata = folder / "third-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[headgate.adapters]\nthird = third_adapter\n")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("third_adapter", None)
    importlib.invalidate_caches()
