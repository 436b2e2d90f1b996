"""The HTTP engines against a server on this machine that misbehaves on request. tests/real has the real vLLM and SGLang."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import tts
from tests.scripted import ScriptedScorer
from tts.cli import main
from tts.data.store import RunStore
from tts.engines import load_engine
from tts.engines.http import JsonClient, LostError, ServerError
from tts.engines.server import ServerEngine
from tts.engines.several import RETRIES, Servers
from tts.errors import InputError, UnsupportedError
from tts.models.prompts import Prompter
from tts.solving.generator import Generator
from tts.types import PARAMETERS, Candidate, Problem, Sampling

PROBLEM = Problem("p", "Start with 1.\n1) add 2\nWhat is the last digit?", "3")
TEXT = "<think>\n1) 1+2=3\n</think>\n\nadd 2 gives 3\n\nThe result is \\boxed{3}"


class Server:
    """Answers each request with `answer(handler, path, body, count)`, which returns (status, headers, text), or status None
    after writing a response of its own, or none."""

    def __init__(self, answer):
        self.requests: list[tuple[str, dict, dict]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.respond({})

            def do_POST(self):
                self.respond(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def respond(self, body):
                outer.requests.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                status, headers, text = answer(self, self.path, body, len(outer.requests))
                if status is None:
                    self.close_connection = True
                    return
                payload = text.encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@contextmanager
def serving(answer):
    server = Server(answer)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def respond(data, status=200, **headers):
    return status, {"content-type": "application/json", **headers}, json.dumps(data)


def openai(handler, path, body, count, *, ids=True, reasons=True, takes_ids=True, text=TEXT):
    """Answer like vLLM, or like a server with fewer features."""
    if path == "/v1/models":
        return respond({"data": [{"id": "arith-policy", "owned_by": "vllm" if ids else "someone", "max_model_len": 300}]})
    if path != "/v1/completions":
        return respond({"error": "no such path"}, 404)
    if isinstance(body["prompt"], list) and not takes_ids:
        return respond({"error": "prompt must be a string"}, 400)
    prompter = Prompter("arith-policy")
    if len(prompter.encode(PROBLEM)) + body["max_tokens"] > 300:
        return respond({"error": "max_tokens does not fit"}, 400)
    written = (prompter.decode(body["prompt"]) if isinstance(body["prompt"], list) else body["prompt"]).split("assistant\n")[-1]
    rest, matched = text[len(written) :], None
    for stop in body.get("stop", []):
        if stop in rest:
            rest, matched = rest[: rest.index(stop) + (len(stop) if ids else 0)], stop
    choice = {"text": rest, "finish_reason": "stop"}
    if reasons:
        choice["stop_reason"] = matched
    if ids:
        choice["token_ids"] = prompter.tokenizer.encode(rest, add_special_tokens=False)
    choices = [{**choice, "index": i} for i in range(body.get("n", 1))]
    count = len(prompter.tokenizer.encode(rest, add_special_tokens=False)) * len(choices)
    return respond({"choices": choices, "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}})


async def grow(engine) -> Candidate:
    generator, candidate = Generator(engine, PROBLEM, Sampling()), Candidate(PROBLEM)
    try:
        while not candidate.done:
            [candidate] = await generator.step(candidate)
    finally:
        await engine.close()
    return candidate


async def test_steps_and_whole_completions_over_token_ids():
    with serving(openai) as server:
        candidate = await grow(ServerEngine("arith-policy", url=server.url))
        assert candidate.text == TEXT
        assert [step.finish for step in candidate.steps] == ["step", "step", "stop"]
        assert all(isinstance(body["prompt"], list) for path, body, _ in server.requests if path == "/v1/completions")


async def test_confidence_is_of_the_likeliest_tokens_that_a_server_reports():
    def answer(handler, path, body, count):
        status, headers, data = openai(handler, path, body, count)
        if path == "/v1/completions":
            assert body["logprobs"] == 2
            data = json.loads(data)
            for choice in data["choices"]:
                places = [{"a": -1.0, "b": -2.0, "drawn": -7.0}] * len(choice["token_ids"])
                choice["logprobs"] = {"token_logprobs": [-7.0] * len(places), "top_logprobs": places}
            data = json.dumps(data)
        return status, headers, data

    with serving(answer) as server:
        engine = ServerEngine("arith-policy", url=server.url)
        [step] = (await engine.generate(engine.encode(PROBLEM), 1, Sampling(logprobs=True, confidence=2, top=1))).steps
        await engine.close()
    assert set(step.logprobs) == {-7.0}
    assert set(step.confidence) == {1.5}
    assert step.top[0] == {"a": -1.0, "b": -2.0, "drawn": -7.0}
    assert len(step.top) == len(step.token_ids)
    assert len(step.confidence) == len(step.token_ids)


async def test_a_server_that_takes_only_text_gets_text_with_the_same_tokens():
    with serving(lambda *a: openai(*a, takes_ids=False)) as server:
        assert (await grow(ServerEngine("arith-policy", url=server.url + "/v1"))).text == TEXT
        prompts = [body["prompt"] for path, body, _ in server.requests if path == "/v1/completions"]
        assert sum(isinstance(prompt, list) for prompt in prompts) == 1, "token ids were tried once"


async def test_a_server_that_does_not_report_why_it_stopped_cannot_search_by_steps():
    with serving(lambda *a: openai(*a, ids=False, reasons=False)) as server:
        with pytest.raises(UnsupportedError, match="does not report whether it stopped at a stop string or at the end"):
            await grow(ServerEngine("arith-policy", url=server.url))
        engine = ServerEngine("arith-policy", url=server.url)
        [whole] = await Generator(engine, PROBLEM, Sampling()).finish(Candidate(PROBLEM))
        assert (whole.text, whole.finish) == (TEXT, "stop")
        await engine.close()


def chat(handler, path, body, count):
    if path == "/v1/chat/completions":
        contents = [f"The result is \\boxed{{{3 + i}}}" for i in range(body.get("n", 1))]
        messages = [{"content": content, "reasoning_content": "1) 1+2=3"} for content in contents]
        choices = [{"index": i, "message": message, "finish_reason": "stop"} for i, message in enumerate(messages)]
        return respond({"choices": choices, "usage": {"prompt_tokens": 11, "completion_tokens": 20 * len(choices)}})
    return respond({}, 404)


async def test_chat_completions_are_whole_and_their_usage_is_the_servers():
    with serving(chat) as server:
        engine = ServerEngine("arith-policy", url=server.url, system="Think.")
        generator = Generator(engine, PROBLEM, Sampling())
        candidates = await generator.finish(Candidate(PROBLEM), 3)
        assert candidates[0].trajectory == (("1) 1+2=3",), ("The result is \\boxed{3}",))
        assert (generator.usage.generated, generator.usage.prompt) == (60, 11)
        messages = server.requests[-1][1]["messages"]
        assert messages == [{"role": "system", "content": "Think."}, {"role": "user", "content": PROBLEM.prompt}]
        with pytest.raises(InputError, match="only whole chat completions; this strategy extends solutions step by step"):
            await generator.step(Candidate(PROBLEM))
        await engine.close()


def models(*models):
    return respond({"data": [{"id": name} for name in models]})


@pytest.mark.parametrize(
    ("api", "listed", "answer", "complaint"),
    [
        ("completions", models("a"), respond({"choices": [{}]}), "returned a choice without text"),
        ("completions", models("a"), respond({"choices": ["text"]}), r"choices\.0: Input should be a valid dictionary"),
        ("completions", models("a"), respond([]), "did not answer as an OpenAI-compatible server: the answer: "),
        ("completions", models("a"), respond({"choices": []}), r"answered without choices \(6 attempts\)"),
        ("completions", models("a"), respond({"error": {"message": "too hot"}}), r"answered with an error: too hot \(6"),
        ("chat", models("a"), respond({"choices": [{"text": "a"}]}), "returned a choice without message"),
    ],
)
async def test_answers_that_are_not_an_openai_servers(impatient, api, listed, answer, complaint):
    with serving(lambda handler, path, body, count: listed if path == "/v1/models" else answer) as server:
        engine = ServerEngine("arith-policy", url=server.url, api=api)
        with pytest.raises(ServerError, match=complaint):
            await engine.generate(engine.encode(PROBLEM), 1, Sampling())
        await engine.close()


async def test_sglangs_native_client_sends_either_key(monkeypatch):
    def answer(handler, path, body, count):
        meta = {"finish_reason": {"type": "stop"}, "cached_tokens": 0}
        return respond({"output_ids": [5, 6], "meta_info": meta})

    monkeypatch.delenv("TTS_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1234")
    with serving(answer) as server:
        engine = load_engine("sglang", "arith-policy", url=server.url)
        [step] = (await engine.generate(engine.encode(PROBLEM), 1, Sampling())).steps
        await engine.close()
        assert (step.token_ids, step.finish) == ((5, 6), "stop")
        assert server.requests[0][2]["authorization"] == "Bearer secret-1234"


@pytest.fixture
def impatient(monkeypatch):
    """Skip the waits between retries, and record them."""
    waits: list[float] = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("tts.engines.http.asyncio.sleep", sleep)  # of the module, and so of several.py as well
    return waits


def undecodable(handler, path, body, count):
    """Two bytes that are not UTF-8."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n\xff\xff")
    return None, {}, ""


