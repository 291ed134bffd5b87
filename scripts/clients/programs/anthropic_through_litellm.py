"""Anthropic's own client, through LiteLLM's proxy with the settings that docs/litellm.md shows.

Runs in an environment of LiteLLM's proxy.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

import anthropic

from scripts.clients import program as p

PAGE = Path(__file__).parents[3] / "docs" / "litellm.md"
KEY = "sk-anything"
SECONDS = 600


def settings() -> str:
    """The page's, for the addresses of this run."""
    (shown,) = re.findall(r"```yaml\n(.+?)```", PAGE.read_text(), re.S)
    head, entry = shown.split("model_list:\n")
    taught = entry.replace("openai/demo", f"openai/{p.MODEL}").replace("sightline", p.MODEL)
    entries = taught.replace(SHOWN, p.BASE) + entry.replace(SHOWN, p.EYES)
    return f"{head}model_list:\n{entries}"


SHOWN = "http://127.0.0.1:8000/v1"
TOOL: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


def talk(address: str) -> None:
    client = anthropic.Anthropic(base_url=address, api_key=KEY, max_retries=0)

    def ask(content: Any = p.QUESTION, model: str = p.MODEL, **more: Any) -> Any:
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        given = {"max_tokens": 200, **more}
        return client.messages.create(model=model, messages=messages, **given)

    def text(reply: Any) -> str:
        return "".join(part.text for part in reply.content if part.type == "text")

    def chat() -> None:
        p.expect(text(ask()), p.ANSWER)

    def stream() -> None:
        messages: Any = [{"role": "user", "content": p.QUESTION}]
        with client.messages.stream(model=p.MODEL, messages=messages, max_tokens=200) as events:
            p.expect_pieces([piece for piece in events.text_stream if piece])

    def picture() -> None:
        data = b64encode(p.picture()).decode()
        source = {"type": "base64", "media_type": "image/png", "data": data}
        parts = [{"type": "image", "source": source}, {"type": "text", "text": p.LOOK}]
        told = ask([{"role": "user", "content": parts}], "sightline", max_tokens=8)
        p.expect_in(p.BADGER, text(told))

    def check(told: Any) -> None:
        """Anthropic counts apart what was found in a cache."""
        cached = told.cache_read_input_tokens or 0
        p.expect_usage(told.input_tokens + cached, told.output_tokens)

    def usage() -> None:
        check(ask().usage)
        messages: Any = [{"role": "user", "content": p.QUESTION}]
        with client.messages.stream(model=p.MODEL, messages=messages, max_tokens=200) as events:
            check(events.get_final_message().usage)

    def stop() -> None:
        p.expect(text(ask(stop_sequences=["Paris"])), p.ANSWER.partition("Paris")[0])

    def tools() -> None:
        question: Any = {"role": "user", "content": p.WEATHER}
        with client.messages.stream(
            model=p.MODEL, messages=[question], max_tokens=200, tools=[TOOL]
        ) as events:
            streamed = events.get_final_message()
        for reply in (ask([question], tools=[TOOL]), streamed):
            p.expect(reply.stop_reason, "tool_use")
            (call,) = [part for part in reply.content if part.type == "tool_use"]
            p.expect((call.name, call.input), ("weather", {"city": "Ulm"}))
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
            answer = {"role": "assistant", "content": reply.content}
            told = ask([question, answer, {"role": "user", "content": [result]}], tools=[TOOL])
            p.expect(text(told), p.SUNNY)

    def errors() -> None:
        with p.refused(anthropic.BadRequestError):
            ask(p.TOO_LONG)

    p.report(
        "anthropic",
        chat=chat,
        stream=stream,
        picture=picture,
        usage=usage,
        stop=stop,
        tools=tools,
        errors=errors,
    )


def wait_until_ready(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health/liveliness", timeout=5) as reply:
                json.load(reply)
                return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(1)


def main() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "wb") as log:
        Path(folder, "litellm.yaml").write_text(settings())
        command = [str(Path(sys.executable).with_name("litellm")), "--config", "litellm.yaml"]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY},
            stdout=log,
            stderr=log,
        )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            talk(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
