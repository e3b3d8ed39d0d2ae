"""What an experiment was asked for, and what its folder holds to between sessions."""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.files import write_whole
from train.errors import ExperimentError
from train.experiments.catalogue import BLINDNESS
from train.recipes.recipe import Recipe

SETTINGS = "experiment.json"


@dataclass(frozen=True)
class Request:
    """What `sagan experiment` was asked for."""

    name: str
    data: Path
    out: Path
    recipe: str | None = None  # None: the experiment's own
    scale: float = 1.0  # times the experiment's steps and milestones
    seeds: int = 1  # runs a variant
    only: str | None = None  # a variant; None: all
    features: Path | None = None  # None: an extractor is trained into `out`
    inception_weights: Path | None = None  # spatial-blindness measures in Inception's features too
    samples: int = 2000  # images a milestone
    settings: Sequence[str] = ()  # "section.field=value", on top of the recipe
    device: str = "auto"

    def check(self) -> None:
        """Raises ExperimentError for options that do not fit the experiment."""
        if self.scale <= 0 or self.seeds < 1:
            raise ExperimentError(
                f"--scale ({self.scale:g}) must be above 0 and --seeds ({self.seeds}) at least 1."
            )
        if self.name != BLINDNESS and self.inception_weights:
            raise ExperimentError(
                f"--inception-weights is for {BLINDNESS}; {self.name} measures in own features."
            )
        for_training = self.recipe or self.settings or self.only or self.scale != 1 or self.seeds != 1
        if self.name == BLINDNESS and for_training:
            raise ExperimentError(
                f"{self.name} trains no network: it takes no --recipe, --set, --only, --scale or --seeds."
            )

    def command(self) -> str:
        """The command as anyone may type it: without the folders of this machine."""
        words = [
            "sagan",
            "experiment",
            self.name,
            "--data",
            _relative(self.data),
            "--out",
            _relative(self.out),
        ]
        words += ["--recipe", _relative(Path(self.recipe))] if self.recipe else []
        words += ["--scale", f"{self.scale:g}"] if self.scale != 1 else []
        words += ["--seeds", str(self.seeds)] if self.seeds != 1 else []
        words += ["--features", _relative(self.features)] if self.features else []
        if self.inception_weights:
            words += ["--inception-weights", _relative(self.inception_weights)]
        words += ["--samples", str(self.samples)]
        for setting in self.settings:
            words += ["--set", setting]
        return shlex.join(words)


def agreed(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The settings kept in `out`, with more steps, seeds and variants added where `asked` has more.

    Raises ExperimentError if any other setting differs, or if `asked` has fewer steps.
    """
    path = out / SETTINGS
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            try:
                asked = _added(out, json.loads(path.read_text()), asked)
            except (ValueError, KeyError, TypeError) as wrong:
                raise ExperimentError(f"{path} is damaged ({wrong!r}): use another --out.") from None
        write_whole(path, json.dumps(asked, indent=1).encode())
    return asked


def _added(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    before, now = _fixed(there), _fixed(asked)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ExperimentError(
                f"{out} holds an experiment with {name} = {_plain(before.get(name))}, not "
                f"{_plain(now.get(name))}: go on with the same settings, or use another --out."
            )
    if "milestones" not in asked:
        return asked
    done, wanted = there["milestones"], asked["milestones"]
    if wanted[-1] < done[-1]:
        raise ExperimentError(
            f"{out} was begun at --scale {there['scale']:g}, to {done[-1]:,} steps: it can grow, not shrink "
            f"to {wanted[-1]:,}."
        )
    return {
        **asked,
        "milestones": done + [m for m in wanted if m > done[-1]],
        "seeds": max(there["seeds"], asked["seeds"]),
        "variants": there["variants"] + [v for v in asked["variants"] if v not in there["variants"]],
    }


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that every session of an experiment shares, by the names that errors give them."""
    fixed: dict[str, Any] = {
        "experiment": settings["experiment"],
        "data": settings["data"]["sha256"],
        "features": settings["features"]["sha256"],
        "samples": settings["samples"],
        "looks": settings.get("looks"),
    }
    if "recipe" in settings:
        # a recipe kept before a setting existed means that setting's default
        recipe = json.loads(json.dumps(Recipe.from_json(settings["recipe"]).to_json()))
        fixed |= {f"model.{key}": value for key, value in recipe["model"].items()}
        fixed |= {f"optimisation.{key}": v for key, v in recipe["optimisation"].items() if key != "steps"}
        fixed["schedule.statistics_batches"] = recipe["schedule"]["statistics_batches"]
    return fixed


def _plain(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:20]}…"


def _relative(path: Path) -> str:
    return path.name if path.is_absolute() else str(path)