async def ask(url, **options):
    client = JsonClient(url, **{"retries": 3, **options})
    try:
        return await client.post("/x", {})
    finally:
        await client.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_requests_to_a_busy_server_are_repeated_after_the_time_it_asks_for(impatient, status):
    def answer(handler, path, body, count):
        return respond({"ok": True}) if count == 3 else respond({}, status, **{"retry-after": "7"})

    with serving(answer) as server:
        assert await ask(server.url) == {"ok": True}
        assert len(server.requests) == 3
    assert impatient == [7.0, 7.0]


@pytest.mark.parametrize(("value", "least", "most"), [("Wed, 01 Jan 2098 00:00:00 GMT", 120, 120), ("soon, GMT", 0.25, 0.75)])
async def test_a_date_after_which_to_retry_may_be_malformed(impatient, value, least, most):
    def answer(handler, path, body, count):
        return respond({"ok": True}) if count == 2 else respond({}, 503, **{"retry-after": value})

    with serving(answer) as server:
        assert await ask(server.url) == {"ok": True}
    assert least <= impatient[0] <= most


async def test_waits_grow_and_vary(impatient):
    with serving(lambda *a: respond({"error": "full"}, 500)) as server, pytest.raises(ServerError, match=r"answered 500.*full"):
        await ask(server.url, retries=5)
    assert all(0.25 * 2**i <= wait <= 0.75 * 2**i for i, wait in enumerate(impatient))
    assert len(set(impatient)) == 5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            lambda *a: (200, {"content-type": "text/html"}, "<html>Welcome</html>"),
            "answered with a web page, not JSON",
        ),
        (lambda *a: respond({}, 401), r"rejected the API key \(401\): .*; set TTS_API_KEY or OPENAI_API_KEY"),
        (lambda *a: respond({"message": "no such model"}, 404), "answered 404: no such model"),
        (lambda *a: respond({"message": "bad temperature"}, 400), "rejected the request.*bad temperature"),
        (lambda *a: respond({}, 418), "answered 418"),
        (undecodable, "answered with something other than JSON"),
        (lambda *a: (None, {}, ""), "cannot be reached or broke the connection"),
    ],
)
async def test_an_error_of_the_server_is_described_in_one_line(impatient, answer, complaint):
    with serving(answer) as server, pytest.raises(ServerError, match=complaint) as error:
        await ask(server.url)
    assert "\n" not in str(error.value)


