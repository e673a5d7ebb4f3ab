"""What a release publishes: one version everywhere, the same bytes each time, and packages that their tools take."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from release import version
from release.dist import build
from release.version import ROOT, current, stated
from tests.tools import node_packages, program, run

pytestmark = pytest.mark.xdist_group("typescript")  # one at a time builds the TypeScript client


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of it."""
    program("npm", "npm")
    node_packages()
    target = tmp_path_factory.mktemp("dist")
    build(target)
    return target


def test_one_version_is_stated_everywhere() -> None:
    """Server, clients and their lock files say the same."""
    assert set(map(frozenset, stated().values())) == {frozenset({current()})}


def test_a_new_version_is_written_everywhere(tmp_path: Path) -> None:
    """And nothing but a semantic version, nor over places that differ."""
    for place in version.PLACES:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    version.write("7.8.9-rc.1", tmp_path)
    assert current(tmp_path) == "7.8.9-rc.1"
    with pytest.raises(ValueError, match="no semantic version"):
        version.write("8", tmp_path)
    (tmp_path / "clients/typescript/src/version.ts").write_text('export const VERSION = "1.0.0";\n')
    with pytest.raises(ValueError, match="differs"):
        version.write("8.0.0", tmp_path)


def test_two_builds_are_equal(built: Path, tmp_path: Path) -> None:
    """Byte for byte, so that anybody can check what was published."""
    build(tmp_path / "again")
    assert (built / "SHA256SUMS").read_text() == (tmp_path / "again" / "SHA256SUMS").read_text()
    assert len((built / "SHA256SUMS").read_text().splitlines()) == 11


def test_the_descriptor_set_and_the_archive_have_the_whole_contract(built: Path) -> None:
    """Every .proto file is in both."""
    described = FileDescriptorSet.FromString((built / "headgate.protoset").read_bytes())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "proto").rglob("*.proto")}
    assert {f"proto/{file.name}" for file in described.file} >= files
    with tarfile.open(built / f"headgate-proto-{current()}.tar.gz") as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} >= {
            *files,
            "buf.yaml",
            "buf.gen.yaml",
            "LICENSE",
        }


async def test_the_npm_package_installs_and_runs(built: Path, tmp_path: Path) -> None:
    """In a project of its own, with its types and its contract."""
    package = tmp_path / "node_modules" / "@headgate" / "client"
    with tarfile.open(built / f"headgate-client-{current()}.tgz") as archive:
        archive.extractall(package.parent, filter="data")
    (package.parent / "package").rename(package)
    for name in ("@bufbuild", "@connectrpc"):
        (tmp_path / "node_modules" / name).symlink_to(ROOT / "clients" / "typescript" / "node_modules" / name)
    imports = 'import { VERSION } from "@headgate/client"; import { Role } from "@headgate/client/v1"'
    (tmp_path / "main.mjs").write_text(f"{imports}; console.log(VERSION, Role.USER)")
    finished = await run(program("node", "nodejs"), "--preserve-symlinks", str(tmp_path / "main.mjs"))
    assert finished.stdout.split() == [current(), "3"], finished.stderr
    assert (package / "dist" / "index.d.ts").exists()


async def test_the_go_module_is_taken_from_a_module_proxy(built: Path, tmp_path: Path) -> None:
    """Its three files are what `go get` asks a proxy for."""
    go = program("go", "golang")
    served = tmp_path / "proxy" / "headgate.dev" / "go" / "@v"
    served.mkdir(parents=True)
    for kind in ("info", "mod", "zip"):
        shutil.copy(built / f"headgate.dev-go-{current()}.{kind}", served / f"v{current()}.{kind}")
    env = {
        "GOPROXY": f"file://{tmp_path}/proxy",
        "GONOSUMDB": "headgate.dev",
        "GOFLAGS": "-modcacherw",
        "GOMODCACHE": str(tmp_path / "cache"),
    }
    finished = await run(go, "mod", "download", "-json", f"headgate.dev/go@v{current()}", env=env)
    assert finished.code == 0, finished.stdout + finished.stderr
    folder = Path(json.loads(finished.stdout)["Dir"])
    assert (folder / "headgate" / "service_config.json").exists()
    assert (folder / "headgate" / "v1" / "inference_service_grpc.pb.go").exists()


def test_lock_files_name_no_registry() -> None:
    """A lock file says what, never from where."""
    tracked = subprocess.run(
        ["git", "ls-files", "*package-lock.json", "*.npmrc"], cwd=ROOT, capture_output=True, text=True
    )
    locks = tracked.stdout.split()
    assert "clients/typescript/package-lock.json" in locks
    for lock in locks:
        text = (ROOT / lock).read_text()
        assert "registry." not in text
        assert '"resolved"' not in text
