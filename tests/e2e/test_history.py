"""A history that stays: found, made again, hidden and cleared, with or without a service behind it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import redis
from playwright.sync_api import Locator, Page, Route, expect

if TYPE_CHECKING:
    from tests.e2e.conftest import Service, Visit, Visitor

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True).first


def to_history(page: Page) -> None:
    page.get_by_role("link", name="History", exact=True).click()
    expect(page.get_by_role("heading", name="History", exact=True)).to_be_visible()


def pictures(visitor: Visit, job: Locator) -> list[bytes]:
    sources = job.locator(".tile img").evaluate_all("images => images.map((image) => image.src)")
    return [visitor.page.request.get(source).body() for source in sources]


def test_the_same_images_are_made_again_after_the_service_forgot_them(
    lonely: Service, visit: Visitor
) -> None:
    lonely.start_worker()
    lonely.ready()
    visitor = visit(lonely.url)
    page = visitor.page
    visitor.generate("cat", 6, seed="9223372036854775807")
    first = pictures(visitor, card(page, "cat"))
    expect(card(page, "cat").locator(".status")).to_contain_text("kept until")
    lonely.signal_worker(signal.SIGKILL)
    redis.Redis.from_url(lonely.redis.url).flushall()

    page.reload()  # no worker is there, and no job
    job = card(page, "cat")
    expect(job).to_have_attribute("data-state", "expired")
    expect(job.locator(".status")).to_contain_text("images have expired")
    expect(job.locator(".status")).to_contain_text("no worker here has loaded attentive")
    job.get_by_role("button", name="Make again").click()
    expect(job.locator(".status")).to_contain_text("No worker here has loaded attentive now")

    lonely.start_worker()
    lonely.ready()
    expect(job.locator(".status")).to_contain_text("the same spec makes the same ones again", timeout=20_000)
    job.get_by_role("button", name="Make again").click()
    again = page.locator(".job[data-state=succeeded]")
    expect(again.locator(".tile[data-state=ready]")).to_have_count(6)
    expect(again).to_be_focused()
    expect(page.locator(".job")).to_have_count(1)  # it took the place of the old card
    assert pictures(visitor, again) == first
    assert all("404" in error for error in visitor.errors)
    visitor.errors.clear()


def test_what_has_expired_is_shown_by_its_thumbnail(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.generate("dog", 6)
    expect(card(page, "dog").locator(".status")).to_contain_text("kept until")
    visitor.age()
    visitor.forget()
    job = card(page, "dog")
    expect(job).to_have_attribute("data-state", "expired")
    expect(job.locator(".piece")).to_have_count(4)
    pictures = job.locator(".piece").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).backgroundImage)"
    )
    assert all(picture.startswith('url("data:image/') for picture in pictures)
    expect(job).to_contain_text("and 2 more")
    expect(job.locator(".status")).to_contain_text("the same spec makes the same ones again")


def test_another_version_of_the_model_is_told_before_it_is_made_again(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.generate("frog", 1)

    def replaced(route: Route) -> None:
        answer = route.fetch().json()
        for model in answer["models"]:
            model["hash"] = "f" * 64
        route.fulfill(json=answer)

    page.route("**/models", replaced)
    visitor.age()
    visitor.forget()
    expect(card(page, "frog").locator(".status")).to_contain_text(
        "another version: it will not make the same"
    )


def test_jobs_are_found_by_class_model_and_seed(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.empty()
    for name, seed in (("cat", "42"), ("cat", "7"), ("dog", "42"), ("cat", "427")):
        visitor.generate(name, 1, seed=seed)
    to_history(page)
    search = page.get_by_role("searchbox", name="Find by class, model or seed")
    seeds = page.locator(".job .seed")
    search.fill("cat 42")
    expect(seeds).to_have_text(["seed 427", "seed 42"])
    expect(page.locator("#found")).to_have_text("2 of 4")
    search.fill("DOG attentive")
    expect(seeds).to_have_text(["seed 42"])
    search.fill("unicorn")
    expect(page.locator("#none")).to_have_text("No job here has all these words.")
    page.get_by_role("link", name="Create").click()  # which shows all
    expect(seeds).to_have_count(4)


def test_favourites_hiding_and_clearing(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.empty()
    for name in ("ship", "truck", "horse"):
        visitor.generate(name, 1)
    to_history(page)
    star = card(page, "truck").get_by_role("button", name="Favourite")
    star.focus()
    page.keyboard.press("Enter")
    expect(star).to_have_attribute("aria-pressed", "true")
    expect(star).to_be_focused()

    card(page, "ship").get_by_role("button", name="Hide").click()
    expect(card(page, "ship")).to_be_hidden()
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    page.keyboard.press("Enter")
    expect(card(page, "ship")).to_be_focused()
    card(page, "ship").get_by_role("button", name="Hide").click()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_text("Hidden", exact=True).click()
    expect(page.locator(".job")).to_have_count(1)
    page.get_by_text("Favourites", exact=True).click()
    expect(page.locator(".job h3")).to_have_text(["truck"])
    page.get_by_role("search", name="History").get_by_text("All", exact=True).click()

    page.get_by_role("button", name="Clear history").click()
    expect(page.locator(".job h3")).to_have_text(["truck"])  # a favourite stays
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".job h3")).to_have_text(["horse", "truck"])
    page.get_by_role("button", name="Clear history").click()
    page.unroute("**/jobs?*")
    page.reload()  # the service still lists what was cleared
    expect(page.locator(".job h3")).to_have_text(["truck"])
    assert (
        page.locator(".job").first.get_by_role("button", name="Favourite").get_attribute("aria-pressed")
        == "true"
    )


def test_all_that_waits_is_cancelled_at_once(visit: Visitor, service: Service) -> None:
    visitor = visit()
    page = visitor.page
    visitor.empty()
    expect(page.get_by_role("button", name="Cancel all waiting")).to_be_hidden()
    service.signal_worker(signal.SIGSTOP)
    try:
        for name in ("deer", "bird", "horse", "frog"):
            visitor.generate(name, 64, wait=False)
        expect(page.get_by_role("button", name="Cancel all waiting")).to_be_visible()
        page.get_by_role("button", name="Cancel all waiting").click()
        expect(page.locator(".job[data-state=cancelled]").nth(2)).to_be_visible()
        expect(page.get_by_role("button", name="Cancel all waiting")).to_be_hidden()
    finally:
        service.signal_worker(signal.SIGCONT)
    expect(page.locator(".job[data-state=queued], .job[data-state=running]")).to_have_count(0, timeout=30_000)


def test_the_history_is_there_when_the_service_is_not(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    visitor.generate("ship", 2, seed="5")
    for route in ("**/jobs**", "**/models**", "**/attention/**"):
        page.route(route, lambda route: route.abort())
    page.reload()
    expect(page.locator("#service")).to_contain_text("cannot be reached")
    expect(card(page, "ship")).to_be_visible()
    expect(card(page, "ship").locator(".seed")).to_have_text("seed 5")
    # nothing says that the images have expired: they may be there
    expect(card(page, "ship").locator(".status")).to_contain_text("cannot be had now", timeout=15_000)
    page.close()  # it tries again and again
    assert all("ERR_FAILED" in error for error in visitor.errors)
    visitor.errors.clear()


def test_the_page_works_where_storage_is_forbidden(visit: Visitor, service: Service) -> None:
    visitor = visit("about:blank", ready=False)
    page = visitor.page
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, {
            get() { throw new DOMException("Storage is forbidden.", "SecurityError"); },
        });"""
    )
    page.goto(service.url)
    page.locator("#service[data-state=ready]").wait_for()
    visitor.generate("cat", 2)
    expect(page.locator("#life")).to_contain_text(
        "Images are kept for 1 hour. This browser lets the page keep nothing"
    )
    to_history(page)
    expect(card(page, "cat").locator(".tile[data-state=ready]")).to_have_count(2)


