"""A folder of 607 files as people have it: python tests/support/as_it_comes.py OUT stanford-dogs-128.zip

Three drawn shapes and three breeds, sizes 48 to 300, png jpg webp bmp, and ten odd files.
"""

from __future__ import annotations

import io
import random
import sys
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

BREEDS = ("Samoyed", "pug", "chow")  # folders of the zip
FORMS = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP"))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def shape(name: str, side: int, chance: random.Random) -> Image.Image:
    image = Image.new("RGB", (side, side), tuple(chance.randrange(150, 256) for _ in range(3)))
    reach = side * chance.uniform(0.2, 0.45)
    centre = side / 2 + chance.uniform(-0.05, 0.05) * side
    box = (centre - reach, centre - reach, centre + reach, centre + reach)
    corners = {"circle": 0, "square": 4, "triangle": 3}[name]
    colour = tuple(chance.randrange(0, 120) for _ in range(3))
    if corners:
        ImageDraw.Draw(image).regular_polygon((centre, centre, reach), corners, fill=colour)
    else:
        ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def save(image: Image.Image, folder: Path, number: int) -> None:
    suffix, form = FORMS[number % len(FORMS)]
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number}.{suffix}", form)


def main(out: Path, dogs: Path) -> None:
    chance = random.Random(0)
    for name in ("circle", "square", "triangle"):
        for number in range(99):
            save(shape(name, chance.randrange(48, 301), chance), out / name, number)
    with zipfile.ZipFile(dogs) as archive:
        for breed in BREEDS:
            names = sorted(n for n in archive.namelist() if f"/{n}".split("/")[-2] == breed and n[-1] != "/")
            for number, name in enumerate(names[:100]):
                side = chance.randrange(48, 301)
                image = Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((side, side))
                save(image, out / breed, number)
    photo = (out / "pug" / "1.jpg").read_bytes()
    for odd, content in {
        "stray.jpg": photo,
        "notes.txt": b"what I did",
        ".DS_Store": b"x",
        "pug/cut.jpg": photo[: len(photo) // 3],
        "pug/empty.png": b"",
        "pug/page.jpg": b"<!DOCTYPE html><html>not found</html>",
        "pug/from-my-phone.heic": HEIC,
        "pug/@eaDir/1.jpg": photo,
        "circle/Thumbs.db": b"x",
        "square/clip.mp4": b"\0\0\0\x18ftypisom" + bytes(64),
    }.items():
        (out / odd).parent.mkdir(parents=True, exist_ok=True)
        (out / odd).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
