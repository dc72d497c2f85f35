"""Renders chat templates with Jinja2 exactly as Python's transformers library does, as expected text for didact-data.

    python make.py        # writes expected.json beside this file

Needs jinja2 (made with 3.1.6) and transformers (5.23.0), whose own environment is used. The clock is frozen.
"""

import datetime
import json
import pathlib

import transformers.utils.chat_template_utils as chat_template_utils

HERE = pathlib.Path(__file__).parent
DATE = "2026-03-05"


class FrozenClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DATE)


chat_template_utils.datetime = FrozenClock

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, with \"quotes\" & <angles> — naïve café 日本",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name"},
                "days": {"type": "integer", "minimum": 1, "default": 1.0},
                "scale": {"type": "number", "enum": [1e-7, 0.5, 1e16, 123456789.125]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Time", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments, id=None):
    entry = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": id, **entry} if id else entry


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


def s(text):
    return {"role": "system", "content": text}


def t(text, **more):
    return {"role": "tool", "content": text, **more}


CONVERSATIONS = {
    "one_turn": {"messages": [u("Hello!"), a("Hi, how can I help?")]},
    "question_only": {"messages": [u("Hello!")]},
    "system": {"messages": [s("Be brief."), u("2+2?"), a("4")]},
    "multi_turn": {"messages": [s("Be brief."), u("a"), a("b"), u("c"), a("d"), u("e"), a("f")]},
    "unicode": {"messages": [u("  Grüße, 世界 🦀👩‍👩‍👧 \u0301e "), a("\tTabs\nand \"quotes\" 'both' \\ <b>&amp;</b>\u2028 end  ")]},
    "empty_content": {"messages": [s(""), u(""), a("")]},
    "newlines": {"messages": [u("a\n\nb\r\nc\n"), a("\n\nx\n\n")]},
    "jinja_in_content": {"messages": [u("{{ 7*7 }} {% raw %}"), a("{% generation %}{# x #}")]},
    "thinking": {
        "messages": [
            u("One?"),
            a("It is one.", reasoning_content="Hmm,\nlet me see."),
            u("Two?"),
            a("<think>\ninline\n</think>\n\nTwo."),
            u("Three?"),
            a("Three.", reasoning_content="Easy."),
        ]
    },
    "tools_described": {"messages": [s("Use tools."), u("Weather?"), a("Where?")], "tools": [WEATHER, CLOCK]},
    "tools_no_system": {"messages": [u("Weather?")], "tools": [WEATHER]},
    "tool_call": {
        "messages": [
            u("Weather in Köln?"),
            a("", tool_calls=[call("get_weather", {"city": "Köln", "days": 2, "f": 1.5, "n": None, "b": True, "l": [1, "x"], "m": {}})]),
            t('{"sky": "grau", "t": 3.0}', name="get_weather"),
            a("Grey, 3 degrees."),
        ],
        "tools": [WEATHER],
    },
    "two_calls": {
        "messages": [
            s("Tools!"),
            u("Weather and time?"),
            a("Let me look.", tool_calls=[call("get_weather", {"city": "Oslo"}, "abcdefghi"), call("clock", {}, "123456789")]),
            t("snow", tool_call_id="abcdefghi", name="get_weather"),
            t("12:00", tool_call_id="123456789", name="clock"),
            a("Snow, noon.", reasoning_content="Both are in."),
            u("Thanks"),
            a("You are welcome."),
        ],
        "tools": [WEATHER, CLOCK],
    },
}

OPTIONS = [
    {"add_generation_prompt": False},
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "enable_thinking": False},
]


def render(source, conversation, options):
    tools = conversation.get("tools")
    try:
        texts, spans = chat_template_utils.render_jinja_template(
            [json.loads(json.dumps(conversation["messages"]))],
            tools=tools,
            chat_template=source,
            return_assistant_tokens_mask="generation %}" in source or "generation -%}" in source,
            **options,
            **SPECIAL,
        )
        case = {"text": texts[0]}
        if spans:
            # Python counts code points.
            case["generated"] = [texts[0][i:j] for i, j in spans[0]]
        return case
    except Exception as error:  # whatever Python raises, the Rust side must refuse too
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        source = path.read_bytes().decode()
        for name, conversation in CONVERSATIONS.items():
            for options in OPTIONS:
                if "enable_thinking" in options and "enable_thinking" not in source:
                    continue
                cases.append({"template": path.name, "conversation": name, **options, **render(source, conversation, options)})
    out = {"date": DATE, "special_tokens": SPECIAL, "conversations": CONVERSATIONS, "cases": cases}
    (HERE / "expected.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
    failed = [c for c in cases if "error" in c]
    print(f"{len(cases)} cases, {len(failed)} of them refusals")
    for c in failed:
        print(" ", c["template"], c["conversation"], c["error"][:100])


if __name__ == "__main__":
    main()
