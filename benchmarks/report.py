"""Write what the benchmarks found into docs/performance.md: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from app.settings.configuration import PROJECT_ROOT
from benchmarks.harness import RESULTS

PAGE = PROJECT_ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- written by benchmarks/report.py: begin -->", "<!-- end -->"
ORDER = (
    "noop", "lanes", "ceiling", "load", "side_by_side", "send", "latency", "obstacles", "reads",
    "memory",
)  # fmt: skip


def main() -> int:
    """Replace what stands between the markers; 1 where there are no results."""
    reports = _reports()
    if not reports:
        print(f"error: no results in {RESULTS}; run make bench first", file=sys.stderr)
        return 1
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    body = "\n\n".join(map(_section, reports))
    PAGE.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")
    print(f"Written to {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    return 0


def _reports() -> list[dict[str, Any]]:
    """In ORDER, the parts that were measured again (NAME-*.json) after the whole.

    A figure that was measured again stands only where it is the latest.
    """
    reports = []
    for name in ORDER:
        files = [RESULTS / f"{name}.json", *sorted(RESULTS.glob(f"{name}-*.json"))]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        found.sort(key=lambda report: report["at"])
        for number, report in enumerate(found):
            later = {figure["name"] for each in found[number + 1 :] for figure in each["figures"]}
            report["figures"] = [each for each in report["figures"] if each["name"] not in later]
        reports += [report for report in found if report["figures"]]
    return reports


def _section(report: dict[str, Any]) -> str:
    lines = [f"### {report['benchmark']}", "", _about(report), ""]
    lines += ["| Figure | Median | Unit | Runs | |", "|---|--:|---|---|---|"]
    for figure in report["figures"]:
        runs = ", ".join(map(_shown, figure["values"])) if len(figure["values"]) > 1 else ""
        cells = (
            _code(figure["name"]),
            _shown(figure["median"]),
            figure["unit"],
            runs,
            figure["note"],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _about(report: dict[str, Any]) -> str:
    settings, options = report["postgresql"], report["options"]
    shown = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    return (
        f"{report['at']}, revision {report['revision']}, {report['machine']}, load before"
        f" {report['load_before']}; PostgreSQL {settings['server_version']}, shared_buffers"
        f" {settings['shared_buffers']}, fsync {settings['fsync']}, synchronous_commit"
        f" {settings['synchronous_commit']}; Python {report['python']}; {shown}."
    )


def _code(name: str) -> str:
    return f"`{name}`" if name.startswith("/") else name


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
