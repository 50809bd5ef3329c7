"""examples/compare.py: which trainings an experiment still needs, what it keeps of one, and the page made of them."""

import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; the extra 'examples' brings it")
pytest.importorskip("matplotlib", reason="matplotlib is not installed; the extra 'examples' brings it")

sys.path.append(str(Path(__file__).parents[1] / "examples"))
compare = pytest.importorskip("compare")
compare_page = pytest.importorskip("compare_page")
experiments = pytest.importorskip("experiments")


def entry(run, ap: float = 0.5, val_ap: float = 0.5) -> dict:
    curve = [{"epoch": 1, "ap": 0.9}, {"epoch": 2, "ap": val_ap}]
    return {
        "model": run.setting,
        "loss": run.row,
        "seed": run.seed,
        "ap": ap,
        "ap50": 0.7,
        "ap75": 0.4,
        "by_iou": [ap] * 10,
        "by_class": {"0": ap},
        "correlation": 0.3,
        "positive_share": 0.05,
        "curve": curve,
    }


def test_the_tuned_focal_loss_is_the_best_of_the_validation_split_and_gets_the_other_seeds():
    runs = list(experiments.imbalance([]))
    assert not any(run.name and run.seed > 0 for run in runs)
    here = [run for run in runs if run.setting == "classes 10:1"]
    # By the test split another one would win, as it would by the best point of a curve.
    best = "focal alpha 0.75 gamma 1"
    done = [entry(run, ap=0.1 if run.row == best else 0.8, val_ap=0.6 if run.row == best else 0.5) for run in here]
    more = set(experiments.imbalance(done)) - set(runs)
    assert {(run.setting, run.row, run.seed) for run in more} == {("classes 10:1", best, 1), ("classes 10:1", best, 2)}
    assert all(run.options == (("alpha", 0.75), ("gamma", 1.0)) and run.imbalance == 10 for run in more)
    unfinished = [run for run in done if run["loss"] != best]
    assert experiments.tuned("classes 10:1", unfinished) is None


def test_every_run_of_an_experiment_has_a_name_of_its_own():
    for experiment in experiments.EXPERIMENTS.values():
        names = [(run.setting, run.row, run.seed) for run in experiment.runs([])]
        assert len(set(names)) == len(names)


def test_a_training_is_kept_with_what_the_page_needs():
    variant = (("alpha", 0.5), ("gamma", 1.0))
    run = experiments.Run("classes 4:1", "focal", 1, variant, imbalance=4.0, name="focal alpha 0.5 gamma 1")
    kept = json.loads(json.dumps(compare.run_one(1, None, run)))
    assert (kept["model"], kept["loss"], kept["seed"]) == ("classes 4:1", "focal alpha 0.5 gamma 1", 1)
    assert kept["ap"] == pytest.approx(sum(kept["by_iou"]) / 10)
    assert kept["ap"] == pytest.approx(sum(kept["by_class"].values()) / 10)
    assert (kept["ap50"], kept["ap75"]) == pytest.approx((kept["by_iou"][0], kept["by_iou"][5]))
    assert 0.03 < kept["positive_share"] < 0.1
    assert [point["epoch"] for point in kept["curve"]] == [1]


def test_a_training_that_diverged_counts_as_nothing_and_has_its_place_on_the_page(monkeypatch, tmp_path):
    def diverge(*_, **__):
        raise compare.DivergedError("no longer finite")

    monkeypatch.setattr(compare, "train", diverge)
    (tmp_path / "digits").mkdir()
    content = {
        "settings": {"data": "digits", "epochs": 20},
        "runs": [compare.run_one(20, None, experiments.Run("recipe", loss, 0)) for loss in ("focal", "ap")],
    }
    assert [point["epoch"] for point in content["runs"][0]["curve"]] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    (tmp_path / "digits" / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["compare_page.py", str(tmp_path)])
    compare_page.main()
    page = (tmp_path / "README.md").read_text()
    assert "| ap | 1 | 0.000 |" in page
    assert "Not finite, counted as 0: focal at recipe, seed 0; ap at recipe, seed 0." in page


def test_page(tmp_path, monkeypatch):
    for name in experiments.EXPERIMENTS:
        experiment = experiments.EXPERIMENTS[name]
        runs = [entry(run, ap=0.25 + 0.125 * run.seed) for run in experiment.runs([])]
        content = {"settings": {"data": name, "epochs": 2}, "runs": runs[:47]}  # as after a kill
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["compare_page.py", str(tmp_path)])
    compare_page.main()
    page = (tmp_path / "README.md").read_text()
    # Five seeds: 0.25, 0.375 ... 0.75 have mean 0.5, standard deviation 0.1976, and Student's t of 4 is 2.776.
    half = 2.776 * 0.19764 / math.sqrt(5)
    assert f"| ap | 5 | 0.500 ± {half:.3f} | +0.000 ± 0.000 | 0.700 ± 0.000 |" in page
    assert f"| ap | 0.500 ± {half:.3f} | +0.000 ± 0.000 | 0.500 ± {half:.3f} | +0.000 ± 0.000 |" in page
    pictures = (*experiments.EXPERIMENTS, "summary")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in pictures)


def test_factors_of_iou_are_judged_against_the_same_loss_without_them(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    reached = {"focal": 0.75, "focal, smooth L1": 0.25, "iou_balanced": 0.5, "harmonic": 0.125}
    found = experiments.EXPERIMENTS["digits"].runs([])
    content = {"settings": {"data": "digits", "epochs": 2}}
    content["runs"] = [entry(run, ap=reached[run.row] + run.seed / 8) for run in found if run.row in reached]
    (tmp_path / "digits" / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["compare_page.py", str(tmp_path)])
    compare_page.main()
    page = (tmp_path / "README.md").read_text()
    assert f"| iou_balanced{' | +0.250 ± 0.000' * 5} | +0.000 ± 0.000 |" in page
    assert f"| harmonic{' | -0.125 ± 0.000' * 5} | +0.000 ± 0.000 |" in page
    assert (tmp_path / "digits-boxes.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder"], "'folder' needs it"),
        (["digits", "--data", "x"], "--data belongs to the experiment 'folder'"),
        (["folder", "--data", "nowhere"], "no such folder: nowhere"),
        (["digits", "--workers", "0"], "must be at least 1"),
    ],
)
def test_misuse_is_answered_in_one_line(arguments, message, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        compare.main()
    assert exit_.value.code == 2
    errors = capfd.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
