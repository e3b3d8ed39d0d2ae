"""Cancel-After and expires_in: by when a job is to be made."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Request

from app.errors import Invalid
from app.keyring import OPEN
from app.orders import GenerateIn
from app.security import KEY
from app.terms import terms_of


def request(after: str | None) -> Request:
    headers = [] if after is None else [(b"cancel-after", after.encode())]
    return Request({"type": "http", "headers": headers, KEY: OPEN})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("90s", 90), ("1m30s", 90), ("2m", 120), ("1h", 3600), ("1H2M3S", 3723), (" 5 ", 5)],
)
def test_a_header_says_after_what_time_a_job_is_cancelled(written: str, seconds: int) -> None:
    assert terms_of(request(written), GenerateIn.model_validate({})).expires_in == seconds


@pytest.mark.parametrize("written", ["", "0", "-1", "s", "1.5", "1d", "5s1m", "99999999h", "٣s", "604801"])
def test_any_other_header_is_refused_with_the_forms_that_are_taken(written: str) -> None:
    with pytest.raises(Invalid, match="Cancel-After must be 1 to 604800 seconds, written as 90"):
        terms_of(request(written), GenerateIn.model_validate({}))


def test_one_way_to_say_it_is_enough() -> None:
    with pytest.raises(Invalid, match="either the header Cancel-After or expires_in"):
        terms_of(request("5"), GenerateIn.model_validate({"expires_in": 5}))
    assert terms_of(request(None), GenerateIn.model_validate({"expires_in": 2.5})).expires_in == 2.5
    assert terms_of(request(None), GenerateIn.model_validate({})).expires_in is None


@pytest.mark.parametrize("odd", [0, 0.5, -1, 1e9, "5", True])
async def test_odd_times_in_a_body_are_told(client: httpx.AsyncClient, odd: object) -> None:
    reply = await client.post("/generate/cat", json={"expires_in": odd})
    assert reply.status_code == 422
    assert "expires_in" in reply.text
