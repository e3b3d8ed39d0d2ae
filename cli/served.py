"""The models of a running service, for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

TIMEOUT = 10  # seconds


class NoAnswer(Exception):
    """The service does not tell its models; the message says why."""


def describe(url: str, api_key: str | None) -> Iterator[str]:
    """One line a version of a model that the service at `url` has, and by which workers. Raises NoAnswer."""
    headers = {"X-API-Key": api_key} if api_key else {}
    try:
        with urlopen(Request(f"{url.rstrip('/')}/models", headers=headers), timeout=TIMEOUT) as answer:
            models = json.load(answer)["models"]
        lines = [
            f"{model['name']} {version['hash'][:12]}… {version['precision']}: "
            f"{'draining' if version['draining'] else 'served'} by {', '.join(version['served_by'])}"
            for model in models
            for version in model["versions"]
        ]
    except HTTPError as error:
        error.close()
        key = " Give a key with --api-key." if error.code == 401 else ""
        raise NoAnswer(f"{url} answers {error.code} {error.reason}.{key}") from error
    except (URLError, HTTPException, OSError, ValueError, KeyError, TypeError) as error:
        raise NoAnswer(f"{url} does not answer as this service does ({error}).") from error
    yield from lines or ["No worker has a model loaded."]
