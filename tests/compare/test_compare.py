"""Run folders -> verdict, figures and page. The runs are real ones, without Ray."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
from PIL import Image

from segray.cli import main
from segray.compare import pictures, verdict
from segray.compare.compare import compare_runs
from segray.compare.runs import check_comparable, open_runs, spent
from segray.compare.statistics import difference, estimate
from segray.config import FoldersData, RequestError, load_sweep
from segray.data import open_dataset
from segray.sweep.placement import Plan
from segray.sweep.records import RunFolder
from segray.sweep.runner import _export
from segray.sweep.search import Search, make_spec
from segray.sweep.trial import run_trial
from segray.sweep.trial_files import TrialResult, ranked

LR = "train.optimizer.lr"
CPU = torch.device("cpu")
UNET = {"name": "unet", "width": 4, "depth": 2}
SEGFORMER = {"name": "segformer", "variant": "b0", "width": 0.125}


def write_sweep(folder: Path, name: str, model: dict, **changes) -> Path:
    content = {
        "name": name,
        "storage": str(folder),
        "model": model,
        "data": {
            "format": "scenes",
            "size": [32, 64],
            "train_images": 12,
            "test_images": 6,
            "cities": 4,
            "test_cities": 3,
            "val_share": 0.25,
        },
        "train": {"epochs": 3, "batch_size": 4, "optimizer": {"lr": 1e-2}},
        "parameters": {
            LR: {"distribution": "log_uniform_values", "min": 1e-3, "max": 1e-1},
            "train.augment.flip": {"values": [0.0, 0.5]},
        },
        "start_points": [{LR: 1e-2}],
        "run_cap": 3,
        "final": {"seeds": [0, 1, 2]},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def run(file: Path) -> Path:
    """A sweep as the runner has it, one trial after the other in this process."""
    config = load_sweep(file)
    folder = RunFolder.create(config, command=["segray", "sweep", file.name])
    stage = Plan(1, 1, 0, 1)
    search = Search(config, folder, stage)
    while (spec := search.next()) is not None:
        outcome = run_trial(spec, CPU, lambda metrics: None)
        search.end(TrialResult(spec.id, spec.folder, spec.assignment, outcome))
    winner = ranked(search.results, "maximize")[0]
    finals = []
    for seed in config.final.seeds if config.final else ():
        path = folder.final(seed)
        name = folder.final_id(path)
        spec = make_spec(config, folder, stage, name, path, winner.assignment, seed, "final")
        outcome = run_trial(spec, CPU, lambda metrics: None)
        finals.append(TrialResult(name, path, winner.assignment, outcome))
    best = ranked(finals or [winner], "maximize")[0]
    _export(config, folder, best)
    folder.mark_done()
    return folder.path


@pytest.fixture(scope="module")
def two(tmp_path_factory, private_surroundings):
    folder = tmp_path_factory.mktemp("two")
    torch.set_num_threads(1)
    return [
        run(write_sweep(folder, "unet", UNET)),
        run(write_sweep(folder, "segformer", SEGFORMER)),
    ]


@pytest.fixture(scope="module")
def compared(two, tmp_path_factory):
    """The comparison, its page and compare.json."""
    out = tmp_path_factory.mktemp("out")
    comparison, page = compare_runs(two, out)
    return comparison, page.read_text(), json.loads((out / "compare.json").read_text())


@pytest.fixture
def copies(two, tmp_path):
    """Both runs, for a test to change."""
    return [shutil.copytree(path, tmp_path / path.name) for path in two]


def official_iou(confusion: np.ndarray) -> list[float]:
    """As cityscapesScripts computes a label's score, from a matrix [truth, prediction]."""
    official = evalPixelLevelSemanticLabeling
    args = official.CArgs()
    vars(args).update(vars(official.args))
    with_ignored = np.zeros((256, 256), dtype=np.ulonglong)
    k = len(confusion)
    # Labels that the script does not ignore: 7 and on.
    labels = args.evalLabels = [7, 8, 11, 12, 13, 17, 19][:k]
    for t in range(k):
        for p in range(k):
            with_ignored[labels[t], labels[p]] = confusion[t, p]
    return [official.getIouScoreForLabel(label, with_ignored, args) for label in labels]


