"""Confusion matrices and IoU against cityscapesScripts and scikit-learn."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813
from cityscapesscripts.helpers.labels import category2labels, id2label, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from segray.config import CATEGORIES, ScenesData
from segray.data.labels import IGNORE, label_table
from segray.train import metrics
from segray.train.metrics import count_pixels, scores

STREETS = Path(__file__).parents[3] / "shared" / "data" / "streets"
IDS = [label.id for label in labels if label.id >= 0]
# Parking and the like count in a category here and are ignored by the benchmark's scores.
SCORED = [i for i in IDS if not id2label[i].ignoreInEval or id2label[i].category == "void"]
PREDICTED = [i for i in IDS if not id2label[i].ignoreInEval]

# scikit-learn says so of a matrix of one class, which is what some draws make.
pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")


def logits_of(preds: np.ndarray, classes: int) -> torch.Tensor:
    """(N, H, W) class indices -> logits (N, K, H, W) that are largest there."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(preds).long(), classes)
    return one_hot.permute(0, 3, 1, 2).float()


def count(masks: np.ndarray, preds: np.ndarray, classes: int) -> np.ndarray:
    return count_pixels(logits_of(preds, classes), torch.from_numpy(masks)).numpy()


@pytest.fixture
def args():
    """The official script's settings, less what crashes on numpy 2.4."""
    settings_ = official.CArgs()
    vars(settings_).update(vars(official.args))
    settings_.evalInstLevelScore = False
    settings_.evalPixelAccuracy = False
    settings_.quiet = True
    return settings_


def official_matrix(args, folder: Path, truths: list[np.ndarray], preds: list[np.ndarray]):
    """The (34, 34) matrix of label ids [true, predicted] that evaluatePair sums up."""
    matrix = official.generateMatrix(args)
    for truth, pred in zip(truths, preds, strict=True):
        paths = [folder / "truth.png", folder / "pred.png"]
        for path, pixels in zip(paths, (truth, pred), strict=True):
            Image.fromarray(pixels).save(path)
        official.evaluatePair(str(paths[1]), str(paths[0]), matrix, {}, {}, args)
    return matrix


def random_pairs(seed: int, ids: list[int], number: int = 3):
    rng = np.random.default_rng(seed)
    truths = [rng.choice(ids, (17, 23)).astype(np.uint8) for _ in range(number)]
    preds = [rng.choice(PREDICTED, (17, 23)).astype(np.uint8) for _ in range(number)]
    for truth, pred in zip(truths, preds, strict=True):
        right = rng.random(truth.shape) < 0.6
        pred[right & np.isin(truth, PREDICTED)] = truth[right & np.isin(truth, PREDICTED)]
    return truths, preds


def ours(truths, preds, ignore: str) -> np.ndarray:
    """(N, K + 1, K) of images of label ids."""
    table = label_table(ScenesData(format="scenes", ignore=ignore))
    classes = len(CATEGORIES) + (ignore == "none")
    pairs = zip(truths, preds, strict=True)
    return np.concatenate([count(table[t][None], table[p][None], classes) for t, p in pairs])


@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_is_the_official_one_summed_over_categories(args, tmp_path, seed: int) -> None:
    truths, preds = random_pairs(seed, IDS)
    theirs = official_matrix(args, tmp_path, truths, preds)
    by_category = np.zeros((8, 8), dtype=np.int64)
    for true in IDS:
        for pred in IDS:
            place = id2label[true].categoryId, id2label[pred].categoryId
            by_category[place] += int(theirs[true, pred])
    void_last = ours(truths, preds, "void").sum(0)
    np.testing.assert_array_equal(void_last[:7], by_category[1:, 1:])
    np.testing.assert_array_equal(void_last[7], by_category[0, 1:])
    np.testing.assert_array_equal(ours(truths, preds, "none").sum(0)[:8], by_category)


def check_category_scores(args, folder: Path, truths, preds) -> None:
    theirs = official_matrix(args, folder, truths, preds)
    expected = {
        name: official.getIouScoreForCategory(name, theirs, args)
        for name in category2labels
        if name != "void"
    }
    made = scores(ours(truths, preds, "void").sum(0)[:7], CATEGORIES)
    for name, iou in expected.items():
        if math.isnan(iou):
            assert f"iou/{name}" not in made
        else:
            assert made[f"iou/{name}"] == pytest.approx(iou, rel=1e-12)
    assert made["miou"] == pytest.approx(official.getScoreAverage(expected, args), rel=1e-12)


@pytest.mark.parametrize("ids", [SCORED, [0, 7, 23], [3, 26]], ids=["all", "three", "two"])
def test_category_iou_is_the_official_one_on_random_masks(args, tmp_path, ids: list[int]) -> None:
    check_category_scores(args, tmp_path, *random_pairs(5, ids))


