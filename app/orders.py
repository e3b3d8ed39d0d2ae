"""The bodies of requests for jobs."""

import json
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from jobs.job import HookEvent

MAX_SEED: Final = 2**63 - 1
YEARS: Final = 10 * 365 * 24 * 3600  # seconds
LONGEST_LIFE: Final = 7 * 24 * 3600  # seconds that a job may be given
LONGEST_URL: Final = 2048  # of a webhook, characters
MOST_CLASSES: Final = 8  # that a job may mix; as many as worker and recipe take
FRAMES: Final = 32  # of a morph, unless told
MOST_PROMPTED: Final = 16  # classes that a prompt may name
SIDES: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_NO_MEANING: Final = {
    "stream": "Images come whole here. To see each as it is made: POST /generate, and follow its events.",
    "partial_images": "Images come whole here. Leave partial_images out.",
    "style": "A prompt is a class here, and has no style. Leave style out.",
}

Format = Literal["png", "webp", "jpeg"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
# a folder's name has 255 bytes, a table's may be longer
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
ClassWeights = Annotated[dict[ClassName, Weight], Field(min_length=1, max_length=MOST_CLASSES)]

_DIGITS: Final = re.compile("[0-9]{1,19}")
_SEED_SCHEMA: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
        {"type": "string", "pattern": f"^{_DIGITS.pattern}$"},
    ]
}


def _number(seed: object) -> object:
    return int(seed) if isinstance(seed, str) and _DIGITS.fullmatch(seed) else seed


# or a string of its digits: JavaScript's numbers hold 53 bits, and a larger seed loses its last digits there
Seed = Annotated[
    int, Field(ge=0, le=MAX_SEED), BeforeValidator(_number), WithJsonSchema(_SEED_SCHEMA, mode="validation")
]


class Order(BaseModel):
    """What every request for a job may say."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,  # true is no count, and neither is "4" or 1.5
    )

    truncation: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="A factor on z: lower is more typical, less varied.",
    )
    model: Name | None = Field(None, description="One of /models. Absent: the service's default.")
    listed: bool = Field(True, description="false: GET /jobs leaves it out, as a page does that draws live.")
    priority: int | None = Field(
        None,
        ge=0,
        le=9,
        description="9 is most urgent. Absent: 5, or the highest that the caller may ask for if that is "
        "less. Above that: 403.",
    )

    expires_in: float | None = Field(
        None,
        ge=1,
        le=LONGEST_LIFE,
        allow_inf_nan=False,
        description="Seconds from now after which the job is cancelled unless it has ended: what nobody "
        "waits for any more is not made. Or as the header `Cancel-After: 1m30s`. Absent: it waits.",
    )

    retention: int | None = Field(
        None,
        ge=1,
        le=YEARS,
        description="Seconds that the images are kept after the job's end, up to what the service allows. "
        "Absent: the service's own, `result_ttl` of /models.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, body: object) -> object:
        # FastAPI hands on the bytes unless their Content-Type is JSON; `curl -d` calls them a form
        if not isinstance(body, bytes):
            return body
        try:
            return from_json(body)
        except ValueError as wrong:
            shown: Any = cls.model_config["json_schema_extra"]
            example = json.dumps(shown["examples"][0])
            raise PydanticCustomError(
                "json_invalid",
                "Not JSON ({wrong}). Send it like {example}.",
                {"wrong": str(wrong), "example": example},
            ) from wrong


class JobOrder(Order):
    """What every request for a job of ours may say beside."""

    webhook: str | None = Field(
        default=None,
        max_length=LONGEST_URL,
        description="An https URL that is told of the job, signed as Standard Webhooks has it. See "
        "docs/webhooks.md.",
        examples=["https://example.com/hook"],
    )
    webhook_events: list[HookEvent] | None = Field(
        default=None, min_length=1, max_length=3, description="Of what it is told. Absent: of the end."
    )

    @model_validator(mode="after")
    def _is_told(self) -> Self:
        if self.webhook is None and self.webhook_events is not None:
            raise PydanticCustomError("webhook", "webhook_events goes with webhook.")
        return self


class GenerateIn(JobOrder):
    """A job. Every field has a default."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"count": 4, "seed": 42, "truncation": 0.8}]},
    )

    count: int = Field(1, ge=1, le=64, description="Images to make.")
    seed: Seed | None = Field(
        None,
        description="Image k is drawn from (seed, k): a number, or a string of its digits. Drawn below 2^53 "
        "and returned when absent.",
    )
    start: int = Field(
        0,
        ge=0,
        le=2**53,
        description="The first k: start 37 and count 1 make image 37 of the seed alone.",
    )


