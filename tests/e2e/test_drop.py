"""A picture dropped on the page, or chosen, is made again from its recipe."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from playwright.sync_api import FilePayload, Page, expect

if TYPE_CHECKING:
    from tests.e2e.conftest import Visit, Visitor


def made(visitor: Visit, path: str, order: dict[str, Any], k: int) -> bytes:
    """Image k of a job that somebody ordered."""
    job = visitor.ask(path, order | {"model": "attentive"}).json()
    return visitor.ask(job["links"]["images"][k]).body()


def recipe_of(png: bytes) -> str:
    picture = Image.open(io.BytesIO(png))
    assert isinstance(picture, PngImageFile)
    return str(picture.text["sagan"])


def with_recipe(png: bytes, text: str, kind: str) -> bytes:
    """The picture in another format, its recipe where that has a place for it."""
    content = io.BytesIO()
    picture = Image.open(io.BytesIO(png))
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    exif[ExifTags.Base.Software] = "sagan"
    info = PngInfo()
    info.add_text("other", "text before it")
    info.add_text("sagan", text)
    places: dict[str, dict[str, Any]] = {"PNG": {"pnginfo": info}, "GIF": {"comment": text.encode()}}
    marks = places.get(kind, {"exif": exif})
    picture.save(content, kind, **marks)
    return content.getvalue()


def choose(page: Page, content: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="From a file").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})


def shown(visitor: Visit) -> bytes:
    visitor.page.locator("#inspector[open]").wait_for()
    visitor.page.wait_for_function("() => document.querySelector('#picture').naturalWidth > 0")
    return visitor.page.request.get(visitor.page.locator("#picture").get_attribute("src") or "").body()


def test_a_dropped_image_is_made_again_whatever_its_place_in_its_job(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    order = {"class_id": "cat", "count": 40, "seed": 2**63 - 1, "truncation": 0.8}
    png = made(visitor, "generate", order, 37)
    page.get_by_role("link", name="History", exact=True).click()
    carried = page.evaluate_handle(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "picture.png", { type: "image/png" }));
            return data;
        }""",
        base64.b64encode(png).decode(),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": carried})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("body", "dragover", {"dataTransfer": carried})
    page.dispatch_event("body", "drop", {"dataTransfer": carried})
    expect(page.locator("#drop")).to_be_hidden()
    assert shown(visitor) == png
    expect(page.locator("#inspector-notice")).to_be_hidden()
    page.keyboard.press("Escape")
    # the form has it, to vary it
    expect(page.get_by_label("Seed", exact=True)).to_have_value("9223372036854775807")
    expect(page.locator("#truncation-value")).to_have_text("0.8")
    expect(page.get_by_role("radio", name="cat", exact=True)).to_be_checked()
    asked = visitor.orders[-1].post_data_json
    assert asked is not None
    assert (asked["start"], asked["count"]) == (37, 1)


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("generate", {"class_weights": {"cat": 0.75, "dog": 0.25}, "seed": 5, "start": 3}),
        (
            "morph",
            {"ends": [{"class_id": "cat", "seed": 1}, {"class_id": "ship", "seed": 2**60 + 1}], "frames": 5},
        ),
    ],
)
def test_mixtures_and_images_of_a_morph_are_made_again(
    visit: Visitor, path: str, order: dict[str, Any]
) -> None:
    visitor = visit()
    png = made(visitor, path, order, 0)
    if path == "morph":
        png = made(visitor, path, order, 1)
    choose(visitor.page, png)
    assert shown(visitor) == png


def test_the_recipe_is_found_in_each_format(visit: Visitor) -> None:
    visitor = visit()
    png = made(visitor, "generate", {"class_id": "ship", "seed": 12}, 0)
    for kind in ("PNG", "WEBP", "JPEG", "GIF"):
        content = with_recipe(png, recipe_of(png), kind)
        choose(visitor.page, content, f"picture.{kind.lower()}", f"image/{kind.lower()}")
        assert shown(visitor) == png, kind
        visitor.page.keyboard.press("Escape")
        expect(visitor.page.locator("#inspector")).to_be_hidden()


def test_a_recipe_of_another_version_says_that_it_is_not_the_same(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    png = made(visitor, "generate", {"class_id": "ship", "seed": 12}, 0)
    other = json.dumps(json.loads(recipe_of(png)) | {"model_hash": "0" * 64})
    choose(page, with_recipe(png, other, "PNG"))
    expect(page.locator("#inspector-notice")).to_contain_text("another version of the model")


WRONG: list[tuple[Any, str]] = [
    (None, "does not say how it was made"),
    ({"model": "nobody"}, "No worker here has loaded nobody now"),
    ({"class_name": "unicorn", "class_id": 3}, 'has no class "unicorn"'),
    ({"seed": -4}, "cannot be read"),
    ({"seed": "abc"}, "cannot be read"),
    ({"truncation": 7}, "cannot be read"),
    ({"index": None}, "cannot be read"),
    ({"ends": 3}, "cannot be read"),
    ({"ends": [{"seed": 1, "index": 0}]}, "cannot be read"),
    ("not JSON", "cannot be read"),
    ("[]", "cannot be read"),
    (b"GIF89a", "does not say how it was made"),
    (b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt", "does not say how it was made"),
    (b"plain text", "not a picture that can be read here"),
    (b"", "not a picture that can be read here"),
]


def test_a_file_that_cannot_be_made_again_says_why(visit: Visitor) -> None:
    visitor = visit()
    page = visitor.page
    png = made(visitor, "generate", {"class_id": "ship", "seed": 12}, 0)
    for change, says in WRONG:
        if isinstance(change, bytes):
            content = change
        elif change is None:
            plain = io.BytesIO()
            Image.new("RGB", (8, 8)).save(plain, "PNG")
            content = plain.getvalue()
        else:
            text = change if isinstance(change, str) else json.dumps(json.loads(recipe_of(png)) | change)
            content = with_recipe(png, text, "PNG")
        page.locator("#problem").evaluate("alert => (alert.textContent = '')")  # of the file before
        choose(page, content)
        expect(page.locator("#problem"), str(change)).to_contain_text(says)
        expect(page.locator("#problem")).to_be_in_viewport()
    assert visitor.orders == []


def test_a_wrong_file_is_told_of_in_any_view(visit: Visitor) -> None:
    page = visit().page
    wrong: FilePayload = {"name": "x.png", "mimeType": "image/png", "buffer": b"plain text"}
    for view in ("Explore", "Sheets", "History"):
        page.get_by_role("link", name=view, exact=True).click()
        page.locator("#file").set_input_files(wrong)
        expect(page.locator("#problem"), view).to_contain_text("not a picture that can be read here")
        expect(page.locator("#problem"), view).to_be_in_viewport()
        page.get_by_role("link", name="Create", exact=True).click()
    expect(page.locator("#problem")).to_be_hidden()
