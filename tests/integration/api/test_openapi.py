"""The API keeps what its OpenAPI document says: Schemathesis asks it thousands of odd and ordinary things.

A longer run: SAGAN_SCHEMATHESIS=200 pytest tests/integration/api/test_openapi.py (cases an operation).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")

ROOT = Path(__file__).parents[3]
CASES = os.environ.get("SAGAN_SCHEMATHESIS", "3")


@pytest.mark.timeout(3600 if "SAGAN_SCHEMATHESIS" in os.environ else 600)
def test_no_answer_is_other_than_the_document_says(usual_api: str) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{usual_api}/openapi.json"),
        *("--checks", "all", "--exclude-checks", "use_after_free", "--max-examples", CASES),
        *("--request-timeout", "60", "--generation-database", "none", "--no-color", "--continue-on-failure"),
        *(() if "SAGAN_SCHEMATHESIS" in os.environ else ("--seed", "1")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
