"""Known vulnerabilities in the pinned packages: ``python -m tools.audit_packages``.

Asks the service behind pip-audit about every package of requirements-dev.lock. Ends with 1 where a
package has a known vulnerability, and with 2 where packages could not be asked about: that is no
proof of anything, and is said loudly. ``--tolerate-silence`` makes 0 of the 2, for machines without
a network; what is known to be vulnerable still counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess  # nosec B404
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements-dev.lock"
SECONDS = 90
FOUND, NOT_ASKED = 1, 2
_BAR = "!" * 78


class Findings(NamedTuple):
    """What the service said."""

    vulnerable: list[str]
    """A line for each vulnerability."""
    silent: list[str]
    """Packages that it said nothing about."""
    asked: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, tell, and return the exit code that the module's text explains."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.audit_packages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--tolerate-silence",
        action="store_true",
        help="end with 0 where the service could not be asked, after saying so",
    )
    options = parser.parse_args(arguments)
    try:
        findings = read(_ask())
    except (subprocess.TimeoutExpired, ValueError) as exc:
        findings = Findings([], [f"all of them: {str(exc)[-300:]}"], 0)
    print(report(findings))
    return exit_code(findings, tolerate_silence=options.tolerate_silence)


def read(text: str) -> Findings:
    """What pip-audit's JSON says. Raises ValueError where it is none."""
    document: Any = json.loads(text)
    vulnerable, silent = [], []
    packages = document.get("dependencies") if isinstance(document, dict) else None
    if not isinstance(packages, list):
        raise ValueError("pip-audit answered with something else than a list of packages")
    for package in packages:
        if "skip_reason" in package:
            silent.append(package["name"])
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            vulnerable.append(
                f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}"
            )
    return Findings(vulnerable, silent, len(packages) - len(silent))


def report(findings: Findings) -> str:
    """The findings for people."""
    lines = [f"{findings.asked} packages were asked about"]
    if findings.silent:
        count = len(findings.silent)
        names = ", ".join(findings.silent[:5]) + (", …" if count > 5 else "")
        lines += [
            _BAR,
            f"NOT AUDITED: the service said nothing about {count} ({names}).",
            "Whether they have known vulnerabilities is unknown. Run make audit with a network.",
            _BAR,
        ]
    lines += [f"VULNERABLE: {line}" for line in findings.vulnerable]
    if findings.asked and not findings.vulnerable:
        lines.append("No known vulnerability was reported")
    return "\n".join(lines)


def exit_code(findings: Findings, *, tolerate_silence: bool) -> int:
    """1 for a known vulnerability, 2 for silence that is not tolerated, else 0."""
    if findings.vulnerable:
        return FOUND
    return NOT_ASKED if findings.silent and not tolerate_silence else 0


def _ask() -> str:
    """pip-audit's answer as JSON. Raises ValueError where there is none."""
    beside_python = Path(sys.executable).with_name("pip-audit")
    asked = subprocess.run(  # nosec B603
        [
            beside_python,
            *("--require-hashes", "--disable-pip", "--requirement", LOCK),
            *("--format", "json", "--progress-spinner", "off", "--timeout", "15"),
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=SECONDS,
    )
    if not asked.stdout.strip():
        raise ValueError(asked.stderr.strip() or f"pip-audit ended with {asked.returncode}")
    return asked.stdout


if __name__ == "__main__":
    sys.exit(main())
