"""How uvicorn serves the API, for `sagan api` and `sagan serve` alike."""

from __future__ import annotations

import os
import resource
from typing import Any, Final

# of files: a connection is one. The limit that a shell sets by default, 1024, is older than event loops
FILES: Final = 65536


def options(root_path: str | None = None) -> dict[str, Any]:
    """Arguments of uvicorn's Config and run. root_path: None: SAGAN_ROOT_PATH."""
    if root_path is not None:
        os.environ["SAGAN_ROOT_PATH"] = root_path  # the app reads its settings there
    _raise_file_limit()
    return {
        "app": "app.main:create_app",
        "factory": True,
        "http": "app.entrance:Connection",
        "ws": "none",
        "proxy_headers": False,  # the app reads them, of SAGAN_TRUSTED_PROXIES alone
        "server_header": False,
        "access_log": False,  # the app writes a line a request itself
    }


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
