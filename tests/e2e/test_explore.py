"""Explore: what lies between images, by mouse, touch and keyboard."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.e2e.conftest import Service, Visit, Visitor

PAINTED = """(selector) => [...document.querySelectorAll(selector)]
    .every((canvas) => canvas.dataset.painted !== undefined)"""
PICTURE = """() => document.querySelector("#explore .picture").toDataURL()"""


def explore(
    visit: Visitor, service: Service, tool: str = "morph", model: str = "attentive", **context: object
) -> Visit:
    """The page at Explore, with the images of its tool there."""
    visitor = visit(f"{service.url}#explore", **context)
    page = visitor.page
    page.locator("#explore-model").select_option(model)
    page.locator(f"#explore [name=explorer][value={tool}]").check(force=True)
    page.wait_for_function(PAINTED, arg="#explore .ends canvas")
    page.locator("#explore .loading").wait_for(state="hidden")
    return visitor


def slide(page: Page, value: int) -> None:
    page.locator("#explore .morph [type=range]").fill(str(value))


def test_a_morph_is_dragged_from_image_to_image(visit: Visitor, service: Service) -> None:
    visitor = explore(visit, service)
    page = visitor.page
    first, last = page.locator("#explore .ends select").all()
    first.select_option(label="cat")
    last.select_option(label="dog")
    page.locator("#explore .loading").wait_for(state="hidden")
    orders = len(visitor.orders)
    seen = []
    for value in (0, 8, 16):
        slide(page, value)
        seen.append((page.locator("#explore .readout").inner_text(), page.evaluate(PICTURE)))
    assert [words for words, _ in seen] == ["cat", "50 % cat, 50 % dog", "dog"]
    assert len({picture for _, picture in seen}) == 3
    assert len(visitor.orders) == orders  # all were there: dragging asks for nothing
    [film] = [order for order in visitor.orders if "frames" in json.loads(order.post_data or "")][-1:]
    assert json.loads(film.post_data or "")["frames"] == 17


def test_a_slider_is_moved_by_keys_and_says_where_it_is(visit: Visitor, service: Service) -> None:
    page = explore(visit, service).page
    slider = page.locator("#explore .morph [type=range]")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == page.locator("#explore .readout").inner_text()
    assert "75 %" in page.locator("#explore .readout").inner_text() or slider.input_value() == "4"


def test_playing_moves_on_and_stops(visit: Visitor, service: Service) -> None:
    page = explore(visit, service).page
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => document.querySelector('#explore .morph [type=range]').value > 3")
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").is_visible()


def test_a_morph_shows_where_a_point_attends_and_so_does_its_film(visit: Visitor, service: Service) -> None:
    visitor = explore(visit, service)
    page = visitor.page
    slide(page, 8)
    plain = page.evaluate(PICTURE)
    page.get_by_role("button", name="Attention").last.click()
    page.wait_for_function(f"(was) => ({PICTURE})() !== was", arg=plain)
    canvas = page.locator("#explore .picture")
    expect(canvas).to_have_attribute("aria-label", re.compile("where 16,16 attends"))
    middle = page.evaluate(PICTURE)
    canvas.press("ArrowLeft")
    page.wait_for_function(f"(was) => ({PICTURE})() !== was", arg=middle)
    film = page.get_by_role("link", name="Film")
    expect(film).to_have_attribute("href", re.compile("attention=14%2C16"))
    address = film.get_attribute("href")
    assert address is not None
    assert page.request.get(address).headers["content-type"] == "image/webp"
    page.get_by_role("button", name="Attention").last.click()
    page.wait_for_function(f"(was) => ({PICTURE})() === was", arg=plain)


def test_the_plane_is_dragged_by_a_finger_and_moved_by_keys(visit: Visitor, service: Service) -> None:
    visitor = explore(visit, service, "plane", has_touch=True, viewport={"width": 390, "height": 844})
    page = visitor.page
    assert page.locator("#explore .ends li").count() == 3  # the third was added
    pad = page.locator("#explore .pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + 0.5 * box["width"], box["y"] + 0.08 * box["height"])
    top = page.locator("#explore .readout").inner_text()
    assert top.endswith("(100 : 0 : 0)")
    pad.focus()
    pad.press("ArrowDown")
    assert page.locator("#explore .readout").inner_text().endswith(("(90 : 10 : 0)", "(90 : 0 : 10)"))
    for _ in range(9):
        pad.press("ArrowDown")
    pad.press("ArrowLeft")
    assert "(0 : " in page.locator("#explore .readout").inner_text()


def test_truncation_shows_the_same_seeds_at_each_value(visit: Visitor, service: Service) -> None:
    visitor = explore(visit, service, "truncation")
    page = visitor.page
    slider = page.locator("#explore .truncation [type=range]")
    pictures: list[str] = []
    for value in ("1", "0.2", "1"):
        slider.fill(value)
        page.wait_for_function(
            "(was) => document.querySelector('#explore .picture').toDataURL() !== was",
            arg=pictures[-1] if pictures else "",
        )
        page.wait_for_timeout(300)
        pictures.append(page.evaluate(PICTURE))
    assert pictures[0] == pictures[2] != pictures[1]


def test_a_neighbour_is_the_next_middle_and_back_leads_back(visit: Visitor, service: Service) -> None:
    page = explore(visit, service, "neighbours").page
    tiles = page.locator("#explore .nine .tile")
    middle = "() => document.querySelectorAll('#explore .nine canvas')[4].toDataURL()"
    page.wait_for_function(
        "() => document.querySelectorAll('#explore .nine [data-state=ready]').length === 9"
    )
    before = page.evaluate(middle)
    chosen = page.evaluate("() => document.querySelectorAll('#explore .nine canvas')[0].toDataURL()")
    tiles.nth(0).click()
    page.wait_for_function(
        "(was) => document.querySelectorAll('#explore .nine canvas')[4].toDataURL() !== was", arg=before
    )
    assert page.evaluate(middle) == chosen
    page.get_by_role("button", name="Back").click()
    page.wait_for_function(
        "(was) => document.querySelectorAll('#explore .nine canvas')[4].toDataURL() === was", arg=before
    )


def test_an_image_of_the_page_becomes_an_end(visit: Visitor, service: Service) -> None:
    visitor = visit()
    visitor.generate("ship", 2, seed="77")
    visitor.open(1)
    page = visitor.page
    page.locator("#to-explore").click()
    ends = page.locator("#explore .ends li")
    ends.nth(1).wait_for()  # a second one to lie between
    assert ends.first.locator("select").evaluate("select => select.selectedOptions[0].text") == "ship"
    assert ends.first.locator(".hint").inner_text() == "seed 77, image 1"
    assert page.url.endswith("#explore")
    assert "image=" not in page.url  # not the address of the image beside it
    page.get_by_role("link", name="Create").click()
    visitor.open(0)
    page.locator("#to-explore").click()
    ends.nth(1).get_by_text("seed 77").wait_for()  # in place of the one that nobody chose
    assert ends.count() == 2
    page.get_by_role("link", name="Create").click()
    visitor.open(0)
    page.locator("#to-explore").click()
    page.locator("#explore:not([hidden])").wait_for()
    assert ends.count() == 2  # it is there already


def test_one_slider_of_truncation_at_a_time(visit: Visitor, service: Service) -> None:
    page = explore(visit, service, "truncation").page
    slider = page.locator("#explore [type=range]:visible")
    assert slider.count() == 1
    slider.fill("0.3")
    slider.dispatch_event("change")
    page.locator("#explore [name=explorer][value=morph]").check(force=True)
    assert page.locator("#explore-truncation").input_value() == "0.3"


def test_a_way_round_is_offered_where_there_is_one(visit: Visitor, service: Service) -> None:
    page = explore(visit, service).page
    way = page.get_by_label("On to the first again")
    assert way.count() == 1
    assert not way.is_visible()  # between two images it is there and back
    page.get_by_role("button", name="Another image", exact=True).click()
    way.check()
    assert page.locator("#explore .ticks span").count() == 4


def test_an_end_that_is_a_mixture_says_so(visit: Visitor, service: Service) -> None:
    query = "?model=attentive&ends=3*0.6,5*0.4@7.0&truncation=0.7&tool=morph#explore"
    page = visit(f"{service.url}{query}").page
    hint = page.locator("#explore .ends .hint").first
    hint.wait_for()
    assert hint.inner_text() == "60 % cat, 40 % dog, seed 7"
    # what is kept has it as well, where the address says nothing
    page.goto("about:blank")
    page.goto(f"{service.url}#explore")
    hint.wait_for()
    assert hint.inner_text() == "60 % cat, 40 % dog, seed 7"


def test_looking_inside_a_frame_shows_its_attention(visit: Visitor, service: Service) -> None:
    page = explore(visit, service).page
    slide(page, 8)
    page.get_by_role("button", name="Look inside").click()
    page.locator("#gate").wait_for()
    assert page.locator("#inspector").is_visible()


def test_explored_pictures_are_not_among_the_jobs(visit: Visitor, service: Service) -> None:
    def listed(visitor: Visit) -> list[str]:
        return [job["id"] for job in visitor.ask("jobs").json()["jobs"]]

    before = listed(visit())  # other tests may have left morphs of their own
    explored = explore(visit, service)
    assert len(explored.orders) > 0
    assert listed(explored) == before


def test_no_tool_is_wider_than_a_small_window(visit: Visitor, service: Service) -> None:
    page = explore(visit, service, viewport={"width": 320, "height": 700}).page
    for tool in ("morph", "plane", "truncation", "neighbours"):
        page.locator(f"#explore [name=explorer][value={tool}]").check(force=True)
        page.locator("#explore .loading").wait_for(state="hidden")
        assert page.locator("html").evaluate("element => element.scrollWidth") == 320, tool


def test_dragging_keeps_up_with_the_pointer(visit: Visitor, service: Service) -> None:
    page = explore(visit, service, "plane").page
    drawn = page.evaluate(
        """async () => {
            const pad = document.querySelector("#explore .pad"), box = pad.getBoundingClientRect();
            const calls = [];
            const draw = CanvasRenderingContext2D.prototype.strokeRect;
            CanvasRenderingContext2D.prototype.strokeRect = function (...args) {
                if (this.canvas === pad) calls.push(args[0]);
                return draw.apply(this, args);
            };
            pad.setPointerCapture = () => {};
            pad.hasPointerCapture = () => true;
            for (let step = 0; step < 200; step++) {
                const clientX = box.x + box.width * (0.2 + step * 0.003), clientY = box.y + box.height * 0.7;
                pad.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, pointerId: 1 }));
            }
            await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
            CanvasRenderingContext2D.prototype.strokeRect = draw;
            return calls.length;
        }"""
    )
    assert 1 <= drawn <= 4  # 200 moves are one or two drawings of two strokes, not 200


def test_the_address_leads_to_what_is_explored(visit: Visitor, service: Service) -> None:
    page = explore(visit, service).page
    page.locator("#explore .ends select").first.select_option(label="frog")
    page.locator("#explore-truncation").fill("0.4")
    page.locator("#explore [name=explorer][value=plane]").check(force=True)
    page.wait_for_function("() => new URLSearchParams(location.search).get('tool') === 'plane'")
    expect(page.locator("#explore .ends li")).to_have_count(3)
    described = page.locator("#explore .ends li").all_inner_texts()

    other = visit(page.url).page
    expect(other.locator("#explore .ends li")).to_have_count(3)
    expect(other.locator("#explore [name=explorer][value=plane]")).to_be_checked()
    assert other.locator("#explore .ends li").all_inner_texts() == described
    assert other.locator("#explore .ends select").first.input_value() == "6"
    assert other.locator("#explore-truncation").input_value() == "0.4"
    expect(other.locator("#problem")).to_be_hidden()

    other.get_by_role("link", name="Create", exact=True).click()
    expect(other.locator("#form")).to_be_visible()
    assert other.url == service.url


def test_a_link_to_explore_that_fits_in_part_says_so(visit: Visitor, service: Service) -> None:
    query = "?model=attentive&hash=0000&ends=3@1.0;5*0.9,99*0.1@2.0&truncation=1&tool=magic#explore"
    page = visit(f"{service.url}{query}").page
    expect(page.locator("#problem")).to_contain_text('no tool "magic"')
    expect(page.locator("#problem")).to_contain_text("another version of the model")
    expect(page.locator("#problem")).to_contain_text("no class 99: such images are left out")
    expect(page.locator("#explore .ends select").first).to_have_value("3")


def test_an_image_looked_into_leads_back_to_what_is_explored(visit: Visitor, service: Service) -> None:
    page = explore(visit, service).page
    before = page.url
    assert "ends=" in before
    page.get_by_role("button", name="Look inside").click()
    page.locator("#inspector[open]").wait_for()
    assert "image=" in page.url
    page.keyboard.press("Escape")
    page.wait_for_function("(before) => location.href === before", arg=before)
    assert page.locator("main").get_attribute("data-view") == "explore"
