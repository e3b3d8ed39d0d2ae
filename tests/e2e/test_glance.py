"""Attention as a whole on the page: all points of an image, all images of a job; and pins that stay."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Route, expect

from tests.e2e.test_page import PHONE, differing

if TYPE_CHECKING:
    from tests.e2e.conftest import Service, Visit, Visitor


def opened(visitor: Visit, class_name: str = "cat", seed: str = "11", count: int = 1) -> None:
    visitor.generate(class_name, count, seed=seed)
    visitor.open(0)


def map_of(visitor: Visit, layer: str) -> Any:
    """The map of image 0 as the service tells it: float32 [queries, keys]."""
    job = visitor.page.locator("#job-link").get_attribute("href")
    assert job is not None
    link = f"{job.replace('/jobs/', '/attention/')}/map?image=0&layer={layer}"
    told = visitor.page.request.get(link, headers={"Accept": "application/json"}).json()
    return np.array(told["map"], np.float32)


def choose(visitor: Visit, view: str) -> None:
    visitor.page.locator("#attention .segments").get_by_text(view, exact=True).click()


def covered(picture: list[int]) -> float:
    """Which part of the picture has something drawn over it."""
    return sum(alpha > 0 for alpha in picture[3::4]) / (len(picture) / 4)


def test_an_image_is_shown_as_it_is_until_somebody_moves(visit: Visitor) -> None:
    visitor = visit()
    opened(visitor)
    expect(visitor.page.locator("#readout")).to_contain_text("From pixel 16, 16 ")
    assert 0 < covered(visitor.overlay()) < 0.2  # the ring, the arrow and the cell
    visitor.move(0.4, 0.6)
    assert covered(visitor.overlay()) == 1
    visitor.page.keyboard.press("Escape")
    visitor.page.locator(".job:first-child .tile").first.press("Enter")
    visitor.page.locator("#gate").wait_for()
    assert covered(visitor.overlay()) < 0.2
    visitor.page.keyboard.press("ArrowLeft")
    assert covered(visitor.overlay()) == 1


def test_what_all_points_attend_to_is_shown_without_asking(visit: Visitor) -> None:
    visitor = visit(viewport={"width": 1100, "height": 900})
    opened(visitor)
    visitor.page.get_by_label("Layer").select_option("16x16")
    visitor.page.locator("#gate").wait_for()
    values = map_of(visitor, "16x16")
    visitor.page.wait_for_load_state("networkidle")
    asked = visitor.pictures_asked
    pictures = []
    for view in ("Mean", "Flow", "All"):
        choose(visitor, view)
        visitor.move(0.3, 0.6)
        pictures.append(visitor.overlay())
        assert covered(pictures[-1]) == 1
        figure = visitor.page.locator("#figure").get_attribute("href") or ""
        [shown] = parse_qs(urlsplit(figure).query)["view"]
        assert shown == {"Mean": "mean", "Flow": "received", "All": "all"}[view]
    assert min(differing(pictures[0], pictures[1]), differing(pictures[1], pictures[2])) > 0.5
    assert visitor.pictures_asked == asked

    readout = visitor.page.locator("#readout")
    # every 1st or 2nd of 16: the small map under the point is that of a query nearby
    expect(readout).to_contain_text("The map of ")
    choose(visitor, "Mean")
    mean = values.mean(axis=0)
    line, column = divmod(int(mean.argmax()), 8)
    expect(readout).to_contain_text(
        f"All 256 points together attend most to {column * 4 + 2}, {line * 4 + 2}:"
    )
    choose(visitor, "Flow")
    visitor.move(0.3, 0.6)  # row 3, column 2 of 4
    received = mean.reshape(8, 8)[4:6, 2:4].sum() * 16
    said = re.search(r"row 3, column 2 receives ([\d.]+) times", readout.inner_text())
    assert said is not None
    assert float(said[1]) == pytest.approx(received, abs=0.06)


def test_the_views_of_all_points_work_from_the_keyboard(visit: Visitor) -> None:
    visitor = visit()
    opened(visitor)
    page = visitor.page
    page.get_by_role("radio", name="Image", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Mean")).to_be_checked()
    expect(page.locator("#announcer")).to_contain_text("points together attend most to")
    page.keyboard.press("ArrowRight")
    page.locator("#stage").focus()
    seen = set()
    for _ in range(4):
        page.keyboard.press("ArrowUp")
        visitor.overlay()
        seen.add(page.locator("#readout").inner_text().split(" receives")[0])
    assert len(seen) >= 2
    expect(page.locator("#announcer")).to_have_text(page.locator("#readout").inner_text())


def test_a_finger_looks_around_in_all_points_at_once(visit: Visitor) -> None:
    visitor = visit(**PHONE)
    page = visitor.page
    visitor.generate("ship", 1)
    page.locator(".job:first-child .tile").first.tap()
    page.locator("#gate").wait_for()
    page.locator("#attention .segments").get_by_text("All", exact=True).tap()
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    visitor.overlay()
    readout = page.locator("#readout").inner_text()
    touch = page.context.new_cdp_session(page)
    for kind, place in (("touchStart", 0.2), ("touchMove", 0.4), ("touchMove", 0.85)):
        point = {"x": box["x"] + place * box["width"], "y": box["y"] + 0.8 * box["height"]}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visitor.overlay()
    assert page.locator("#readout").inner_text() != readout


def test_pins_and_layer_stay_with_the_next_image_and_in_the_link(visit: Visitor) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    opened(visitor, seed="21", count=2)
    page = visitor.page
    page.get_by_label("Layer").select_option("8x8")
    page.locator("#gate").wait_for()
    for x, y in ((0.2, 0.7), (0.6, 0.1)):
        visitor.move(x, y)
        page.mouse.down()
        page.mouse.up()
    expect(page.locator("#pins button")).to_have_count(2)
    asked = parse_qs(urlsplit(page.url).query)
    assert (asked["pins"], asked["layer"], asked["image"]) == (["6,22;19,3"], ["8x8"], ["0"])
    page.get_by_role("button", name="Next image").click()
    expect(page.locator("#pins button")).to_have_count(2)
    asked = parse_qs(urlsplit(page.url).query)
    assert (asked["pins"], asked["layer"], asked["image"]) == (["6,22;19,3"], ["8x8"], ["1"])
    page.get_by_role("button", name="Copy link").last.click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url

    other = visit(link)
    other.page.locator("#gate").wait_for()
    expect(other.page.locator("#pins button")).to_have_count(2)
    expect(other.page.locator("#layer")).to_have_value("8x8")
    expect(other.page.locator("#inspector-notice")).to_be_hidden()
    assert other.page.url == link
    figure = other.page.locator("#figure").get_attribute("href") or ""
    assert parse_qs(urlsplit(figure).query)["points"] == ["6,22;19,3"]
    other.page.get_by_role("button", name="Clear", exact=True).click()
    assert "pins" not in parse_qs(urlsplit(other.page.url).query)


def test_all_images_of_a_job_are_painted_at_once(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("frog", 5, seed="31")
    card = visitor.page.locator(".job").first
    button = card.get_by_role("button", name="Attention")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.press("Enter")
    expect(card.locator(".tile.painted .paint")).to_have_count(5)
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(card.locator(".note")).to_contain_text("what all points of an image attend to")
    # each tile shows its own part of the one picture
    places = card.locator(".paint").evaluate_all(
        "paints => paints.map((paint) => getComputedStyle(paint).backgroundPosition)"
    )
    assert places == ["0% 0%", "50% 0%", "100% 0%", "0% 100%", "50% 100%"]
    grids = [request for request in visitor.requests if "/grid?" in request.url]
    assert len(grids) == 1
    button.click()
    expect(card.locator(".tile.painted")).to_have_count(0)
    expect(card.locator(".note")).to_be_hidden()
    button.click()
    expect(card.locator(".tile.painted")).to_have_count(5)
    assert len([request for request in visitor.requests if "/grid?" in request.url]) == 1
    card.locator(".tile").nth(2).click()
    expect(visitor.page.locator("#inspector-facts")).to_contain_text("Image 3 of 5")


def test_a_painted_job_tells_of_the_maps_that_are_being_made_and_of_what_goes_wrong(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("frog", 3, seed="32")
    page = visitor.page
    answers = [
        (503, "2 of 3 maps are made; ask again, and the others follow.", {"Retry-After": "1"}),
        (409, "This job was made by another version.", {}),
    ]

    def refuse(route: Route) -> None:
        status, detail, headers = answers.pop(0)
        route.fulfill(status=status, json={"detail": detail}, headers=headers)

    page.route("**/attention/*/grid*", refuse)
    card = page.locator(".job").first
    button = card.get_by_role("button", name="Attention")
    button.click()
    expect(card.locator(".note")).to_have_text("2 of 3 maps are made; ask again, and the others follow.")
    expect(card.locator(".note")).to_have_text("This job was made by another version.")
    expect(button).to_have_attribute("aria-pressed", "false")
    page.unroute("**/attention/*/grid*")
    button.click()
    expect(card.locator(".tile.painted")).to_have_count(3)
    assert len(visitor.errors) == 2
    visitor.errors.clear()


def test_a_job_is_painted_where_a_key_is_needed_and_not_where_nothing_attends(
    visit: Visitor, service: Service
) -> None:
    visitor = visit(service.start_api(SAGAN_API_KEYS="open-sesame"), ready=False)
    page = visitor.page
    page.get_by_label("Access key").fill("open-sesame")
    page.keyboard.press("Enter")
    page.locator("#service[data-state=ready]").wait_for()
    visitor.generate("cat", 2)
    page.locator(".job").first.get_by_role("button", name="Attention").click()
    expect(page.locator(".job").first.locator(".tile.painted")).to_have_count(2)
    page.get_by_role("radio", name="plain").dispatch_event("click")
    visitor.generate("breed 003", 1)
    expect(page.locator(".job").first.get_by_role("button", name="Attention")).to_be_hidden()
    assert all("401" in error for error in visitor.errors)
    visitor.errors.clear()
