"""From what a request names to what a job is made of: classes, mixtures of them, and morphs."""

import math
import secrets
from collections.abc import Sequence

from app.errors import Invalid, NoAttention, NotFound, UnknownClass
from app.orders import FRAMES, MOST_CLASSES, MorphIn, OfClasses
from jobs.classes import between, class_number, mixture
from jobs.job import Draw, JobSpec, ModelInfo


def class_id_of(asked: int | str, model: ModelInfo) -> int:
    """Number of the class that `asked` names, by number or by name. Raises UnknownClass."""
    if isinstance(asked, int):
        if 0 <= asked < len(model.classes):
            return asked
        raise UnknownClass(str(asked) if abs(asked) < 10**40 else "so large a number", model.classes)
    number = class_number(asked, model.classes)
    if number is None:
        raise UnknownClass(asked, model.classes)
    return number


def drawn() -> int:
    """A new seed, below 2^53, so that a browser's numbers hold it."""
    return secrets.randbelow(2**53)


def draw_of(asked: OfClasses, seed: int | None, index: int, model: ModelInfo) -> Draw:
    """What a request names, with numbers for names. Raises UnknownClass, Invalid."""
    seed = drawn() if seed is None else seed
    if asked.class_weights is None:
        assert asked.class_id is not None
        class_id = class_id_of(asked.class_id, model)
        return Draw(((class_id, 1.0),), model.classes[class_id], seed, index)
    total = math.fsum(asked.class_weights.values())
    shares: dict[int, float] = {}
    for name, weight in asked.class_weights.items():
        class_id = class_id_of(name, model)
        if class_id in shares:
            raise Invalid(f"class_weights names the class {model.classes[class_id]!r} twice.")
        shares[class_id] = weight / total
    # the order in which a request names them says nothing; a share too small for a number is none
    classes = tuple((class_id, share) for class_id, share in sorted(shares.items()) if share > 0)
    return Draw(classes, mixture([model.classes[class_id] for class_id, _ in classes]), seed, index)


def heaviest(draw: Draw) -> int:
    """The class that makes the most of it."""
    return max(draw.classes, key=lambda part: part[1])[0]


def morph_spec(body: MorphIn, model: ModelInfo, priority: int) -> JobSpec:
    """Raises UnknownClass, Invalid, NoAttention, NotFound."""
    ends = tuple(draw_of(end, end.seed, end.index, model) for end in body.ends)
    if len({class_id for end in ends for class_id, _ in end.classes}) > MOST_CLASSES:
        raise Invalid(f"A morph mixes {MOST_CLASSES} classes at most. Name fewer.")
    return JobSpec(
        model=model.name,
        model_hash=model.hash,
        precision=model.precision,
        class_id=heaviest(ends[0]),
        class_name=between([end.name for end in ends]),
        count=len(body.weights) if body.weights is not None else body.frames or FRAMES,
        seed=ends[0].seed,
        truncation=body.truncation,
        priority=priority,
        start=ends[0].index,
        ends=ends,
        loop=body.loop,
        weights=tuple(_shares(row) for row in body.weights or ()),
        attention=_layer(body, model),
        listed=body.listed,
    )


def _shares(row: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(row)
    return tuple(weight / total for weight in row)


def _layer(body: MorphIn, model: ModelInfo) -> str:
    if not body.attention:
        return ""
    sites = [site.name for site in model.attention]
    if not sites:
        raise NoAttention(f"The model {model.name!r} has no attention layer. Ask without attention.")
    if body.layer is not None and body.layer not in sites:
        raise NotFound(f"layer must be one of: {', '.join(sites)}.")
    return body.layer or sites[0]
