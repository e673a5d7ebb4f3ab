"""The container image: what its Dockerfile says, and its install steps in a fresh environment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from headgate import v1 as pb
from packaging.requirements import Requirement

from headgate_server.config import load
from tests.headgate_process import ask
from tests.tools import ROOT, Finished

INSTALL_SECONDS = 100


@dataclass(slots=True)
class Stage:
    """One stage of a Dockerfile: its base, and its instructions in order. A heredoc stands under its file's name."""

    base: str
    name: str = ""
    instructions: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def all(self, word: str) -> list[str]:
        return [text for name, text in self.instructions if name == word]

    def one(self, word: str) -> str:
        (text,) = self.all(word)
        return text

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for text in self.all("ENV") for pair in text.split())


def stages() -> list[Stage]:
    """The Dockerfile, with continued lines joined."""
    found: list[Stage] = []
    lines = iter(re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines())
    for line in lines:
        if not line or line.startswith("#"):
            continue
        word, _, text = line.partition(" ")
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            found.append(Stage(base, name))
        elif found and (heredoc := re.fullmatch(r"<<(\w+) (\S+)", text)):
            body = iter(lambda: next(lines), heredoc[1])
            found[-1].files[heredoc[2]] = "\n".join(body) + "\n"
        elif found:
            found[-1].instructions.append((word, text))
    return found


WANTING_EXTRAS = {
    ("google", "google-auth"): "providers:\n  vertex: {base_url: https://127.0.0.1/v1, credential: {type: google}}\n",
    ("otel", "opentelemetry-sdk"): "providers: {demo: {adapter: mock}}\ntelemetry: {traces: {enabled: true}}\n",
}
BUILD, RUNTIME = stages()


def test_the_image_is_built_in_two_stages_of_one_slim_base() -> None:
    """Compilers and sources stay behind; only what was installed is copied over."""
    assert BUILD.base == RUNTIME.base == "python:${PYTHON}-slim"
    assert RUNTIME.all("COPY") == [f"--from={BUILD.name} /opt/headgate /opt/headgate"]
    (packages,) = RUNTIME.all("RUN")
    assert "--no-install-recommends ca-certificates" in packages


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    """Kubernetes' runAsNonRoot can only check a number."""
    user, group = RUNTIME.one("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    names = [name for name, _ in RUNTIME.instructions]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_image_starts_the_server_itself_without_a_shell() -> None:
    """SIGTERM has to reach the server, so nothing stands in between."""
    assert json.loads(RUNTIME.one("ENTRYPOINT")) == ["headgate"]
    assert json.loads(RUNTIME.one("CMD")) == ["serve"]
    assert RUNTIME.one("EXPOSE") == "50051 9464"


def test_the_images_environment_is_quiet_unbuffered_and_writes_nothing() -> None:
    """Logs come at once, the gRPC core is silent, and the root file system may be read-only."""
    environment = RUNTIME.environment
    assert environment["GRPC_VERBOSITY"] == "ERROR"
    assert environment["PYTHONUNBUFFERED"] == environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment["PATH"].startswith("/opt/headgate/bin:")
    assert RUNTIME.all("VOLUME") == []


def test_the_dockerfile_pipes_nothing_into_a_shell_and_names_no_host() -> None:
    """What is installed comes from the tree and from where the machine that builds looks by itself."""
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"curl|wget|https?://|--index-url|--extra-index-url|ADD ", text)
    assert not re.search(r"FROM \S*\.\S*/", text)