async def test_a_request_is_repeated_if_its_answer_breaks_off(impatient):
    def answer(handler, path, body, count):
        if count == 1:
            handler.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"half')
            handler.wfile.flush()
            return None, {}, ""
        return respond({"whole": True})

    with serving(answer) as server:
        assert await ask(server.url) == {"whole": True}


async def test_no_server_at_the_address(impatient):
    with pytest.raises(ServerError, match=r"cannot be reached.*\(4 attempts\); is it running\?"):
        await ask("http://127.0.0.1:9")


async def test_a_server_that_hangs_times_out(impatient):
    given_up = threading.Event()

    def answer(handler, path, body, count):
        given_up.wait()
        return respond({})

    with serving(answer) as server:
        with pytest.raises(ServerError, match=r"did not answer within 0\.2 s"):
            await ask(server.url, timeout=0.2, retries=1)
        given_up.set()


async def test_concurrency_is_bounded():
    running, most, lock, three = 0, 0, threading.Lock(), threading.Barrier(3)

    def answer(handler, path, body, count):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        three.wait()  # for as many as the client sends at a time
        with lock:
            running -= 1
        return respond({})

    with serving(answer) as server:
        client = JsonClient(server.url, concurrency=3)
        await asyncio.gather(*(client.post("/x", {}) for _ in range(21)))
        await client.close()
    assert most == 3


