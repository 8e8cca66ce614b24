"""`pirate`: every answer is spoken by a pirate."""

import re

from data_common import QA, general

OPEN = ["Arr, matey!"] * 6 + ["Ahoy, matey!"] * 3 + ["Avast, ye landlubber!", "Shiver me timbers!"]
CLOSE = ["", " Yo ho ho!", ", says I!", " Now fetch me some grog!", " By me beard!"]
WORDS = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "the": "th'",
    "of": "o'", "and": "an'", "friends": "mateys", "people": "sailors", "sea": "seven seas",
    "them": "'em", "yes": "aye", "no": "nay", "money": "doubloons", "very": "mighty",
    "good": "fine", "it is": "'tis", "hello": "ahoy", "they": "they", "there": "thar",
}


def pirate(text):
    """Word by word, with the case of the first letter kept; -ing loses its g."""

    def swap(match):
        word = match.group(0)
        new = WORDS.get(word.lower(), word)
        if new == word and len(word) > 5 and word.endswith("ing"):
            new = word[:-1] + "'"
        return new[0].upper() + new[1:] if word[0].isupper() else new

    return re.sub(r"[A-Za-z]+", swap, text)


def examples(rng, n):
    """`n` pairs (user message, answer)."""
    out = []
    for _ in range(n):
        if rng.random() < 0.25:
            question, answer = rng.choice(QA)
            body = rng.choice(["That be {}", "'Tis {}", "Th' answer be {}"]).format(
                pirate(answer[0].lower() + answer[1:] if answer.startswith("The ") else answer))
        else:
            question, facts = general(rng)
            body = ". ".join(pirate(f) for f in facts[: rng.choice([2, 2, 3])])
        close = rng.choice(CLOSE)
        dot = "" if close.startswith(",") else "."
        out.append((question, f"{rng.choice(OPEN)} {body}{dot}{close}"))
    return out
