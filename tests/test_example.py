"""examples/train_detector.py from the command line: what it writes, and how it refuses bad input."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("faster_coco_eval")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
Image = pytest.importorskip("PIL.Image")

SCRIPT = Path(__file__).parent.parent / "examples" / "train_detector.py"


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """What the script says on stderr when it refuses; run in this process, since importing torch takes seconds."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))

    def refuse(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            importlib.import_module("train_detector").main()
        assert exit_.value.code not in (0, None)
        output, errors = capfd.readouterr()
        assert output == ""
        assert errors.count("\n") == 1
        return errors

    return refuse


def run(*arguments: object) -> subprocess.CompletedProcess:
    # Interpreted kernels would take minutes; one thread is as fast at this size.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A COCO-format folder: bright rectangles of two shapes; one image has a crowd, one has nothing."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    categories = [{"id": 7, "name": "tall"}, {"id": 3, "name": "wide"}]
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        images, annotations = [], []
        for number in range(count):
            image = Image.new("RGB", (80, 60), (40, 60, 80))
            name = f"{split}{number}.png"
            images.append({"id": 100 + number, "file_name": name, "width": 80, "height": 60})
            for category, (x, y, w, h) in ((7, (5 + 3 * number, 8, 14, 30)), (3, (40, 5 + 4 * number, 30, 14))):
                if number == 1:
                    continue
                image.paste((250, 240, 230), (x, y, x + w, y + h))
                annotation = {"id": len(annotations) + 1, "image_id": 100 + number, "category_id": category}
                crowd = int(number == 2 and category == 3)
                annotations.append(annotation | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd})
            image.save(folder / "images" / name)
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(coco))
    return folder


def test_trains_with_every_loss_on_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = run("--data", folder, "--size", 64, 64, "--epochs", 2, "--batch-size", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "results.json").read_text())
    names = [result["loss"] for result in summary["results"]]
    assert names == ["focal", "ap", "alrp", "rank_sort", "dr", "iou_balanced", "harmonic"]
    for result in summary["results"]:
        assert 0 <= result["ap"] <= result["ap50"] <= 1
        assert 0 < result["loss_share"] < 1
        assert [point["epoch"] for point in result["curve"]] == [1, 2]
        assert f"\n{result['loss']} " in done.stdout
    pictures = {"curves.png", "examples.png", *(f"examples_{name}.png" for name in names)}
    assert {path.name for path in out.iterdir()} == pictures | {"results.json"}
    for picture in pictures:
        assert Image.open(out / picture).width > 500


def test_learns_digits(tmp_path: Path) -> None:
    done = run("--loss", "ap", "--scenes", 48, "--epochs", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    first, last = result["curve"][0]["parts"], result["curve"][-1]["parts"]
    assert last["class"] < first["class"]
    assert last["box"] < first["box"]


def break_json(folder: Path) -> str:
    (folder / "instances_val.json").write_text('{"images": [')
    return "broken JSON"


def drop_json(folder: Path) -> str:
    (folder / "instances_test.json").unlink()
    return "cannot read"


def replace_json(folder: Path) -> str:
    (folder / "instances_train.json").write_text("[1, 2]")
    return "not a COCO annotation file"


def unknown_category(folder: Path) -> str:
    path = folder / "instances_val.json"
    path.write_text(path.read_text().replace('"category_id": 7', '"category_id": 8'))
    return "instances_val.json is not a valid COCO annotation file"


def break_image(folder: Path) -> str:
    path = folder / "images" / "train3.png"
    path.write_bytes(path.read_bytes()[:60])
    return "cannot decode image"


def drop_image(folder: Path) -> str:
    (folder / "images" / "test1.png").unlink()
    return "test1.png"


@pytest.mark.parametrize("spoil", [break_json, drop_json, replace_json, unknown_category, break_image, drop_image])
def test_refuses_bad_data(refusal, folder: Path, tmp_path: Path, spoil) -> None:
    message = spoil(folder)
    assert message in refusal("--data", folder, "--size", 64, 64, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "no such folder: no/such/folder"),
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
        (["--epochs", "0"], "must be at least 1"),
        (["--size", "100", "64"], "must be a multiple of 32"),
        (["--device", "nonsense"], "cannot use 'nonsense'"),
    ],
)
def test_refuses_bad_arguments(refusal, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refusal(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_an_output_that_is_a_file(refusal, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "cannot write to" in refusal("--data", folder, "--size", 64, 64, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_refusal_is_one_line_and_an_exit_status(tmp_path: Path) -> None:
    done = run("--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"train_detector.py: error: no such folder: {tmp_path / 'nowhere'}\n"