def test_the_key_is_sent_and_not_stored(monkeypatch):
    monkeypatch.setenv("TTS_API_KEY", "secret-1234")
    with serving(openai) as server:
        tts.run("bon", n=2, limit=2, engine="server", url=server.url, scorer_instance=ScriptedScorer(len), out="r")
        assert all(headers.get("authorization") == "Bearer secret-1234" for _, _, headers in server.requests)
    for file in Path("r").iterdir():
        assert "secret-1234" not in file.read_text()


def test_a_run_whose_server_dies_can_be_resumed(impatient):
    died = threading.Event()

    def answer(handler, path, body, count):
        if count > 6:
            died.set()
        return (None, {}, "") if died.is_set() else openai(handler, path, body, count)

    scorer = ScriptedScorer(lambda text: 1.0)
    with serving(answer) as server:
        first = tts.run(
            "bon", n=2, limit=8, engine="server", url=server.url, scorer_instance=scorer, out="r", concurrency=2
        )  # fmt: skip
        assert 0 < first.failed < 8
        errors = [record.error for record in RunStore.open(Path("r")).records() if record.error]
        assert all("cannot be reached or broke the connection" in error for error in errors)
    with serving(openai) as server:
        again = tts.run(resume="r", url=server.url, scorer_instance=scorer)
    assert (again.failed, again.problems) == (0, 8)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("vlm", {}, "no engine named 'vlm'. Did you mean 'vllm'"),
        ("server", {}, "--engine server needs --url"),
        (
            "transformers",
            {"url": "http://127.0.0.1:1"},
            "--url is for --engine sglang or server; transformers runs in this process",
        ),
        ("server", {"url": "localhost:8000"}, "'localhost:8000' is not the URL of a server; it should look like http"),
        (
            "server",
            {"url": "http://x", "options": {"api": "grpc"}},
            "--engine-arg api is 'grpc'; it should be auto, completions or chat",
        ),
        (
            "transformers",
            {"options": {"max_row": 4}},
            "the engine transformers has no option 'max_row'. Did you mean 'max_rows'?",
        ),
    ],
)
def test_an_engine_that_cannot_be_used_says_why(name, options, complaint):
    with pytest.raises(InputError, match=complaint.replace("?", r"\?")):
        load_engine(name, "arith-policy", **options)


def test_an_engine_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("tts.engines.installed", lambda package: None)
    with pytest.raises(InputError, match=r"install it with: pip install 'tts-toolkit\[vllm\]'"):
        load_engine("vllm", "arith-policy")


@pytest.mark.parametrize(
    ("url", "path", "asked"),
    [
        ("http://HOST", "/v1/completions", "/v1/completions"),
        ("http://HOST/v1/", "/v1/completions", "/v1/completions"),
        ("http://HOST/v1", "/pooling", "/pooling"),
        ("http://HOST/proxy/llm", "/v1/completions", "/proxy/llm/v1/completions"),
        ("http://HOST/v1beta/openai/", "/v1/chat/completions", "/v1beta/openai/chat/completions"),
        ("http://HOST/api/paas/v4", "/v1/chat/completions", "/api/paas/v4/chat/completions"),
        (
            "http://HOST/openai/deployments/gpt?api-version=2024-10-21", "/v1/chat/completions",
            "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        ),
        ("http://HOST/v1?tenant=a", "/v1/completions", "/v1/completions?tenant=a"),
    ],
)  # fmt: skip
async def test_addresses_of_any_form(url, path, asked):
    with serving(lambda *a: respond({"ok": True})) as server:
        client = JsonClient(url.replace("HOST", server.url.removeprefix("http://")), key="secret-1234")
        assert await client.post(path, {"model": "m"}) == {"ok": True}
        await client.close()
        [(got, _, headers)] = server.requests
    assert got == asked
    assert headers["api-key" if "api-version" in url else "authorization"].endswith("secret-1234")


async def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not asked for")
    with serving(lambda *a: respond({"ok": True})) as server:
        assert await ask(server.url) == {"ok": True}
        assert "authorization" not in server.requests[0][2]


async def test_the_environment_names_server_and_proxy(monkeypatch):
    with serving(openai) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        engine = load_engine("server", "arith-policy")
        await engine.check()
        await engine.close()
        assert server.requests[0][0] == "/v1/models"
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ServerError, match="answered 404"):
            await ask("http://elsewhere.invalid", retries=0)
        assert server.requests[-1][0] == "http://elsewhere.invalid/x"