def test_every_score_is_the_official_one_of_the_kept_matrices(two, compared):
    _, page, figures = compared
    for model in figures["models"]:
        path = next(path for path in two if path.name == model["name"])
        per_seed = []
        for seed in (0, 1, 2):
            with np.load(path / f"final/seed_{seed}/confusion.npz") as saved:
                per_seed.append(official_iou(saved["confusion"].sum(0)))
        scores = np.array(per_seed)
        assert model["miou"]["value"] == pytest.approx(np.nanmean(scores, 1).mean())
        assert [t["test_miou"] for t in model["trainings"]] == pytest.approx(
            np.nanmean(scores, 1).tolist()
        )
        for k, name in enumerate(figures["classes"]):
            assert model["iou"][name]["value"] == pytest.approx(np.nanmean(scores[:, k]))
        assert f"{model['miou']['value']:.3f}" in page
    best, other = figures["models"]
    (pair,) = figures["pairs"]
    assert (pair["a"], pair["b"]) == (best["name"], other["name"])
    gap = best["miou"]["value"] - other["miou"]["value"]
    assert pair["miou"]["value"] == pytest.approx(gap)
    assert gap >= 0


def test_the_predictions_that_were_kept_are_the_ones_that_were_counted(two, compared):
    """Recomputed from the PNGs and the masks alone, with the official label numbers left out."""
    *_, figures = compared
    data = open_dataset(load_sweep(two[0] / "sweep.yaml").data)
    for path in two:
        total = np.zeros((7, 7), dtype=np.int64)
        for position in data.splits.test:
            truth = data.native_mask(position)
            for seed in (0, 1, 2):
                png = path / f"final/seed_{seed}/preds/{data.ids[position]}.png"
                pred = np.array(Image.open(png))
                seen = truth != 255
                np.add.at(total, (truth[seen], pred[seen]), 1)
        model = next(model for model in figures["models"] if model["name"] == path.name)
        assert model["confusion"] == total.tolist()


def test_the_verdict_is_the_intervals(compared):
    comparison, page, _ = compared
    (pair,) = comparison.pairs
    shown = pair.miou.low > 0 or pair.miou.high < 0
    assert ("is better than" in comparison.verdict) is shown
    assert ("No difference is shown" in comparison.verdict) is not shown
    assert f"{pair.miou.low:+.3f} to {pair.miou.high:+.3f}" in comparison.verdict
    assert comparison.verdict.split("(")[0] in page
    assert comparison.unfair == []
    assert any("luck of the tuning" in limit for limit in comparison.not_covered)


def test_spent_and_cost(two, compared):
    comparison, *_ = compared
    for found in open_runs(two):
        model = next(model for model in comparison.models if model.name == found.name)
        assert model.spent == spent(found)
        assert (model.spent.trials, model.spent.epochs) == (3, 9)
        assert 0 < model.spent.to_best_gpu_hours <= model.spent.gpu_hours
        assert model.cost.parameters > 1000
        assert model.cost.latency_ms > 0
        assert model.cost.gflops > 0
        assert model.cost.images_per_s * model.cost.latency_ms >= 900


def test_pictures_are_where_the_models_differ_and_where_each_is_worst(two):
    runs = open_runs(two)
    chosen = pictures.choose(runs)
    assert len({at for at, _ in chosen}) == len(chosen) == 6
    quality = [pictures.image_iou(run) for run in runs]
    gaps = np.abs(quality[0] - quality[1])
    assert chosen[0][0] == int(np.argmax(gaps))
    first = next(pictures.draw(runs))
    assert [caption for caption, _ in first.panels] == [
        *("image", "truth"),
        *("unet", "unet, errors", "segformer", "segformer, errors"),
    ]
    assert len({image.size for _, image in first.panels}) == 1


def test_an_image_without_a_scored_pixel_is_nobodys_worst(two):
    runs = open_runs(two)
    at = pictures.choose(runs)[0][0]
    blank = [run.confusion.copy() for run in runs]
    for counts in blank:
        counts[:, at] = 0
    blind = [replace(run, confusion=counts) for run, counts in zip(runs, blank, strict=True)]
    for run, other in zip(runs, blind, strict=True):
        quality = pictures.image_iou(other)
        assert np.isnan(quality[at])
        rest = np.arange(len(quality)) != at
        np.testing.assert_array_equal(quality[rest], pictures.image_iou(run)[rest])
    assert sorted(place for place, _ in pictures.choose(blind)) == np.flatnonzero(rest).tolist()


def test_one_run_gives_its_own_report(two):
    comparison, page = compare_runs(two[:1], cost=False)
    assert page == two[0] / "report.html"
    assert comparison.pairs == []
    assert "unet (UNet, width 4, from scratch) has" in comparison.verdict


def test_the_command_line_says_the_verdict(two, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, two), "--out", str(out), "--no-cost"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert json.loads((out / "compare.json").read_text())["verdict"] in said.replace("\n", " ")
    assert "On 6 test images of 3 cities." in said
    assert str(out / "report.html") in said


