"""The experiments: what each asks, and the recipe overrides that are its variants."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from train.errors import ExperimentError
from train.recipes.recipe import Recipe

BASELINE = "baseline"
MAP_LIMIT = 2**30  # bytes of an explicit attention map in one network's pass; larger forms are left out
BLINDNESS = "spatial-blindness"  # trains nothing, so it has no variants


@dataclass(frozen=True)
class Variant:
    """One way to train, or (with `of`) one way to sample another variant's generators."""

    name: str
    about: str  # one line
    overrides: Mapping[str, Any] = field(default_factory=dict)  # "section.field" -> value
    of: str = ""  # the variant whose generators this one samples otherwise; "": it trains its own
    truncation: float = 1.0
    standing: bool = True  # batch-norm statistics recomputed; False: as training left them

    @property
    def trains(self) -> str:
        """The variant whose training run this one belongs to."""
        return self.of or self.name

    def recipe(self, base: Recipe) -> Recipe:
        """The base recipe with this variant's settings. Raises RecipeError for one that cannot be."""
        values = base.to_json()
        for key, value in self.overrides.items():
            section, _, leaf = key.partition(".")
            values[section] = {**values[section], leaf: value}
        recipe = Recipe.from_json(values)
        recipe.config(classes=1)  # raises now, not after hours, if no such network exists
        return recipe


@dataclass(frozen=True)
class Experiment:
    """A question put to several variants of one recipe."""

    name: str
    question: str
    recipe: str  # the base, unless another is asked for; "": it trains nothing
    milestones: tuple[int, ...] = ()  # generator steps at scale 1
    variants: Callable[[Recipe], tuple[Variant, ...]] = lambda base: ()  # of a base; the baseline first
    notes: Callable[[Recipe], tuple[str, ...]] = lambda base: ()  # on a base, for the reader of the report
    tries_rule: bool = False  # whether its report tries the stopping rule on every run


