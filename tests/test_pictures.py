"""The pictures of the pages: all there, all shown, and what their captions say of the scene."""

import sys

import pytest
from pages import DOCS, PAGES, ROOT

pytest.importorskip("matplotlib")
sys.path.append(str(ROOT))
from tools import themes
from tools.pictures.__main__ import PICTURES
from tools.pictures.scene import DRAWN, IOU, LOGITS, POSITIVES, push, shares

P = len(POSITIVES)


def test_every_picture_is_committed_and_shown():
    drawn = {f"{name}-{theme}.svg" for name in PICTURES for theme in themes.THEMES}
    assert drawn == {file.name for file in (DOCS / "images").glob("*.svg")}
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in sorted(drawn) if f"images/{name}" not in text] == []


def test_a_picture_is_drawn_for_light_and_dark_pages(tmp_path):
    themes.save(PICTURES["interpolation"], "picture", tmp_path)
    light, dark = ((tmp_path / f"picture-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert themes.THEMES["light"].series[0] in light
    assert themes.THEMES["dark"].series[0] in dark


def test_ap_loss_leaves_negatives_below_all_positives_alone():
    pushes = push(DRAWN["ap"].loss)
    lowest = POSITIVES.min() - 1  # delta
    assert (pushes[lowest > LOGITS] == 0).all()
    assert pushes[:P].sum() == pytest.approx(-float(pushes[P:].sum()))


def test_rank_and_sort_loss_pushes_the_two_highest_positives_down():
    assert (IOU[:-2].max() > IOU[-2:]).all()
    assert ((push(DRAWN["rank_sort"].loss)[:P] < 0).nonzero().flatten() == POSITIVES.argsort()[-2:]).all()


def test_dr_loss_lets_some_negatives_up():
    pushes = push(DRAWN["dr"].loss)
    assert (pushes[P:] > 0).any()
    assert shares(pushes)["hard"] > 1


@pytest.mark.parametrize("name", ["iou_balanced", "harmonic"])
def test_the_better_box_is_pushed_harder_than_its_neighbours(name):
    pushes = push(DRAWN[name].loss)[:P]
    assert pushes[2] > pushes[1]  # IoU 0.81 and 0.55, though it scores higher
    assert pushes[4] > pushes[3]  # 0.90 and 0.58
