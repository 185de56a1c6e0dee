"""AUTOMATIC1111's rules for prompts, written down a second time and as plainly as can be, to compare numbers with.

From what its documentation and its behaviour say (1.10): wiki, "Attention/emphasis", "Prompt editing", "Alternating
words", "Composable diffusion", "Infinite prompt length", and the examples in modules/prompt_parser.py. Nothing here is
fast: schedules by recursive descent with backtracking, ranges multiplied one by one, each text encoded by itself.
"""

import re
from functools import cache

import torch

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*\]")
PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")


def branches(text):
    """What AND divides, each with the weight behind its last colon."""
    for part in re.split(r"\bAND\b", text):
        weight = re.search(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*$", part)
        yield (part[: weight.start()], float(weight[1])) if weight else (part, 1.0)


def schedule(text, steps):
    """[[last step, text], ...]; a text that the grammar does not know has no schedule."""
    tree = parse(text)
    if tree is None:
        return [[steps, text]]
    ends = {steps}
    collect(tree, steps, ends)
    return [[end, show(tree, end, steps)] for end in sorted(ends)]


def parse(text):
    @cache
    def prompt(i):
        """The longest run of items that starts at i, and where it ends."""
        items = []
        while i < len(text):
            if plain := PLAIN.match(text, i):
                items.append(plain[0])
                i = plain.end()
            elif group := bracket(i):
                items.append(group[0])
                i = group[1]
            else:
                break
        return ("prompt", items), i

    @cache
    def bracket(i):
        """A bracket with a meaning at i."""
        opener = text[i]
        if opener not in "([":
            return None
        parts, signs = [], ""
        part, i = prompt(i + 1)
        parts.append(part)
        while text[i : i + 1] in (":", "|") and text[i : i + 1]:
            if opener == "[" and text[i] == ":" and "|" not in signs and len(signs) < 2:
                number = NUMBER.match(text, i + 1)
                if number:
                    when = number[0][:-1].strip()
                    return ("scheduled", parts[0] if signs else None, parts[-1], when), number.end()
            signs += text[i]
            part, i = prompt(i + 1)
            parts.append(part)
        closer = text[i : i + 1]
        if opener == "(" and closer == ")" and signs in ("", ":"):
            middle = [":", parts[1]] if signs else []
            return ("prompt", ["(", parts[0], *middle, ")"]), i + 1
        if opener == "[" and closer == "]" and not signs:
            return ("prompt", ["[", parts[0], "]"]), i + 1
        if opener == "[" and closer == "]" and set(signs) == {"|"}:
            return ("alternate", parts), i + 1
        return None

    items, i = [], 0
    while i < len(text):
        part, end = prompt(i)
        if end == i:
            if text[i] not in "[]():":
                return None
            part, end = text[i], i + 1
        items.append(part)
        i = end
    return "prompt", items


def last_step(when, steps):
    return min(steps, int(float(when) * steps if "." in when else float(when)))


def collect(tree, steps, ends):
    if isinstance(tree, str) or tree is None:
        return
    if tree[0] == "scheduled":
        ends.update({last_step(tree[3], steps)} if last_step(tree[3], steps) >= 1 else ())
        collect(tree[1], steps, ends)
        collect(tree[2], steps, ends)
        return
    if tree[0] == "alternate":
        ends.update(range(1, steps + 1))
    for part in tree[1]:
        collect(part, steps, ends)


def show(tree, step, steps):
    if tree is None:
        return ""
    if isinstance(tree, str):
        return tree
    if tree[0] == "scheduled":
        return show(tree[1] if step <= last_step(tree[3], steps) else tree[2], step, steps)
    if tree[0] == "alternate":
        return show(tree[1][(step - 1) % len(tree[1])], step, steps)
    return "".join(show(part, step, steps) for part in tree[1])


def attention(text):
    """[[text, weight], ...]; a BREAK is None. Brackets are looked at from left to right."""
    found, rounds, squares = [], [], []

    def multiply(start, factor):
        for item in found[start:]:
            if item is not None:
                item[1] *= factor

    i = 0
    while i < len(text):
        weight = re.compile(r":\s*([+-]?[.\d]+)\s*\)").match(text, i)
        if text[i] == "\\":
            literal = text[i + 1 : i + 2] if text[i + 1 : i + 2] in tuple("()[]\\") else ""
            found.append([literal, 1.0])
            i += 1 + len(literal)
            continue
        if text[i] == "(":
            rounds.append(len(found))
        elif text[i] == "[":
            squares.append(len(found))
        elif weight and rounds:
            multiply(rounds.pop(), float(weight[1]))
            i = weight.end()
            continue
        elif text[i] == ")" and rounds:
            multiply(rounds.pop(), 1.1)
        elif text[i] == "]" and squares:
            multiply(squares.pop(), 1 / 1.1)
        else:
            run = re.compile(r"[^\\()\[\]:]+|.", re.DOTALL).match(text, i)
            piece = weight[0] if weight else run[0]
            for number, words in enumerate(re.split(r"\bBREAK\b", piece)):
                found += [None] if number else []
                found.append([words, 1.0])
            i += len(piece)
            continue
        i += 1
    for start in rounds:
        multiply(start, 1.1)
    for start in squares:
        multiply(start, 1 / 1.1)
    merged = []
    for item in found:
        if item is not None and merged and merged[-1] is not None and merged[-1][1] == item[1]:
            merged[-1] = [merged[-1][0] + item[0], item[1]]
        else:
            merged.append(item)
    return merged


COMMA, START, END = 267, 49406, 49407


def chunks(text, encode):
    """[(77 ids, 77 multipliers), ...] of a text; `encode` gives the ids of some words."""
    done, ids, weights = [], [], []

    def finish(count=None):
        nonlocal ids, weights
        count = len(ids) if count is None else count
        fill = 75 - count
        done.append(([START, *ids[:count], *[END] * (fill + 1)], [1.0, *weights[:count], *[1.0] * (fill + 1)]))
        ids, weights = ids[count:], weights[count:]

    for item in attention(text):
        if item is None:
            finish()
            continue
        for id in encode(item[0]):
            if len(ids) == 75 and id != COMMA:
                commas = [place for place in range(75 - 20, 75) if ids[place] == COMMA]
                if commas:
                    finish(commas[-1] + 1)
            if len(ids) == 75:
                finish()
            ids.append(id)
            weights.append(item[1])
    if ids or not done:
        finish()
    return done


def contexts(text, steps, encode, text_encoder, emphasis="Original"):
    """[[last step, (77·k, D)], ...] for one branch: all its texts make one batch, chunk after chunk."""
    entries = schedule(text, steps)
    rows = [chunks(words, encode) for _, words in entries]
    count = max(map(len, rows))
    empty = [START, *[END] * 76], [1.0] * 77
    parts = []
    for k in range(count):
        batch = [row[k] if k < len(row) else empty for row in rows]
        z = text_encoder(torch.tensor([ids for ids, _ in batch])).last_hidden_state
        multipliers = torch.tensor([weights for _, weights in batch]).unsqueeze(-1)
        if emphasis == "Original":
            weighted = z * multipliers
            parts.append(weighted * (z.mean() / weighted.mean()))
        else:
            parts.append(z * multipliers if emphasis == "No norm" else z)
    return [[last, row] for (last, _), row in zip(entries, torch.cat(parts, 1), strict=True)]