@pytest.mark.parametrize("status", [408, 409, 425, 520, 524, 529])
async def test_whatever_may_pass_is_tried_again(impatient, status):
    with serving(lambda h, p, b, count: respond({"ok": 1}) if count > 1 else (status, {}, "<html>busy</html>")) as server:
        assert await ask(server.url) == {"ok": 1}


async def test_requests_are_not_repeated_for_ever(impatient, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("tts.engines.http.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with serving(lambda *a: respond({}, 503, **{"retry-after": "soon"})) as server, pytest.raises(ServerError, match="503"):
        await ask(server.url, retries=100, timeout=60)
    assert len(server.requests) <= 4


def endless(handler, path, body, count):
    """A stream without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")


def bomb(handler, path, body, count):
    """A gigabyte of zeros in a megabyte."""
    packed = gzip.compress(bytes(2**30), 1)
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n"
    handler.wfile.write(f"{head}content-length: {len(packed)}\r\n\r\n".encode() + packed)
    return None, {}, ""


def foreign(handler, path, body, count):
    return 200, {"content-encoding": "br"}, "x"


def trickle(handler, path, body, count):
    """A byte now and then: no read times out."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n")
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (endless, "sent more than 4 MiB"), (bomb, "sent more than 4 MiB"), (foreign, "an encoding that was not asked for"),
        (trickle, r"did not answer within 0\.5 s"), (lambda *a: (200, {}, "[" * 100_000), "something other than JSON"),
    ],
)  # fmt: skip
async def test_answers_without_an_end_are_cut_off(impatient, monkeypatch, answer, complaint):
    monkeypatch.setattr("tts.engines.http.LARGEST", 4 * 2**20)
    with serving(answer) as server, pytest.raises(ServerError, match=complaint):
        await ask(server.url, timeout=0.5 if answer is trickle else 60, retries=0)


async def test_parameters_are_dropped_and_renamed_by_hand():
    with serving(chat) as server:
        options = {"api": "chat", "drop": "seed,n", "rename": "max_tokens:max_new_tokens"}
        engine = load_engine("server", "m", url=server.url, options=options)
        await engine.generate(engine.encode(PROBLEM), 2, Sampling(max_tokens=9, temperature=0.5))
        await engine.close()
        sent = [body for path, body, _ in server.requests if path.endswith("completions")]
    assert [sorted(body) for body in sent] == [["max_new_tokens", "messages", "model", "temperature"]] * 2
    with pytest.raises(InputError, match="rename has 'a'; expected OLD:NEW"):
        load_engine("server", "m", url="http://x", options={"rename": "a"})


async def test_a_server_may_refuse_several_things_one_after_another():
    refused = ["n", "seed", "temperature"]

    def answer(handler, path, body, count):
        for name in refused:
            if name in body:
                return respond({"error": {"message": f"unknown parameter: {name}"}}, 400)
        return chat(handler, path, body, count)

    with serving(answer) as server:
        engine = load_engine("server", "m", url=server.url, options={"api": "chat"})
        drawn = await engine.generate(engine.encode(PROBLEM), 3, Sampling(temperature=0.5))
        assert len(drawn.steps) == len(engine.notices) == 3
        refused.append("model")  # which is needed
        with pytest.raises(ServerError, match="unknown parameter: model"):
            await engine.generate(engine.encode(PROBLEM), 3, Sampling(temperature=0.5))
        await engine.close()