def test_what_is_kept_is_bounded_and_the_oldest_go_first(visit: Visitor) -> None:
    page = visit().page
    counts = page.evaluate(
        """async () => {
            const { Store } = await import("./static/store.js");
            const spec = { model: "m", model_hash: "h", class_name: "cat", count: 1, seed: "1" };
            const store = new Store();
            store.open("a key");
            for (let k = 0; k < 510; k++) {
                const created_at = new Date(k * 1000).toISOString();
                store.put({ id: `job${k}`, created_at, spec }, { mine: true, favourite: k === 3 });
            }
            const again = new Store();
            const without = again.entries.size;
            again.open("a key");
            const kept = ["job2", "job3", "job10", "job11"].filter((id) => again.get(id));
            return [again.entries.size, kept, without];
        }"""
    )
    assert counts[0] == 500
    assert counts[1] == ["job3", "job11"]  # a favourite stays
    assert counts[2] < 100  # what one key's holder made, another does not see


def test_views_are_gone_to_by_keyboard_and_have_addresses(visit: Visitor, service: Service) -> None:
    visitor = visit()
    page = visitor.page
    for name, key in (
        ("Explore", "explore"),
        ("Sheets", "grids"),
        ("History", "history"),
        ("Create", "create"),
    ):
        link = page.get_by_role("link", name=name, exact=True)
        link.focus()
        page.keyboard.press("Enter")
        expect(link).to_have_attribute("aria-current", "page")
        expect(page.locator("#views [aria-current]")).to_have_count(1)
        assert page.url.startswith(service.url)
        assert page.url.endswith(f"#{key}")  # before it what is explored
        # whoever reads on reads what came up
        assert page.evaluate("document.activeElement.dataset.views").split()[0] in (key, "create")
    page.go_back()
    expect(page.get_by_role("heading", name="History", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="History", exact=True)).to_be_visible()
    expect(page).to_have_title("History · Sagan")


@pytest.mark.parametrize("how", [{}, PHONE])
def test_an_image_is_opened_from_the_history_and_closed_back_into_it(
    visit: Visitor, service: Service, how: dict[str, object]
) -> None:
    visitor = visit(**how)
    page = visitor.page
    visitor.generate("bird", 2)
    to_history(page)
    tile = card(page, "bird").locator(".tile").nth(1)
    tile.tap() if how else tile.click()
    page.locator("#gate").wait_for()
    page.go_back()
    expect(page.locator("#inspector")).to_be_hidden()
    expect(page.get_by_role("heading", name="History", exact=True)).to_be_visible()
    expect(page).to_have_url(f"{service.url}#history")
    expect(tile).to_be_focused()
