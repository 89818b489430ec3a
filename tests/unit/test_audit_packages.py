"""The audit of packages: a known vulnerability fails, silence is never taken for safety."""

from __future__ import annotations

import json

import pytest

from tools.audit_packages import exit_code, read, report

CLEAN = {"name": "flask", "version": "3.1.3", "vulns": []}
SILENT = {"name": "waitress", "skip_reason": "Dependency not found on PyPI"}
VULNERABLE = {
    "name": "oldlib",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}],
}


@pytest.mark.parametrize(
    ("packages", "strict", "tolerant"),
    [
        ([CLEAN], 0, 0),
        ([CLEAN, SILENT], 2, 0),
        ([SILENT], 2, 0),
        ([CLEAN, VULNERABLE], 1, 1),
        ([SILENT, VULNERABLE], 1, 1),
    ],
)
def test_the_exit_code_says_what_is_known(packages, strict, tolerant):
    findings = read(json.dumps({"dependencies": packages}))

    assert exit_code(findings, tolerate_silence=False) == strict
    assert exit_code(findings, tolerate_silence=True) == tolerant


def test_what_was_not_audited_is_said_loudly_and_a_vulnerability_with_its_remedy():
    told = report(read(json.dumps({"dependencies": [SILENT, VULNERABLE]})))

    assert "NOT AUDITED: the service said nothing about 1 (waitress)" in told
    assert "VULNERABLE: oldlib 1.0: PYSEC-1, fixed in 1.1" in told


@pytest.mark.parametrize("text", ["", "no JSON", '"text"', "{}"])
def test_an_answer_that_is_none_is_an_error(text):
    with pytest.raises(ValueError, match=r"Expecting value|something else"):
        read(text)
