"""Sheets: classes, or truncations, by images of one seed."""

from __future__ import annotations

import io
import signal
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from tests.e2e.conftest import Service, Visit, Visitor

WIDE = {"viewport": {"width": 1200, "height": 800}}
PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}


def sheets(visitor: Visit) -> Page:
    page = visitor.page
    page.get_by_role("link", name="Sheets").click()
    expect(page.get_by_label("Model of the sheet")).to_have_value("attentive")
    return page


def choose(page: Page, *names: str) -> None:
    """Chooses these classes alone."""
    classes = page.locator("#grid-classes")
    for value in classes.locator("input:checked").evaluate_all("boxes => boxes.map((box) => box.value)"):
        classes.locator(f'input[value="{value}"]').press("Space")
    for name in names:
        classes.get_by_role("checkbox", name=name, exact=True).press("Space")


def finished(page: Page, images: int) -> None:
    expect(page.locator("#grid-sheet .tile[data-state=ready]")).to_have_count(images, timeout=30_000)
    expect(page.get_by_role("button", name="Download sheet")).to_be_visible()
    expect(page.locator("#grid-cancel")).to_be_hidden()


@pytest.mark.parametrize("how", [WIDE, PHONE])
def test_classes_by_images_of_one_seed(visit: Visitor, how: dict[str, object]) -> None:
    visitor = visit(**how)
    page = sheets(visitor)
    choose(page, "cat", "dog", "ship")
    expect(page.locator("#grid-chosen")).to_have_text("3, at most 8")
    page.get_by_label("Columns").fill("4")
    page.get_by_label("Seed of all rows").fill("9007199254740993")  # beyond 2^53
    page.get_by_role("button", name="Make sheet").click()
    finished(page, 12)
    assert len(visitor.orders) == 3
    sheet = page.locator("#grid-sheet")
    expect(sheet.locator("caption")).to_have_text("attentive, seed 9007199254740993, truncation 0.7")
    expect(sheet.get_by_role("rowheader")).to_have_text(["cat", "dog", "ship"])
    expect(sheet.get_by_role("columnheader")).to_have_text(["Class", "1", "2", "3", "4"])
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")

    # the same noise as a job of its own: the cell is that image
    tile = sheet.get_by_role("button", name="dog, image 3")
    cell = page.request.get(tile.locator("img").get_attribute("src") or "").body()
    order = {
        "class_id": "dog",
        "seed": "9007199254740993",
        "truncation": 0.7,
        "count": 3,
        "model": "attentive",
    }
    made = visitor.ask("generate", order).json()
    assert visitor.ask(made["links"]["images"][2]).body() == cell

    tile.click()
    page.locator("#gate").wait_for()
    expect(page.locator("#inspector-facts")).to_contain_text("Image 3 of 4")
    page.keyboard.press("Escape")
    expect(tile).to_be_focused()

    with page.expect_download() as sheet_file:
        page.get_by_role("button", name="Download sheet").click()
    assert sheet_file.value.suggested_filename == "attentive-classes-9007199254740993.png"
    picture = Image.open(io.BytesIO(sheet_file.value.path().read_bytes()))
    assert picture.format == "PNG"
    # 4 cells of 96 pixels a row, and labels before and above them
    assert picture.width > 4 * 96 + 40
    assert picture.height > 3 * 96 + 60
    colours = picture.convert("RGB").crop((0, 0, picture.width, 80)).getcolors(2**24)
    assert colours is not None
    assert len(colours) > 10  # there is lettering


def test_truncations_of_one_class(visit: Visitor) -> None:
    visitor = visit()
    page = sheets(visitor)
    page.get_by_text("Truncations", exact=True).first.click()
    # not by coordinates: pictures of classes that come meanwhile move them
    page.get_by_role("radio", name="frog", exact=True).dispatch_event("click")
    page.get_by_role("checkbox", name="0.5").dispatch_event("click")
    page.get_by_label("Columns").fill("2")
    page.get_by_label("Seed of all rows").press("Enter")
    finished(page, 6)
    expect(page.locator("#grid-sheet").get_by_role("rowheader")).to_have_text(["0.3", "0.7", "1"])
    asked = [order.post_data_json for order in visitor.orders]
    assert [order["truncation"] for order in asked if order] == [0.3, 0.7, 1]
    assert len({order["seed"] for order in asked if order}) == 1  # one new seed for all
    # the rows are jobs like any other
    page.get_by_role("link", name="History", exact=True).click()
    expect(page.get_by_role("article", name="frog").nth(2)).to_be_visible()


def test_a_sheet_is_cancelled_with_all_its_jobs(visit: Visitor, service: Service) -> None:
    visitor = visit()
    page = sheets(visitor)
    choose(page, "cat", "dog", "ship", "frog")
    service.signal_worker(signal.SIGSTOP)
    try:
        page.get_by_role("button", name="Make sheet").click()
        expect(page.locator("#grid-sheet .tile")).to_have_count(24)
        # the history has jobs of other tests too; those have ended
        expect(page.locator("#jobs .job[data-state=queued]")).to_have_count(4)
        page.locator("#grid-cancel").click()
        expect(page.locator("#grid-cancel")).to_be_hidden()
        states = ["queued"]
        while set(states) != {"cancelled"}:  # before the worker goes on; else the test's time is up
            page.wait_for_timeout(50)
            states = [job["state"] for job in visitor.ask("jobs?limit=4").json()["jobs"]]
    finally:
        service.signal_worker(signal.SIGCONT)
    expect(page.locator("#grid-result")).to_be_focused()
    expect(page.locator("#grid-status")).to_contain_text("of 24 made", timeout=30_000)
    jobs = visitor.ask("jobs?limit=4").json()["jobs"]
    assert [job["state"] for job in jobs] == ["cancelled"] * 4


def test_eight_rows_are_the_most_and_none_is_told(visit: Visitor) -> None:
    page = sheets(visit())
    choose(page, "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse")
    expect(page.locator("#grid-chosen")).to_have_text("8, at most 8")
    expect(page.get_by_role("checkbox", name="ship")).to_be_disabled()
    choose(page)
    expect(page.locator("#grid-problem")).to_have_text("Choose what the rows are: one at least.")
    page.get_by_label("Seed of all rows").fill("abc")
    page.get_by_role("button", name="Make sheet").click()
    expect(page.get_by_label("Seed of all rows")).to_be_focused()
    expect(page.locator("#grid-seed-hint")).to_have_text(
        "A seed is a whole number from 0 to 9223372036854775807."
    )
