"""`didact` as a client of another program's server: `llama_cpp.server`, of the package llama-cpp-python.

    python tests/interop/llama_server.py path/to/didact MODEL.gguf

Needs `pip install 'llama-cpp-python[server]'` for this Python, and a GGUF file that both programs read. Starts the server and
asks it with `didact generate` and `didact score`: texts and chats, several answers, stop strings, log-probabilities, the
journal, a wrong key, a server that is gone. Greedy texts and scores are compared with those that Didact computes itself from
the same file. Exits 1 at the first difference.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import llama_cpp

DIDACT, MODEL = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
KEY = "open sesame"
# Nats per token: llama.cpp rounds activations to 8 bits for quantised weights and keeps keys and values in f16, Didact computes
# in f32.
TOLERANCE = 0.5
ROWS = [
    {"prompt": "The capital of France is"},
    {"prompt": "1, 2, 3, 4, 5, 6,"},
    {"messages": [{"role": "user", "content": "Name three primary colours."}]},
]
PAIRS = [
    {"prompt": "The capital of France is", "continuation": " Paris."},
    {"prompt": "The capital of France is", "continuation": " a small frog."},
    {"prompt": "Water freezes at zero degrees", "continuation": " Celsius"},
]


def check(condition, what):
    if not condition:
        sys.exit(f"wrong: {what}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url, server):
    request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {KEY}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        check(server.poll() is None, "the server ended")
        try:
            opener.open(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit("the server does not begin to listen")


class Didact:
    """The program, in a directory of its own."""

    def __init__(self, directory, url):
        self.directory = directory
        self.environment = {**os.environ, "KEY": KEY, "WRONG": "sesame", "NO_PROXY": "127.0.0.1"}
        self.remote = ["--endpoint", url, "--model", "smol", "--api-key-env", "KEY"]
        for name, rows in [("rows.jsonl", ROWS), ("pairs.jsonl", PAIRS)]:
            (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *arguments, code=0):
        command = [str(DIDACT), *arguments, "--json", "-q"]
        done = subprocess.run(command, cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False)
        check(done.returncode == code, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)


def texts(report):
    return [row["text"] for row in report["completions"]]


def main():
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        url = f"http://127.0.0.1:{port}/v1"
        options = {
            "--model": MODEL, "--model_alias": "smol", "--host": "127.0.0.1", "--port": port, "--api_key": KEY,
            "--n_ctx": 512, "--logits_all": True, "--n_threads": os.cpu_count(), "--verbose": False,
        }  # fmt: skip
        command = [sys.executable, "-m", "llama_cpp.server", *(str(word) for option in options.items() for word in option)]
        with open(Path(scratch) / "server.log", "w", encoding="utf-8") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(url, server)
            ask(Didact(Path(scratch), url), server)
        except BaseException:
            print((Path(scratch) / "server.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            server.kill()
            server.wait()
    print(f"all right, with llama-cpp-python {llama_cpp.__version__}")


def ask(didact, server):
    generate = ["generate", "--input", "rows.jsonl", "--max-tokens", "12"]
    answers = didact.run(*generate, *didact.remote, "--journal", "answers.jsonl")
    check(all(texts(answers)) and answers["failed"] == 0, answers)
    # The server's default, which a request that does not name the penalty gets.
    own = didact.run(*generate, "--model", str(MODEL), "--repetition-penalty", "1.1")
    begins = [len(os.path.commonprefix(pair)) for pair in zip(texts(answers), texts(own))]
    # Rounding may turn a choice between near equals, but hardly the first.
    check(all(begins), (texts(answers), texts(own)))
    print(f"texts and a chat: right; {sum(a == b for a, b in zip(texts(answers), texts(own)))} of {len(ROWS)} equal to ours")
    print(f"  {texts(answers)}")

    again = didact.run(*generate, *didact.remote, "--journal", "answers.jsonl")
    check(texts(again) == texts(answers), again)
    check(again["bill"]["paid"]["responses"] == 0 and again["bill"]["kept"]["responses"] == len(ROWS), again["bill"])
    print("the journal's answers are not asked for again: right")

    prompt = ["generate", "--prompt", "1, 2, 3, 4, 5, 6,", *didact.remote]
    several = didact.run(*prompt, "--n", "3", "--temperature", "1", "--max-tokens", "8", "--seed", "1")
    check(len(texts(several)) == 3 and len(set(texts(several))) > 1, several)
    stopped = didact.run(*prompt, "--stop", "9", "--max-tokens", "40")
    check("9" not in texts(stopped)[0] and stopped["completions"][0]["finish_reason"] == "stop", stopped)
    scored = ["--logprobs", "--max-tokens", "2"]
    theirs, ours = (didact.run(*words, *scored)["completions"][0] for words in (prompt, [*prompt[:3], "--model", str(MODEL)]))
    check(theirs["text"] == ours["text"] and abs(theirs["sum_logprob"] - ours["sum_logprob"]) <= 2 * TOLERANCE, (theirs, ours))
    print(f"several answers, stop strings: right; log-probabilities {theirs['sum_logprob']:.3f} there, {ours['sum_logprob']:.3f} here")

    score = ["score", "--input", "pairs.jsonl"]
    ours = didact.run(*score, "--model", str(MODEL))["results"]
    command = [str(DIDACT), *score, *didact.remote, "--json", "-q"]
    done = subprocess.run(command, cwd=didact.directory, env=didact.environment, capture_output=True, text=True, check=False)
    if done.returncode == 2 and "one token too early" in done.stdout:
        # https://github.com/abetlen/llama-cpp-python/issues/1983
        print("scores: this version's log-probabilities of a prompt are those of the tokens before; refused, as it should be")
    else:
        check(done.returncode == 0, done)
        for their, our, pair in zip(json.loads(done.stdout)["results"], ours, PAIRS):
            check(their["tokens"] == our["tokens"], (pair, their, our))
            difference = abs(their["sum_logprob"] - our["sum_logprob"]) / our["tokens"]
            check(difference <= TOLERANCE, (pair, their, our))
        print("scores: right")

    once = ["--attempts", "1"]
    refused = didact.run(*prompt[:-1], "WRONG", *once, code=2)
    check("401" in refused["error"], refused)
    server.kill()
    server.wait()
    gone = didact.run(*prompt, *once, code=1)
    check("127.0.0.1" in gone["error"], gone)
    print("a wrong key and a server that is gone: errors, as it should be")


main()
