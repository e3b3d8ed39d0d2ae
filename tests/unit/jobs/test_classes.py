"""Class names as people write them."""

from __future__ import annotations

import pytest

from jobs.classes import LONGEST, between, class_number, mixture, nearest_name

DOGS = ("Border_collie", "bird of paradise", "1", "Café")


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ("Border_collie", 0),
        ("border collie", 0),
        ("BORDER_COLLIE", 0),
        (" Border  collie ", 0),
        ("bird_of_paradise", 1),
        ("bird of paradise", 1),
        ("Bird of_Paradise", 1),
        ("1", 2),  # a class of that name, before the class of that number
        ("3", 3),
        ("cafe\u0301", 3),  # as macOS writes it
        ("4", None),
        ("-1", None),
        ("²", None),
        ("9" * 5000, None),
        ("", None),
        ("collie", None),
    ],
)
def test_a_name_is_found_as_people_write_it(asked: str, number: int | None) -> None:
    assert class_number(asked, DOGS) == number


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ("cat", 0),
        ("cat ", 0),
        ("café", 1),
        ("cafe\u0301", 1),
        (" CAFE\u0301", None),
        ("Café", 2),
        ("2", 3),
        ("3", 3),
    ],
)
def test_names_in_old_checkpoints_are_found_however_they_were_written(asked: str, number: int | None) -> None:
    assert class_number(asked, ("cat ", "cafe\u0301", "Café", "2\u00a0")) == number


def test_an_exact_name_comes_before_a_number() -> None:
    names = sorted(str(number) for number in range(12))  # as text, as packs once were: 0, 1, 10, 11, 2, ...
    assert [class_number(name, names) for name in names] == list(range(12))


def test_what_might_be_several_classes_is_none_unless_it_is_exact() -> None:
    names = ("sea_lion", "sea lion", "Sea_Lion")
    assert [class_number(name, names) for name in names] == [0, 1, 2]
    assert class_number("SEA LION", names) is None
    assert nearest_name("SEA LION", names) in names


def test_the_nearest_name_is_told_as_it_is_written() -> None:
    assert nearest_name("border-colie", DOGS) == "Border_collie"
    assert nearest_name("Bird_of_Paradice", DOGS) == "bird of paradise"
    assert nearest_name("xylophone", DOGS) is None


def test_many_classes_are_told_in_a_line() -> None:
    assert between(["cat", "cat", "dog"]) == "cat to dog"
    assert mixture(["cat", "dog"]) == "cat + dog"
    assert between(["x" * 1000]) == "x" * 1000  # a name is a name
    ends = [mixture([f"{letter} terrier {k}" for k in range(8)]) for letter in "abcdefgh" * 4]
    assert between(ends).startswith("a terrier 0 + a terrier 1")
    assert len(between(ends)) == LONGEST
