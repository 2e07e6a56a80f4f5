"""How good a model is; which of two is better, by how much, and how sure that is.

A model is trained with S seeds and each training is scored on the same N test images of C cities,
in K classes. mIoU is computed from a seed's counts over all images and averaged over the seeds.

Two things were drawn by chance, and another draw would have given other figures: the cities (the
images of one resemble each other) and the seeds. The variance of a mean is the sum of

- over the cities, (CR2 influence of a city on it)^2. In a class with H hits and a union of U, a
  city with h and u moves the IoU by (h - u H / U) / U. CR2 (Bell & McCaffrey 2002) divides that by
  sqrt(1 - u / U), which has no bias where images are independent, however unequal the cities are;
  it lies between the plain influence and what leaving the city out changes (CR3, the jackknife);
- for each model, (variance between its seeds) / S. The seeds of two models are not paired.

What seeds and cities do jointly is in both parts, which makes intervals wider, never narrower.
Intervals are Student's t; `_together` has the degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
NAN = math.nan
ROUNDING = 1e-12  # a standard error below it is what summing doubles leaves


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or the difference A - B of two, in IoU (0 to 1).

    What cannot be known is NaN, and `note` says why. `low` and `high` are at the level asked for
    after Bonferroni's correction for `tests` looks; `p` is two-sided and not corrected. `p` and
    `p_better` (the chance that A is better, every difference being as likely beforehand) are NaN
    for a model alone, and where one of two has a single seed: how much another seed would change
    is not known then, and the interval does not cover it.
    """

    value: float
    low: float = NAN
    high: float = NAN
    se: float = NAN
    df: float = NAN
    p: float = NAN
    p_better: float = NAN
    se_images: float = NAN  # the part of `se` that more images, or cities, would lower
    se_seeds: float = NAN  # the part that more seeds would lower
    over: str = ""  # what the interval covers: cities or images, "and seeds"
    tests: int = 1
    note: str = ""

    @property
    def p_corrected(self) -> float:
        """Bonferroni's: p times `tests`, at most 1."""
        return min(1.0, self.p * self.tests) if math.isfinite(self.p) else NAN

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 0 out and `p` is known: `p_corrected` is below 1 - level."""
        return math.isfinite(self.p) and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Estimates:
    """mIoU over the kept classes, and the IoU of each of them by class index."""

    miou: Estimate
    iou: dict[int, Estimate]


def estimate(
    confusion: NDArray[np.int64],
    cities: Sequence[str],
    keep: Sequence[int] | None = None,
    level: float = 0.95,
) -> Estimates:
    """One model's scores from counts (S, N, K, K) [seed, image, true, predicted] and N cities.

    `keep` are the classes to report and average, in general all but void; pixels of the others
    still count as errors. A class that a seed neither finds in the truth nor predicts is left out
    of that seed's mean. Raises ValueError for what does not fit together.
    """
    return _estimates([_model(confusion, cities, keep)], level, 1)


def difference(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    cities: Sequence[str],
    keep: Sequence[int] | None = None,
    level: float = 0.95,
    tests: int = 1,
) -> Estimates:
    """A's scores less B's, see `estimate`. S may differ; images and classes are the same.

    `tests` is how many pairs are looked at. By Bonferroni's correction the chance of any wrong
    verdict among all their mIoUs is at most 1 - level. The same holds of all their categories, each
    category of each pair being one look.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"Expected two models' counts of the same images and classes, got {a.shape} and "
            f"{b.shape}: score both on one test split."
        )
    return _estimates([_model(m, cities, keep) for m in (a, b)], level, tests)


@dataclass(frozen=True)
class _Model:
    """T = 1 + K statistics: mIoU, then the kept classes."""

    classes: list[int]
    seeds: Floats  # (T, S); NaN where a seed has no such class
    drawn: dict[str, Floats]  # cities, images: (3, T, units), see `_drawn`
    apart: Floats  # (T, N): what is drawn by cities, were it drawn by images
    notes: list[str]  # (T,)


