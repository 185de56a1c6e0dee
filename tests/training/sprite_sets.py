"""A small collection of sprites, drawn on the spot: three shapes in two styles, some held out, and a background."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from safelight.training.data.scenes import is_held_out

STYLES = {"flat": "fluent flat", "noto": "noto gradient"}
COLORS = {"disc": ("red", (225, 30, 45)), "block": ("blue", (40, 95, 220)), "wedge": ("green", (60, 170, 70))}
# Code points chosen so that each shape is held out in one of the styles, or in none.
HEX = {"disc": "D{}", "block": "B{}", "wedge": "F{}"}


def code(name: str, held_out: str | None) -> str:
    """The first code point of a series whose pairs are held out in this style alone (or in none)."""
    codes = (HEX[name].format(i) for i in range(10_000))
    return next(c for c in codes if [f for f in STYLES if is_held_out(c, f)] == ([held_out] if held_out else []))


CODES = {"disc": code("disc", "flat"), "block": code("block", "noto"), "wedge": code("wedge", None)}


def drawn(name: str, folder: str) -> Image.Image:
    """A shape in its colour; the second style has a stripe of a lighter shade."""
    picture = Image.new("RGBA", (48, 48))
    pen = ImageDraw.Draw(picture)
    color = COLORS[name][1]
    {
        "disc": lambda: pen.ellipse((4, 4, 43, 43), fill=color),
        "block": lambda: pen.rectangle((4, 4, 43, 43), fill=color),
        "wedge": lambda: pen.polygon([(4, 43), (43, 43), (24, 4)], fill=color),
    }[name]()
    if folder == "noto":
        light = tuple((3 * c + 255) // 4 for c in color)
        pen.rectangle((20, 28, 27, 35), fill=light)
    return picture


OTHERS = {"disc": ["circle", "dot"]}


def write_sprites(folder: Path) -> Path:
    """Write the collection, as a folder with a captions.jsonl."""
    rows = []
    for style_folder, style in STYLES.items():
        (folder / style_folder).mkdir(parents=True)
        for name, hex_code in CODES.items():
            file = f"{style_folder}/{name}.png"
            drawn(name, style_folder).save(folder / file)
            rows.append({"file": file, "name": name, "style": style, "kind": "sprite", "hex": hex_code, "w": 48,
                         "h": 48, "caption": f"{style} {name}", "group": "shapes", "keywords": [],
                         "synonyms": OTHERS.get(name, [])})  # fmt: skip
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(folder / "sky.png")
    rows.append({"file": "sky.png", "name": "grey sky", "style": "digital painting", "kind": "background", "w": 64,
                 "h": 64, "caption": "a grey sky", "keywords": []})  # fmt: skip
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