def find(name: str) -> Experiment:
    """The experiment called `name`. Raises ExperimentError."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(EXPERIMENTS)}."
    raise ExperimentError(f"There is no experiment {name!r}. {hint}")


def _attention_sites(base: Recipe) -> tuple[Variant, ...]:
    generator, discriminator = "model.generator_attention", "model.discriminator_attention"
    return (
        Variant("full", "attention in both networks, as in SAGAN"),
        Variant("none", "no attention", {generator: (), discriminator: ()}),
        Variant("not-in-generator", "attention in the discriminator alone", {generator: ()}),
        Variant("not-in-discriminator", "attention in the generator alone", {discriminator: ()}),
    )


def _stabilisers(base: Recipe) -> tuple[Variant, ...]:
    mean = math.sqrt(base.optimisation.generator_lr * base.optimisation.discriminator_lr)
    rates = {
        "": ("equal learning rates", mean, mean),
        "-ttur": ("TTUR, the discriminator's rate 4 × the generator's", mean / 2, mean * 2),
    }
    norms = {
        BASELINE: ("no spectral norm", False, False),
        "sn-d": ("spectral norm in the discriminator", False, True),
        "sn-gd": ("spectral norm in both networks", True, True),
    }
    return tuple(
        Variant(
            norm + rate,
            f"{about_norm}, {about_rate}",
            {
                "optimisation.generator_spectral_norm": in_generator,
                "optimisation.discriminator_spectral_norm": in_discriminator,
                "optimisation.generator_lr": generator_lr,
                "optimisation.discriminator_lr": discriminator_lr,
            },
        )
        for norm, (about_norm, in_generator, in_discriminator) in norms.items()
        for rate, (about_rate, generator_lr, discriminator_lr) in rates.items()
    )


_FORMS = {
    "embedded-gaussian": "SAGAN's form: softmax of f(x)ᵀg(x)",
    "gaussian": "softmax of xᵀx, nothing learned in the comparison",
    "dot-product": "f(x)ᵀg(x) over the number of keys, no softmax",
    "concatenation": "ReLU(wᵀ[f(x), g(x)]) over the number of keys",
}


def _every_form(base: Recipe) -> tuple[Variant, ...]:
    forms = [
        Variant(
            form + ("" if pool else "-full-keys"),
            about + ("; keys on the 2×2-pooled grid" if pool else "; a key for every position"),
            {"model.attention_form": form.replace("-", "_"), "model.attention_pool": pool},
        )
        for pool in (True, False)
        for form, about in _FORMS.items()
    ]
    side = int(base.model["resolution"])
    sites = [
        Variant(
            f"at-{site}",
            f"SAGAN's form at the {site}×{site} maps" + (" of the generator alone" if site == side else ""),
            {
                "model.generator_attention": (site,),
                "model.discriminator_attention": (site,) if site < side else (),
                "model.attention_form": "embedded_gaussian",
                "model.attention_pool": True,
            },
        )
        for site in (8, 16, 32, 64)
        # a discriminator has no map as large as the image; the base's own site is no variant
        if site <= side and site not in base.model.get("generator_attention", ())
    ]
    none = Variant(
        "none", "no attention", {"model.generator_attention": (), "model.discriminator_attention": ()}
    )
    return (*forms, *sites, none)


def map_bytes(variant: Variant, base: Recipe) -> int:
    """Bytes of the largest attention map that a training step holds explicitly; 0: none is ever built."""
    recipe = variant.recipe(base)
    config = recipe.config(classes=1)
    if config.attention_form in ("embedded_gaussian", "gaussian"):
        return 0  # the fused kernel never builds it
    side = max((*config.generator_attention, *config.discriminator_attention), default=0)
    keys = side * side // (4 if config.attention_pool else 1)
    return 4 * 2 * recipe.optimisation.batch * side * side * keys  # float32; real and fake images in one pass


def _attention_forms(base: Recipe) -> tuple[Variant, ...]:
    return tuple(v for v in _every_form(base) if map_bytes(v, base) <= MAP_LIMIT)


def _forms_notes(base: Recipe) -> tuple[str, ...]:
    out = [v for v in _every_form(base) if map_bytes(v, base) > MAP_LIMIT]
    sizes = ", ".join(f"{v.name} ({map_bytes(v, base) / 2**30:.1f} GiB)" for v in out)
    left_out = f" Left out here: {sizes}." if out else " None is left out here."
    return (
        "Dot product and concatenation build the whole map of queries × keys; the fused kernel of the two "
        f"Gaussian forms never does. A form is left out if its map takes more than {MAP_LIMIT / 2**30:.0f} "
        f"GiB in the discriminator's pass.{left_out}",
        f"Sites of the forms: generator {list(base.model.get('generator_attention', ()))}, discriminator "
        f"{list(base.model.get('discriminator_attention', ()))}.",
    )


def _ablations(base: Recipe) -> tuple[Variant, ...]:
    """Each option of the recipe turned the other way, one at a time."""
    standing = Variant(
        "no-standing-statistics", "batch-norm statistics as training left them", of=BASELINE, standing=False
    )
    truncated = (
        Variant(
            f"truncation-{level}", f"noise scaled by {level} when sampling", of=BASELINE, truncation=level
        )
        for level in (0.5, 0.7, 0.85)
    )
    return (
        Variant(BASELINE, "the recipe as it is"),
        *_optimisation_ablations(base),
        *_network_ablations(base),
        standing,
        *truncated,
    )


def _optimisation_ablations(base: Recipe) -> Iterator[Variant]:
    o = base.optimisation
    yield Variant("no-ema", "the last weights instead of their average", {"optimisation.ema_half_life": 1e-3})
    if o.augment:
        yield Variant("no-diffaugment", "without DiffAugment", {"optimisation.augment": ""})
    else:
        policy = "translation,cutout,colour"
        yield Variant("diffaugment", f"DiffAugment: {policy}", {"optimisation.augment": policy})
    yield Variant(
        "batch-x2",
        "twice the batch, learning rates × √2 (twice the images at the same step)",
        {
            "optimisation.batch": 2 * o.batch,
            "optimisation.generator_lr": o.generator_lr * math.sqrt(2),
            "optimisation.discriminator_lr": o.discriminator_lr * math.sqrt(2),
        },
    )
    steps = 2 if o.discriminator_steps == 1 else 1
    yield Variant(
        f"n-dis-{steps}",
        f"{steps} discriminator steps a generator step",
        {"optimisation.discriminator_steps": steps},
    )
    for how in ("xavier", "orthogonal", "normal"):
        if how != o.initialisation:
            yield Variant(f"init-{how}", f"{how} initial weights", {"optimisation.initialisation": how})


def _network_ablations(base: Recipe) -> Iterator[Variant]:
    shared, latent = int(base.model.get("class_embedding", 0)), int(base.model.get("latent", 128))
    length = shared or latent
    if shared:
        yield Variant(
            "class-tables",
            "a table a layer for the classes",
            {"model.class_embedding": 0, "model.hierarchical": False},
        )
    else:
        yield Variant(
            "shared-embedding",
            f"one class embedding of {length} for all layers",
            {"model.class_embedding": length},
        )
    if base.model.get("hierarchical", False):
        yield Variant("flat-latent", "z into the first layer alone", {"model.hierarchical": False})
    else:
        chunks = len(base.model["generator_widths"])  # the first layer and each block take one
        latent -= latent % chunks
        yield Variant(
            "hierarchical",
            f"z of {latent} in {chunks} chunks, and a shared class embedding of {length}",
            {"model.hierarchical": True, "model.class_embedding": length, "model.latent": latent},
        )


_STEPS = (2000, 5000, 10_000, 20_000, 30_000)

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "attention-sites",
            "Where does attention help: in both networks, in one of them, nowhere? And would the stopping "
            "rule (first the metric flattens, then the discriminator's loss does) have ended training at a "
            "good step?",
            "folder64",
            (500, 2500, 5000, 10_000, 15_000, 20_000, 24_000, 30_000),
            _attention_sites,
            tries_rule=True,
        ),
        Experiment(
            BLINDNESS,
            "Does a Fréchet distance in pooled features see spatial disorder at all? Which measure sees it "
            "first?",
            "",
        ),
        Experiment(
            "stabilisers",
            "What do spectral norm (in the discriminator, in both networks) and TTUR each add? (SAGAN, "
            "Zhang et al. 2019, section 5.1)",
            "cifar10",
            _STEPS,
            _stabilisers,
            lambda base: (
                "Equal rates are the geometric mean of the recipe's two; TTUR is half and twice that mean, "
                "as the paper's 1e-4 and 4e-4 are around 2e-4.",
            ),
        ),
        Experiment(
            "attention-forms",
            "Does the form of the comparison matter (Wang et al. 2018, eq. 2-6), the pooling of the keys, "
            "the place in the network?",
            "cifar10",
            _STEPS,
            _attention_forms,
            _forms_notes,
        ),
        Experiment(
            "ablations",
            "What does each option of the recipe bring, turned the other way one at a time?",
            "cifar10",
            _STEPS,
            _ablations,
        ),
    )
}


def milestones(experiment: Experiment, scale: float) -> tuple[int, ...]:
    """The experiment's milestones at a scale, in generator steps, rising."""
    return tuple(sorted({max(1, round(step * scale)) for step in experiment.milestones}))


def with_seed(recipe: Recipe, number: int, steps: int) -> Recipe:
    """The recipe of run `number` over `steps`, which logs and saves often enough for a short run."""
    optimisation = dataclasses.replace(
        recipe.optimisation, seed=recipe.optimisation.seed + number, steps=steps
    )
    schedule = dataclasses.replace(
        recipe.schedule, log_every=max(1, steps // 400), save_every=max(1, steps // 60)
    )
    return dataclasses.replace(recipe, optimisation=optimisation, schedule=schedule)