class OfClasses(BaseModel):
    """A class, or a mixture of classes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    class_id: int | ClassName | None = Field(None, description="Number or name of a class of the model.")
    class_weights: ClassWeights | None = Field(
        None,
        description="In place of class_id, a mixture: number or name of each class, and its weight. Weights "
        "are relative to their sum.",
        examples=[{"cat": 0.7, "dog": 0.3}],
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.class_id is None) == (self.class_weights is None):
            raise PydanticCustomError("one_of", "Give either class_id or class_weights.")
        return self


class GenerateAnyIn(GenerateIn, OfClasses):
    """A job with its class, or mixture of classes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"class_id": "cat", "count": 4, "seed": 42}]})


class EndIn(OfClasses):
    """An end of a morph: what a job of this class and seed would make as image `index`."""

    seed: Seed | None = Field(None, description="Drawn below 2^53 and returned when absent.")
    index: int = Field(0, ge=0, le=2**53, description="Which image of the seed.")


class MorphIn(JobOrder):
    """A job whose images lead from one end to the next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"ends": [{"class_id": "cat", "seed": 1}, {"class_id": "dog", "seed": 2}], "frames": 32}
            ]
        },
    )

    ends: list[EndIn] = Field(min_length=2, max_length=32, description="What the images lie between.")
    frames: int | None = Field(
        None,
        ge=2,
        le=256,
        description=f"Images, evenly along the way from the first end to the last. Absent: {FRAMES}.",
    )
    loop: bool = Field(False, description="The way leads back to the first end.")
    weights: list[list[Share]] | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="In place of frames: for each image how much of each end, relative to their sum.",
        examples=[[[1, 0], [0.5, 0.5], [0, 1]]],
    )
    attention: bool = Field(
        False,
        description="Make every image's attention map too, so that a film can show how it changes.",
    )
    layer: str | None = Field(
        None, max_length=100, description="With attention: one of the model's sites; absent: the first."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.weights is not None and (self.frames is not None or self.loop):
            raise PydanticCustomError("one_of", "Give either frames (and loop) or weights.")
        for row in self.weights or ():
            if len(row) != len(self.ends) or sum(row) <= 0:
                raise PydanticCustomError(
                    "weights",
                    "Each row of weights has one number for each of the {ends} ends, not all of them 0.",
                    {"ends": len(self.ends)},
                )
        if self.layer is not None and not self.attention:
            raise PydanticCustomError("layer", "layer goes with attention: true.")
        return self


class ImagesIn(Order):
    """Images as OpenAI's clients ask for them; `seed`, `truncation` and `priority` are our own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "cat, dog", "n": 4, "size": "256x256", "seed": 42}]},
    )

    prompt: str = Field(
        min_length=1,
        max_length=1000,
        description="A class of the model, or several with commas between, which the images are shared out "
        f"over in turn; {MOST_PROMPTED} at most.",
    )
    # model, truncation and priority: of Order
    n: int | None = Field(None, ge=1, le=64, description="Images; absent: one of each class.")
    size: str | None = Field(
        None,
        description="Side of the images, such as 256x256: square, enlarged by Lanczos. Absent or auto: the "
        "model's own.",
        json_schema_extra={"pattern": f"^(auto|{SIDES.pattern})$"},
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="Where each image is, or the image itself in base64. Absent: url."
    )
    output_format: Format | None = Field(None, description="Absent: png.")
    output_compression: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Quality of webp and jpeg, 100: the best. Absent: a lossless webp, a jpeg of 90.",
    )
    seed: Seed | None = Field(None, description="Ours. Of every class; drawn and returned when absent.")
    user: str | None = Field(None, max_length=1000, description="Not used.")
    safety_identifier: str | None = Field(None, max_length=1000, description="Not used.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Images are opaque.")
    moderation: Literal["auto"] | None = Field(None, description="There is none.")
    quality: Literal["auto", "standard"] | None = Field(None, description="There is one.")
    style: None = Field(None, description="There is none.")
    stream: Literal[False] | None = Field(None, description="For that see /jobs/{id}/events.")
    partial_images: Literal[0] | None = Field(None, description="There are none.")

    @field_validator("style", "stream", "partial_images", mode="before")
    @classmethod
    def _means_something(cls, value: object, field: ValidationInfo) -> object:
        if value:
            raise PydanticCustomError("no_meaning", _NO_MEANING[str(field.field_name)])
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.output_compression is not None and self.output_format in (None, "png"):
            raise PydanticCustomError(
                "lossless", "output_compression is for webp and jpeg: a PNG keeps every pixel. Leave it out."
            )
        return self
