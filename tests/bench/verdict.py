"""Whether the verdict of a comparison can be trusted: `segray.compare.statistics` on simulated
counts of models whose true difference is known.

Each repeat draws new cities, images and seeds. An image's pixels of a class are missed at a rate
whose logit is a base plus what the city, the image, the seed, seed x city and seed x image add,
independently for each model; what is missed goes to the other classes. Of two models with equal
distributions the difference is 0, and 5 % of the verdicts may say otherwise: at most 29 of 400
(a chance of 2 % at 5 %).
"""

import argparse
import time
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
from scipy.special import stdtr

from segray.compare import statistics
from segray.compare.statistics import Estimate, difference

SHARES = np.array([0.38, 0.24, 0.02, 0.17, 0.04, 0.01, 0.14])  # of the pixels; human is rare
MISSED = np.array([0.03, 0.08, 0.40, 0.08, 0.06, 0.30, 0.08])  # of a class, at the base
K = len(SHARES)
PIXELS = 2**17
BOUND = 29  # of 400


@dataclass(frozen=True)
class Setting:
    """Sizes of the cities, seeds of each model, and standard deviations on the logit scale."""

    name: str
    cities: tuple[int, ...]
    seeds: tuple[int, int] = (3, 3)
    city: float = 0.1
    image: float = 0.3
    seed: float = 0.06
    seed_city: float = 0.03
    seed_image: float = 0.2
    calmer: float = 1.0  # what the second model's deviations between seeds are multiplied by
    rare: bool = False  # whether nine in ten of human's pixels lie in the first city


# A fifth of Cityscapes' val, whose cities have 267, 174 and 59 images; the street photographs; ten.
LAYOUTS = {"val": (53, 35, 12), "streets": (10,) * 4, "ten": (15,) * 10}
NOISE: dict[str, dict[str, float]] = {
    "both": {},
    "seeds": {"seed": 0.25, "image": 0.15, "city": 0.03},
    "images": {"seed": 0.01, "image": 0.5, "seed_image": 0.1},
    "no cities": {"city": 0.0, "seed_city": 0.0},
    "cities": {"city": 0.3, "seed": 0.02},
    "seed x city": {"city": 0.0, "seed": 0.0, "seed_city": 0.3},
}


def draw_truth(rng: np.random.Generator, setting: Setting) -> np.ndarray:
    """Pixels (N, K) of each image."""
    of = np.repeat(np.arange(len(setting.cities)), setting.cities)
    spread = rng.normal(0, 0.3, (len(setting.cities), K))[of] + rng.normal(0, 0.6, (len(of), K))
    area = SHARES * np.exp(spread)
    area[:, 5] *= (rng.random(len(of)) < 0.5) * 2  # half of the images show nobody
    if setting.rare:
        area[of > 0, 5] *= 0.1
    return np.rint(PIXELS * area / area.sum(1, keepdims=True)).astype(np.int64)


def draw_counts(rng, setting, truth, seeds, shift=0.0, calm=1.0) -> np.ndarray:
    """A model's counts (S, N, K, K) int64; `shift` is added to the logit of every miss."""
    sizes = setting.cities
    of = np.repeat(np.arange(len(sizes)), sizes)

    def noise(deviation: float, *shape: int) -> np.ndarray:
        # Half of the variance is common to all classes: a seed is good or bad as a whole.
        return deviation * (rng.normal(size=(*shape, K)) + rng.normal(size=(*shape, 1))) / 2**0.5

    logit = np.log(MISSED / (1 - MISSED)) + shift
    logit = logit + (noise(setting.city, len(sizes))[of] + noise(setting.image, len(of)))
    logit = logit + calm * noise(setting.seed, seeds, 1)
    logit = logit + calm * noise(setting.seed_city, seeds, len(sizes))[:, of]
    logit = logit + calm * noise(setting.seed_image, seeds, len(of))
    missed = truth / (1 + np.exp(-logit))  # (S, N, K)
    to = np.where(np.eye(K), 0, SHARES)
    counts = np.rint(missed[..., None] * (to / to.sum(1, keepdims=True))).astype(np.int64)
    diagonal = np.arange(K)
    counts[..., diagonal, diagonal] = truth - counts.sum(-1)
    return counts


