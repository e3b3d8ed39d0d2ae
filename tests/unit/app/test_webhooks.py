"""Webhooks in orders and in the settings, without a broker."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from app.errors import Invalid
from app.settings import Settings
from app.webhooks import Webhooks

SECRET = "whsec_" + 43 * "A" + "="


def settings(**changes: object) -> Settings:
    return Settings(**{"webhook_secret": SECRET, **changes})  # type: ignore[arg-type]


async def test_without_a_secret_an_order_with_a_webhook_is_told_that_they_are_off() -> None:
    with pytest.raises(Invalid, match=r"Webhooks are off here: .*SAGAN_WEBHOOK_SECRET"):
        Webhooks(Settings()).read("https://example.com/", None)


async def test_events_are_each_told_once_and_in_order_and_absent_is_the_end() -> None:
    webhooks = Webhooks(settings())
    assert webhooks.read("HTTPS://Example.com?a", None).events == ("end",)
    found = webhooks.read("HTTPS://Example.com?a", ["end", "start", "end"])
    assert found.events == ("start", "end")
    assert (found.url, found.receiver) == ("https://example.com/?a", "https://example.com")


async def test_a_refusal_says_which_field_and_what_to_do() -> None:
    with pytest.raises(Invalid) as refused:
        Webhooks(settings()).read("https://me:hunter2@example.com/", None)
    [finding] = refused.value.errors or []
    assert finding["at"] == "body.webhook"
    assert "leave out user and password" in finding["message"]
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            ",",
            "hunter2",
            "whsec_",
            "whsec_hunter2",
            "whsec_" + 28 * "A" + "====",
            "whsec_" + 88 * "A" + "AA==",
        ),
        *(f"{SECRET},hunter2", "whsec_" + 31 * "ä", "sk_" + 44 * "A", SECRET[6:]),
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_shown(wrong: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(webhook_secret=wrong)
    said = str(refused.value)
    assert "openssl rand -base64 32" in said or "no secret between its commas" in said
    assert "hunter2" not in said
    assert "AAAA" not in said


def test_several_secrets_may_follow_one_another_and_none_is_shown() -> None:
    read = settings(webhook_secret=f"{SECRET}, {SECRET.replace('A', 'B')}")
    assert [secret.get_secret_value()[:8] for secret in read.webhook_secret] == ["whsec_AA", "whsec_BB"]
    assert "whsec_" not in repr(read)
    assert settings(webhook_secret=[SecretStr(SECRET)]).webhook_secret[0].get_secret_value() == SECRET


def test_pauses_and_allowances_are_read_from_words() -> None:
    read = settings(webhook_retries="1, 2.5,60", webhook_allowed="10.1.2.3/8, Hooks.Example.com.,*.a.example")
    assert read.webhook_retries == (1, 2.5, 60)
    assert read.webhook_allowed == ("10.0.0.0/8", "hooks.example.com", "*.a.example")
    assert settings(webhook_retries="").webhook_retries == ()
    for wrong in ({"webhook_retries": "5 s"}, {"webhook_retries": "-1"}, {"webhook_retries": 21 * "1,"}):
        with pytest.raises(ValidationError):
            settings(**wrong)
    with pytest.raises(ValidationError, match="need not be public"):
        settings(webhook_allowed="*")
