"""Links to images that cannot be honoured, or not quite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from tests.e2e.conftest import Service, Visitor


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("class=cat&seed=abc", 'its seed is "abc"'),
        ("class=unicorn&seed=1", 'no class "unicorn"'),
        ("class=cat&seed=1&model=nobody", 'the model "nobody"'),
    ],
)
def test_a_link_that_cannot_be_followed_says_why(
    visit: Visitor, service: Service, query: str, says: str
) -> None:
    visitor = visit(f"{service.url}?{query}")
    expect(visitor.page.locator("#problem")).to_contain_text(says)
    expect(visitor.page.locator("#problem")).to_be_in_viewport()
    assert visitor.orders == []


def test_each_part_of_a_link_that_cannot_be_is_told(visit: Visitor) -> None:
    page = visit().page
    read = """async (query) => {
        const { specIn } = await import("./static/link.js");
        try { return JSON.stringify(specIn(`?${query}`)); } catch (wrong) { return wrong.message; }
    }"""
    for query, says in (
        ("class=cat&seed=9223372036854775808", "whole, from 0 to 9223372036854775807"),
        ("class=cat&seed=1&count=8&image=70", 'its image is "70"'),
        ("class=cat&seed=1&count=0", 'its count is "0"'),
        ("model=attentive&seed=abc", "names no class"),
        ("class=cat&seed=1&truncation=2", "must be above 0 and at most 1"),
        ("class=cat&seed=1&image=0&pins=3", 'its pins are "3"'),
        ("class=cat&seed=1&image=0&pins=1,1;2,2;3,3;4,4;5,5;6,6", "5 points at most"),
        ("class=cat&seed=1&pins=1,1", "given with image"),
        ("class=cat&seed=1&layer=8x8", "given with image"),
        ("class=cat&seed=1&start=-1", 'its start is "-1"'),
        ("class=cat&seed=1&classes=cat*1", "such as 3*0.7,5*0.3"),
        ("ends=3;5", "such as 3@1.0;5@2.0"),
        ("ends=3@1.0;5@2.0&frames=1", 'its frames is "1"'),
        ("ends=3@1.0;5@2.0&weights=1,0;1", "a number for each of the ends"),
    ):
        assert says in page.evaluate(read, query), query


def test_a_link_of_another_version_says_so_where_the_image_is_shown(visit: Visitor, service: Service) -> None:
    visitor = visit(f"{service.url}?class=cat&seed=1&image=0&hash=0000", ready=False)
    expect(visitor.page.locator("#inspector-notice")).to_contain_text("another version of the model")
    expect(visitor.page.locator("#inspector-notice")).to_be_in_viewport()


@pytest.mark.parametrize(
    ("query", "says", "pins"),
    [
        ("pins=99,5;3,4", "pin 99,5 lies outside the image, whose pixels go from 0 to 31", 1),
        ("pins=99,5;3,32", "pins 99,5 and 3,32 lie outside", 0),
        ("layer=64x64&pins=1,1", 'asks for the layer "64x64"; this model has 8x8, 16x16', 1),
        ("model=plain&class=breed_003&pins=1,1", "no attention layer", 0),
    ],
)
def test_what_an_image_of_a_link_does_not_have_is_said_beside_it(
    visit: Visitor, service: Service, query: str, says: str, pins: int
) -> None:
    visitor = visit(f"{service.url}?{query}&seed=1&image=0" + ("" if "class=" in query else "&class=cat"))
    visitor.page.locator("#inspector[open]").wait_for()
    expect(visitor.page.locator("#inspector-notice")).to_contain_text(says)
    expect(visitor.page.locator("#inspector-notice")).to_be_in_viewport()
    expect(visitor.page.locator("#pins button")).to_have_count(pins)
