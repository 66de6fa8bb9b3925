"""What TensorBoard shows of a run, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from screens.boards import tensorboard

from perdqn.run.dashboard import FILM, LAYOUT

if TYPE_CHECKING:
    from screens.chromium import Page

CARDS = "tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card"
TITLES = {title for charts in LAYOUT.values() for title in charts}


@pytest.fixture(scope="module")
def board(run: Path) -> Iterator[str]:
    with tensorboard(run.parent, ["custom_scalars", "hparams", "images", "text"]) as address:
        yield address


def drawn(page: Page, card: Any) -> bool:
    """Whether a chart has a curve: the path of one of no points is empty."""
    return any(path.get_attribute("d") for path in page.find("path.line", card))


def test_every_chart_of_the_layout_is_drawn_with_its_curves(page: Page, board: str) -> None:
    from selenium.common.exceptions import TimeoutException  # is there where a page is

    page.open(f"{board}#custom_scalars")

    def get_missing() -> set[str]:
        cards = [card for card in page.find(CARDS) if drawn(page, card)]
        return TITLES - {title for card in cards for title in page.texts("tf-card-heading", card)}

    with suppress(TimeoutException):  # which could not say what is missing
        page.wait_for(lambda: not get_missing(), "all of them")
    assert get_missing() == set()


def test_an_episode_is_shown_as_a_moving_picture(page: Page, board: str) -> None:
    page.open(f"{board}#images")

    def is_drawn(image: Any) -> bool:
        return bool(page.driver.execute_script("return arguments[0].naturalWidth > 0", image))

    (image,) = page.wait_for(lambda: [i for i in page.find("#main-image-container img") if is_drawn(i)], FILM)
    kind = "fetch(arguments[0].src).then(answer => arguments[1](answer.headers.get('content-type')))"
    assert page.driver.execute_async_script(kind, image) == "image/gif"
    assert FILM in page.texts("tf-card-heading")[0]


def test_the_run_is_told_in_words(page: Page, board: str, run: Path) -> None:
    page.open(f"{board}#text")
    texts = page.wait_for(lambda: len(found := page.texts("tf-markdown-view")) == 4 and found, "four texts")
    summary = json.loads((run / "summary.json").read_text())
    for words in (summary["command"], summary["exactness"], "completed", "replay_ratio", "cpu_capability"):
        assert any(words in text for text in texts), texts


def test_hyperparameters_stand_beside_the_score(page: Page, board: str, run: Path) -> None:
    page.open(f"{board}#hparams")
    score = json.loads((run / "summary.json").read_text())["final_evaluation_mean"]
    table = page.wait_for(
        lambda: [text for text in page.texts("tf-hparams-table-view") if "version_0" in text], "the run's row"
    )
    assert "final/return_mean" in table[0]
    assert f"{score:.5}" in table[0]