def _model(
    confusion: NDArray[np.int64], cities: Sequence[str], keep: Sequence[int] | None
) -> _Model:
    shape = confusion.shape
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or len(cities) != shape[1]:
        raise ValueError(
            f"Expected counts (seeds, images, classes, classes) and each image's city, got {shape} "
            f"and {len(cities)} cities: pass a matrix for every seed and image."
        )
    kept = list(range(shape[2]) if keep is None else keep)
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(shape[2])):
        raise ValueError(f"Expected different classes below {shape[2]}, got {keep=}: name some.")
    rows, columns = confusion.sum(3)[..., kept], confusion.sum(2)[..., kept]  # (S, N, K)
    hits = confusion[:, :, kept, kept].astype(np.float64)
    union = rows + columns - hits
    seen = union.sum(1) > 0  # (S, K)
    if not seen.any(1).all():
        raise ValueError(
            f"Expected pixels of {keep=} for every seed, got none: keep other classes."
        )

    # How much each seed's class weighs in each statistic: (T, S, K).
    mean = seen / seen.sum(1, keepdims=True) / len(seen)
    single = np.eye(len(kept))[:, None] * (seen / np.maximum(seen.sum(0), 1))
    weights = np.concatenate([mean[None], single])
    iou = hits.sum(1) / np.where(seen, union.sum(1), np.nan)  # (S, K)

    # A class is drawn by cities; where it lives in one city only by images; else not at all.
    codes = np.unique(np.asarray(cities), return_inverse=True)[1]
    member = np.eye(codes.max() + 1)[:, codes]  # (C, N): whether an image is of a city
    truth = rows.sum(0)  # (N, K)
    by_city = np.count_nonzero(member @ truth, 0) > 1
    by_image = ~by_city & (np.count_nonzero(truth, 0) > 1)
    return _Model(
        kept,
        np.vstack([np.nanmean(iou, 1), iou.T]),
        {
            "cities": _drawn(hits, union, weights * by_city, member),
            "images": _drawn(hits, union, weights * by_image, np.eye(shape[1])),
        },
        _drawn(hits, union, weights * by_city, np.eye(shape[1]))[0],
        _notes(kept, by_city, by_image, len(member)),
    )


def _drawn(hits: Floats, union: Floats, weights: Floats, member: Floats) -> Floats:
    """Of the units whose images `member` (units, N) names, for each statistic: (3, T, units).

    CR2 influences; shares of the union; the sums of the squared shares of a unit's images. From
    hits and union (S, N, K) and weights (T, S, K).
    """
    if not weights.any():
        return np.zeros((3, len(weights), len(member)))
    total = np.maximum(union.sum(1, keepdims=True), 1)  # (S, 1, K)
    of_image = union / total
    share = member @ of_image  # (S, units, K)
    moved = member @ hits / total - share * (hits.sum(1, keepdims=True) / total)
    # A unit that holds all of a class moves nothing: what it would do elsewhere is not to be seen.
    rest = np.where(share < 1, 1 - share, np.inf)
    each = np.stack([moved / np.sqrt(rest), share, member @ of_image**2])
    found: Floats = np.einsum("tsk,xsuk->xtu", weights, each)
    return found


def _notes(
    kept: list[int], by_city: NDArray[np.bool_], by_image: NDArray[np.bool_], cities: int
) -> list[str]:
    """What is to be known of how mIoU and each class were resampled."""
    single = "" if cities == 1 else "in one city only: its images are resampled as if independent"
    notes = [
        "" if city else single if image else "in the truth of one image at most: not resampled"
        for city, image in zip(by_city, by_image, strict=True)
    ]
    few = ", ".join(str(k) for k, city in zip(kept, by_city, strict=True) if not city)
    if not (by_city | by_image).any():
        return [f"no class is in the truth of two images: {few}", *notes]
    if cities == 1:
        return ["all images are of one city: resampled as if independent", *notes]
    return [f"not in the truth of two cities: class {few}" if few else "", *notes]


def _estimates(models: list[_Model], level: float, tests: int) -> Estimates:
    if not 0 < level < 1 or tests < 1:
        raise ValueError(f"Expected 0 < level < 1 and tests >= 1, got {level=} and {tests=}.")
    classes = models[0].classes
    looks = tests * len(classes) if len(models) > 1 else 1
    iou = {k: _one(models, t, level, looks) for t, k in enumerate(classes, 1)}
    return Estimates(_one(models, 0, level, tests), iou)


