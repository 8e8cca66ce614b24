"""Conversations and tools that the chat templates are rendered with."""


def user(content, **rest):
    return {"role": "user", "content": content, **rest}


def assistant(content, **rest):
    return {"role": "assistant", "content": content, **rest}


def system(content):
    return {"role": "system", "content": content}


def call(name, arguments, id="call12345"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather <now> & \"later\".\nIn °C.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, e.g. 'Zürich' or 東京"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": None},
                "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 1e16}},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
ODD_ARGUMENTS = {"text": "<b>\"a\" & 'b'</b>\n\t\\", "n": [1, 2.5, -0.0, 1e100, True, None], "deep": {"é": {}}}

CONVERSATIONS = {
    "one": [user("Hello there")],
    "system": [system("Be brief."), user("Who are you?")],
    "turns": [user("Hi"), assistant("Hello! How can I help?"), user("What is 2 + 2?")],
    "system turns": [system("  Be brief.\n"), user(" Hi "), assistant("\nHello.\n"), user("Bye\n\n")],
    "answered": [user("Hi"), assistant("Hello.")],
    "odd text": [
        user("<b>5 > 3 & \"quotes\" 'single'</b> &amp; {{ not }} {% code %} <|im_end|>"),
        assistant("naïve façade 東京 🙂👩‍👩‍👧 مرحبا e\u0301 \u200b|"),
        user("tab\tend \r\n carriage\u00a0nbsp \u2028line"),
    ],
    "empty text": [system(""), user(""), assistant(""), user("   ")],
    "roles": [assistant("I begin"), user("No")],
    "two users": [user("One"), user("Two"), assistant("Three")],
    "unknown role": [user("Hi"), {"role": "critic", "content": "Boo"}],
    "tool use": [
        user("Weather in Zürich?"),
        assistant("", tool_calls=[call("get_weather", {"city": "Zürich", "days": [1, 2]})]),
        {"role": "tool", "content": "{\"sky\": \"blue\", \"t\": 21.5}", "tool_call_id": "call12345"},
        assistant("Blue sky, 21.5 °C."),
        user("Thanks"),
    ],
    "two calls": [
        system("Use tools."),
        user("Time and weather?"),
        assistant("Let me look.", tool_calls=[call("clock", {}, "a12345678"), call("send", ODD_ARGUMENTS, "b12345678")]),
        {"role": "tool", "content": "noon", "tool_call_id": "a12345678"},
        {"role": "tool", "content": "sent", "tool_call_id": "b12345678"},
    ],
    "thinking": [
        user("Why?"),
        assistant("<think>\nBecause of <b>.\n</think>\n\nIt is so."),
        user("And now?"),
        assistant("Later.", reasoning_content="\nA pause.\n\n", tool_calls=[call("clock", "{\"raw\": 1}")]),
        {"role": "tool", "content": "noon", "tool_call_id": "call12345"},
    ],
    "parts": [
        system([{"type": "text", "text": "Look closely."}]),
        user([{"type": "text", "text": " What is this? "}, {"type": "image"}, {"type": "text", "text": "And this"}]),
    ],
}
TOOLS = {"tool use": [WEATHER, CLOCK], "two calls": [CLOCK]}

# Rendered with python_methods and parts_and_defaults, which look at more than roles and contents.
EXTRA = {
    "methods": [
        user("The Cat sat. The cat ran!", name="Zoë", weight=0.5),
        user("  /search  red shoes "),
        user("/help"),
        assistant("Ends here?\r\nSecond line", meta={"a": 1, "b": 2}, flag=True, note=None),
        {"content": "no role", "tags": ["x", {"y": 1}]},
        user("\u3000全角スペース？\u3000", count=41),
        user("stop"),
        user("never seen"),
    ],
    "weights": [
        system("Mind the weights."),
        user("A", weight=1),
        user("B", weight=2.75),
        assistant(None, weight=-0.5),
        assistant([{"type": "text", "text": "C"}, {"type": "text", "text": "D"}, {"type": "audio"}]),
    ],
    "nothing": [],
}
