"""The section `limits`: what it may say, and one test for each reason to refuse it, with its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headgate_server.config import Config, ConfigError, load
from tests.tools import ROOT, run

BEFORE = "providers: {demo: {adapter: mock}}\nlimits:\n"
SECRET = "hunter2"


def read(folder: Path, section: str, **environment: str) -> Config:
    """The configuration of a file with this section, which begins in line 3."""
    path = folder / "headgate.yaml"
    path.write_text(BEFORE + section, "utf-8")
    return load(path, environment)


def problems(folder: Path, section: str, **environment: str) -> list[str]:
    """The problems of such a file, without the folder in front."""
    with pytest.raises(ConfigError) as refused:
        read(folder, section, **environment)
    return str(refused.value).replace(f"{folder}/", "").splitlines()


def test_rules_and_store_arrive_in_the_tree(tmp_path: Path) -> None:
    """Every key, with the address of Redis kept out of sight."""
    config = read(
        tmp_path,
        """
  rules:
    - {unit: requests, limit: 600, window: 60, per: [tenant, model]}
    - {unit: total_tokens, limit: 1000, window: 0.5, algorithm: token_bucket, burst: 5000, only: {model: ["gpt-*"]}}
    - {unit: concurrency, limit: 3, per: [key]}
  store: {type: redis, url: "rediss://:${PASSWORD}@redis:6379/1", timeout: 0.05, on_failure: closed, lease: 10}
  estimate: {bytes_per_token: 3, output_tokens: 100}
