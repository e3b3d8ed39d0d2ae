"""Two images side by side, with their attention at the same point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from tests.e2e.conftest import Visit, Visitor

PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}


def compare(visitor: Visit) -> Page:
    """Opens image 1 of a cat beside image 2 of a ship."""
    page = visitor.page
    visitor.generate("cat", 2, seed="3")
    visitor.generate("ship", 3, seed="4")
    page.get_by_role("article", name="cat").first.locator(".tile").first.click()
    page.locator("#gate").wait_for()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#inspector")).to_be_hidden()
    expect(page.locator("#toast")).to_contain_text("cat, image 1: now open the image to compare it with")
    page.get_by_role("article", name="ship").first.locator(".tile").nth(1).click()
    expect(page.locator("#comparison .stage-status:visible")).to_have_count(0)
    return page


def readouts(page: Page) -> list[str]:
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    return page.locator("#comparison .readout").all_inner_texts()


def test_one_pointer_moves_both_rings(visit: Visitor) -> None:
    page = compare(visit())
    expect(page.locator("#comparison h3")).to_have_text(["cat", "ship"])
    expect(page.locator("#toast")).to_be_hidden()
    box = page.locator("#comparison .stage").nth(1).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.27 * box["width"], box["y"] + 0.52 * box["height"])
    said = readouts(page)
    assert [words.startswith("From pixel 8, 16 it attends most to ") for words in said] == [True, True]
    assert said[0] != said[1]

    # the arrow keys move by a cell, from either image
    expect(page.locator("#comparison .stage").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    moved = readouts(page)
    starts = {words.split(" it ")[0] for words in moved}
    assert len(starts) == 1
    assert starts != {words.split(" it ")[0] for words in said}

    page.get_by_role("button", name="Swap").click()
    expect(page.locator("#comparison h3")).to_have_text(["ship", "cat"])
    assert readouts(page) == moved[::-1]
    page.get_by_role("button", name="Next image").first.click()
    expect(page.locator("#comparison .facts").first).to_contain_text("Image 3 of 3")
    expect(page.locator("#comparison .stage").first).to_be_focused()  # the button is disabled by now

    page.keyboard.press("Escape")
    expect(page.locator("#comparison")).to_be_hidden()
    expect(page.get_by_role("article", name="ship").first.locator(".tile").nth(1)).to_be_focused()
    page.keyboard.press("Enter")  # the next image opens alone
    expect(page.locator("#inspector")).to_be_visible()


def test_a_finger_moves_both_rings_on_a_narrow_screen(visit: Visitor) -> None:
    page = compare(visit(**PHONE))
    box = page.locator("#comparison .stage").first.bounding_box()
    assert box is not None
    assert box["width"] > 120
    page.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 0.2 * box["height"])
    assert {words.split(" it ")[0] for words in readouts(page)} == {"From pixel 25, 6"}
    wide, shown = page.locator("#comparison").evaluate("dialog => [dialog.scrollWidth, dialog.clientWidth]")
    assert wide == shown <= 320


def test_who_thinks_again_opens_the_next_image_alone(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.generate("dog", 2)
    for way in ("Cancel", "Dismiss"):
        visitor.open(0)
        page.get_by_role("button", name="Compare").click()
        page.locator("#toast").get_by_role("button", name=way).click()
        visitor.open(1)
        expect(page.locator("#inspector-facts")).to_contain_text("Image 2 of 2")
        page.keyboard.press("Escape")


def test_a_model_without_attention_says_so_beside_one_that_has_it(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.generate("cat", 1)
    page.get_by_role("radio", name="plain").dispatch_event("click")
    page.get_by_role("radio", name="Irish wolfhound").dispatch_event("click")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("article", name="Irish wolfhound").locator(".tile[data-state=ready]").first.wait_for()
    page.get_by_role("article", name="cat").first.locator(".tile").first.click()
    page.locator("#gate").wait_for()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("article", name="Irish wolfhound").locator(".tile").first.click()
    expect(page.locator("#comparison")).to_contain_text("This model has no attention layer.")
    expect(page.locator("#comparison .readout").first).to_contain_text("it attends most to")
