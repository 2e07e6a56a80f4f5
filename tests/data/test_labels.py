"""Label ids -> categories -> class indices, against cityscapesScripts' own table."""

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from segray.config import CATEGORIES, FoldersData, ScenesData
from segray.data.labels import IGNORE, UNKNOWN, class_colours, label_table

SECTIONS = {ignore: ScenesData(format="scenes", ignore=ignore) for ignore in ("void", "none")}
KNOWN = [label.id % 256 for label in labels]


@pytest.mark.parametrize("label", labels, ids=lambda label: label.name)
@pytest.mark.parametrize("ignore", ["void", "none"])
def test_every_label_goes_to_its_category(label, ignore: str) -> None:
    class_names = SECTIONS[ignore].class_names
    index = label_table(SECTIONS[ignore])[label.id % 256]
    if ignore == "none":
        assert index == label.categoryId
        assert class_names[index] == label.category
    elif label.category == "void":
        assert index == IGNORE
    else:
        assert index == label.categoryId - 1
        assert class_names[index] == label.category


@pytest.mark.parametrize("ignore", ["void", "none"])
def test_no_other_id_is_known(ignore: str) -> None:
    known = np.flatnonzero(label_table(SECTIONS[ignore]) != UNKNOWN)
    assert known.tolist() == sorted(KNOWN)


def test_a_licence_plate_is_a_vehicle_in_an_8_bit_mask() -> None:
    table = label_table(SECTIONS["void"])
    assert CATEGORIES[table[255]] == "vehicle"


@st.composite
def sections(draw) -> FoldersData:
    """Classes with disjoint labels, by id or by colour, with or without void."""
    label = st.integers(0, 65535) if draw(st.booleans()) else st.tuples(*[st.integers(0, 255)] * 3)
    names = draw(st.permutations(["a", "b", "c", "void"])) if draw(st.booleans()) else ["a", "b"]
    labels = draw(st.lists(label, min_size=len(names), max_size=20, unique=True))
    key = "ids" if isinstance(labels[0], int) else "color"
    classes = {name: {key: labels[k :: len(names)]} for k, name in enumerate(names)}
    raw = {"format": "folders", "root": "", "size": [32, 32], "images": "a", "masks": "b"}
    ignore = draw(st.sampled_from(["void", "none"]))
    return FoldersData.model_validate(raw | {"classes": classes, "ignore": ignore})


@given(sections(), st.data())
@settings(max_examples=50)
def test_every_label_of_a_class_is_its_index_and_no_other_is_known(data, draws) -> None:
    table = label_table(data)
    expected = {}
    for name, masked in data.classes.items():
        index = data.class_names.index(name) if name in data.class_names else IGNORE
        codes = [r << 16 | g << 8 | b for r, g, b in masked.color] if data.by_colour else masked.ids
        expected |= dict.fromkeys(codes, index)
    assert {label: table[label] for label in expected} == expected
    assert (table != UNKNOWN).sum() == len(expected)
    other = draws.draw(st.integers(0, len(table) - 1).filter(lambda label: label not in expected))
    assert table[other] == UNKNOWN


@given(sections())
@settings(max_examples=50)
def test_classes_keep_their_order_with_void_first_or_nowhere(data) -> None:
    named = [name for name in data.classes if name != "void"]
    void = data.ignore == "none" and "void" in data.classes
    assert list(data.class_names) == ["void"] * void + named
    copy = FoldersData.model_validate_json(data.model_dump_json())
    assert copy.class_names == data.class_names


def test_a_class_is_drawn_in_its_first_colour_or_one_of_ours() -> None:
    classes = {
        "a": {"ids": 1, "color": [[1, 2, 3], [9, 9, 9]]},
        "b": {"ids": 2},
        "void": {"ids": 0},
    }
    raw = {"format": "folders", "root": "", "size": [32, 32], "images": "a", "masks": "b"}
    data = FoldersData.model_validate(raw | {"classes": classes, "ignore": "none"})
    void, a, b = class_colours(data).tolist()
    assert (void, a) == ([0, 0, 0], [1, 2, 3])
    assert b not in (void, a)


@given(
    npst.arrays(
        np.uint8, npst.array_shapes(min_dims=2, max_dims=2), elements=st.sampled_from(KNOWN)
    )
)
def test_both_maps_agree_pixel_by_pixel(mask: np.ndarray) -> None:
    without, with_void = (label_table(SECTIONS[ignore])[mask] for ignore in ("void", "none"))
    category = [id2label[-1 if i == 255 else i].categoryId for i in mask.ravel().tolist()]
    np.testing.assert_array_equal(with_void.ravel(), category)
    np.testing.assert_array_equal(without, np.where(with_void == 0, IGNORE, with_void - 1))


@pytest.mark.parametrize("ignore", ["void", "none"])
def test_a_class_is_drawn_in_a_colour_of_its_labels(ignore: str) -> None:
    names, colours = SECTIONS[ignore].class_names, class_colours(SECTIONS[ignore])
    for name, colour in zip(names, colours.tolist(), strict=True):
        assert tuple(colour) in {label.color for label in labels if label.category == name}
    assert len(np.unique(colours, axis=0)) == len(names)
