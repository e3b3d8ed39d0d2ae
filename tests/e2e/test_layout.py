"""How the page looks and reads: any width, light and dark, a name for each control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Visitor


@pytest.mark.parametrize("width", [320, 768, 2200])
def test_nothing_is_wider_than_the_window(visit: Visitor, width: int) -> None:
    visitor = visit(viewport={"width": width, "height": 700})
    visitor.generate("cat", 20)
    widest = "element => [element.scrollWidth, element.clientWidth]"
    scrolled, client = visitor.page.locator("html").evaluate(widest)
    assert scrolled == client == width
    visitor.open(0)
    scrolled, client = visitor.page.locator("#inspector").evaluate(widest)
    assert scrolled == client
    stage = visitor.page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["x"] >= 0
    assert stage["x"] + stage["width"] <= width
    assert stage["width"] >= min(280, width - 40)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of rgb(r, g, b)."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark_are_both_legible(visit: Visitor, scheme: str, dark: bool) -> None:
    visitor = visit(color_scheme=scheme)
    ground = luminance(visitor.page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor"))
    assert (ground < 0.1) is dark
    for selector in ("h2", ".tagline", "#count-value", ".hint"):
        text = luminance(
            visitor.page.locator(selector).first.evaluate("element => getComputedStyle(element).color")
        )
        contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        assert contrast >= 4.5, selector


def test_every_control_has_a_name(visit: Visitor) -> None:
    visitor = visit()
    visitor.generate("cat", 2)
    visitor.open(0)
    nameless = visitor.page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, summary, [role=application]")]
            .filter((control) => !(control.textContent.trim() || control.ariaLabel
                || [...(control.labels ?? [])].some((label) => label.textContent.trim())))
            .map((control) => control.outerHTML)"""
    )
    assert nameless == []