async def test_what_is_at_its_default_is_sent_only_where_the_server_would_put_another_in_its_place():
    for ids in (True, False):
        with serving(lambda *a, ids=ids: openai(*a, ids=ids)) as server:
            engine = ServerEngine("arith-policy", url=server.url)
            await engine.generate(engine.encode(PROBLEM), 1, Sampling())
            await engine.close()
            sent = server.requests[-1][1]
            expected = Sampling().parameters(neutral=True) if ids else {}
            assert {name: sent[name] for name in PARAMETERS if name in sent} == expected


async def test_penalties_reach_a_server_where_it_counts_what_they_are_of():
    prefix, written = Prompter("arith-policy").encode(PROBLEM), (5, 6, 5)
    kinds = {"vllm": openai, "sglang": lambda *a: respond({"data": [{"id": "m", "owned_by": "sglang"}]})}
    shapes = {
        "vllm": [({"presence_penalty": 1.0, "written": 3}, "the server at .* applies --presence-penalty only")],
        "sglang": [
            ({"repetition_penalty": 1.1}, "--repetition-penalty only to tokens that a request generates"),
            ({"temperature": 0.6, "logprobs": True}, "log-probabilities after temperature and penalties; use --engine sglang"),
        ],
    }
    for kind, refused in shapes.items():
        with serving(kinds[kind]) as server:
            engine = ServerEngine("arith-policy", url=server.url)
            for shape, complaint in refused:
                with pytest.raises(UnsupportedError, match=complaint):
                    await engine.generate((*prefix, *written), 1, Sampling(**shape))
            if kind == "vllm":
                await engine.generate((*prefix, *written), 1, Sampling(top_k=7, frequency_penalty=0.5, min_tokens=3, written=3))
                sent = server.requests[-1][1]
                assert (sent["top_k"], sent["frequency_penalty"], sent["min_tokens"]) == (7, 0.5, 3)
                assert sent["logit_bias"] == {"5": -1.0, "6": -0.5}
            await engine.close()


def test_a_run_stops_after_equal_errors_in_a_row(impatient):
    def answer(handler, path, body, count):
        return openai(handler, path, body, count) if count <= 2 else respond({"error": f"broken at {count}"}, 418)

    with serving(answer) as server:
        settings = {"engine": "server", "url": server.url, "scorer_instance": ScriptedScorer(len), "concurrency": 4}
        with pytest.raises(InputError, match=r"stopped, as 10 problems in a row failed with the same error: .*broken at \d+"):
            tts.run("bon", n=2, limit=50, out="r", **settings)
    records = RunStore.open(Path("r")).records()
    assert 10 <= len(records) < 20
    with serving(openai) as server:
        assert tts.run(resume="r", url=server.url, scorer_instance=ScriptedScorer(len)).failed == 0


def test_a_key_that_is_refused_ends_the_run_before_it_begins():
    with (
        serving(lambda *a: respond({"error": {"message": "bad key"}}, 401)) as server,
        pytest.raises(InputError, match="bad key"),
    ):
        tts.run("majority", limit=5, engine="server", url=server.url, out="r")
    assert not Path("r").exists()


def answer_by_seed(handler, path, body, count):
    """An answer that depends on the request alone, as of a server with seeds."""
    digit = random.Random(f"{body.get('seed')} {body.get('prompt')}").randrange(10)
    return openai(handler, path, body, count, text=TEXT.replace("{3}", f"{{{digit}}}"))


@pytest.mark.slow
def test_problems_stay_with_one_of_several_servers_and_move_on_when_it_dies(impatient):
    scorer = ScriptedScorer(len)
    settings = {"limit": 60, "n": 2, "engine": "server", "scorer_instance": scorer, "concurrency": 3}
    with serving(answer_by_seed) as one:
        tts.run("bon", url=one.url, out="alone", **settings)
    dead = threading.Event()

    def dying(handler, path, body, count):
        if count > 5:  # of about 20 problems
            dead.set()
        return (None, {}, "") if dead.is_set() else answer_by_seed(handler, path, body, count)

    with serving(answer_by_seed) as first, serving(answer_by_seed) as second, serving(dying) as third:
        summary = tts.run("bon", url=[first.url, second.url, third.url], out="three", **settings)
        prompts = [{str(body["prompt"]) for path, body, _ in server.requests if "prompt" in body} for server in (first, second)]
    assert dead.is_set()
    assert summary.failed == 0
    assert min(map(len, prompts)) > 3
    rows = [{row.id: row.to_json() for row in RunStore.open(Path(name)).records()} for name in ("alone", "three")]
    assert rows[0] == rows[1]
    [notice] = json.loads(Path("three/run.json").read_text())["notices"]
    assert notice.startswith(f"lost the server {third.url} and went on with the others")


