"""Figures -> sentences: what a comparison says, and what it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from segray.compare.comparison import Model, Pair
from segray.compare.runs import Run
from segray.compare.statistics import Estimate
from segray.sweep.progress import count

LEVEL = "95 %"  # what statistics gives where nothing else is asked for


def of_pair(a: Run, b: Run, miou: Estimate) -> str:
    """The verdict on two models, the better mean first; `miou` is A's less B's."""
    models = f"{a.name} ({a.described}) and {b.name} ({b.described})"
    if min(len(a.finals), len(b.finals)) < 2:
        within = f" ({_range(miou)} over the {miou.over} alone)" if math.isfinite(miou.low) else ""
        return (
            f"No verdict on {models}: {a.name} is ahead by {miou.value:.3f} mIoU{within}, but one "
            "seed does not show how much another training would differ; give both sweeps more "
            f"final.seeds, under another name={_pretraining(a, b)}."
        )
    if miou.differs:
        return (
            f"{a.name} ({a.described}) is better than {b.name} ({b.described}) by "
            f"{miou.value:.3f} mIoU ({_range(miou)}){_pretraining(a, b)}."
        )
    if not math.isfinite(miou.low):
        return (
            f"No interval can be given for {models}: {_named(miou.note, a)}. {a.name} is ahead by "
            f"{miou.value:.3f} mIoU{_pretraining(a, b)}."
        )
    return (
        f"No difference is shown between {models}: {a.name} is ahead by {miou.value:.3f} mIoU, "
        f"which chance alone may have done ({_range(miou)}){_pretraining(a, b)}."
    )


def of_one(model: Model) -> str:
    """What a sweep alone has come to."""
    miou = model.miou
    seeds = count(len(model.trainings), "seed")
    within = f" ({_range(miou, '')})" if math.isfinite(miou.low) else ""
    return f"{model.name} ({model.described}) has {miou.value:.3f} mIoU on test{within}, {seeds}."


def of_all(models: Sequence[Model], pairs: Sequence[Pair]) -> str:
    """The verdict on all models, which are given best first."""
    if len(models) == 1:
        return of_one(models[0])
    if len(models) == 2:
        return pairs[0].verdict
    best, *rest = models
    first, others = best.name, [model.name for model in rest]
    against = {pair.b: pair for pair in pairs if pair.a == first}
    worse = [name for name in others if against[name].miou.differs]
    silent = [name for name in others if not math.isfinite(against[name].miou.p)]
    alike = [name for name in others if name not in worse and name not in silent]
    said = []
    if worse:
        gaps = ", ".join(f"{against[name].miou.value:.3f} to {name}" for name in worse)
        whom = "each of the others" if len(worse) == len(others) else _listed(worse)
        said.append(f"is better than {whom} in mIoU ({gaps})")
    if alike:
        said.append(f"no difference is shown to {_listed(alike)}")
    if silent:
        said.append(f"there is no verdict on {_listed(silent)}, see below")
    lead = "" if worse else "has the highest mIoU; "
    return f"{first} ({best.described}) {lead}{'; '.join(said)}{_pretraining(*models)}."


def not_covered(runs: Sequence[Run]) -> list[str]:
    """What no interval here covers."""
    number = len({city for city in runs[0].cities if city})
    once = "each sweep was" if len(runs) > 1 else "the sweep was"
    others = {0: "places", 1: "cities: the test split has one"}
    return [
        f"the luck of the tuning itself: {once} run once, and another seed of its sampler may find "
        "other parameters",
        f"other {others.get(number, f'cities: the test split has {number} of them')}",
        "other cameras, weather and labelling than this dataset's",
    ]


def notes(runs: Sequence[Run], miou: Mapping[str, Estimate], pairs: Sequence[Pair]) -> list[str]:
    """How the figures came about."""
    first = runs[0]
    said = [
        f"mIoU is computed from one matrix over all {len(first.ids)} test images, counted at the "
        "size of the masks' files, and averaged over the seeds.",
    ]
    covered = {estimate.over for estimate in miou.values() if estimate.over}
    if covered:
        together = any(over.startswith("cities") for over in covered)
        said.append(
            f"The {LEVEL} intervals are over {' or '.join(sorted(covered))} (Student's t"
            f"{'; images of one city are taken together' if together else ''})."
        )
    if pairs:
        looks = pairs[0].miou.tests
        categories = [estimate.tests for pair in pairs for estimate in pair.iou.values()]
        said.append(
            f"Intervals of differences are corrected after Bonferroni for {count(looks, 'pair')} "
            f"of models in mIoU and for {max(categories, default=looks)} looks at categories."
        )
    for run in runs:
        seeds = [training.seed for training in run.trainings]
        if run.config.seed in seeds:
            said.append(
                f"{run.name}: seed {run.config.seed} is the search's own as well, so that training "
                "repeats the winning trial, which was chosen for its score on val."
            )
    between = {f"{pair.a} and {pair.b}": pair.miou for pair in pairs}
    said += [
        f"{name}: {_named(estimate.note, first)}."
        for name, estimate in {**miou, **between}.items()
        if estimate.note
    ]
    return said


def _pretraining(*models: Run | Model) -> str:
    """What stands in the verdict where not all encoders began alike."""
    origins = {model.name: _origin(model.pretrained) for model in models}
    if len(set(origins.values())) < 2:
        return ""
    trained = [f"that of {name} {how}" for name, how in origins.items() if how]
    scratch = [name for name, how in origins.items() if not how]
    told = f"; not all encoders began alike: {_listed(trained)}"
    return f"{told}, {_listed(scratch)} from scratch" if scratch else told


def _origin(pretrained: str | None) -> str:
    if pretrained is None:
        return ""
    on_imagenet = re.fullmatch(r"nvidia/mit-b[0-5]", pretrained)
    return "was pretrained on ImageNet" if on_imagenet else f"was pretrained ({pretrained})"


def _range(estimate: Estimate, sign: str = "+") -> str:
    corrected = f", corrected for {estimate.tests} pairs" if estimate.tests > 1 else ""
    return f"{LEVEL} interval {estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}{corrected}"


def _named(note: str, run: Run) -> str:
    """A note on mIoU, whose only numbers are classes."""
    if not any(run.cities):
        note = note.replace("all images are of one city", "the images have no cities")
    return re.sub(r"\d+", lambda index: run.classes[int(index[0])], note)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
