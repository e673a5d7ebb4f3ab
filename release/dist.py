"""`make dist`: everything that a release publishes, built into dist/, byte for byte the same each time.

    headgate-VERSION.tar.gz, headgate-VERSION-py3-none-any.whl            the Python client
    headgate_server-VERSION.tar.gz, headgate_server-VERSION-….whl         the server
    headgate-client-VERSION.tgz                                           the npm package
    headgate.dev-go-VERSION.zip, .mod, .info                              the Go module, as a module proxy serves it
    headgate-proto-VERSION.tar.gz                                         the .proto files, with buf's configuration
    headgate.protoset                                                     the descriptor set
    headgate-service-config.json                                          the gRPC service config of all clients
    SHA256SUMS

What goes in is what git has, with the times of the last commit.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

from release.version import ROOT, current

PYTHON = ROOT / "clients" / "python"
TYPESCRIPT = ROOT / "clients" / "typescript"
GO = ROOT / "clients" / "go"
MODULE = "headgate.dev/go"
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def build(target: Path) -> None:
    """Builds all of it into `target`, in place of the files that are there."""
    version = current()
    epoch = int(_git("log", "-1", "--format=%ct"))
    target.mkdir(parents=True, exist_ok=True)
    for path in _files(target):
        path.unlink()
    _python(target, epoch)
    _npm(target)
    _go(target, version, epoch)
    _proto(target / f"headgate-proto-{version}.tar.gz", version, epoch)
    shutil.copyfile(PYTHON / "headgate" / "v1" / "headgate.protoset", target / "headgate.protoset")
    shutil.copyfile(PYTHON / "headgate" / "service_config.json", target / "headgate-service-config.json")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in _files(target)]
    (target / "SHA256SUMS").write_text("\n".join([*sums, ""]))


def _python(target: Path, epoch: int) -> None:
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    for project in (PYTHON, ROOT):
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
        subprocess.run(command, cwd=project, env=env, check=True, stdout=subprocess.DEVNULL)


def _npm(target: Path) -> None:
    shutil.rmtree(TYPESCRIPT / "dist", ignore_errors=True)
    subprocess.run(["npm", "run", "--silent", "build"], cwd=TYPESCRIPT, check=True)
    command = ["npm", "pack", "--silent", "--pack-destination", str(target.resolve())]
    subprocess.run(command, cwd=TYPESCRIPT, check=True, stdout=subprocess.DEVNULL)


def _go(target: Path, version: str, epoch: int) -> None:
    """The three files of https://go.dev/ref/mod#goproxy-protocol."""
    name = f"headgate.dev-go-{version}"
    with zipfile.ZipFile(target / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _tracked(GO):
            entry = zipfile.ZipInfo(f"{MODULE}@v{version}/{path.relative_to(GO).as_posix()}", ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    shutil.copyfile(GO / "go.mod", target / f"{name}.mod")
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    (target / f"{name}.info").write_text(json.dumps({"Version": f"v{version}", "Time": made}) + "\n")


def _proto(archive: Path, version: str, epoch: int) -> None:
    files = [path for path in _tracked(ROOT / "proto") if path.suffix == ".proto"]
    files += [ROOT / name for name in ("buf.yaml", "buf.gen.yaml", "LICENSE")]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(files):
            data = path.read_bytes()
            entry = tarfile.TarInfo(f"headgate-proto-{version}/{path.relative_to(ROOT).as_posix()}")
            entry.size, entry.mtime = len(data), epoch
            tar.addfile(entry, io.BytesIO(data))
    archive.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _tracked(folder: Path) -> Iterable[Path]:
    listed = _git("ls-files", "-z", "--", str(folder)).split("\0")
    return [path for path in map(ROOT.joinpath, sorted(filter(None, listed))) if path.is_file()]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m release.dist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, nargs="?", default=ROOT / "dist")
    target = parser.parse_args().target
    build(target)
    for path in _files(target):
        print(f"{path.stat().st_size:>10,}  {path.name}")


if __name__ == "__main__":
    main()
