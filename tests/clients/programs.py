"""Programs in Python, TypeScript and Go that call a server by its language's client, and the snippets of the docs."""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.tools import ROOT, node_packages, program, run

TYPESCRIPT = ROOT / "clients" / "typescript"
GO = ROOT / "clients" / "go"
SECTION = re.compile(r"^## (?P<title>.+?)\n(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(
    r"^```(?P<language>python|typescript|go)(?P<file> file)?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
TYPESCRIPT_IMPORT = re.compile(r"^import .*\n", re.MULTILINE)
GO_PACKAGES = {
    **{name: name for name in ("context", "errors", "fmt", "net", "os", "time")},
    "grpc": "google.golang.org/grpc",
    "headgate": "headgate.dev/go/headgate",
    "headgatev1": "headgate.dev/go/headgate/v1",
    "tls": "crypto/tls",
}

Snippets = Mapping[str, str]
"""Code by the title of its task."""


def snippets(document: Path, language: str) -> dict[str, str]:
    """The tasks of a document in one language."""
    found: dict[str, str] = {}
    for section in SECTION.finditer(document.read_text("utf-8")):
        for snippet in SNIPPET.finditer(section["body"]):
            if snippet["language"] == language and not snippet["file"]:
                assert section["title"] not in found, f"{section['title']} has two snippets of {language}"
                found[section["title"]] = snippet["code"]
    return found


def files_of(document: Path, language: str) -> str:
    """What stands outside of functions."""
    all_of_them = SNIPPET.finditer(document.read_text("utf-8"))
    return "\n".join(one["code"] for one in all_of_them if one["language"] == language and one["file"])


def by_task(output: str) -> dict[str, str]:
    """What each task printed."""
    found: dict[str, str] = defaultdict(str)
    task = ""
    for line in output.splitlines(keepends=True):
        if line.startswith("== "):
            task = line.removeprefix("== ").strip()
        found[task] += "" if line.startswith("== ") else line
    return found


async def run_python(tasks: Snippets, connect: str, directory: Path, env: Mapping[str, str]) -> str:
    """What the tasks print, each a function that has `client`."""
    lines = [connect]
    for title, code in tasks.items():
        lines += [f'print("\\n== {title}")', "def task():", *[f"    {line}" for line in code.splitlines()], "task()"]
    main = directory / "main.py"
    main.write_text("\n".join(lines), "utf-8")
    return await _output(sys.executable, str(main), cwd=directory, env=env)


async def run_typescript(tasks: Snippets, connect: str, directory: Path, env: Mapping[str, str]) -> str:
    """What the tasks print, each a block of a module that `tsc --strict` has compiled."""
    npm, node = program("npm", "npm"), program("node", "nodejs")
    node_packages()
    if _is_stale(TYPESCRIPT / "dist" / "index.js", TYPESCRIPT / "src"):
        await _output(npm, "run", "--silent", "build", cwd=TYPESCRIPT, env={})
    parts = [connect, *[f'console.log("\\n== {title}");\n{{\n{code}}}\n' for title, code in tasks.items()]]
    body = "".join(parts)
    imports = dict.fromkeys(merged_imports(TYPESCRIPT_IMPORT.findall(body)))
    # the package is found by its own name from below its folder alone
    inside = TYPESCRIPT / "build" / directory.name
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir(parents=True)
    (inside / "main.ts").write_text("\n".join(imports) + "\n" + TYPESCRIPT_IMPORT.sub("", body), "utf-8")
    (inside / "tsconfig.json").write_text(
        '{"extends": "../../tsconfig.json", "files": ["main.ts"], "include": [],'
        ' "compilerOptions": {"rootDir": ".", "outDir": ".", "declaration": false}}'
    )
    await _output(str(TYPESCRIPT / "node_modules" / ".bin" / "tsc"), "-p", str(inside), cwd=inside, env={})
    try:
        return await _output(node, str(inside / "main.js"), cwd=directory, env=env)
    finally:
        shutil.rmtree(inside)


def merged_imports(statements: list[str]) -> list[str]:
    """One statement for each module."""
    names: dict[str, set[str]] = defaultdict(set)
    for statement in statements:
        matched = re.fullmatch(r'import \{ (.*) \} from ("[^"]+");\n', statement)
        assert matched, f"an import of another form: {statement}"
        names[matched[2]].update(matched[1].split(", "))
    return [f"import {{ {', '.join(sorted(used))} }} from {module};" for module, used in names.items()]


async def run_go(tasks: Snippets, connect: str, directory: Path, env: Mapping[str, str], more: str = "") -> str:
    """What the tasks print, each a function with `ctx` and `client` in a module of its own."""
    go = program("go", "golang")
    functions, calls = [more], []
    for number, (title, code) in enumerate(tasks.items()):
        arguments = "ctx context.Context, client *headgate.Client"
        functions.append(f"func task{number}({arguments}) error {{\n{code}\nreturn nil\n}}\n")
        calls.append(f'fmt.Println("\\n== {title}")\nif err := task{number}(ctx, client); err != nil {{ panic(err) }}')
    start = "if err != nil { panic(err) }\nctx := context.Background()"
    body = "\n".join([*functions, "func main() {", connect, start, *calls, "}"])
    used = [path for name, path in GO_PACKAGES.items() if re.search(rf"\b{name}\.", body)]
    imports = "\n".join(f'"{path}"' if not path.endswith("/v1") else f'headgatev1 "{path}"' for path in used)
    (directory / "main.go").write_text(f"package main\n\nimport (\n{imports}\n)\n\n{body}", "utf-8")
    module = (GO / "go.mod").read_text().replace("module headgate.dev/go", "module example.com/program")
    (directory / "go.mod").write_text(f"{module}\nrequire headgate.dev/go v0.0.0\nreplace headgate.dev/go => {GO}\n")
    shutil.copy(GO / "go.sum", directory)
    return await _output(go, "run", "-mod=mod", ".", cwd=directory, env=env)


def _is_stale(built: Path, sources: Path) -> bool:
    return not built.exists() or any(path.stat().st_mtime > built.stat().st_mtime for path in sources.rglob("*.ts"))


async def _output(*command: str, cwd: Path, env: Mapping[str, str]) -> str:
    finished = await run("env", "--chdir", str(cwd), *command, env=env)
    assert finished.code == 0, finished.stdout + finished.stderr
    return finished.stdout
