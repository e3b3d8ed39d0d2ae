"""docs/security.md names a test for each line, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
THREATS = [
    line.split("|")[1:-1] for line in PAGE.split("## A request")[1].splitlines() if line.startswith("|")
]


def test_every_threat_has_its_test() -> None:
    rows = [row for row in THREATS if not row[0].startswith("---") and row[0].strip() != "threat"]
    assert len(rows) > 20
    for threat, _, tests in rows:
        named = re.findall(r"`([\w/.]+)::(\w+)`", tests)
        assert named, f"no test stands beside: {threat.strip()}"
        for file, name in named:
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"
