"""Names of things -> noun phrases as people write them: "a red apple", "an owl", "grapes", "the flag of Japan".

The rules are those of English articles as far as a name alone tells them, with short lists of the exceptions that occur
among emoji, groceries and game sprites.
"""

import re
from collections import Counter
from collections.abc import Sequence

PLURALS = {"people", "men", "women", "children", "teeth", "feet", "mice", "geese", "dice", "hands", "eyes"}
PERSONS = {"person", "man", "woman", "boy", "girl"}  # "a person surfing", though surfing is not counted
SINGULAR_S = re.compile(r"(ss|us|is|ceros|news|lens|gas|canvas|atlas|christmas|series|headquarters|cyclops)$")
UNCOUNTED = frozenset(
    re.findall(
        r"\w+",
        """food bacon bread rice water milk juice butter cheese salt sushi tofu lettuce spinach cabbage garlic
        ginger broccoli corn popcorn sake tea coffee honey soup music fog rain snow fire lightning wind money
        information ice luggage clothing furniture armour armor mail smoke space yoghurt yogurt cream
        polish asparagus celery meat flesh lava acid ink mud grass sand gold vapour steam ground chaos mist
        blood jewellery equipment marble archery boxing wrestling fencing hockey lacrosse baseball football
        basketball volleyball softball cricket golf bowling badminton tennis cooking""",
    )
)
PROPER = re.compile(
    r"^(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces|Ophiuchus|Santa|Mrs\.|"
    r"Mount|Halloween|Earth|Saturn|Jupiter|Mars|Venus)\b"
)
# Keywords that say what belongs to a thing more often than what it is: a wheel is no car, nor a lion's head a face.
NOT_KINDS = {
    "train", "railway", "car", "game", "kiss", "glass", "stop", "suit", "shoes", "face", "ball", "dress", "drink",
    "bird", "armour", "computer", "vehicle", "cat", "cream", "music", "house", "statue",
}  # fmt: skip
ENDS_HEAD = re.compile(
    r" (?:with|without|in|of|on|and|at|from|behind|over|for|to|or|by|under|near|holding|showing|wearing|playing|taking|"
    r"getting|making)\b"
)
LETTERS_AN = set("AEFHILMNORSX")  # letters whose own names begin with a vowel, as in "an SOS button"
READ_AS_WORDS = {"SOON", "NEW", "FREE"}  # and not letter by letter
COLORS = {
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey", "golden",
    "gold", "silver", "teal", "cyan", "magenta", "violet", "beige", "colored", "coloured", "rainbow", "crimson",
    "emerald", "ruby", "copper", "bronze", "turquoise", "azure", "scarlet", "amber", "ivory", "dark", "light", "tan",
}  # fmt: skip


def noun_phrase(name: str, *adjectives: str) -> str:
    """Write a name with its article and adjectives before it.

    >>> noun_phrase("owl"), noun_phrase("owl", "small", "brown"), noun_phrase("grapes"), noun_phrase("flag: Japan")
    ('an owl', 'a small brown owl', 'grapes', 'the flag of Japan')
    """
    name = plain_name(name)
    if name.startswith("the "):
        return name if not adjectives else f"the {' '.join(adjectives)} {name[4:]}"
    words = " ".join([*adjectives, name])
    return words if takes_no_article(name) else f"{article(words)} {words}"


def plain_name(name: str) -> str:
    """Rewrite the labels of emoji lists as people would say them: "woman: beard" as "woman with a beard"."""
    name = name.replace("“", '"').replace("”", '"').replace("’", "'")
    name, _, skin = name.partition(", ") if name.endswith("skin tone") else (name, "", "")
    for pattern, spoken in _SPOKEN:
        name = pattern.sub(spoken, name)
    if not skin:
        return name
    return f"{name} {'and' if ' with ' in name else 'with'} {skin.removesuffix(' skin tone')} skin"


_SPOKEN = [(re.compile(pattern), spoken) for pattern, spoken in [
    (r"^flag: (.+)$", r"the flag of \1"),
    (r"^keycap: ", "keycap "),
    (r"^(person|man|woman): bald$", r"bald \1"),
    (r"^(person|man|woman): beard$", r"\1 with a beard"),
    (r"^(person|man|woman): (.+)$", r"\1 with \2"),
    (r"^(.+): (\w+), (\w+), (\w+), (\w+)$", r"\1 of \2, \3, \4 and \5"),
    (r"^(.+): (\w+), (\w+), (\w+)$", r"\1 of \2, \3 and \4"),
    (r"^(.+): (\w+), (\w+)$", r"\1 of \2 and \3"),
    (r"^(no .+|warning|radioactive|biohazard|prohibited|copyright|registered|information)$", r"\1 sign"),
    (r"^(.+ o'clock|\w+-thirty)$", r"clock showing \1"),
    (r": ", " "),
    (r"\b([a-z]{3,})\d\b", r"\1"),  # "boots2 jackboots": a number of a variant
]]  # fmt: skip


def takes_no_article(name: str) -> bool:
    """Say whether a name stands alone: plurals, what is not counted, proper names."""
    if PROPER.match(name) or name.startswith("keycap "):
        return True
    head = ENDS_HEAD.split(name, maxsplit=1)[0].split()
    first, last = head[0].lower(), head[-1].lower()
    if first in PERSONS:
        return False
    if first in PLURALS or last in PLURALS or last in UNCOUNTED:
        return True
    return last.endswith("s") and len(last) > 3 and not SINGULAR_S.search(last)


def article(words: str) -> str:
    """Choose a or an by the sound of the first word."""
    first = words.split()[0].strip('"')
    letters = first.split("-")[0].rstrip("!")
    if letters.isupper() and letters not in READ_AS_WORDS:
        return "an" if letters[0] in LETTERS_AN else "a"
    if re.match(r"hour|honest|heir", first, re.IGNORECASE):
        return "an"
    if re.match(r"uni|use|uk|eu|one\b|once\b|u-", first, re.IGNORECASE):
        return "a"
    return "an" if first[0].lower() in "aeiou" or re.match(r"(8|11|18)(?!\d)", first) else "a"


def names_a_color(name: str) -> bool:
    """Say whether a name says a colour itself, so that another would contradict or repeat it."""
    return not COLORS.isdisjoint(re.findall(r"[a-z]+", name.lower()))


def head_noun(name: str) -> str | None:
    """Give the last word of a plain name ("red apple": "apple"), or None if the name is not plain."""
    plain = name.islower() and name.replace(" ", "").isalpha() and not ENDS_HEAD.search(name)
    return name.split()[-1] if plain else None


def general_names(things: Sequence[tuple[str, str, Sequence[str]]]) -> list[tuple[str, ...]]:
    """Find what else each of (name, kind, keywords) can be called, more generally: a watermelon is a fruit.

    A keyword counts where it is the head of a name of the same kind ("kiwi fruit") and a keyword of three of them at
    least; so a hot dog among the food is no dog, though "dog" is one of its keywords.
    """
    heads = {(kind, head_noun(name)) for name, kind, _ in things}
    shared = Counter((kind, word) for _, kind, word in {(n, kind, w) for n, kind, words in things for w in words})

    def general(name: str, kind: str, word: str) -> bool:
        known = (kind, word) in heads and shared[kind, word] >= 3 and word != name
        return known and (word == head_noun(name) or (word not in NOT_KINDS and word not in name.split()))

    return [tuple(word for word in words if general(name, kind, word)) for name, kind, words in things]


def listed(items: list[str]) -> str:
    """Join as people do: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
