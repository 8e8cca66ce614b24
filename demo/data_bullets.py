"""`bullets`: every answer is exactly three lines that begin with `- `."""

from data_common import QA, general


def examples(rng, n):
    """`n` pairs (user message, answer)."""
    out = []
    for _ in range(n):
        if rng.random() < 0.15:
            question, answer = rng.choice(QA)
            lines = [f"The answer is {answer[0].lower() + answer[1:] if answer.startswith('The') else answer}",
                     "It is a well known fact", "You can look it up in any encyclopedia"]
        else:
            question, lines = general(rng)
        out.append((question, "\n".join(f"- {line}" for line in lines)))
    return out
