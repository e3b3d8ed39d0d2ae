"""What a person does with the page: choose, generate, look, keep."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Route, expect

from tests.e2e.test_axe import findings

if TYPE_CHECKING:
    from tests.e2e.conftest import Service, Visitor

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def differing(one: list[int], other: list[int]) -> float:
    """Which part of the pixels of two pictures is not the same."""
    assert len(one) == len(other) > 0
    pairs = zip(zip(*[iter(one)] * 4, strict=True), zip(*[iter(other)] * 4, strict=True), strict=True)
    return sum(a != b for a, b in pairs) / (len(one) / 4)


def test_images_appear_as_they_are_made(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("dog", 6)
    job = visitor.page.locator(".job").first
    expect(job.get_by_role("heading")).to_have_text("dog")
    expect(job.locator(".status")).to_contain_text("6 images in")
    widths = job.locator("img").evaluate_all("images => images.map((image) => image.naturalWidth)")
    assert widths == [32] * 6
    expect(visitor.page.locator("#announcer")).to_have_text("Finished: 6 images of dog.")
    streams = [request for request in visitor.requests if request.url.endswith("/events")]
    assert [request.resource_type for request in streams] == ["eventsource"]


def test_moving_over_an_image_shows_another_map_without_asking(visit: Visitor) -> None:
    visitor = visit(viewport={"width": 1100, "height": 700})
    visitor.generate("ship", 2, seed="7")
    visitor.open(1)
    visitor.page.get_by_text("Map", exact=True).click()
    visitor.move(0.1, 0.1)
    first = visitor.overlay()
    visitor.page.wait_for_load_state("networkidle")
    asked = visitor.pictures_asked
    for step in range(20):
        visitor.move(0.1 + step * 0.035, 0.15 + step * 0.02)
    second = visitor.overlay()
    assert visitor.pictures_asked == asked > 0
    # the marks alone are a few hundredths of the picture
    assert differing(first, second) > 0.3
    visitor.move(0.1, 0.1)
    assert visitor.overlay() == first


def test_the_map_lies_where_the_service_says(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("cat", 1, seed="11")
    visitor.open(0)
    visitor.page.get_by_label("Layer").select_option("16x16")
    visitor.page.locator("#gate").wait_for()
    visitor.move(0.91, 0.28)  # column 14, row 4 of 16
    expect(visitor.page.locator("#readout")).to_contain_text("From pixel 29, 8 ")
    job = visitor.page.locator("#job-link").get_attribute("href")
    assert job is not None
    link = f"{job.replace('/jobs/', '/attention/')}/map?image=0&layer=16x16"
    answer = visitor.page.request.get(link, headers={"Accept": "application/json"}).json()
    row = answer["map"][4 * 16 + 14]
    peak = row.index(max(row))
    x, y = (peak % 8) * 4 + 2, (peak // 8) * 4 + 2
    expect(visitor.page.locator("#readout")).to_contain_text(f"attends most to {x}, {y}:")


def test_views_and_strength_change_what_is_drawn(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("cat", 1)
    visitor.open(0)
    visitor.move(0.5, 0.5)
    pictures = [visitor.overlay()]
    visitor.page.get_by_label("Strength").fill("0.2")
    pictures.append(visitor.overlay())
    for view in ("Map", "Image"):
        visitor.page.get_by_text(view, exact=True).click()
        visitor.move(0.5, 0.5)
        pictures.append(visitor.overlay())
    for number, picture in enumerate(pictures):
        for other in pictures[:number]:
            assert differing(picture, other) > 0.5
    # without heat only the ring, the arrow and the cell are left
    assert sum(alpha > 0 for alpha in pictures[-1][3::4]) < len(pictures[-1]) / 4 * 0.1


def test_everything_works_from_the_keyboard(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    page.get_by_role("radio", name="airplane").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="automobile").is_checked()
    page.locator("#count").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.get_by_label("Seed", exact=True).focus()
    page.keyboard.press("Enter")
    tile = page.locator(".job").first.locator(".tile[data-state=ready]").nth(1)
    tile.wait_for()
    page.locator(".job:first-child[data-state=succeeded]").wait_for()
    tile.focus()
    page.keyboard.press("Enter")
    page.locator("#gate").wait_for()
    expect(page.locator("#stage")).to_be_focused()
    before, readout = visitor.overlay(), page.locator("#readout").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert differing(before, visitor.overlay()) > 0.005
    assert page.locator("#readout").inner_text() != readout
    page.keyboard.press("Enter")
    expect(page.locator("#pins button")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("#pins button")).to_have_count(0)
    page.keyboard.press("PageUp")
    expect(page.locator("#inspector-facts")).to_contain_text("Image 1 of 2")
    page.keyboard.press("Escape")
    expect(page.locator("#inspector")).to_be_hidden()
    expect(tile).to_be_focused()
    expect(page).to_have_url(visitor.requests[0].url)


def test_a_link_makes_the_same_image_again(visit: Visitor) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    visitor.generate("frog", 3, seed="9223372036854775807")
    visitor.open(2)
    visitor.page.get_by_role("button", name="Copy link").last.click()
    link = visitor.page.evaluate("navigator.clipboard.readText()")
    asked = parse_qs(urlsplit(link).query)
    assert (asked["class"], asked["seed"], asked["image"]) == (["frog"], ["9223372036854775807"], ["2"])
    address = visitor.page.locator("#picture").get_attribute("src")
    assert address is not None

    # someone else, who has no such job: theirs is made anew
    other = visit("about:blank", ready=False)
    other.page.route("**/jobs?*", lambda route: route.fulfill(json={"jobs": [], "next": None}))
    other.page.goto(link)
    other.page.locator("#gate").wait_for()
    expect(other.page.locator("#inspector-facts")).to_contain_text("seed 9223372036854775807")
    again = other.page.locator("#picture").get_attribute("src")
    assert again is not None
    assert again != address
    assert other.page.request.get(again).body() == visitor.page.request.get(address).body()

    # whoever has the job already gets it from there
    visitor.page.reload()
    visitor.page.locator("#gate").wait_for()
    expect(visitor.page.locator("#inspector-facts")).to_contain_text("Image 3 of 3")
    assert len(visitor.orders) == 1


def test_the_png_and_the_figure_can_be_had(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.generate("truck", 2, seed="5")
    with page.expect_download() as grid:
        page.get_by_role("link", name="Grid").first.click()
    assert grid.value.suggested_filename == "truck-5-grid.png"
    visitor.open(1)
    with page.expect_download() as image:
        page.get_by_role("link", name="PNG").last.click()
    assert image.value.suggested_filename == "truck-5-1.png"
    assert image.value.path().read_bytes().startswith(b"\x89PNG")
    visitor.move(0.2, 0.7)
    page.mouse.down()
    page.mouse.up()
    figure = page.get_by_role("link", name="Figure").get_attribute("href")
    assert figure is not None
    assert parse_qs(urlsplit(figure).query)["points"] == ["6,22"]
    answer = page.request.get(figure)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    spec = json.loads(page.locator("#spec").text_content() or "")
    assert (spec["seed"], spec["index"], spec["class_name"]) == (5, 1, "truck")


def test_images_are_still_there_after_a_reload(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("bird", 3)
    seed = visitor.page.locator(".seed").first.inner_text()
    visitor.page.reload()
    visitor.page.locator(".job:first-child .tile[data-state=ready]").nth(2).wait_for()
    assert visitor.page.locator(".seed").first.inner_text() == seed


def test_a_job_shows_its_place_and_can_be_cancelled(visit: Visitor, service: Service) -> None:
    visitor = visit()
    service.signal_worker(signal.SIGSTOP)
    try:
        visitor.generate("deer", 64, wait=False)
        visitor.generate("horse", 2, wait=False)
        last = visitor.page.locator(".job").first
        expect(last.locator(".status")).to_contain_text("in line")
        last.get_by_role("button", name="Cancel").click()
        expect(last.locator(".status")).to_have_text("Cancelled")
    finally:
        service.signal_worker(signal.SIGCONT)
    expect(visitor.page.locator(".job").nth(1)).to_have_attribute("data-state", "succeeded", timeout=30_000)


def test_a_seed_beyond_the_bound_is_refused_in_words(visit: Visitor) -> None:
    visitor = visit()
    visitor.page.get_by_label("Seed", exact=True).fill("9223372036854775808")
    visitor.page.get_by_role("button", name="Generate").click()
    expect(visitor.page.locator("#seed-hint")).to_have_text(
        "A seed is a whole number from 0 to 9223372036854775807."
    )
    assert visitor.orders == []


def test_an_image_that_does_not_come_at_once_is_asked_for_again(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    refused: list[str] = []

    def once(route: Route) -> None:
        if route.request.url in refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.abort()

    page.route("**/images/0", once)
    page.locator("#count").fill("1")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".job:first-child .tile[data-state=ready]")).to_have_count(1)
    assert len(refused) >= 1
    page.unroute("**/images/0")
    assert all("ERR_FAILED" in error for error in visitor.errors)
    visitor.errors.clear()


def test_an_image_that_is_counted_before_it_is_there_is_asked_for_at_each_news(
    visit: Visitor, service: Service
) -> None:
    """Two forwards of a job may end in either order: the first image made need not be image 0."""
    visitor = visit()
    page = visitor.page
    polls = 0

    def one_is_made(route: Route) -> None:
        nonlocal polls
        polls += 1
        if polls > 4:
            service.signal_worker(signal.SIGCONT)
            route.continue_()
        else:
            job = route.fetch().json()
            route.fulfill(json=job | {"state": "running", "done": 1})

    page.route("**/jobs/*/events", lambda route: route.fulfill(status=204))  # the page then polls
    page.route("**/jobs/*", one_is_made)
    service.signal_worker(signal.SIGSTOP)
    try:
        visitor.generate("cat", 2, wait=False)
        expect(page.locator(".job:first-child .tile[data-state=ready]")).to_have_count(2, timeout=30_000)
    finally:
        service.signal_worker(signal.SIGCONT)
    early = [request for request in visitor.requests if request.url.endswith("/images/0")]
    assert len(early) > 1
    assert all("409" in error for error in visitor.errors)
    visitor.errors.clear()


def test_many_classes_are_found_by_typing_and_a_model_without_attention_says_so(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    expect(page.get_by_role("radio", name="airplane")).to_be_checked()  # nothing is known of its classes
    page.get_by_role("radio", name="plain").dispatch_event("click")
    expect(page.get_by_role("radio", name="breed 077")).to_be_checked()  # what it was measured to make best
    page.get_by_role("searchbox", name="Find a class").fill("wolf irish")
    expect(page.locator("#filter-count")).to_have_text("1 of 120")
    # what is typed is what is made, whatever was chosen before
    assert page.get_by_role("radio", name="Irish wolfhound").is_checked()
    page.get_by_role("searchbox", name="Find a class").fill("unicorn")
    expect(page.locator("#no-class")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("searchbox", name="Find a class")).to_be_focused()
    assert visitor.orders == []
    page.get_by_role("searchbox", name="Find a class").fill("wolf irish")
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio", name="Irish wolfhound")).to_be_focused()
    page.locator("#count").fill("1")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("article", name="Irish wolfhound").locator(".tile[data-state=ready]").click()
    expect(page.locator("#inspector-problem")).to_contain_text("no attention layer")
    expect(page.locator("#attention")).to_be_hidden()


def test_the_focus_stays_on_the_button_that_was_pressed(visit: Visitor) -> None:
    visitor = visit()
    button = visitor.page.get_by_role("button", name="Generate")
    held: list[Route] = []
    visitor.page.route("**/generate?*", lambda route: held.append(route))  # Playwright marks the function
    button.focus()
    visitor.page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-disabled", "true")
    visitor.page.keyboard.press("Enter")  # while the first is on its way
    held[0].continue_()
    visitor.page.locator(".job[data-state=succeeded]").first.wait_for()
    expect(button).to_be_focused()
    assert len(held) == 1


def test_models_and_classes_are_chosen_by_their_pictures(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    page.locator("#classes.pictured").wait_for(timeout=60_000)
    expect(page.locator("#classes .preview")).to_have_count(10)
    expect(page.locator("#models .preview")).to_have_count(8)  # four a model
    places = page.locator("#classes .preview").evaluate_all(
        "pictures => pictures.map((picture) => getComputedStyle(picture).backgroundPosition)"
    )
    assert len(set(places)) == 10
    page.locator("#classes label", has_text="frog").click()
    page.locator("#models label", has_text="plain").click()
    expect(page.locator("#classes .preview")).to_have_count(120)
    assert page.locator("#classes label").first.evaluate("label => label.offsetWidth") > 60


def test_who_has_no_images_yet_sees_what_each_class_looks_like(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.empty()
    wall = page.get_by_role("list", name="What this model makes")
    pictures = wall.get_by_role("button")
    expect(pictures).to_have_count(10, timeout=60_000)
    page.get_by_role("link", name="History", exact=True).click()  # which has no form to choose by
    expect(wall).to_be_hidden()
    expect(page.locator("#none")).to_have_text("No images yet: Create makes some.")
    page.get_by_role("link", name="Create", exact=True).click()
    page.locator("#models label", has_text="plain").click()
    expect(pictures).to_have_count(120)
    page.get_by_role("searchbox", name="Find a class", exact=True).fill("wolf")
    expect(pictures).to_have_text(["Irish wolfhound"])
    assert findings(page) == []
    pictures.press("Enter")
    job = page.locator(".job")
    expect(job.get_by_role("heading")).to_have_text("Irish wolfhound")
    expect(job).to_be_focused()  # the picture is not there any more
    expect(wall).to_be_hidden()
    expect(page.get_by_role("radio", name="Irish wolfhound")).to_be_checked()


def test_the_last_model_chosen_is_the_one_whose_classes_are_listed(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.empty()
    pictures = page.get_by_role("list", name="What this model makes").get_by_role("button")
    expect(pictures).to_have_count(10, timeout=60_000)
    page.route("**/classes?*", lambda route: None)  # what is not answered holds nothing up
    for name in ("plain", "attentive", "plain"):
        page.locator("#models label", has_text=name).click()
        expect(page.locator("#classes input")).to_have_count(120 if name == "plain" else 10)
    expect(pictures).to_have_count(120, timeout=60_000)
    pictures.first.press("Enter")
    page.locator(".job[data-state=succeeded]").wait_for()
    order = visitor.orders[0].post_data_json
    assert order is not None
    assert (order["model"], order["class_id"]) == ("plain", 0)


def test_another_model_that_comes_leaves_the_reader_of_this_one_alone(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.empty()
    page.get_by_role("list", name="What this model makes").get_by_role("button").nth(5).focus()
    answer = page.request.get(f"{page.url.split('#')[0]}models").json()
    answer["models"] = [model for model in answer["models"] if model["name"] == "attentive"]
    page.route("**/models", lambda route: route.fulfill(json=answer))
    expect(page.locator("#service")).to_have_text("Ready", timeout=30_000)
    expect(page.get_by_role("button", name="dog", exact=True)).to_be_focused()


def test_a_missing_worker_is_told_in_words_and_waited_for(lonely: Service, visit: Visitor) -> None:
    visitor = visit(lonely.url, ready=False)
    page = visitor.page
    expect(page.locator("#service")).to_contain_text("No worker")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    lonely.start_worker()
    lonely.ready()
    expect(page.locator("#service")).to_have_attribute("data-state", "ready", timeout=15_000)
    visitor.generate("cat", 1)

    lonely.signal_worker(signal.SIGKILL)
    alert = page.locator("#problem")
    for _ in range(40):  # until its heartbeat has run out, jobs are still taken
        page.get_by_role("button", name="Generate").click()
        page.wait_for_timeout(250)
        if alert.is_visible():
            break
    expect(alert).to_contain_text("No worker")
    expect(page.locator("#service")).to_contain_text("No worker is there any more", timeout=15_000)
    expect(page.locator("#service")).to_have_attribute("data-state", "away")
    assert all("503" in error for error in visitor.errors)
    visitor.errors.clear()


def test_where_a_key_is_needed_the_page_asks_for_it_and_shows_images_all_the_same(
    visit: Visitor, service: Service
) -> None:
    visitor = visit(service.start_api(SAGAN_API_KEYS="open-sesame"), ready=False)
    page = visitor.page
    for key in ("wrong", "open-sesame"):
        page.get_by_label("Access key").fill(key)
        with page.expect_response("**/models"):
            page.keyboard.press("Enter")
    page.locator("#service[data-state=ready]").wait_for()
    expect(page.get_by_label("Access key")).to_be_hidden()
    visitor.generate("cat", 2)
    visitor.open(1)
    with page.expect_download() as image:
        page.get_by_role("link", name="PNG").last.click()
    assert image.value.path().read_bytes().startswith(b"\x89PNG")
    assert all("401" in error for error in visitor.errors)
    visitor.errors.clear()


def test_a_finger_looks_around_and_pins(visit: Visitor) -> None:
    visitor = visit(**PHONE)
    page = visitor.page
    visitor.generate("ship", 1)
    page.locator(".job:first-child .tile").first.tap()
    page.locator("#gate").wait_for()
    box = page.locator("#stage").bounding_box()
    assert box is not None
    readouts = set()
    for x, y in ((0.2, 0.3), (0.7, 0.6)):
        page.touchscreen.tap(box["x"] + x * box["width"], box["y"] + y * box["height"])
        visitor.overlay()
        readouts.add(page.locator("#readout").inner_text())
    assert len(readouts) == 2
    expect(page.locator("#pins button")).to_have_count(2)

    # a drag: the finger stays on the glass, and no pin is left behind
    before = visitor.overlay()
    touch = page.context.new_cdp_session(page)
    for kind, place in (("touchStart", 0.2), ("touchMove", 0.4), ("touchMove", 0.85)):
        point = {"x": box["x"] + place * box["width"], "y": box["y"] + 0.2 * box["height"]}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert differing(before, visitor.overlay()) > 0.005
    expect(page.locator("#readout")).to_contain_text("From pixel 27, 6 ")
    expect(page.locator("#pins button")).to_have_count(2)


def test_the_page_works_under_a_prefix(visit: Visitor, service: Service) -> None:
    visitor = visit(f"{service.start_api(SAGAN_ROOT_PATH='/sagan')}sagan/")
    visitor.generate("dog", 3)
    visitor.open(1)
    visitor.page.get_by_text("Spec", exact=True).click()
    assert "/sagan/jobs/" in (visitor.page.locator("#job-link").get_attribute("href") or "")
    asked = [urlsplit(request.url).path for request in visitor.requests if request.url.startswith("http")]
    assert len(asked) > 10
    assert [path for path in asked if not path.startswith("/sagan/")] == []
