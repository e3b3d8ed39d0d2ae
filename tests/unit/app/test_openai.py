"""Prompts and sizes as OpenAI's clients send them."""

from __future__ import annotations

import pytest

from app.errors import Invalid
from app.openai import UnknownPrompt, classes_of, near_names, side_of
from jobs.job import ModelInfo

NAMES = ("cat", "dog", "great white shark, white shark", "ice_bear")
MODEL = ModelInfo("zoo", "0" * 64, "float32", 64, NAMES)


@pytest.mark.parametrize(
    ("prompt", "classes"),
    [
        ("cat", [0]),
        (" Cat ", [0]),
        ("1", [1]),
        ("cat, dog", [0, 1]),
        ("dog,cat,dog", [1, 0, 1]),
        ("cat,", [0]),
        ("Ice Bear", [3]),
        ("great white shark, white shark", [2]),
        ("cat, great_white shark,  white shark, dog", [0, 2, 1]),
    ],
)
def test_a_prompt_names_classes(prompt: str, classes: list[int]) -> None:
    assert classes_of(prompt, MODEL) == classes


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a photo of a cat", "Near it: cat."),
        ("cot", "Near it: cat."),
        ("an ice bear and a dog", "Near it: dog, ice_bear."),
        ("xyz", "There are cat, dog, great white shark, white shark, ice_bear."),
        (",", "has no class ','"),
        ("cat, xyz", "has no class 'xyz'"),
    ],
)
def test_another_prompt_is_told_what_there_is(prompt: str, told: str) -> None:
    with pytest.raises(UnknownPrompt, match="A prompt is the name of a class") as refused:
        classes_of(prompt, MODEL)
    assert told in refused.value.detail
    assert refused.value.errors is not None
    assert refused.value.errors[0]["at"] == "body.prompt"


def test_a_prompt_may_name_some_classes_only() -> None:
    assert len(classes_of(",".join(["cat"] * 16), MODEL)) == 16
    with pytest.raises(Invalid, match="16 classes"):
        classes_of(",".join(["cat"] * 17), MODEL)


def test_many_commas_take_no_time() -> None:
    with pytest.raises(Invalid, match="has no class 'a'"):
        classes_of("a," * 500, MODEL)


def test_part_of_a_word_is_no_class() -> None:
    assert near_names("concatenation of dogmas", NAMES) == []


@pytest.mark.parametrize(("size", "side"), [(None, 64), ("auto", 64), ("64x64", 64), ("256x256", 256)])
def test_a_size_is_a_square(size: str | None, side: int) -> None:
    assert side_of(size, 64, 1024) == side


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("1024x1536", "are square"),
        ("2048x2048", "16x16 to 1024x1024"),
        ("8x8", "16x16 to 1024x1024"),
        ("big", "reads like 64x64, or auto"),
        ("64X64", "reads like 64x64, or auto"),
        ("064x064", "reads like 64x64, or auto"),
        ("99999999x99999999", "reads like 64x64, or auto"),
    ],
)
def test_another_size_is_refused(size: str, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        side_of(size, 64, 1024)
