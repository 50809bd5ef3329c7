"""What the site makes of text: docstrings, links, pictures, blocks that are not run."""

import inspect
import re
import sys

import pytest
from pages import DOCS, ROOT

import triton_rankloss as rankloss

sys.path.append(str(ROOT))
from tools.site import markup

PUBLIC = [name for name in vars(rankloss) if not name.startswith("_") and callable(getattr(rankloss, name))]


def test_mathematics_of_a_docstring():
    docstring = inspect.cleandoc(
        r"""Scores :math:`p_i` of :func:`ap_loss`, :func:`triton_rankloss.dr_loss` and :meth:`end_epoch`.

        .. math::
            a = b, \quad
            c

            d = e

        .. math:: f = \frac{1}{2}, \quad
            g

        Then text.
        """
    )
    assert markup.from_docstring(docstring) == inspect.cleandoc(
        r"""Scores $p_i$ of [`ap_loss`][triton_rankloss.ap_loss], [`dr_loss`][triton_rankloss.dr_loss] and `end_epoch`.

        $$
        a = b, \quad c
        $$

        $$
        d = e
        $$

        $$
        f = \frac{1}{2}, \quad g
        $$

        Then text."""
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_no_markup_of_a_docstring_is_left(name):
    text = markup.from_docstring(inspect.getdoc(getattr(rankloss, name)) or "")
    assert not re.search(r":\w+:`|\.\. \w+::", text)
    assert set(re.findall(r"\]\[triton_rankloss\.(\w+)\]", text)) <= set(PUBLIC)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    for page in DOCS.rglob("*.md"):
        assert re.search(rf"[ :-] {page.relative_to(DOCS)}$", navigation, re.MULTILINE), page


def test_every_public_name_is_on_an_api_page():
    shown = re.findall(r"^::: triton_rankloss\.(\w+)$", "".join(p.read_text() for p in DOCS.glob("api/*.md")), re.M)
    assert sorted(shown) == sorted(PUBLIC)


def test_every_loss_has_a_page():
    pages = "".join(page.read_text() for page in (DOCS / "losses").glob("*.md"))
    assert [name for name in PUBLIC if name.endswith("_loss") and f"`{name}`" not in pages] == []


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[AP](losses/ap.md#options)", "[AP](losses/ap.md#options)"),
        ("[Changes](../CHANGELOG.md)", "[Changes](changelog.md)"),
        ("[ap.py](../reference/ap.py)", "`ap.py`"),
        ("[**kernels/**](../triton_rankloss/kernels)", "**kernels/** (`triton_rankloss/kernels`)"),
        ("[gone](nowhere.md)", "[gone](nowhere.md)"),
        ("[paper](https://arxiv.org/abs/1904.06373)", "[paper](https://arxiv.org/abs/1904.06373)"),
        (
            "[AP](../examples/results/compare/digits/results.json)",
            "AP (`examples/results/compare/digits/results.json`)",
        ),
        ("```\n[ap.py](../reference/ap.py)\n```", "```\n[ap.py](../reference/ap.py)\n```"),
        ("<!-- not run: needs a GPU -->", '<p class="not-run">Not run by the tests: needs a GPU.</p>\n'),
    ],
)
def test_page(written, shown):
    places = {DOCS / "README.md": "README.md", DOCS / "losses" / "ap.md": "losses/ap.md"}
    places[ROOT / "CHANGELOG.md"] = "changelog.md"
    assert markup.from_page(written, DOCS / "README.md", places, ROOT) == shown


def test_a_picture_follows_the_colours_that_the_reader_chose():
    picture = '<picture>\n  <source media="m" srcset="d.svg">\n  <img alt="A" src="l.svg">\n</picture>'
    found = markup.from_page(picture, DOCS / "README.md", {}, ROOT)
    assert found == "![A](l.svg#only-light)\n![A](d.svg#only-dark)"