def city_names(setting: Setting) -> list[str]:
    return [f"city {c}" for c, size in enumerate(setting.cities) for _ in range(size)]


def pair(rng, setting: Setting, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two models' counts on one draw of images; the first misses less where shift is negative."""
    truth = draw_truth(rng, setting)
    a = draw_counts(rng, setting, truth, setting.seeds[0], shift)
    return a, draw_counts(rng, setting, truth, setting.seeds[1], calm=setting.calmer)


def miou(counts: np.ndarray) -> np.ndarray:
    """(..., N, K, K) -> (...)."""
    total = counts.sum(-3)
    hits = np.diagonal(total, axis1=-2, axis2=-1)
    return (hits / (total.sum(-1) + total.sum(-2) - hits)).mean(-1)


def shift_for(wanted: np.ndarray, setting: Setting, repeats: int = 30) -> np.ndarray:
    """The shifts at which the mean difference is as wanted: both models with the same noise."""
    shifts = np.linspace(0, -0.5, 6)
    gains = np.zeros(len(shifts))
    for k in range(repeats):
        truth = draw_truth(np.random.default_rng(k), setting)
        means = [
            miou(draw_counts(np.random.default_rng(k), setting, truth, 10, shift)).mean()
            for shift in shifts
        ]
        gains += (np.array(means) - means[0]) / repeats
    return np.interp(wanted, gains, shifts)


def bootstrap_differs(rng, a: np.ndarray, b: np.ndarray, draws: int = 100) -> bool:
    """The plain percentile bootstrap: images and seeds drawn anew, with replacement."""
    times = rng.multinomial(a.shape[1], np.full(a.shape[1], 1 / a.shape[1]), draws).astype(float)
    means = []
    for counts in (a, b):
        hits = counts[..., np.arange(K), np.arange(K)]
        union = counts.sum(-1) + counts.sum(-2) - hits
        summed = [np.einsum("bn,snk->bsk", times, x, optimize=True) for x in (hits, union)]
        of_seed = (summed[0] / summed[1]).mean(-1)  # (draws, S)
        chosen = rng.integers(0, len(counts), (draws, len(counts)))
        means.append(np.take_along_axis(of_seed, chosen, 1).mean(1))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return bool(low > 0 or high < 0)


def beside_zero(one: Estimate) -> bool:
    """Whether the interval leaves 0 out; with one seed that is no verdict, and here is why."""
    return one.low > 0 or one.high < 0


def false_verdicts(setting: Setting, repeats: int, bootstrap: bool) -> dict[str, float]:
    """Of equal models: how many verdicts say that they differ; standard errors and deviation."""
    rng = np.random.default_rng(0)
    names = city_names(setting)
    found = dict.fromkeys(("ours", "categories", "satterthwaite", "bootstrap"), 0)
    spread = []
    together = statistics._together
    for _ in range(repeats):
        a, b = pair(rng, setting)
        with mock.patch.object(statistics, "_together", wraps=together) as spied:
            result = difference(a, b, names)
        miou = result.miou
        spread.append((miou.se_images, miou.se_seeds, miou.value))
        found["ours"] += beside_zero(miou)
        found["categories"] += any(map(beside_zero, result.iou.values()))
        parts = spied.call_args.args[0]  # of mIoU, which comes last
        df = sum(v for v, _, _ in parts) ** 2 / sum(v**2 / df for v, df, _ in parts)
        found["satterthwaite"] += 2 * stdtr(df, -abs(miou.value) / miou.se) < 0.05
        found["bootstrap"] += bootstrap and bootstrap_differs(rng, a, b)
    root = np.sqrt(np.square(spread).mean(0))
    return found | dict(zip(("images", "seeds", "deviation"), root, strict=True))


def print_false_verdicts(repeats: int) -> None:
    noises = [
        Setting(f"{layout}, {noise}", cities, **NOISE[noise])
        for layout, cities in LAYOUTS.items()
        for noise in NOISE
    ]
    others = []
    for layout, cities in LAYOUTS.items():
        both = Setting(f"{layout}, both", cities)
        seeds = Setting(f"{layout}, seeds, b's a third", cities, calmer=1 / 3, **NOISE["seeds"])
        rare = replace(both, name=f"{layout}, rare class in one city", rare=True)
        others += [replace(both, seeds=(3, 5)), seeds, rare, replace(both, seeds=(2, 2))]
        others.append(replace(seeds, seeds=(2, 2)))
    others.append(Setting("one city", (40,), **NOISE["no cities"]))
    for noise in ("both", "images"):
        others.append(Setting(f"val, {noise}", LAYOUTS["val"], (5, 5), **NOISE[noise]))
    others += [replace(setting, seeds=(1, 1)) for setting in noises[:2]]
    print(
        f"\nVerdicts that two equal models differ, of {repeats}; 5 % are {0.05 * repeats:.0f}, and "
        f"! marks more than {BOUND * repeats / 400:.0f}.\nStandard errors in points of mIoU: mean "
        "of ours over images and over seeds, and the true deviation.\ncategories: any of 7, "
        "corrected for 7. Satterthwaite: ours with his degrees of freedom.\nbootstrap: "
        "percentiles over images and seeds.\n"
    )
    print(
        f"{'cities, what varies':36}{'seeds':8}{'images':>7}{'seeds':>7}{'true':>7}{'ours':>8}"
        f"{'categories':>12}{'Satterthwaite':>15}{'bootstrap':>11}"
    )
    for setting in noises + others:
        row = false_verdicts(setting, repeats, bootstrap=setting in noises)
        line = f"{setting.name:36}{'{} + {}'.format(*setting.seeds):8}"
        line += "".join(f"{100 * row[name]:7.2f}" for name in ("images", "seeds", "deviation"))
        for name, width in (("ours", 8), ("categories", 12), ("satterthwaite", 15)):
            mark = "!" if row[name] > BOUND * repeats / 400 else " "
            line += f"{row[name]:{width - 1}}{mark}"
        print(line + (f"{row['bootstrap']:10}" if setting in noises else ""), flush=True)


def print_power(repeats: int) -> None:
    """How often a true difference is seen, and how often it lies in the interval."""
    wanted = np.array([0, 0.005, 0.01, 0.02, 0.03, 0.05])
    print(
        f"\nTrue difference in mIoU: % of {repeats} verdicts that see it / % of intervals that "
        "hold it / half their median width, in points\n"
    )
    print(f"{'cities, what varies':22}{'seeds':8}" + "".join(f"{d:>18}" for d in wanted))
    for layout, cities in LAYOUTS.items():
        for noise in ("both", "no cities"):
            base = Setting(f"{layout}, {noise}", cities, **NOISE[noise])
            shifts = shift_for(wanted, base)
            for s in (3, 5):
                line = f"{base.name:22}{f'{s} + {s}':8}"
                for true, shift in zip(wanted, shifts, strict=True):
                    rng = np.random.default_rng(1)
                    setting = replace(base, seeds=(s, s))
                    all_of = [
                        difference(*pair(rng, setting, shift), city_names(setting)).miou
                        for _ in range(repeats)
                    ]
                    seen = np.mean([one.low > 0 for one in all_of])
                    if true == 0:
                        seen = np.mean([beside_zero(one) for one in all_of])
                    holds = np.mean([one.low <= true <= one.high for one in all_of])
                    half = np.median([one.high - one.low for one in all_of]) / 2
                    line += f"{f'{100 * seen:.0f} / {100 * holds:.0f} / {100 * half:.1f}':>18}"
                print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--power", type=int, default=120, help="repeats for each true difference")
    asked = parser.parse_args()
    started = time.perf_counter()
    sizes = {name: " + ".join(map(str, cities)) for name, cities in LAYOUTS.items()}
    print(f"images of each city: {sizes}; {K} classes, numpy {np.__version__}")
    print_false_verdicts(asked.repeats)
    print_power(asked.power)
    taken = time.perf_counter() - started
    print(f"\n{taken:.0f} s, of which the processor worked {time.process_time():.0f}")


if __name__ == "__main__":
    main()