def refused(paths, *expected):
    with pytest.raises(RequestError) as error:
        compare_runs(paths, cost=False)
    for text in expected:
        assert text in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_folder_that_is_no_run(two, tmp_path):
    refused([two[0], tmp_path], f"{tmp_path} is no run folder")
    refused([two[0], two[0]], "named twice")


def test_a_run_without_a_final_stage(two, tmp_path):
    path = run(write_sweep(tmp_path, "bare", UNET, final=None, run_cap=1))
    refused([two[0], path], "no final stage", "--resume", "final={seeds: [0, 1, 2]}")


def test_a_final_stage_that_has_not_ended(copies):
    for seed in (0, 1, 2):
        (copies[0] / f"final/seed_{seed}/outcome.json").unlink()
    refused(copies, "has no score on test", "--resume")


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_a_torn_matrix(copies, kept):
    file = copies[1] / "final/seed_1/confusion.npz"
    file.write_bytes(file.read_bytes()[:kept])
    refused(copies, str(file), "Remove the folder", "--resume")


def test_a_matrix_with_a_damaged_byte(copies):
    file = copies[1] / "final/seed_1/confusion.npz"
    damaged = bytearray(file.read_bytes())
    for at in range(100, 160):
        damaged[at] ^= 0xFF
    file.write_bytes(damaged)
    refused(copies, str(file), "Remove the folder", "--resume")


def test_a_matrix_of_another_shape(copies):
    file = copies[1] / "final/seed_1/confusion.npz"
    with np.load(file) as saved:
        table = dict(saved)
    np.savez(file, **(table | {"confusion": table["confusion"][:-1]}))
    refused(copies, str(file), "(5, 7, 7), for 6 images")


def change(path: Path, **arrays) -> None:
    """Change what every seed's confusion.npz holds."""
    for file in path.glob("final/*/confusion.npz"):
        with np.load(file) as saved:
            table = dict(saved)
        np.savez(file, **(table | {name: edit(table[name]) for name, edit in arrays.items()}))


def test_other_images_or_classes_or_masks_cannot_be_compared(copies):
    change(copies[1], ids=lambda ids: np.array([f"x{name}" for name in ids]))
    refused(copies, "their test splits have 6 and 6 images")


def test_other_classes_cannot_be_compared(copies):
    change(copies[1], classes=lambda names: np.array(["road", *names[1:]]))
    refused(copies, "other classes")


def test_other_masks_cannot_be_compared(copies):
    change(copies[1], confusion=lambda counts: 4 * counts)  # as counted at another size
    refused(copies, "the masks differ in 6 images", "labelled pixels")


def test_other_training_images_cannot_be_compared(two, tmp_path):
    data = yaml.safe_load((two[0] / "sweep.yaml").read_text())["data"] | {"split_seed": 1}
    path = run(write_sweep(tmp_path, "other", UNET, data=data, run_cap=1, final={"seeds": [0]}))
    refused(
        [two[0], path], "not trained and tuned on the same images", "data.split_seed: 0 against 1"
    )


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"ids": 0, "color": [9, 9, 9]}, {"ids": 0}, None),  # colours only draw
        ({"ids": 0}, {"ids": [0, 2]}, "data.classes"),
        ({"color": [9, 9, 9]}, {"color": [8, 8, 8]}, "data.classes"),  # colours are the labels
    ],
)
def test_classes_are_compared_by_what_masks_hold(two, first, second, told):
    other = {"color": [1, 1, 1]} if "ids" not in first else {"ids": 1}
    section = {"format": "folders", "root": "/own", "size": [32, 64], "images": "a", "masks": "b"}
    found = [
        replace(
            run,
            config=run.config.model_copy(
                update={"data": FoldersData(**section, classes={"land": masked, "sea": other})}
            ),
        )
        for run, masked in zip(open_runs(two), (first, second), strict=True)
    ]
    if told is None:
        check_comparable(found)
        return
    with pytest.raises(RequestError, match=told):
        check_comparable(found)


def test_what_is_unfair_is_said(two, tmp_path):
    path = run(
        write_sweep(
            tmp_path,
            "less",
            UNET,
            run_cap=1,
            final={"seeds": [0, 1]},
            train={"epochs": 2, "batch_size": 4},
        )
    )
    comparison, _ = compare_runs([two[0], path], tmp_path / "out", cost=False)
    said = " ".join(comparison.unfair)
    assert "did not spend the same" in said
    assert "unet 3, less 1 trials" in said or "less 1, unet 3 trials" in said
    assert "not trained with as many seeds" in said
    assert "may not last as many epochs" in said


