"""axe-core finds nothing in any view, light or dark; and no view is wider than the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from tests.e2e.conftest import Visitor


def findings(page: Page, within: str | None = None) -> list[str]:
    """What axe-core has to say, and whether the page is wider than the window.

    within: selector of the part to look at, where the rest is as it was; None: the page.
    """
    # what fades in is judged once it is there
    page.evaluate(
        "Promise.all(document.getAnimations().filter((a) => a.playState === 'running' && "
        "a.effect.getTiming().iterations === 1).map((a) => a.finished.catch(() => null)))"
    )
    found = [
        f"{violation['id']}: {[node['html'][:200] for node in violation['nodes']]}"
        for violation in Axe().run(page, within).response["violations"]
    ]
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return found + ([f"{wide} pixels wide"] if wide > shown else [])


@pytest.mark.parametrize(("scheme", "width"), [("dark", 320), ("light", 1440)])
def test_axe_finds_nothing_in_any_view(visit: Visitor, scheme: str, width: int) -> None:
    visitor = visit(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page = visitor.page
    visitor.generate("cat", 2)
    assert findings(page) == []
    page.get_by_role("link", name="Explore", exact=True).click()
    assert findings(page) == []

    page.get_by_role("link", name="Sheets", exact=True).click()
    page.get_by_label("Columns").fill("2")
    page.get_by_role("button", name="Make sheet").click()
    expect(page.get_by_role("button", name="Download sheet")).to_be_visible(timeout=30_000)
    assert findings(page) == []
    page.locator("#grid-sheet .tile").first.click()
    page.locator("#gate").wait_for()
    assert findings(page) == []
    page.get_by_role("button", name="Compare").click()
    assert findings(page) == []  # with the message that waits for another image
    page.locator("#grid-sheet .tile").nth(1).click()
    expect(page.locator("#comparison .stage-status:visible")).to_have_count(0)
    assert findings(page) == []
    page.keyboard.press("Escape")

    page.get_by_role("link", name="History", exact=True).click()
    expect(page.locator(".job .tile[data-state=ready]").first).to_be_visible()
    assert findings(page) == []
    visitor.age()
    visitor.forget()
    expect(page.locator(".job[data-state=expired]").first).to_be_visible()
    page.get_by_role("button", name="Hide").first.click()
    assert findings(page) == []


@pytest.mark.parametrize(("scheme", "width"), [("dark", 320), ("light", 1440)])
def test_axe_finds_nothing_in_any_tool_of_explore(visit: Visitor, scheme: str, width: int) -> None:
    visitor = visit(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page = visitor.page
    page.get_by_role("link", name="Explore", exact=True).click()
    page.get_by_role("button", name="Another image", exact=True).click()
    for tool in ("morph", "plane", "truncation", "neighbours"):
        page.locator(f"#explore [name=explorer][value={tool}]").check(force=True)
        expect(page.locator("#explore .loading")).to_be_hidden(timeout=30_000)
        assert findings(page, None if tool == "morph" else "#explore") == [], tool


@pytest.mark.parametrize(("scheme", "width"), [("dark", 320), ("light", 1440)])
def test_axe_finds_nothing_in_any_view_of_an_image(visit: Visitor, scheme: str, width: int) -> None:
    visitor = visit(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page = visitor.page
    visitor.generate("cat", 1)
    visitor.open(0)
    visitor.move(0.5, 0.5)
    page.locator("#stage").press("Enter")  # a pinned point
    for view in ("overlay", "heatmap", "image", "mean", "flow", "all"):
        page.locator(f"#inspector [name=view][value={view}]").check(force=True)
        expect(page.locator("#stage-status")).to_be_hidden()
        assert findings(page, None if view == "overlay" else "#inspector") == [], view
    page.get_by_text("Spec", exact=True).click()
    assert findings(page, "#inspector") == []
