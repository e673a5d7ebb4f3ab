"""docs/clients.md: each snippet runs, in its language, against a real Headgate with mock and llama.cpp behind it."""

from __future__ import annotations

import re
import shlex
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.programs import by_task, files_of, run_go, run_python, run_typescript, snippets
from tests.headgate_process import running
from tests.tools import REAL_SERVER, ROOT, inference_server, run, tool

pytestmark = pytest.mark.xdist_group("typescript")  # one at a time builds the TypeScript client
DOCUMENT = ROOT / "docs" / "clients.md"
LANGUAGES = ("python", "typescript", "go")
CONNECT = "Connect"
JSON = "6. JSON"
PNG = b"\x89PNG\r\n\x1a\n"
PRINTED = {
    "1. Call": r"lorem ipsum .* 50",
    "2. Stream": r"lorem ipsum .* \w+",
    "3. Cancel": r"lorem.*",
    "4. Deadline": r"too slow",
    "5. Tools": r"The tool answered: 3 degrees in city",
    JSON: r"bool(ean)?",
    "7. Image": r"What is on it\?",
    "8. Embeddings": r"\(2, 256\)|2 256",
    "9. Errors": r"MODEL_NOT_FOUND (?i:false)",
    "10. Tests": r"Hello from the script",
}


@pytest.mark.real_server
@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_task_does_what_the_page_says(language: str, tmp_path: Path) -> None:
    """All ten, as one program in the language; JSON needs a real model, which the mock is not."""
    (tmp_path / "cat.png").write_bytes(PNG)
    tasks = snippets(DOCUMENT, language)
    connect = tasks.pop(CONNECT)
    assert tasks.keys() == PRINTED.keys()
    providers: dict[str, Any] = {
        "demo": {"adapter": "mock"},
        "late": {"adapter": "mock", "mock": {"delay": 30}},
    }
    targets = {
        "fast": "demo/lorem",
        "smart": "demo/tools",
        "vision": "demo/echo",
        "embedder": "demo/embed",
        "slow": "late/echo",
    }
    async with AsyncExitStack() as stack:
        if (REAL_SERVER / "start_server.py").exists():
            base_url = await stack.enter_async_context(inference_server(tmp_path, "chat"))
            providers["local"] = {"adapter": "openai", "base_url": base_url}
            targets["small"] = "local/tiny"
        else:
            del tasks[JSON]
        models = {alias: {"targets": [_target(target)]} for alias, target in targets.items()}
        headgate = await stack.enter_async_context(running(providers=providers, models=models))
        env = {"HEADGATE_ADDRESS": headgate.address, "HEADGATE_API_KEY": ""}
        if language == "python":
            output = await run_python(tasks, connect, tmp_path, env)
        elif language == "typescript":
            output = await run_typescript(tasks, connect, tmp_path, env)
        else:
            output = await run_go(tasks, connect, tmp_path, env, files_of(DOCUMENT, "go"))
    printed = by_task(output)
    for task in tasks:
        assert re.fullmatch(PRINTED[task], printed[task].strip(), re.DOTALL), f"{task} printed {printed[task]!r}"


def test_each_task_is_told_in_each_language() -> None:
    """The same tasks, in the same order."""
    titles = [list(snippets(DOCUMENT, language)) for language in LANGUAGES]
    assert titles[0] == titles[1] == titles[2] == [CONNECT, *PRINTED]


def _target(name: str) -> dict[str, str]:
    provider, model = name.split("/")
    return {"provider": provider, "model": model}


@pytest.mark.tools
async def test_the_cheat_sheet_of_grpcurl_works() -> None:
    """Each of its lines, as it stands."""
    sheet = re.search(r"^## grpcurl$.*?^```sh\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert sheet
    targets = {"fast": "demo/lorem", "embedder": "demo/embed"}
    models = {alias: {"targets": [_target(target)]} for alias, target in targets.items()}
    async with running(providers={"demo": {"adapter": "mock"}}, models=models) as headgate:
        for line in sheet[1].splitlines():
            words = [word.replace("localhost:50051", headgate.address) for word in shlex.split(line)]
            finished = await run(tool(words[0]), *words[1:])
            assert finished.code == 0, f"{line}: {finished.stderr}"
            assert finished.stdout
