"""`python -m release.version [NEW]`: the one version of server, contract and clients, and every place that states it.

`server/headgate_server/__init__.py` is where it is decided; the other places follow, because their tools read nothing
else. With NEW it is written to all of them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "server/headgate_server/__init__.py": r'^__version__ = "(.+)"$',
    "clients/python/headgate/__init__.py": r'^__version__ = "(.+)"$',
    "clients/typescript/package.json": r'^  "version": "(.+)",$',
    "clients/typescript/package-lock.json": r'"name": "@headgate/client",\n\s+"version": "(.+)",$',
    "clients/typescript/src/version.ts": r'^export const VERSION = "(.+)";$',
    "clients/go/headgate/client.go": r'^const Version = "(.+)"$',
}
SEMANTIC = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")


def stated(root: Path = ROOT) -> dict[str, set[str]]:
    """The versions that each place states; an empty set where the place has changed its form."""
    return {place: set(re.findall(form, (root / place).read_text(), re.MULTILINE)) for place, form in PLACES.items()}


def current(root: Path = ROOT) -> str:
    """The version.

    Raises:
        ValueError: the places do not agree.
    """
    versions = stated(root)
    if len(set().union(*versions.values())) != 1 or not all(versions.values()):
        raise ValueError(f"the version differs: {versions}")
    return next(iter(versions["server/headgate_server/__init__.py"]))


def write(version: str, root: Path = ROOT) -> None:
    """States it everywhere.

    Raises:
        ValueError: it is no semantic version, or the places do not agree on the one before.
    """
    if not SEMANTIC.fullmatch(version):
        raise ValueError(f"{version!r} is no semantic version, such as 1.2.3")
    before = current(root)
    for place, form in PLACES.items():
        text = (root / place).read_text()
        changed = re.sub(form, lambda found: found[0].replace(before, version), text, flags=re.MULTILINE)
        (root / place).write_text(changed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m release.version", description=__doc__)
    parser.add_argument("new", nargs="?", help="write this version to every place")
    if new := parser.parse_args().new:
        write(new)
    print(current())


if __name__ == "__main__":
    main()
