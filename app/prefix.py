"""The path prefix under which a proxy serves us, such as /sagan."""

import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
# what stands first in our own paths: below such a prefix nobody could tell which of the two is meant
OURS = frozenset(
    {"attention", "classes", "docs", "docs-assets", "docs-start.js", "generate", "health", "jobs", "metrics"}
    | {"models", "openapi.json", "static", "v1"}
)


def read_prefix(text: str) -> str:
    """ "/sagan" for "/sagan", "sagan" or "/sagan/"; "" for "" and "/". Raises ValueError."""
    inner = text.strip().strip("/")
    if not inner:
        return ""
    prefix = f"/{inner}"
    if not _PREFIX.fullmatch(prefix) or any(part in (".", "..") for part in inner.split("/")):
        raise ValueError(f"{text[:80]!r} is no path prefix such as /sagan")
    if inner.split("/")[0] in OURS:
        raise ValueError(f"{text[:80]!r} begins like a path of the service itself; choose another prefix")
    return prefix


def put_under(scope: Scope, prefix: str) -> None:
    """Let the app see itself at `prefix`, whether the proxy took it off the path or left it there."""
    if not prefix or scope.get("root_path") == prefix:
        return
    path: str = scope["path"]
    scope["root_path"] = prefix
    if path != prefix and not path.startswith(f"{prefix}/"):
        scope["path"] = prefix + path
        if raw := scope.get("raw_path"):
            scope["raw_path"] = prefix.encode() + raw


class Prefix:
    """Serves the app at `prefix` (SAGAN_ROOT_PATH), and sends /sagan on to /sagan/, where the page is."""

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self.app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope.get("root_path"):
                put_under(scope, self._prefix)
            if scope["path"] and scope["path"] == scope.get("root_path"):
                query = scope["query_string"].decode("latin-1")
                there = f"{scope['path']}/" + (f"?{query}" if query else "")
                await RedirectResponse(there, 308)(scope, receive, send)
                return
        await self.app(scope, receive, send)
