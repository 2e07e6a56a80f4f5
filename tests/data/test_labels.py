"""Label ids -> categories -> class indices, against cityscapesScripts' own table."""

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, labels
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from segray.config import CATEGORIES, ScenesData
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
