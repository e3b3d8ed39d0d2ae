"""/v1: everything is there as well, and OpenAI's own routes, whose errors have OpenAI's shape."""

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX: Final = "/v1"
TWIN: Final = "sagan.v1"  # in the scope of a request that is answered under PREFIX
# what OpenAI's clients ask for: no twins of ours
_OPENAIS = re.compile(r"/v1/(images(/.*)?|models(/[^/]*)?)$")
_UNVERSIONED = frozenset({"", "docs", "docs-assets", "docs-start.js", "static", "v1"})  # the page, for people
# slug of a problem -> OpenAI's code, where it has one; else the slug
_CODES: Final = {
    "unauthorised": "invalid_api_key",
    "unknown-model": "model_not_found",
    "too-many-requests": "rate_limit_exceeded",
}
_TYPES: Final = {403: "permission_error", 429: "rate_limit_error", 499: "client_error"}


class Versioned:
    """Lets the app see itself at /v1 where it is asked there: same routes, and links that stay under it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root: str = scope.get("root_path", "")
            path: str = scope["path"].removeprefix(root)
            ours = path.startswith("/v1/") and path.split("/")[2] not in _UNVERSIONED
            if ours and not _OPENAIS.match(path):
                scope["root_path"] = root + PREFIX
                scope[TWIN] = True
        await self.app(scope, receive, send)


def speaks_openai(path: str) -> bool:
    """Whether errors at `path`, which a proxy's prefix may begin, have OpenAI's shape."""
    return _OPENAIS.search(path) is not None


def openai_error(status: int, slug: str, detail: str, at: str) -> tuple[int, dict[str, object]]:
    """Status and body of an error as OpenAI has it. at: what is wrong, such as body.size; or ""."""
    status = 400 if status == 422 else status
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = _CODES.get(slug, slug.replace("-", "_"))
    param = at.partition(".")[2] or ("model" if slug == "unknown-model" else None)
    return status, {"error": {"message": detail, "type": kind, "param": param, "code": code}}