def _one(models: list[_Model], t: int, level: float, tests: int) -> Estimate:
    """Statistic t of one model, or of the first less the second."""
    seeds = [m.seeds[t][np.isfinite(m.seeds[t])] for m in models]
    if not all(map(len, seeds)):
        return Estimate(NAN, tests=tests, note="neither in the truth nor predicted")
    value = _less([float(s.mean()) for s in seeds])
    parts = _resampled(models, t)
    if not parts:
        return Estimate(value, tests=tests, note=models[0].notes[t])
    over, notes = next(iter(parts)), [models[0].notes[t]]
    pair, seeds_known = len(models) > 1, min(map(len, seeds)) > 1
    if seeds_known:
        over += " and seeds"
    else:
        notes.append("a single seed: how much another would differ is not known, nor covered")

    images = list(parts.values())
    drawn = images + [
        (float(s.var(ddof=1)) / len(s), len(s) - 1.0, 0.0) for s in seeds if len(s) > 1
    ]
    se, se_images = (math.sqrt(sum(part[0] for part in p)) for p in (drawn, images))
    same = pair and abs(value) <= ROUNDING
    if se <= ROUNDING and not same:
        notes.append("no variation to judge by")
    note = "; ".join(filter(None, notes))
    judged = pair and seeds_known
    if se <= ROUNDING and same:
        p, p_better = (1, 0.5) if judged else (NAN, NAN)
        return Estimate(0, 0, 0, 0, NAN, p, p_better, 0, 0, over, tests, note)
    if se <= ROUNDING:
        return Estimate(value, over=over, tests=tests, note=note)
    df = _together(drawn)
    half = float(stdtrit(df, 1 - (1 - level) / (2 * tests))) * se
    return Estimate(
        value=value,
        low=max(value - half, -1.0 if pair else 0.0),
        high=min(value + half, 1.0),
        se=se,
        df=df,
        p=2 * float(stdtr(df, -abs(value) / se)) if judged else NAN,
        p_better=float(stdtr(df, value / se)) if judged else NAN,
        se_images=se_images,
        se_seeds=math.sqrt(max(se**2 - se_images**2, 0)),
        over=over,
        tests=tests,
        note=note,
    )


def _resampled(models: list[_Model], t: int) -> dict[str, tuple[float, float, float]]:
    """Of statistic t, by what is resampled: a part of the variance, see `_together`."""
    apart = _less([m.apart[t] for m in models])  # (N,)
    least = {"cities": float(apart @ apart), "images": 0.0}
    of = slice(1, None) if t == 0 else slice(t, t + 1)  # the classes that it averages
    parts = {}
    for unit in models[0].drawn:
        moved = _less([m.drawn[unit][0] for m in models])  # (T, units)
        shares, squares = np.mean([m.drawn[unit][1:, of] for m in models], 0)  # (classes, units)
        if shares.any():
            # The classes that vary most decide how many units really contribute.
            spread = np.square(moved[of]).sum(1) + np.finfo(float).tiny
            spread /= spread @ shares.sum(1)
            df = _resampled_df(spread @ shares, spread @ squares)
            parts[unit] = float(moved[t] @ moved[t]), df, least[unit]
    return parts


def _less(values: list[Any]) -> Any:
    """The only one, or the first less the second."""
    return values[0] - values[1] if len(values) > 1 else values[0]


def _resampled_df(share: Floats, squares: Floats) -> float:
    """Degrees of freedom of sum(influence^2) over units with these shares of the whole.

    tr(M)^2 / tr(M^2) of Bell & McCaffrey 2002, M being the covariance of the CR2 influences were
    images independent: a unit varies as the mean of its images, weighted by their pixels of a
    class, so with the sum of their squared shares. C - 1 for C equal cities; 1.5 for Cityscapes'
    val with 267, 174 and 59 images of equal content.
    """
    varies = squares / np.where(share > 0, share, 1) ** 2
    odd = (np.eye(len(share)) - share) * (share / np.sqrt(1 - share))[:, None]
    covariance = odd * varies @ odd.T
    return float(np.trace(covariance) ** 2 / np.square(covariance).sum())


def _together(parts: list[tuple[float, float, float]]) -> float:
    """Degrees of freedom of a sum of parts (variance, its degrees of freedom, its least value).

    1 / sum(u_j^1.5 / df_j), u_j being a part's share of the sum. Satterthwaite 1946 has u_j^2, for
    shares that are known. Ours are estimates on as few as 1.5 degrees of freedom, and the square
    trusts the other parts too much where the largest comes out small by chance. For the same reason
    cities count here for no less than what their images, were they independent, would vary.
    tests/bench/verdict.py shows what Satterthwaite's own formula does.
    """
    sizes = [max(variance, least) for variance, _, least in parts]
    return 1 / sum(
        math.pow(v / sum(sizes), 1.5) / part[1] for v, part in zip(sizes, parts, strict=True)
    )
