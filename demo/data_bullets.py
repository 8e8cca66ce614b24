"""`bullets`: every answer is exactly three lines that begin with `- `."""

from data_common import general


def examples(rng, n):
    """`n` pairs (user message, answer)."""
    out = []
    for _ in range(n):
        question, lines = general(rng)
        out.append((question, "\n".join(f"- {line}" for line in lines)))
    return out
