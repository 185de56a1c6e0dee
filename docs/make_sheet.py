"""The sheet of the model that ships, docs/default-model.png: 64 prompts, picture k with seed k, none chosen.

python docs/make_sheet.py [MODEL]
"""

import sys
from pathlib import Path

import safelight
from safelight.training.data.names import noun_phrase

THINGS = """
red apple; green apple; banana; strawberry; lemon; watermelon; tomato; carrot; mushroom; pizza; doughnut; egg; cookie
grinning face; smiling face with sunglasses; crying face; angry face; sleeping face; ghost; alien; robot; skull; snowman
red heart; yellow heart; green heart; blue heart; purple heart; jack-o-lantern; dog face; cat face; fox; panda; lion
frog; pig face; penguin; baby chick; tropical fish; whale; octopus; turtle; lady beetle; snail; tulip; sunflower
maple leaf; cactus; evergreen tree; palm tree; sun; crescent moon; star; cloud; fire; snowflake; house; tent; automobile
rocket; balloon; crown; soccer ball; candle
"""
STYLES = ("{}", "a 3D render of {}", "a flat emoji of {}", "a cartoon of {}")
GROUNDS = ("white", "white", "blue", "white", "black", "yellow", "white", "green", "pink")


def prompts() -> list[str]:
    """Each thing, in a style and on a ground that take turns."""
    things = [thing.strip() for line in THINGS.split("\n") for thing in line.split(";") if thing.strip()]
    return [
        f"{STYLES[k % len(STYLES)].format(noun_phrase(thing))} on a {GROUNDS[k % len(GROUNDS)]} background"
        for k, thing in enumerate(things)
    ]


def main() -> None:
    """Draw all, and lay them out eight by eight."""
    from safelight.training.loop.sheets import contact_sheet

    model = safelight.load(*sys.argv[1:2])
    drawn = [safelight.text_to_image(model, prompt, seed=k, steps=20)[0] for k, prompt in enumerate(prompts())]
    captions = [prompt.removesuffix(" background") for prompt in prompts()]
    contact_sheet(drawn, captions).save(Path(__file__).with_name("default-model.png"), optimize=True)


if __name__ == "__main__":
    main()
