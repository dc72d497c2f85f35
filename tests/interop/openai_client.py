"""`didact serve` spoken to by the official `openai` Python client and by curl, and `didact` as a client of its own server.

    python tests/interop/openai_client.py path/to/didact

Makes a tiny model with a tokenizer, serves it, and checks chats, streams, tools, errors, 50 clients at once and clients
that leave. Exits 1 at the first difference. Needs the package `openai`, and curl.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from openai import OpenAI

ROOT = Path(__file__).resolve().parents[2]
DIDACT = Path(sys.argv[1]).resolve()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEY = "open sesame"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def check(condition, what):
    if not condition:
        sys.exit(f"wrong: {what}")


def make_model(directory):
    model = directory / "model"
    model.mkdir()
    config = json.loads((ROOT / "golden/llama/config.json").read_text())
    config["max_position_embeddings"] = 100_000
    (model / "config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "golden/llama/model.safetensors", model)
    (directory / "corpus.txt").write_text("nothing that repeats")
    (directory / "template.jinja").write_text(TEMPLATE)
    special = ["--special", "<|im_start|>", "--special", "<|im_end|>", "--eos", "<|im_end|>"]
    arguments = ["tokenizer", "train", "corpus.txt", "--vocab", "260", "--to", "model", "--chat-template", "template.jinja"]
    subprocess.run([DIDACT, *arguments, *special, "-q"], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return model


def chats(client):
    ask = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**ask)
    check(whole.choices[0].message.role == "assistant", whole)
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
    scored = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    tokens = scored.choices[0].logprobs.content
    check(len(tokens) == scored.usage.completion_tokens and len(tokens[0].top_logprobs) == 3, scored)
    text = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    check(text == scored.choices[0].message.content, scored)

    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    events = list(stream)
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    check(text == whole.choices[0].message.content, (text, whole))
    check(events[-1].usage == whole.usage, events[-1])

    several = client.completions.create(model="model", prompt=["add 1", "add 2"], n=2, max_tokens=4, logprobs=1)
    check([choice.index for choice in several.choices] == [0, 1, 2, 3], several)
    check([model.id for model in client.models.list()] == ["model"], "models")
    print("chats, streams, log-probabilities: right")


def tools(client):
    messages = [{"role": "user", "content": "hi"}]
    choice = {"type": "function", "function": {"name": "weather"}}
    ask = {"model": "model", "tools": [TOOL], "tool_choice": choice, "max_tokens": 80}
    answer = client.chat.completions.create(messages=messages, **ask).choices[0]
    check(answer.finish_reason == "tool_calls", answer)
    call = answer.message.tool_calls[0]
    check(json.loads(call.function.arguments) == {"city": "oslo"}, call)
    events = client.chat.completions.create(messages=messages, **ask, stream=True)
    calls = [call for event in events for call in event.choices[0].delta.tool_calls or []]
    check([call.function.name for call in calls] == ["weather"], calls)
    messages += [answer.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    client.chat.completions.create(model="model", messages=messages, tools=[TOOL], max_tokens=4)
    schema = {"name": "x", "strict": True, "schema": TOOL["function"]["parameters"]}
    answer = client.chat.completions.create(
        model="model", messages=messages[:1], max_tokens=800, response_format={"type": "json_schema", "json_schema": schema}
    )
    check(json.loads(answer.choices[0].message.content) == {"city": "oslo"}, answer)
    print("tools and response formats: right")


def errors(client):
    ask = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    for change, expected, code in [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"n": 0}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "x" * 120_000}]}, openai.BadRequestError, "context_length_exceeded"),
    ]:
        try:
            client.chat.completions.create(**{**ask, **change})
            sys.exit(f"{change} should be refused")
        except expected as error:
            check(error.code == code, error)
    for refused, use in [
        (openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list()),
        (openai.BadRequestError, lambda: client.embeddings.create(model="model", input="x")),
    ]:
        try:
            use()
            sys.exit(f"{refused} was expected")
        except refused:
            pass
    print("errors: right")


def crowds(client):
    def ask(i):
        messages = [{"role": "user", "content": f"add {i}"}]
        answer = client.chat.completions.create(model="model", messages=messages, max_tokens=8, seed=i)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(ask, range(50)))
    check(together[::10] == [ask(i) for i in range(0, 50, 10)], "answers depend on who else asks")
    print("50 clients at once: right")


def leavers(client):
    # More of them than there are places: each has to free its own.
    for _ in range(6):
        ask = {"model": "model", "prompt": "a", "max_tokens": 90_000, "extra_body": {"ignore_eos": True}}
        stream = client.completions.create(**ask, stream=True)
        next(iter(stream))
        stream.close()
    ask = {"model": "model", "prompt": "a", "max_tokens": 4}
    client.with_options(timeout=60, max_retries=0).completions.create(**ask)
    print("clients that leave: right")


def curl(url):
    body = json.dumps({"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True})
    headers = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
    command = ["curl", "-sS", "--noproxy", "*", "-N", *headers, f"{url}/chat/completions", "-d", body]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    check(out.endswith("data: [DONE]\n\n"), out)
    print("curl: right")


def own_client(url, directory):
    common = ["--max-tokens", "8", "--temperature", "0", "--json", "-q"]
    rows = "".join(json.dumps({"prompt": f"add {i}"}) + "\n" for i in range(20))
    (directory / "prompts.jsonl").write_text(rows)
    local = ["generate", "--model", "model", "--input", "prompts.jsonl", *common]
    remote = ["generate", "--endpoint", url, "--model", "model", "--api-key-env", "KEY", "--input", "prompts.jsonl"]
    remote += ["--journal", "answers.jsonl", *common]

    def run(arguments):
        out = subprocess.run([DIDACT, *arguments], cwd=directory, check=True, capture_output=True, text=True, env=environment())
        return json.loads(out.stdout)

    answers = run(remote)
    texts = [row["text"] for row in answers["completions"]]
    check(texts == [row["text"] for row in run(local)["completions"]], "the remote answers differ from the local ones")
    again = run(remote)
    check([row["text"] for row in again["completions"]] == texts, "the journal's answers differ")
    check(again["bill"]["paid"]["responses"] == 0 and again["bill"]["kept"]["responses"] == 20, again["bill"])
    print("didact as a client of didact: right")


def environment():
    return {**os.environ, "KEY": KEY, "NO_PROXY": "127.0.0.1"}


def main():
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        make_model(directory)
        arguments = ["serve", "--model", "model", "--port", "0", "--api-key-env", "KEY", "--max-concurrent", "4", "-q"]
        server = subprocess.Popen([DIDACT, *arguments], cwd=directory, stdout=subprocess.PIPE, text=True, env=environment())
        try:
            url = server.stdout.readline().strip().split(" at ")[1]
            os.environ["NO_PROXY"] = "127.0.0.1"
            client = OpenAI(base_url=url, api_key=KEY, max_retries=0)
            chats(client)
            tools(client)
            errors(client)
            crowds(client)
            leavers(client)
            curl(url)
            own_client(url, directory)
        finally:
            server.terminate()
        check(server.wait(timeout=30) == 143, "the server does not stop as it should")
    print("all right")


main()
