"""`make audit`: the licences of what the image installs, and whether anything of it is known to be vulnerable.

Exit codes: 0 nothing found; 1 a licence or a vulnerability; 2 nobody could tell of vulnerabilities.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

FOUND, UNKNOWN = 1, 2
PERMISSIVE = (
    "0BSD",
    "Apache",
    "BSD",
    "CNRI",
    "HPND",
    "ISC",
    "LGPL",
    "GNU Lesser",
    "MIT",
    "MPL",
    "Mozilla",
    "PSF",
    "Python Software Foundation",
    "Unlicense",
    "Zlib",
)
"""What a licence begins with that may be shipped beside Apache-2.0; the LGPL and MPL as long as the library is one."""
CLASSIFIER = "License :: OSI Approved :: "
UNSAID = {"protobuf": "BSD-3-Clause"}
"""Licences that stand in a package's source and not in its metadata."""


def main() -> int:
    """Prints both; the arguments are the SBOM and the requirements."""
    sbom, requirements = Path(sys.argv[1]), Path(sys.argv[2])
    components = json.loads(sbom.read_text())["components"]
    print(f"{len(components)} packages, each verified by hash")
    refused = _check_licences(components)
    advisories = _check_advisories(requirements)
    return FOUND if refused else advisories


def _check_licences(components: list[dict[str, Any]]) -> int:
    """Prints how many packages have which licence, and each that has one not to be shipped; how many these are."""
    licences = {f"{one['name']} {one.get('version', '')}": _licence(one) for one in components}
    refused = [package for package, licence in licences.items() if not _may_be_shipped(licence)]
    for licence, count in Counter(licences.values()).most_common():
        print(f"{count:5}  {licence}")
    for package in refused:
        print(f"LICENCE {package}: {licences[package]}")
    return len(refused)


def _licence(component: dict[str, Any]) -> str:
    """As one expression; several statements are several choices to say the same."""
    if component["name"] in UNSAID:
        return UNSAID[component["name"]]
    found = set()
    for entry in component.get("licenses", ()):
        licence = entry.get("license", {})
        found.add(entry.get("expression") or licence.get("id") or licence.get("name", "").removeprefix(CLASSIFIER))
    return " OR ".join(sorted(found)) or "unknown"


def _may_be_shipped(expression: str) -> bool:
    """One of the choices is permissive in all its parts."""
    choices = expression.replace("(", "").replace(")", "").split(" OR ")
    return any(all(part.startswith(PERMISSIVE) for part in choice.split(" AND ")) for choice in choices)


def _check_advisories(requirements: Path) -> int:
    """By pip-audit, which asks the package index about each: names and versions are told to it, and nothing else."""
    program = str(Path(sys.executable).with_name("pip-audit"))
    options = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
    try:
        command = [program, *options, "-r", str(requirements)]
        asked = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        return _not_checked(f"{program}: {error.strerror}")
    try:
        answers = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        return _not_checked((asked.stderr.strip().splitlines() or ["no reason given"])[-1])
    vulnerable = [(one, found) for one in answers for found in one.get("vulns", ())]
    for one, found in vulnerable:
        print(f"VULNERABLE {one['name']} {one['version']}: {found['id']}, mended in {found['fix_versions']}")
    if vulnerable:
        return FOUND
    skipped = [one["name"] for one in answers if "skip_reason" in one]
    if skipped:  # pip-audit calls that a success
        return _not_checked(f"the index does not say of {', '.join(skipped)}")
    print(f"{len(answers)} packages checked for known vulnerabilities: none found")
    return 0


def _not_checked(reason: str) -> int:
    print(f"NOT CHECKED for known vulnerabilities: {reason}", file=sys.stderr)
    return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
