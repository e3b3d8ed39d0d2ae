"""How a request names a class."""

from __future__ import annotations

import pytest

from app.blends import class_id_of
from app.errors import UnknownClass
from jobs.classes import class_number
from jobs.job import ModelInfo

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


def test_text_means_the_class_of_that_name_as_on_the_command_line() -> None:
    names = tuple(
        sorted(str(number) for number in range(12))
    )  # 0, 1, 10, 11, 2, ...: as old packs number them
    numbers = ModelInfo("numbers", "0" * 64, "float32", 64, names)
    for name in names:
        assert names[class_id_of(name, numbers)] == name
        assert class_id_of(name, numbers) == class_number(name, names)
    assert names[class_id_of(2, numbers)] == "10"  # a JSON number is the class's number
