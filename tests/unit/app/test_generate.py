"""How a request names a class."""

from __future__ import annotations

import pytest

from app.blends import class_id_of, draw_of
from app.errors import UnknownClass
from app.orders import OfClasses
from jobs.classes import class_number
from jobs.job import Draw, ModelInfo

BIRD = "bird_of_paradise"
MODEL = ModelInfo("birds", "0" * 64, "float32", 64, ("bird_of_paradise", "Border collie", "0"))


def test_a_class_is_named_by_its_number_or_as_people_write_it() -> None:
    for asked in ("bird_of_paradise", "bird of paradise", "Bird of Paradise", 0):
        assert class_id_of(asked, MODEL) == 0
    for asked in ("border_collie", "Border collie", 1, "1"):
        assert class_id_of(asked, MODEL) == 1
    assert class_id_of("0", MODEL) == 2  # text is a name first, a JSON number never one


@pytest.mark.parametrize("asked", [3, -1, 10**50, "3", "colli", ""])
def test_what_is_no_class_is_told_with_the_nearest(asked: int | str) -> None:
    with pytest.raises(UnknownClass) as caught:
        class_id_of(asked, MODEL)
    assert "This model has no class" in str(caught.value)
    if asked == "colli":
        assert "Did you mean 'Border collie'" in str(caught.value)


def test_a_mixture_is_the_same_in_any_order_and_has_no_share_of_nothing() -> None:
    draws = [
        draw_of(OfClasses.model_validate({"class_weights": weights}), 1, 0, MODEL)
        for weights in ({"0": 1, BIRD: 3}, {BIRD: 0.75, "0": 0.25}, {"1": 1e-320, BIRD: 6e5, "0": 2e5})
    ]
    assert draws == [Draw(((0, 0.75), (2, 0.25)), "bird_of_paradise + 0", 1, 0)] * 3
    assert draw_of(
        OfClasses.model_validate({"class_weights": {"1": 5e-324, BIRD: 1e6}}), 1, 0, MODEL
    ).classes == ((0, 1.0),)


def test_text_means_the_class_of_that_name_as_on_the_command_line() -> None:
    names = tuple(
        sorted(str(number) for number in range(12))
    )  # 0, 1, 10, 11, 2, ...: as old packs number them
    numbers = ModelInfo("numbers", "0" * 64, "float32", 64, names)
    for name in names:
        assert names[class_id_of(name, numbers)] == name
        assert class_id_of(name, numbers) == class_number(name, names)
    assert names[class_id_of(2, numbers)] == "10"  # a JSON number is the class's number