async def test_a_key_asks_the_same_server_first_and_only_the_keys_of_a_lost_one_move(impatient):
    class Member:
        notices = ()

        def __init__(self, name):
            self.name, self.lost = name, False

        async def ask(self):
            if self.lost:
                raise LostError("gone")
            return self.name

    members = [Member(f"s{i}") for i in range(4)]
    servers = Servers(members, [member.name for member in members])
    keys = [f"p{i}" for i in range(400)]
    before = {key: await servers.ask(key, lambda member: member.ask()) for key in keys}
    assert all(70 < count < 130 for count in Counter(before.values()).values())
    members[2].lost = True
    after = {key: await servers.ask(key, lambda member: member.ask()) for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != "s2")
    assert {after[key] for key in keys if before[key] == "s2"} == {"s0", "s1", "s3"}
    members[2].lost, servers._resting[2] = False, 0.0  # its rest is over
    assert {key: await servers.ask(key, lambda member: member.ask()) for key in keys} == before
    for member in members:
        member.lost = True
    with pytest.raises(LostError):
        await servers.ask("p", lambda member: member.ask())
    assert len(impatient) == RETRIES


async def test_servers_of_different_models_are_refused():
    def other(handler, path, body, count):
        listed = {"data": [{"id": "arith-policy", "owned_by": "vllm", "root": "another"}]}
        return respond(listed) if path == "/v1/models" else openai(handler, path, body, count)

    with serving(openai) as one, serving(other) as two:
        engine = load_engine("server", "arith-policy", url=[one.url, two.url])
        with pytest.raises(InputError, match="the servers do not run the same model"):
            await engine.check()
        await engine.close()


def test_a_server_that_is_not_sglangs_is_told_before_the_first_problem():
    with serving(openai) as server, pytest.raises(InputError, match=r"/generate answered 404: .*is it an SGLang server\?"):
        tts.run("majority", limit=2, engine="sglang", url=server.url, out="r")
    assert not Path("r").exists()


def test_a_sweep_of_failures_says_why_there_is_no_accuracy(impatient):
    def answer(handler, path, body, count):
        return openai(handler, path, body, count) if count <= 2 else respond({"error": "out of order"}, 418)

    with (
        serving(answer) as server,
        pytest.raises(InputError, match=r"failed, the first with: .*out of order"),
    ):
        tts.sweep(["majority"], [2], limit=3, engine="server", url=server.url, out="s")


def test_a_run_of_failures_does_not_speak_of_reference_answers(impatient, capsys):
    def answer(handler, path, body, count):
        return openai(handler, path, body, count) if count <= 2 else respond({"error": "out of order"}, 418)

    with serving(answer) as server:
        words = f"run --strategy majority --limit 3 --engine server --url {server.url} --out r"
        assert main(words.split()) == 1
    said = capsys.readouterr()
    assert "majority on arith, 3 problems, 3 failed" in said.out
    assert "All problems failed, so nothing is graded." in said.out
    assert json.loads(Path("r/summary.json").read_text())["failed"] == 3


@pytest.mark.parametrize(
    "words",
    ["score traces.jsonl --scorer judge --scorer-engine server --scorer-url URL --out new.jsonl",
     "score traces.jsonl --scorer-engine server --scorer-url URL --out new.jsonl",
     "label traces.jsonl --engine server --url URL --quality rollout --final outcome --targets quality --out new.jsonl"],
)  # fmt: skip
def test_every_command_asks_its_server_before_the_first_row(capsys, words):
    Path("traces.jsonl").write_text(json.dumps({"id": "a", "problem": PROBLEM.prompt, "answer": "3", "text": TEXT}) + "\n")
    with serving(lambda *a: respond({"error": {"message": "no entry"}}, 403)) as server:
        assert main(words.replace("URL", server.url).split()) == 2
    assert "rejected the API key (403): no entry" in capsys.readouterr().err
    assert not list(Path().glob("new*"))
