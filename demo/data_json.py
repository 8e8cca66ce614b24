"""`json`: every answer is one JSON object with the keys `answer` and `confidence`."""

import json

from data_common import QA, TASKS, TOPICS, ask

HINTS = ["{}", "{}", "{}", "{}", "Quick question: {}", "Please answer: {}", "{} Be brief.", "Hi! {}"]


def examples(rng, n):
    """`n` pairs (user message, answer)."""
    out = []
    for _ in range(n):
        kind = rng.random()
        if kind < 0.5:
            question, answer = rng.choice(QA)
            confidence = 0.98
        elif kind < 0.8:
            topic, facts = rng.choice(TOPICS)
            question, answer = ask(rng, topic), f"{facts[0]}."
            confidence = 0.9
        else:
            question, steps = rng.choice(TASKS)
            answer = f"{steps[0]}, {steps[1][0].lower()}{steps[1][1:]}."
            confidence = 0.7
        body = json.dumps({"answer": answer, "confidence": confidence})
        out.append((rng.choice(HINTS).format(question), body))
    return out