""",
        PASSWORD=SECRET,
    )
    requests, tokens, concurrency = config.limits.rules
    assert (requests.limit, requests.window, requests.per, requests.algorithm) == (
        600,
        60,
        ("tenant", "model"),
        "sliding_window",
    )
    assert (tokens.window, tokens.burst, tokens.only) == (0.5, 5000, {"model": ("gpt-*",)})
    assert (concurrency.unit, concurrency.window) == ("concurrency", None)
    store = config.limits.store
    assert (store.timeout, store.on_failure, store.lease, store.key_prefix) == (0.05, "closed", 10, "{headgate}:")
    assert store.url is not None
    assert SECRET in store.url.get_secret_value()
    assert SECRET not in repr(config)
    assert SECRET not in config.model_dump_json()
    assert (config.limits.estimate.bytes_per_token, config.limits.estimate.image_tokens) == (3, 5000)


def test_the_address_of_redis_may_come_from_a_file(tmp_path: Path) -> None:
    """Relative to the configuration file, like every secret."""
    (tmp_path / "redis-url").write_text(f"redis://:{SECRET}@redis\n")
    store = read(tmp_path, "  store: {type: redis, url_file: redis-url}\n").limits.store
    assert store.url is not None
    assert store.url.get_secret_value() == f"redis://:{SECRET}@redis"


REFUSED = {
    "  rules: [{unit: requests, limit: 0, window: 60}]": "limits.rules[0].limit: must be greater than or equal to 1",
    "  rules: [{unit: requests, limit: 5}]": "limits.rules[0]: window is required",
    "  rules: [{unit: requests, limit: 5, window: 0}]": "limits.rules[0].window: must be greater than",
    "  rules: [{unit: concurrency, limit: 5, window: 60}]": "limits.rules[0]: concurrency has neither window nor",
    "  rules: [{unit: concurrency, limit: 5, algorithm: token_bucket}]": "limits.rules[0]: concurrency has neither",
    "  rules: [{unit: requests, limit: 5, window: 60, burst: 9}]": "limits.rules[0]: burst is only for",
    "  rules: [{unit: words, limit: 5, window: 60}]": "limits.rules[0].unit: must be 'requests',",
    "  rules: [{unit: requests, limit: 5, window: 60, per: [team]}]": "limits.rules[0].per[0]: must be key,",
    "  rules: [{unit: requests, limit: 5, window: 60, only: {model: []}}]": "limits.rules[0].only.model: must not be",
    "  rules: [{unit: requests, limit: 5, windw: 60}]": "limits.rules[0].windw: is not a known key; did you",
    "  store: {type: redis}": "limits.store: url is required for redis",
    "  store: {url: redis://redis}": "limits.store: url is only for redis",
    f"  store: {{type: redis, url: 'http://:{SECRET}@redis'}}": "limits.store.url: must be a redis, rediss or",
    "  store: {type: redis, url: redis://redis, key_prefix: 'headgate:'}": "limits.store.key_prefix: must have a",
    "  store: {type: redis, url: redis://redis, timeout: 0}": "limits.store.timeout: must be greater than",
    "  store: {type: redis, url_file: absent}": "limits.store.url_file: cannot be read",
    "  store: {type: redis, url: redis://redis, url_file: x}": "limits.store.url_file: must not stand beside url",
    "  store: {type: sqlite}": "limits.store.type: must be 'memory' or 'redis'",
    "  estimate: {bytes_per_token: 0}": "limits.estimate.bytes_per_token: must be greater than",
}


@pytest.mark.parametrize(("section", "problem"), REFUSED.items(), ids=[str(n) for n in range(len(REFUSED))])
def test_a_mistake_is_named_with_its_line(tmp_path: Path, section: str, problem: str) -> None:
    """One problem for each, at the key that is wrong, without what is secret."""
    (only,) = problems(tmp_path, section)
    assert only.startswith(f"headgate.yaml:3: {problem}")
    assert SECRET not in only


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/{SECRET}@redis:6379",
        f"redis://user:{SECRET}/{SECRET}@redis",
        f"redis://user:12/{SECRET}@redis",
        f"redis://user:12?{SECRET}@redis",
        f"redis://user:12#{SECRET}@redis",
        f"redis://:{SECRET}@{SECRET}@redis",
        f"redis://:{SECRET}@[redis",
        f"redis://:{SECRET}@redis/zero",
        f"redis://:{SECRET}@redis?db=zero",
        f"redis://:{SECRET}@redis?socket_timeout={SECRET}",
        f"redis://:{SECRET}@redis?{SECRET}=1",
        f"redis://:{SECRET}@redis?max_connections=0.5",
    ],
)
@pytest.mark.parametrize("place", ["file", "environment"])
def test_an_address_that_redis_cannot_use_is_one_problem_without_its_password(
    tmp_path: Path, url: str, place: str
) -> None:
    """At the start, not at the first call, whatever the library would say of it."""
    if place == "file":
        (tmp_path / "redis-url").write_text(url)
        (only,) = problems(tmp_path, "  store: {type: redis, url_file: redis-url}")
    else:
        (only,) = problems(tmp_path, '  store: {type: redis, url: "${URL}"}', URL=url)
    assert "must be a redis, rediss or unix URL" in only
    assert SECRET not in only


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}%2F%40@redis:6379/3",
        f"rediss://user:{SECRET}@redis?ssl_ca_certs=/ca.pem",
        "redis://[::1]:6379?db=2",
        f"unix://user:{SECRET}@/run/redis.sock?db=1",
    ],
)
def test_an_address_that_redis_can_use_is_taken(tmp_path: Path, url: str) -> None:
    """With escapes, options and sockets."""
    store = read(tmp_path, '  store: {type: redis, url: "${URL}"}', URL=url).limits.store
    assert store.url is not None
    assert store.url.get_secret_value() == url


def test_two_rules_on_one_counter_are_refused(tmp_path: Path) -> None:
    """They would count every call twice; the order of scopes and patterns makes no difference."""
    section = """  rules:
    - {unit: requests, limit: 5, window: 60, per: [key, tenant]}
    - {unit: requests, limit: 5, window: 61, per: [key, tenant]}
    - {unit: requests, limit: 9, window: 60, per: [tenant, key]}
"""
    assert problems(tmp_path, section) == ["headgate.yaml:6: limits.rules[2]: limits the same as limits.rules[0]"]


async def test_redis_without_its_extra_is_one_clear_line(tmp_path: Path) -> None:
    """At the start, not at the first call; the program runs in a Python that cannot import redis."""
    path = tmp_path / "headgate.yaml"
    path.write_text(f"{BEFORE}  store: {{type: redis, url: redis://redis}}\n")
    program = (
        "import sys; sys.modules['redis'] = None; from headgate_server.cli import main; "
        f"sys.argv = ['headgate', 'check-config', {str(path)!r}]; sys.exit(main())"
    )
    finished = await run(sys.executable, "-c", program)
    assert finished.code == 2
    assert "limits.store.type: redis is not installed: pip install 'headgate-server[redis]'" in " ".join(
        (finished.stdout + finished.stderr).split()
    )


def test_the_readme_s_example_is_a_good_configuration(tmp_path: Path) -> None:
    """Every key in it exists, and every rule can stand beside the others."""
    section = (ROOT / "README.md").read_text("utf-8").partition("### Limits\n")[2]
    example = section.partition("```yaml\nlimits:\n")[2].partition("```")[0]
    assert len(read(tmp_path, example, REDIS_PASSWORD=SECRET).limits.rules) == 5