def test_what_the_image_installs_is_pinned_by_hash() -> None:
    """Every package that the server and its extras need, in a version that pyproject.toml allows; no index is named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for name in extras if name != "dev" for one in extras[name])]
    text = (ROOT / "requirements" / "image.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    for requirement in map(Requirement, wanted):
        if not requirement.name.startswith("headgate"):
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), f"{requirement}: run `make lock`"
    for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry
    assert "://" not in text
    assert all(
        f"--require-hashes --requirement requirements/{name}.txt" in BUILD.all("RUN")[0] for name in ("image", "build")
    )


def test_the_images_own_configuration_listens_for_everybody_and_holds_no_key(tmp_path: Path) -> None:
    """0.0.0.0 is written down where the listener is; without a file of the operator's only the mock is served."""
    file = tmp_path / "headgate.yaml"
    file.write_text(RUNTIME.files[RUNTIME.environment["HEADGATE_CONFIG"]])
    config = load(file, {"OPENAI_API_KEY": "sk-1"})
    exposed = [f"0.0.0.0:{port}" for port in RUNTIME.one("EXPOSE").split()]
    assert [config.server.listen, config.admin.listen] == exposed
    assert [provider.adapter for provider in config.providers.values()] == ["mock"]


@pytest.mark.image
@pytest.mark.timeout(300)
async def test_what_the_image_installs_serves(tmp_path: Path) -> None:
    """The build stage's own steps, in a folder instead of a container: both wheels install, and `headgate` works."""
    source = tmp_path / "src"
    for copied in BUILD.all("COPY"):
        *paths, target = copied.split()
        for path in paths:
            _copy(ROOT / path, source / (path if target == "./" else target))
    base = await run(sys.executable, "-m", "venv", str(tmp_path / "base"))
    assert base.code == 0, base.stderr
    on_path = {"PATH": f"{tmp_path / 'base' / 'bin'}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for step in BUILD.all("RUN"):
        here = re.sub(r"(?<![\w.])/(wheels|opt)/?", rf"{tmp_path}/\1/", step)
        done = await run("sh", "-euc", quick(here), folder=source, environment=on_path)
        if "No matching distribution" in done.stderr and os.environ.get("CI") != "true":
            pytest.skip("packages cannot be had here")
        assert done.code == 0, done.stderr

    headgate = str(tmp_path / "opt/headgate/bin/headgate")
    version = await run(headgate, "version", "--json")
    assert json.loads(version.stdout)["contract"] == "headgate.v1"

    config = tmp_path / "headgate.yaml"
    config.write_text(RUNTIME.files[RUNTIME.environment["HEADGATE_CONFIG"]])
    image = {**RUNTIME.environment, **on_path, "HEADGATE_CONFIG": str(config), "PORT": "0", "HEADGATE_ADMIN_PORT": "0"}
    async with serving(headgate, image) as address, grpc.aio.insecure_channel(address) as channel:
        answer = await pb.InferenceServiceStub(channel).Generate(ask("echo"), wait_for_ready=True, timeout=10)
    assert answer.candidates[0].message.parts[0].text == "Hi"

    for (extra, package), wanting in WANTING_EXTRAS.items():
        config.write_text(wanting)
        removed = await run(str(Path(headgate).with_name("pip")), "uninstall", "--yes", package)
        assert removed.code == 0, removed.stderr
        missing = await run(headgate, "serve", environment=image)
        assert missing.code == 2
        (line,) = missing.stderr.splitlines()
        assert line.endswith(f"pip install 'headgate-server[{extra}]'")


def quick(step: str) -> str:
    """The same step with packages installed by uv, where that is there: it verifies hashes, too, and takes seconds."""
    if shutil.which("uv") is None:
        return step
    pip = r"((?:\S+/)?)pip install --no-cache-dir"
    return re.sub(pip, r'uv pip install --quiet --compile-bytecode --python "$(command -v \1python)"', step)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "dist", "build"))
    else:
        shutil.copy(source, target)


async def run(*command: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Finished:
    """Runs a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    async with asyncio.timeout(INSTALL_SECONDS):
        stdout, stderr = await process.communicate()
    return Finished(process.returncode or 0, stdout.decode(), stderr.decode())


@asynccontextmanager
async def serving(headgate: str, environment: Mapping[str, str]) -> AsyncIterator[str]:
    """`headgate serve`, and the address that it says it serves, on loopback."""
    process: Any = await asyncio.create_subprocess_exec(
        headgate,
        "serve",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(20):
            first = (await process.stdout.readline()).decode()
        assert first, (await process.stderr.read()).decode()
        yield f"127.0.0.1:{first.strip().rpartition(':')[2]}"
    finally:
        process.terminate()
        await process.communicate()
