"""The shapes of OpenAI's images and models API, as far as they mean something here."""

import re
from typing import Final, Literal, Self

from pydantic import BaseModel, Field

from app.errors import Invalid, shorten
from app.orders import MOST_PROMPTED, SIDES, Format
from app.schemas import ModelOut, ModelsOut
from jobs.classes import class_number, nearest_name
from jobs.job import ModelInfo

_SHOWN: Final = 8  # classes that an error names


class ImageOut(BaseModel):
    """An image: where it is, or itself. What follows `revised_prompt` is our own."""

    url: str | None = Field(default=None, description="With keys set, fetch it with the same key.")
    b64_json: str | None = Field(default=None, description="The file in base64.")
    revised_prompt: str = Field(description="The class.")
    class_id: int
    seed: int
    index: int = Field(description="Which image of (class, seed).")
    job: str = Field(description="The job that made it: see /jobs/{id}, /attention/{id}.")


class ImagesOut(BaseModel):
    """OpenAI's answer; `model` and `seed` are our own."""

    created: int = Field(description="Seconds since 1970.")
    background: Literal["opaque"] = "opaque"
    output_format: Format
    size: str
    model: str
    seed: int
    data: list[ImageOut]


class OpenAIModelOut(ModelOut):
    """A model as OpenAI's clients read it, and as ours do."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = "model"
    created: int = Field(description="When it was loaded, seconds since 1970; 0: not known.")
    owned_by: str = "sagan"

    @classmethod
    def like(cls, model: ModelInfo, told: ModelOut) -> Self:
        created = 0 if model.loaded_at is None else int(model.loaded_at.timestamp())
        return cls(id=model.name, created=created, **dict(told))


class OpenAIModelsOut(ModelsOut):
    """OpenAI's list of models, and the one of /models."""

    object: Literal["list"] = "list"
    data: list[OpenAIModelOut]


class ErrorOut(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The field that is wrong.")
    code: str = Field(description="Stable: the last part of a problem's type, or OpenAI's own word.")


class OpenAIErrorOut(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorOut


class UnknownPrompt(Invalid):
    """No class of that name."""

    slug, title = "unknown-class", "Unknown class"

    def __init__(self, asked: str, model: ModelInfo) -> None:
        found = near_names(asked, model.classes)
        hint = f"Near it: {', '.join(found)}."
        if not found:
            hint = f"There are {', '.join(model.classes[:_SHOWN])}"
            hint += "." if len(model.classes) <= _SHOWN else f", and {len(model.classes) - _SHOWN} more."
        detail = (
            f"{model.name} has no class {shorten(asked)}. A prompt is the name of a class, or several with "
            f"commas between. {hint} See /v1/classes."
        )
        super().__init__(detail, errors=[{"at": "body.prompt", "message": detail}])


def near_names(asked: str, names: tuple[str, ...]) -> list[str]:
    """Classes whose names stand in the text, as in "a photo of a cat", and the one most like it."""
    words = " ".join(["", *re.findall(r"[^\W_]+", asked.casefold()), ""])
    found = [name for name in names if f" {' '.join(name.casefold().replace('_', ' ').split())} " in words]
    if (near := nearest_name(asked, names)) is not None and near not in found:
        found.append(near)
    return found[:_SHOWN]


def classes_of(prompt: str, model: ModelInfo) -> list[int]:
    """Numbers of the classes that a prompt names, in its order. Raises UnknownPrompt, Invalid."""
    names = model.classes
    parts = [part for part in prompt.split(",") if part.strip()]
    longest = 1 + max(name.count(",") for name in names)  # a name may have commas itself
    found: list[int] = []
    while parts:
        if len(found) == MOST_PROMPTED:
            raise invalid("prompt", f"A prompt may name {MOST_PROMPTED} classes. Ask again for the others.")
        for length in range(min(longest, len(parts)), 0, -1):
            number = class_number(",".join(parts[:length]), names)
            if number is not None:
                found.append(number)
                del parts[:length]
                break
        else:
            raise UnknownPrompt(parts[0].strip(), model)
    if not found:
        raise UnknownPrompt(prompt.strip(), model)
    return found


def side_of(size: str | None, resolution: int, most: int) -> int:
    """Side of the images, pixels. Raises Invalid."""
    if size is None or size == "auto":
        return resolution
    sides = SIDES.fullmatch(size)
    own = f"{resolution}x{resolution}"
    if sides is None:
        raise invalid("size", f"size reads like {own}, or auto; this is {shorten(size)}.")
    width, height = int(sides[1]), int(sides[2])
    if width != height:
        raise invalid("size", f"Images are square; this is {size}. Ask for {own}, {most}x{most} or auto.")
    if not 16 <= width <= most:
        raise invalid("size", f"size must be 16x16 to {most}x{most}; this is {size}.")
    return width


def invalid(field: str, message: str) -> Invalid:
    """A field of the body that is wrong."""
    return Invalid(message, errors=[{"at": f"body.{field}", "message": message}])
