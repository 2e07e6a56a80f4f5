"""The page, as functions of a comparison and as Chromium shows it."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import optuna
import pytest

import segray.compare
from segray.compare import charts
from segray.compare.optuna_charts import sweep_charts
from segray.compare.report import write_report
from segray.compare.statistics import Estimate

HOSTILE = "</script><b>&\"'{{ 1 }}"
NINETEEN = [f"class {k}" for k in range(17)] + ["traffic light with a long name", HOSTILE]
NOT_FIGURES = re.compile(r"\b(None|nan|NaN|inf|undefined|null)\b")


def hostile(made):
    """`made` with a name that wants out of where it is written, no costs and hardly an estimate."""
    first, second, third, fourth = made.models
    first = dataclasses.replace(
        first,
        name=HOSTILE,
        described=HOSTILE,
        sweep_yaml=HOSTILE,
        trials=[{"trial": "000", "reason": HOSTILE, "best_value": math.nan, "note": None}],
        endings=[dataclasses.replace(first.endings[0], reason=HOSTILE)],
    )
    lone = dataclasses.replace(second.trainings[0], val=math.nan, reason="", curves={})
    second = dataclasses.replace(
        second,
        miou=Estimate(0.598, note="a single seed"),
        iou=dict.fromkeys(second.iou)
        | {"class 3": Estimate(0.2, note="in the truth of one image only")},
        trainings=[lone],
        cost=None,
        endings=[],
        parameters={},
    )
    fourth = dataclasses.replace(fourth, cost=dataclasses.replace(fourth.cost, latency_ms=math.nan))
    pairs = [
        dataclasses.replace(pair, a=HOSTILE if pair.a == made.models[0].name else pair.a)
        for pair in made.pairs
    ]
    blank = dict.fromkeys(pairs[0].iou)
    pairs[0] = dataclasses.replace(pairs[0], miou=Estimate(0.134, note="a single seed"), iou=blank)
    return dataclasses.replace(
        made, models=[first, second, third, fourth], pairs=pairs, unfair=[HOSTILE], verdict=HOSTILE
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory, make_comparison, make_pictures, make_study):
    made = make_comparison(2)
    path = tmp_path_factory.mktemp("two") / "report.html"
    studies = {model.name: make_study(best=model.miou.value) for model in made.models}
    write_report(path, made, make_pictures(made.models), studies)
    return made, path


@pytest.fixture(scope="module")
def one(tmp_path_factory, make_comparison, make_pictures, make_study):
    made = make_comparison(1, seeds=1)
    path = tmp_path_factory.mktemp("one") / "report.html"
    write_report(path, made, make_pictures(made.models, 1), {made.models[0].name: make_study(3)})
    return made, path


@pytest.fixture(scope="module")
def four(tmp_path_factory, make_comparison, make_pictures, make_study):
    made = hostile(make_comparison(4, NINETEEN))
    path = tmp_path_factory.mktemp("four") / "report.html"
    studies = {HOSTILE: make_study(parameters=1), "unet": optuna.create_study()}
    write_report(path, made, make_pictures(made.models, 1), studies)
    return made, path


@pytest.fixture(scope="module", params=["two", "one", "four"])  # each is loaded once
def page(request):
    return request.getfixturevalue(request.param)


def test_the_page_draws_every_chart_without_a_word_or_a_request(page, browser):
    made, path = page
    browser.open(path)

    assert browser.said == []
    assert [url for url in browser.asked if not url.startswith("data:")] == [path.as_uri()]
    boxes = browser.evaluate("document.querySelectorAll('.chart').length")
    drawn = browser.evaluate(
        "[...document.querySelectorAll('.chart')].filter(box => box.querySelector('.main-svg')"
        " && box.querySelector('.trace, .heatmaplayer image')).length"
    )
    assert drawn == boxes >= 4 + len(made.models)
    # What plotly does not know it leaves out in silence.
    unknown = browser.evaluate(
        "[...document.querySelectorAll('.chart')].flatMap(box =>"
        " (Plotly.validate(box.data, box.layout) || []))"
        ".filter(one => !['unused', 'dynamic'].includes(one.code)).map(one => one.msg)"
    )
    assert unknown == []
    images = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert browser.evaluate("document.images.length") > 0
    assert browser.evaluate(images) == 0


def test_the_page_says_every_figure_and_nothing_that_is_none(page, browser):
    made, path = page
    browser.open(path)
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    text = browser.evaluate("document.querySelector('header').innerText") + browser.evaluate(
        "document.querySelector('main').innerText"
    )

    assert NOT_FIGURES.findall(text) == []
    assert made.verdict in text
    for model in made.models:
        assert f"{model.miou.value:.3f}" in text
        assert all(f"{one.test_miou:.3f}" in text for one in model.trainings)
        assert model.described in text
        assert all(ending.reason in text for ending in model.endings)
        for estimate in filter(None, model.iou.values()):
            assert f"{estimate.value:.3f}" in text
            interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
            assert (estimate.note or interval) in text
    for pair in made.pairs:
        assert f"{pair.miou.value:+.3f}" in text
        for estimate in filter(None, pair.iou.values()):
            assert f"{estimate.low:+.3f} to {estimate.high:+.3f}" in text
    for line in [*made.unfair, *made.notes, *made.not_covered]:
        assert line in text
    empty = browser.evaluate(
        "[...document.querySelectorAll('section, ul, tbody, .grid, p, figure')]"
        ".filter(one => !one.innerText.trim() && !one.querySelector('img')).length"
    )
    assert empty == 0
    levels = browser.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(one => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_a_name_stays_text_wherever_it_stands(four, browser):
    _, path = four
    browser.open(path)
    assert browser.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('b').length") == 0
    assert browser.evaluate("document.title").startswith(HOSTILE)
    ticks = browser.evaluate(
        "[...document.querySelectorAll('.ytick text')].map(one => one.textContent)"
    )
    assert f"{HOSTILE[:19]}…" in ticks


def test_the_page_fits_a_phone(page, browser):
    _, path = page
    browser.open(path, 375, 812)
    assert browser.evaluate("document.documentElement.scrollWidth") == 375
    outside = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll')"
        " && one.getBoundingClientRect().right > 375.5).map(one => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_charts_follow_light_and_dark_and_the_width(two, browser):
    _, path = two
    tick = "getComputedStyle(document.querySelector('.xtick text')).fill"
    width = "document.querySelector('.chart .main-svg').getBoundingClientRect().width"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.open(path)
    light, wide = browser.evaluate(tick), browser.evaluate(width)
    try:
        browser.call("Emulation.setEmulatedMedia", features=dark)
        browser.resize(700)
        browser.settle()
        assert browser.evaluate(tick) != light
        assert browser.evaluate(width) < min(wide, 700)
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])


def test_paper_is_light_and_gets_all_of_it(two, browser):
    _, path = two
    browser.open(path)
    folded = "document.querySelectorAll('details:not([open])').length"
    before = browser.evaluate(folded)
    assert before > 0
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(folded) == 0
    broad = browser.evaluate(
        "[...document.querySelectorAll('.main-svg')]"
        ".filter(one => one.getBoundingClientRect().width > 680).length"
    )
    assert broad == 0
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(folded) == before


def test_colours_can_be_told_from_the_ground():
    css = Path(segray.compare.__file__).with_name("report.css").read_text()
    dark = css.index("prefers-color-scheme: dark")
    schemes = [
        dict(re.findall(r"--([a-z0-9-]+): #([0-9a-f]{3,6});", part))
        for part in (css[:dark], css[dark:])
    ]
    for scheme in schemes:
        ground = luminance(scheme["ground"])
        for name in ("ink", "muted", "link"):
            assert contrast(luminance(scheme[name]), ground) >= 4.5, name
        for k in range(8):
            assert contrast(luminance(scheme[f"model-{k}"]), ground) >= 3, k
        assert contrast(luminance(scheme["loud-ink"]), luminance(scheme["loud"])) >= 4.5
    assert schemes[0].keys() == schemes[1].keys()


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    shares = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.2, contrast ratio."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_the_page_holds_one_plotly_and_is_written_whole(two):
    _, path = two
    text = path.read_text()
    assert text.count("plotly.js v") == 1
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    assert not re.search(r'(src|href)="(?!data:|#)', text[: text.index("plotly.js v")])
    for figure in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL):
        assert set(json.loads(figure)) == {"data", "layout"}


@pytest.mark.parametrize(
    ("cost", "score", "expected"),
    [
        ({0: 3.0, 1: 1.0}, {0: 0.7, 1: 0.6}, [1, 0]),
        ({0: 1.0, 1: 3.0}, {0: 0.7, 1: 0.6}, [0]),
        ({0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.7, 1: 0.7, 2: 0.6}, [0, 1]),
        ({2: 5.0}, {2: 0.5}, [2]),
    ],
    ids=["both", "dominated", "equal", "alone"],
)
def test_the_front_is_what_nothing_dominates(cost, score, expected):
    assert charts.front(cost, score) == expected


def test_confusion_is_in_per_cent_of_the_truth(make_comparison):
    model = dataclasses.replace(
        make_comparison(1).models[0], confusion=[[90, 10, 0], [1, 999, 0], [0, 0, 0]]
    )
    heat, figures = charts.confusion(model, ["a", "b", "c"]).figure["data"]
    assert heat["z"] == [[0.9, 0.1, 0], [0.001, 0.999, 0], [None, None, None]]
    assert figures["text"] == ["90", "10", "100"]


def test_the_mean_curve_ends_where_the_first_seed_does(make_comparison):
    made = make_comparison(1)
    val, _ = charts.learning(made)
    ends = [max(line["x"]) for line in val.figure["data"] if line["mode"] == "lines"]
    lengths = [training.epochs for training in made.models[0].trainings]
    assert ends == [*lengths, min(lengths)]


def test_metrics_that_differ_are_named_beside_their_figures(tmp_path, make_comparison):
    made = make_comparison(2)
    same = tmp_path / "same.html"
    write_report(same, made, [], {})
    assert '<th scope="col" class="n">val/miou</th>' in same.read_text()
    other = dataclasses.replace(
        made.models[1],
        metric="val/dice",
        trainings=[
            dataclasses.replace(one, curves=one.curves | {"val/dice": one.curves["val/miou"]})
            for one in made.models[1].trainings
        ],
    )
    made = dataclasses.replace(made, models=[made.models[0], other])
    write_report(tmp_path / "report.html", made, [], {})
    page = (tmp_path / "report.html").read_text()
    assert page.count('<th scope="col" class="n">Best on val</th>') == 2
    assert '<th scope="col" class="n">val/miou</th>' not in page
    for model in made.models:
        for one in model.trainings:
            assert f"{one.val:.3f} ({model.metric})</td>" in page
    assert [chart.title for chart in charts.learning(made)] == [
        *("val/miou by epoch", "val/dice by epoch", "loss by epoch"),
    ]


def test_optunas_charts_of_a_study(make_comparison, make_study):
    model = make_comparison(1).models[0]
    found = {chart.title: chart for chart in sweep_charts(make_study(), model, 0)}
    assert [chart.note for chart in found.values() if chart.figure is None] == []
    assert list(found)[:3] == ["History", "Importances", "Parallel coordinates"]
    assert {"Slice: lr", "Slice: patience", "Slice: scale", "Slice: brightness"} < set(found)
    cut = found["History"].figure["data"][-1]
    assert cut["name"] == "stopped early"
    assert len(cut["x"]) > 3


@pytest.mark.parametrize(
    ("trials", "parameters", "why"),
    [
        (0, 4, "no trial was trained to its end"),
        (1, 4, "a single trial was trained to its end"),
        (8, 1, "fewer than two parameters were searched"),
    ],
)
def test_what_cannot_be_drawn_of_a_study_says_why(
    trials, parameters, why, make_comparison, make_study
):
    study = make_study(trials, parameters=parameters)
    found = list(sweep_charts(study, make_comparison(1).models[0], 0))
    importances = next(chart for chart in found if chart.title == "Importances")
    assert importances.figure is None
    assert importances.note == f"Not drawn: {why}."