def test_each_metric_is_drawn_of_all_models(two, tmp_path):
    metric = {"name": "val/dice", "goal": "maximize"}
    path = run(write_sweep(tmp_path, "dice", UNET, run_cap=1, final={"seeds": [0]}, metric=metric))
    for found in open_runs([two[0], path]):
        for training in found.trainings:
            assert None not in training.curves["val/dice"]
            assert None not in training.curves["val/miou"]


def test_among_several_the_verdict_says_who_is_better_than_whom(two, tmp_path):
    path = run(write_sweep(tmp_path, "third", UNET, run_cap=1, final={"seeds": [0, 1]}))
    comparison, page = compare_runs([*two, path], tmp_path / "out", cost=False)
    best = comparison.models[0]
    assert comparison.verdict.startswith(f"{best.name} ({best.described}) ")
    assert len(comparison.pairs) == 3
    assert all("corrected for 3 pairs" in pair.verdict for pair in comparison.pairs)
    assert comparison.verdict.split("(")[0] in page.read_text()


def test_pretraining_stands_in_the_verdict(two):
    unet, segformer = open_runs(two)
    model = segformer.config.model.model_copy(update={"pretrained": "nvidia/mit-b3"})
    pretrained = replace(segformer, config=segformer.config.model_copy(update={"model": model}))
    gap = difference(segformer.confusion, unet.confusion, unet.cities).miou
    said = verdict.of_pair(pretrained, unet, gap)
    assert "that of segformer was pretrained on ImageNet, unet from scratch" in said
    assert "began alike" not in verdict.of_pair(segformer, unet, gap)


def test_a_verdict_without_an_interval_names_classes(two):
    a, b = open_runs(two)
    names = ", ".join(a.classes)
    alone = [replace(run, confusion=run.confusion[:, :1], cities=run.cities[:1]) for run in (a, b)]
    gap = difference(*(run.confusion for run in alone), alone[0].cities).miou
    said = verdict.of_pair(*alone, gap)
    assert f"no class is in the truth of two images: {names}. unet is ahead" in said


def test_images_of_no_city_are_not_taken_together(two):
    runs = open_runs(two)
    for cities, together in ((runs[0].cities, True), (("",) * len(runs[0].ids), False)):
        found = [replace(run, cities=cities) for run in runs]
        miou = {run.name: estimate(run.confusion, cities).miou for run in found}
        said = " ".join(verdict.notes(found, miou, []))
        assert ("(Student's t; images of one city are taken together)" in said) is together
        assert ("(Student's t)" in said) is not together


def test_a_choice_of_candidates_test_scores_and_a_sweep_at_work_are_said(copies, tmp_path):
    shutil.copytree(copies[0] / "final", copies[0] / "final-before-1")
    (copies[1] / ".done").unlink()
    (copies[1] / "trials/002/outcome.json").unlink()
    comparison, _ = compare_runs(copies, tmp_path / "out", cost=False)
    said = " ".join(comparison.unfair)
    assert "Of unet the test split was scored 2 times" in said
    assert "The sweep segformer has not come to its end" in said


def test_without_the_study_its_charts_are_left_out(copies, tmp_path):
    (copies[0] / "study.journal").unlink()
    _, page = compare_runs(copies, tmp_path / "out", cost=False)
    assert page.is_file()
    assert not (copies[0] / "study.journal").exists()


def test_with_one_seed_there_is_no_verdict(two, tmp_path):
    path = run(write_sweep(tmp_path, "single", UNET, run_cap=1, final={"seeds": [0]}))
    comparison, page = compare_runs([two[1], path], tmp_path / "out", cost=False)
    assert comparison.verdict.startswith("No verdict on ")
    assert "one seed does not show" in comparison.verdict
    assert 'class="sure"' not in page.read_text()
    (pair,) = json.loads((tmp_path / "out/compare.json").read_text())["pairs"]
    for figures in (pair["miou"], *pair["iou"].values()):
        assert figures["differs"] is False
        assert figures["p"] is figures["p_corrected"] is figures["p_better"] is None


def test_without_the_predictions_there_are_no_pictures_and_the_rest_is_there(copies, tmp_path):
    for path in copies:
        for preds in list(path.glob("final/*/preds")):
            shutil.rmtree(preds)
    comparison, page = compare_runs(copies, tmp_path / "out", cost=False)
    assert any("No image is shown" in note for note in comparison.notes)
    assert "No image is shown" in page.read_text()
