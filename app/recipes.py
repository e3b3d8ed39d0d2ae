"""What a picture of a whole job says of how it was made, and how its file is called."""

import json
import re
from typing import Final

from app.schemas import SpecOut
from imaging.spec import BLENDED, VERSION
from jobs.job import JobSpec

_LONGEST: Final = 80  # letters of a class's name in a file's


def of_job(spec: JobSpec, how: str, **options: object) -> str:
    """JSON, ASCII: the spec as the job's answer has it, without its priority, and how its images are drawn.

    how: such as "grid".
    """
    told = SpecOut.of(spec).model_dump(mode="json", exclude={"priority"}, exclude_none=True)
    asked = {name: value for name, value in options.items() if value is not None}
    return json.dumps({**told, "version": BLENDED if spec.ends else VERSION, "drawn": {"as": how, **asked}})


def stem(spec: JobSpec) -> str:
    """A name for the job's files that every file system takes, such as "golden_retriever-seed42"."""
    spoken = re.sub(r"[^A-Za-z0-9_-]+", "_", spec.class_name).strip("_")[:_LONGEST]
    return f"{spoken or f'class{spec.class_id}'}-seed{spec.seed}"
