"""What is wrong with a request, in words that say what to send."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi.exceptions import RequestValidationError

from app.orders import EndIn, GenerateAnyIn, ImagesIn, MorphIn, Order

# what an answer quotes of a request: a caller who sends much nonsense gets little of it back
FINDINGS: Final = 8
LONGEST_NAME: Final = 80  # characters, as below
LONGEST_MESSAGE: Final = 400  # as long as the names of all fields
# function of a route -> what its body is, where not GenerateAnyIn
_ORDERS: Final[Mapping[str, type[Order]]] = {"morph": MorphIn, "create_images": ImagesIn}


def told(error: RequestValidationError) -> tuple[str, list[dict[str, str]]]:
    """The first findings of FastAPI and pydantic: as one sentence, and one by one."""
    findings = error.errors()
    order = _ORDERS.get(error.endpoint_function or "", GenerateAnyIn)
    found = [
        {
            # "body.count", not "body.class_id.int": the branches of a union are internal;
            # "body", not "body.17": the position of a syntax error is no field
            "at": cut(_place(finding["loc"]), LONGEST_NAME),
            "message": cut(_message(finding, order), LONGEST_MESSAGE),
        }
        for finding in findings[:FINDINGS]
    ]
    said = "; ".join(dict.fromkeys(f"{item['at']}: {item['message']}" for item in found))
    more = f"; and {len(findings) - FINDINGS} more" if len(findings) > FINDINGS else ""
    whole = f"{said.rstrip('.')}{more}"
    return whole if whole.endswith("?") else f"{whole}.", found


def _place(loc: Sequence[str | int]) -> str:
    """ "body.count" or "body.ends.0.seed"."""
    in_list = len(loc) > 2 and isinstance(loc[1], str) and isinstance(loc[2], int)
    return ".".join(str(part) for part in loc[: 4 if in_list else 2] if in_list or isinstance(part, str))


def _message(finding: Mapping[str, Any], order: type[Order]) -> str:
    """What a finding says; of a field that the body, an `order`, does not have also which it has."""
    loc = finding["loc"]
    if finding["type"] == "extra_forbidden" and loc[0] == "body":
        name, fields = str(loc[-1]), list((EndIn if "ends" in loc else order).model_fields)
        if name in fields:
            return "The class stands in the path here."
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(fields)}."
        return f"There is no such field. {hint}"
    return str(finding["msg"])


def cut(text: str, most: int) -> str:
    """At most so many characters of `text`, and none that UTF-8 cannot write."""
    shown = text if len(text) <= most else f"{text[: most - 3]}..."
    return shown.encode(errors="replace").decode()
