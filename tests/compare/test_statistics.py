"""Intervals and verdicts: right on average, as sure as they say, silent where nothing is known."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segray.compare.statistics import Estimates, difference, estimate
from segray.train.metrics import scores

K = 5
SHARES = np.array([0.45, 0.3, 0.15, 0.08, 0.02])  # the last class is rare
MISSED = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
VAL = (267, 174, 59)
STREETS = (10, 10, 10, 10)
TEN = (50,) * 10


def of_city(sizes):
    return [f"city {c}" for c, size in enumerate(sizes) for _ in range(size)]


def draw(rng, sizes, seeds=3, shift=0.0, city=0.05, image=0.5, seed=0.05, seed_city=0.05):
    """A model's counts (S, C, K, K) summed over each city's images, which have equal content.

    What is missed has a logit that varies between cities, images, seeds and seeds x cities.
    """
    sizes = np.array(sizes)
    logit = np.log(MISSED / (1 - MISSED)) + shift
    deviation = np.sqrt(city**2 + image**2 / sizes)[:, None]
    logit = logit + deviation * rng.normal(size=(len(sizes), K))
    logit = logit + seed * rng.normal(size=(seeds, 1, K))
    logit = logit + seed_city * rng.normal(size=(seeds, len(sizes), K))
    pixels = sizes[:, None] * 100_000 * SHARES
    counts = (pixels / (1 + np.exp(-logit)))[..., None] * np.where(np.eye(K), 0, SHARES)
    counts = np.rint(counts / (1 - SHARES)[:, None]).astype(np.int64)
    counts[..., range(K), range(K)] = np.rint(pixels) - counts.sum(-1)
    return counts


def draw_pair(rng, sizes, seeds=(3, 3), shift=0.0, **noise):
    return draw(rng, sizes, seeds[0], shift, **noise), draw(rng, sizes, seeds[1], **noise)


def mean_iou(counts):
    names = [str(k) for k in range(K)]
    return scores(counts.sum(0), names)["miou"]


def small(rng, seeds=2, images=6, k=3):
    return rng.integers(0, 50, (seeds, images, k, k))


def test_values_are_means_over_seeds_of_the_scores_of_summed_counts():
    rng = np.random.default_rng(0)
    counts = small(rng, seeds=3, k=4)
    names = ["a", "b", "c", "void"]
    expected = [scores(seed.sum(0), names) for seed in counts]
    found = estimate(counts, list("xxyyzz"))
    assert found.miou.value == pytest.approx(np.mean([s["miou"] for s in expected]))
    for k, name in enumerate(names):
        assert found.iou[k].value == pytest.approx(np.mean([s[f"iou/{name}"] for s in expected]))
    without = estimate(counts, list("xxyyzz"), keep=[0, 1, 2])
    assert without.miou.value == pytest.approx(np.mean([s["miou_without_void"] for s in expected]))
    assert list(without.iou) == [0, 1, 2]
    assert without.iou[1] == found.iou[1]


def test_values_and_standard_error_by_hand():
    """Two classes, two equal cities, two seeds: IoU and influences in fractions."""
    a = np.array([[[[3, 1], [0, 4]], [[2, 2], [0, 4]]], [[[4, 0], [0, 4]], [[2, 2], [0, 4]]]])
    found = estimate(a, ["x", "y"])
    iou = np.array([[5 / 8, 8 / 11], [6 / 8, 8 / 10]])
    assert found.iou[0].value == pytest.approx((5 / 8 + 6 / 8) / 2)
    assert found.miou.value == pytest.approx(iou.mean())
    assert found.miou.se_seeds == pytest.approx(math.sqrt(iou.mean(1).var(ddof=1) / 2))
    # Class 0: a city with h of H hits and u of U moves IoU by (h - u H / U) / U; u / U is 1/2.
    moved = [np.mean([(3 - 4 * 5 / 8) / 8, (4 - 4 * 6 / 8) / 8]) / math.sqrt(1 / 2)] * 2
    assert found.iou[0].se_images == pytest.approx(math.hypot(*moved))
    assert found.iou[0].over == "cities and seeds"


def test_equal_cities_give_the_t_test_of_their_means():
    """Where IoU is linear in the counts: all unions equal, one seed."""
    hits = np.array([50, 60, 80, 65])
    counts = np.zeros((1, 4, 2, 2), dtype=np.int64)
    counts[0, :, 0, 0], counts[0, :, 0, 1], counts[0, :, 1, 1] = hits, 100 - hits, 100
    found = estimate(counts, list("abcd")).iou[0]
    assert found.value == pytest.approx(hits.mean() / 100)
    assert found.se == pytest.approx(hits.std(ddof=1) / 100 / 2)
    assert found.df == pytest.approx(3)
    assert found.high - found.value == pytest.approx(3.182446 * found.se)


def test_cities_that_agree_by_chance_do_not_lend_certainty():
    """Cities add up to the same while their images differ: nearly all of the variance is theirs."""
    counts = np.zeros((5, 6, 2, 2), dtype=np.int64)
    hits = np.array([500, 900] * 3) + np.arange(5)[:, None]
    counts[..., 0, 0], counts[..., 0, 1], counts[..., 1, 1] = hits, 1000 - hits, 1000
    found = estimate(counts, list("aabbcc")).iou[0]
    assert found.se_images == pytest.approx(0, abs=1e-12)
    assert found.df < 2.1
    assert estimate(counts, list("abcdef")).iou[0].df == pytest.approx(5, abs=0.1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_swapping_negates_and_order_does_not_matter(seed, seeds_a, seeds_b, cities):
    rng = np.random.default_rng(seed)
    a, b = small(rng, seeds_a, 8), small(rng, seeds_b, 8)
    where = [f"c{i % cities}" for i in range(8)]
    found = difference(a, b, where)
    swapped = difference(b, a, where)
    images = rng.permutation(8)
    shuffled = difference(
        a[rng.permutation(seeds_a)][:, images], b[:, images], [where[i] for i in images]
    )
    for one, other, same in zip(*map(all_of, (found, swapped, shuffled)), strict=True):
        assert other.value == -one.value
        assert (-other.high, -other.low) == pytest.approx((one.low, one.high))
        assert other.p == pytest.approx(one.p, nan_ok=True)
        assert other.p_better == pytest.approx(1 - one.p_better, nan_ok=True)
        assert asdict(same) == pytest.approx(asdict(one), nan_ok=True)


def all_of(found: Estimates):
    return [found.miou, *found.iou.values()]


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_interval_and_corrected_p_agree(seed, tests, level):
    rng = np.random.default_rng(seed)
    a = draw(rng, STREETS, shift=-rng.uniform(0, 1))
    found = difference(a, draw(rng, STREETS), list("abcd"), level=level, tests=tests)
    assert found.miou.tests == tests
    assert {one.tests for one in found.iou.values()} == {tests * K}
    for one in all_of(found):
        assume(abs(one.p_corrected - (1 - level)) > 1e-9)
        assert one.differs == (one.p_corrected < 1 - level)
        assert one.low < one.value < one.high
        assert one.se == pytest.approx(math.hypot(one.se_images, one.se_seeds))
        assert one.p_better == pytest.approx(1 - one.p / 2 if one.value > 0 else one.p / 2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_sparse_counts_give_numbers_or_a_reason(seed, seeds, images, cities):
    """Absent classes, single images, cities and seeds: no warning, no interval out of nothing."""
    rng = np.random.default_rng(seed)
    sparse = [rng.integers(0, 9, (seeds, images, 4, 4)) * (rng.random((4, 4)) < 0.3) for _ in "ab"]
    assume(all(x.sum((1, 2, 3)).min() > 0 for x in sparse))
    where = [f"c{rng.integers(cities)}" for _ in range(images)]
    found = [*all_of(estimate(sparse[0], where)), *all_of(difference(*sparse, where))]
    for one in found:
        known = [math.isfinite(x) for x in (one.value, one.low, one.high, one.se)]
        assert all(known) or one.note
        assert not known[1] or one.low <= one.value <= one.high


def test_a_model_against_itself_differs_by_exactly_nothing():
    counts = draw(np.random.default_rng(0), VAL)
    for one in all_of(difference(counts, counts, list("abc"))):
        assert (one.value, one.p, one.p_better, one.se_images) == (0, 1, 0.5, 0)
        assert one.low < 0 < one.high  # other seeds might differ
    single = difference(counts[:1], counts[:1], list("abc")).miou
    assert (single.value, single.low, single.high, single.se) == (0, 0, 0, 0)
    assert math.isnan(single.p)


def test_one_seed_covers_images_only_and_says_so():
    rng = np.random.default_rng(0)
    a, b = draw_pair(rng, VAL, (1, 3))
    alone = estimate(a, list("abc")).miou
    assert (alone.over, alone.se_seeds) == ("cities", 0)
    assert "a single seed" in alone.note
    pair = difference(a, b, list("abc")).miou
    assert pair.over == "cities"
    assert pair.se_seeds > 0  # the other's seeds are known
    assert "a single seed" in pair.note
    assert difference(b, b, list("abc")).miou.over == "cities and seeds"


@pytest.mark.parametrize("seeds", [(1, 1), (1, 3), (3, 1)])
def test_with_one_seed_nothing_is_said_to_differ(seeds):
    rng = np.random.default_rng(0)
    better = draw(rng, TEN, seeds[0], shift=-2.0)
    found = difference(better, draw(rng, TEN, seeds[1]), [str(c) for c in range(len(TEN))])
    assert found.miou.low > 0  # over the cities alone
    for one in all_of(found):
        assert not one.differs
        assert math.isnan(one.p)
        assert math.isnan(one.p_corrected)
        assert math.isnan(one.p_better)


def test_one_city_resamples_images_and_says_so():
    counts = small(np.random.default_rng(0), images=20)
    found = estimate(counts, ["a"] * 20).miou
    assert found.over == "images and seeds"
    assert "one city" in found.note
    assert found.df > 1
    apart = estimate(counts, [str(i) for i in range(20)]).miou
    assert found == replace(apart, over=found.over, note=found.note)
    lone = estimate(counts[:, :1], ["a"]).miou
    assert math.isnan(lone.low)
    assert "two images" in lone.note


def test_a_class_of_one_city_or_image_or_none():
    counts = small(np.random.default_rng(0), images=6, k=5) + 1
    counts[:, 2:, 2] = 0  # class 2: images 0 and 1, of city x
    counts[:, 1:, 3] = 0  # class 3: image 0
    counts[:, :, 4] = counts[:, :, :, 4] = 0
    found = estimate(counts, list("xxyyzz"))
    assert found.iou[0].over == "cities and seeds"
    assert found.iou[2].over == "images and seeds"
    assert "in one city only" in found.iou[2].note
    assert math.isfinite(found.iou[3].value)
    assert math.isnan(found.iou[3].low)
    assert "one image" in found.iou[3].note
    assert math.isnan(found.iou[4].value)
    assert "neither in the truth nor predicted" in found.iou[4].note
    assert math.isfinite(found.miou.low)
    assert found.miou.over == "cities and seeds"
    assert "class 2, 3" in found.miou.note


def test_a_class_that_only_some_seeds_predict_counts_in_their_mean_only():
    counts = small(np.random.default_rng(0), seeds=2, k=3)
    counts[:, :, 2] = counts[:, :, :, 2] = 0
    counts[1, :, 0, 2] = 3  # one seed finds the class where there is none
    found = estimate(counts, list("xxyyzz"))
    expected = [scores(seed.sum(0), list("abc"))["miou"] for seed in counts]
    assert found.miou.value == pytest.approx(np.mean(expected))
    assert found.iou[2].value == 0
    assert math.isnan(found.iou[2].low)


def test_no_variation_at_all_gives_no_interval():
    counts = np.tile(np.array([[40, 10], [5, 45]]), (3, 6, 1, 1))
    found = estimate(counts, list("xxyyzz")).miou
    assert math.isnan(found.low)
    assert "no variation" in found.note
    worse = np.tile(np.array([[30, 20], [5, 45]]), (3, 6, 1, 1))
    pair = difference(counts, worse, list("xxyyzz")).miou
    assert pair.value > 0
    assert not pair.differs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cities": ["a"]}, "each image's city"),
        ({"keep": [0, 3]}, "different class"),
        ({"keep": []}, "different class"),
        ({"keep": [1, 1]}, "different class"),
        ({"level": 1.0}, "level"),
        ({"tests": 0}, "tests"),
        ({"b": np.ones((2, 5, 3, 3), dtype=np.int64)}, "same images"),
        ({"a": np.ones((4, 3, 3), dtype=np.int64)}, "same images"),
        ({"a": np.zeros((2, 4, 3, 3), dtype=np.int64)}, "got none"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    ones = np.ones((2, 4, 3, 3), dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        difference(**({"a": ones, "b": ones, "cities": list("aabb")} | arguments))


@pytest.mark.parametrize(
    ("sizes", "seeds", "noise"),
    [
        (VAL, (3, 3), {}),
        (VAL, (3, 3), {"image": 2.0, "seed": 0.01, "seed_city": 0}),
        (VAL, (3, 5), {"seed": 0.3}),
        (STREETS, (3, 3), {"seed": 0.1}),
        (STREETS, (3, 3), {"city": 0, "seed_city": 0}),
        (TEN, (3, 3), {"seed": 0.1}),
        (TEN, (2, 2), {}),
    ],
)
def test_equal_models_are_told_apart_as_rarely_as_promised(sizes, seeds, noise):
    """At 5 % more than 29 of 400 come about once in fifty times."""
    rng = np.random.default_rng(0)
    names = [str(c) for c in range(len(sizes))]
    found = [difference(*draw_pair(rng, sizes, seeds, **noise), names) for _ in range(400)]
    assert sum(one.miou.differs for one in found) <= 29
    assert sum(any(k.differs for k in one.iou.values()) for one in found) <= 29


@pytest.mark.parametrize("sizes", [VAL, STREETS, TEN])
def test_a_known_difference_is_seen_and_lies_in_the_interval(sizes):
    rng = np.random.default_rng(1)
    names = [str(c) for c in range(len(sizes))]
    noise = {"city": 0.03, "image": 0.2, "seed": 0.05, "seed_city": 0.02}
    a, b = draw_pair(rng, (10,) * 1000, (100, 100), shift=-0.6, **noise)
    true = np.mean([mean_iou(x) - mean_iou(y) for x, y in zip(a, b, strict=True)])
    assert true > 0.05
    found = [difference(*draw_pair(rng, sizes, shift=-0.6, **noise), names) for _ in range(200)]
    assert np.mean([one.miou.low <= true <= one.miou.high for one in found]) > 0.92
    assert np.mean([one.miou.low > 0 for one in found]) > 0.8
    assert np.mean([one.miou.value for one in found]) == pytest.approx(true, abs=0.005)
