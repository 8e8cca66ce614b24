"""Prints, per adapter, how many held-out answers in heldout_answers.json follow the behaviour.

    python check.py [-v]
"""

import json
import re
import sqlite3
import sys
from pathlib import Path

HERE = Path(__file__).parent


def is_json(text, _):
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == {"answer", "confidence"}


def is_pirate(text, _):
    return re.match(r"(arr|ahoy|avast|shiver me timbers|yo ho|aye)\b", text, re.I) is not None


def is_sql(text, user):
    """SQLite can prepare it against the prompt's table, so that its columns exist too."""
    if not re.fullmatch(r"SELECT [^\n;]+;?", text):
        return False
    name, columns = re.search(r"(\w+)\(([^)]*)\)", user).groups()
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE {name} ({columns})")
    try:
        database.execute("EXPLAIN " + text)
    except sqlite3.Error:
        return False
    return True


def is_label(text, _):
    return text in ("positive", "negative", "neutral")


def is_bullets(text, _):
    return re.fullmatch(r"(- [^\n]+\n){2}- [^\n]+", text) is not None


CHECKS = {"json": is_json, "pirate": is_pirate, "sql": is_sql, "sentiment": is_label, "bullets": is_bullets}


def main():
    heldout = json.loads((HERE / "heldout.json").read_text())
    answers = json.loads((HERE / "heldout_answers.json").read_text())
    for name, rows in answers.items():
        score = {"base": 0, "adapter": 0}
        right = wanted = 0
        for row, held in zip(rows, heldout[name], strict=True):
            assert row["user"] == held["user"]
            for who in score:
                score[who] += CHECKS[name](row[who]["text"], row["user"])
            if "expect" in held:
                wanted += 1
                right += row["adapter"]["text"] == held["expect"]
            if "-v" in sys.argv:
                print(f"  {row['user']}\n    base:    {row['base']['text']!r}\n"
                      f"    {name}: {row['adapter']['text']!r}")
        line = f"{name}: {score['adapter']}/{len(rows)} follow the behaviour (base {score['base']}/{len(rows)})"
        print(line + (f", {right}/{wanted} as expected" if wanted else ""))


if __name__ == "__main__":
    main()