@pytest.mark.skipif(not STREETS.is_dir(), reason=f"no real masks at {STREETS}")
def test_category_iou_is_the_official_one_on_real_masks(args, tmp_path) -> None:
    paths = sorted(STREETS.glob("gtFine/*/*/*_labelIds.png"))[::8]
    assert len(paths) > 10
    truths = [np.asarray(Image.open(path)) for path in paths]
    # A prediction that is wrong as models are: the truth, shifted, with void filled in.
    preds = [np.roll(truth, (7, 13), (0, 1)) for truth in truths]
    preds = [np.where(np.isin(pred, PREDICTED), pred, 11).astype(np.uint8) for pred in preds]
    check_category_scores(args, tmp_path, truths, preds)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_the_matrix_is_scikit_learns_for_any_number_of_classes(
    classes: int, seed: int, void: float
) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, classes, (2, 9, 11), dtype=np.uint8)
    masks[rng.random(masks.shape) < void] = IGNORE
    preds = rng.integers(0, classes, masks.shape, dtype=np.uint8)
    made = count(masks, preds, classes)
    assert made.dtype == np.int64
    for image, mask, pred in zip(made, masks, preds, strict=True):
        counts = mask != IGNORE
        expected = np.zeros((classes, classes), dtype=np.int64)
        if counts.any():
            expected = confusion_matrix(mask[counts], pred[counts], labels=range(classes))
        np.testing.assert_array_equal(image[:-1], expected)
        ignored = np.bincount(pred[~counts], minlength=classes)
        np.testing.assert_array_equal(image[-1], ignored)
        assert image.sum() == mask.size


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 40])
def test_every_cell_can_be_hit(classes: int) -> None:
    """One byte holds the cells up to 15 classes, four bytes from 16 on."""
    truth, pred = np.divmod(np.arange((classes + 1) * classes), classes)
    masks = np.where(truth == classes, IGNORE, truth).astype(np.uint8)[None, None]
    made = count(masks, pred.astype(np.uint8)[None, None], classes)
    np.testing.assert_array_equal(made, np.ones((1, classes + 1, classes)))


@given(st.integers(1, 6), st.integers(0, 99))
def test_matrices_of_batches_add_up(split: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.choice(np.array([0, 1, 2, IGNORE], dtype=np.uint8), (6, 5, 7))
    preds = rng.integers(0, 3, masks.shape, dtype=np.uint8)
    whole = count(masks, preds, 3)
    parts = [count(masks[i : i + split], preds[i : i + split], 3) for i in range(0, 6, split)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    batch = count(masks.reshape(1, 30, 7), preds.reshape(1, 30, 7), 3)
    np.testing.assert_array_equal(batch[0], whole.sum(0))


@given(st.integers(0, 999))
def test_scores_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, pred = rng.integers(0, 7, (2, 200))
    made = scores(confusion_matrix(truth, pred, labels=range(7)), CATEGORIES)
    present = np.union1d(truth, pred)
    iou = jaccard_score(truth, pred, labels=present, average=None)
    assert [made[f"iou/{CATEGORIES[k]}"] for k in present] == pytest.approx(list(iou))
    assert made["miou"] == pytest.approx(iou.mean())
    assert made["dice"] == pytest.approx(f1_score(truth, pred, labels=present, average="macro"))
    assert made["accuracy"] == pytest.approx((truth == pred).mean())


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    confusion = np.zeros((3, 3), dtype=np.int64)
    confusion[0] = [6, 2, 0]
    assert scores(confusion, ("a", "b", "c")) == {
        "iou/a": 0.75,
        "iou/b": 0.0,  # predicted where it is not: that is an IoU, of 0
        "miou": 0.375,
        "dice": pytest.approx((12 / 14) / 2),
        "accuracy": 0.75,
    }


def test_with_nothing_but_ignored_pixels_there_is_no_score() -> None:
    assert scores(np.zeros((2, 2), dtype=np.int64), ("a", "b")) == {}


def test_void_as_a_class_has_both_means() -> None:
    made = scores(np.array([[1, 1, 0], [0, 4, 0], [0, 2, 2]]), ("void", "flat", "sky"))
    iou = {"void": 1 / 2, "flat": 4 / 7, "sky": 2 / 4}
    assert made["miou"] == pytest.approx(sum(iou.values()) / 3)
    assert made["miou_without_void"] == pytest.approx((iou["flat"] + iou["sky"]) / 2)
    assert "miou_without_void" not in scores(np.eye(2, dtype=np.int64), ("flat", "sky"))


def test_ignored_pixels_move_no_score() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 7, (1, 8, 8), dtype=np.uint8)
    preds = rng.integers(0, 7, (1, 8, 8), dtype=np.uint8)
    masks[:, :3] = IGNORE
    other = preds.copy()
    other[:, :3] = (other[:, :3] + 1) % 7
    first, second = (scores(count(masks, p, 7).sum(0)[:-1], CATEGORIES) for p in (preds, other))
    assert first == second


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 19),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 2**31),
)
def test_counting_only_between_classes_counts_as_upsampling_does(
    classes: int, coarse: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, *coarse, generator=generator)
    mask = torch.randint(0, classes + 1, size, generator=generator).to(torch.uint8)
    mask[mask == classes] = IGNORE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "SPARSE", 1.1)  # it never gives way to upsampling everything
        sparse = metrics.upsampled_preds(logits, size)
        preds = metrics._sparse_preds(logits, size)
    full = metrics.upsample(logits[None], size)
    assert torch.equal(preds, full[0].argmax(0).to(torch.uint8))
    counts = metrics.count_preds(sparse[None], mask[None], classes)
    assert torch.equal(counts, metrics.count_pixels(full, mask[None]))
