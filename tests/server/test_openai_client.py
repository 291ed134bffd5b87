"""The official `openai` client, unmodified, talking to a small random model that sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from support.serving import Flow, Running, data_uri, encoded, image_part
from support.waiting import wait_for

from engine import Engine, GenerationOptions
from engine.server.tokens import TokenTexts

if TYPE_CHECKING:
    import openai

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def test_a_chat_is_answered_as_the_engine_alone_does(
    client: openai.OpenAI, seeing_engine: Engine
) -> None:
    reply = client.chat.completions.create(model="demo", messages=FRANCE, max_tokens=16)
    alone = seeing_engine.generate(FRANCE, options=GenerationOptions(max_tokens=16)).result()
    choice = reply.choices[0]
    assert len(choice.message.content or "") > 8
    assert (choice.message.content, choice.finish_reason) == (alone.answer, "length")
    assert choice.message.role == "assistant"
    assert reply.model == "demo"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(alone.tokens)
    assert reply.usage.prompt_tokens == alone.prompt_tokens
    assert reply.usage.total_tokens == alone.prompt_tokens + len(alone.tokens)
    ended = client.chat.completions.create(
        model="demo", messages=FRANCE, max_tokens=16, logit_bias={"2": 100}
    )
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].message.content == ""


def test_a_stream_tells_the_same_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=FRANCE, max_tokens=16)
    stream = client.chat.completions.create(
        model="demo",
        messages=FRANCE,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [chunk.choices[0] for chunk in chunks[:-1]]
    assert deltas[0].delta.role == "assistant"
    assert "".join(d.delta.content or "" for d in deltas) == whole.choices[0].message.content
    assert len([d for d in deltas if d.delta.content]) > 3
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    last = chunks[-1].usage
    assert last is not None
    assert whole.usage is not None
    assert last.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_usage_unless_it_is_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=FRANCE, max_tokens=2, stream=True
    )
    chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_follow_up_runs_only_what_is_new(client: openai.OpenAI) -> None:
    """Also the answer's own tokens are found again, sent back as a text as they are."""
    messages = [{"role": "user", "content": "Name a river in Germany, please."}]
    first = client.chat.completions.create(model="demo", messages=messages, max_tokens=12)  # type: ignore[arg-type]
    messages += [first.choices[0].message, {"role": "user", "content": "Another?"}]  # type: ignore[list-item]
    second = client.chat.completions.create(model="demo", messages=messages, max_tokens=4)  # type: ignore[arg-type]
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached >= first.usage.total_tokens - 1
    figures = second.usage.model_dump()["sightline"]
    assert figures["time_to_first_token"] > 0
    assert figures["tokens_per_second"] > 0


def test_a_picture_is_seen_and_reused(client: openai.OpenAI) -> None:
    uri = data_uri(encoded((64, 64), colour="blue"))
    parts = [{"type": "text", "text": "What colour is this?"}, image_part(uri)]
    messages: Any = [{"role": "user", "content": parts}]
    first = client.chat.completions.create(model="demo", messages=messages, max_tokens=8)
    assert first.usage is not None
    assert first.usage.model_dump()["sightline"]["images_encoded"] == 1
    messages[0]["content"][0]["text"] = "Is it dark?"
    second = client.chat.completions.create(model="demo", messages=messages, max_tokens=2)
    assert second.usage is not None
    figures = second.usage.model_dump()["sightline"]
    assert figures["images_encoded"] == 0
    shown = second.usage.prompt_tokens
    messages[0]["content"] = "Is it dark?"
    blind = client.chat.completions.create(model="demo", messages=messages, max_tokens=2)
    assert blind.usage is not None
    assert blind.usage.prompt_tokens < shown


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, seeing_engine: Engine, stream: bool) -> None:
    options = GenerationOptions(max_tokens=4, logprobs=True, top_logprobs=3)
    alone = [e for e in seeing_engine.generate(FRANCE, options=options) if hasattr(e, "logprob")]
    reply = client.chat.completions.create(
        model="demo", messages=FRANCE, max_tokens=4, logprobs=True, top_logprobs=3, stream=stream
    )
    chunks: Any = reply if stream else [reply]
    told = [e for c in chunks for x in c.choices if x.logprobs for e in x.logprobs.content]
    texts = TokenTexts(seeing_engine)
    assert len(told) == len(alone) == 4
    for entry, event in zip(told, alone, strict=True):
        assert entry.token == texts(event.token or 0)[0]
        assert bytes(entry.bytes).decode() == entry.token
        assert math.isclose(entry.logprob, event.logprob or 0, abs_tol=1e-3)
        assert [t.token for t in entry.top_logprobs] == [texts(t)[0] for t, _ in event.top_logprobs]
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[2].logprob
    assert "".join(entry.token for entry in told) == "".join(e.text for e in alone)


def test_tokens_that_are_parts_of_characters_are_told_as_bytes(tiny_engine: Engine) -> None:
    texts = TokenTexts(tiny_engine)
    data = b""
    for token in tiny_engine.tokenize("a 🦊 日本"):
        text, raw = texts(token)
        assert raw is not None
        assert text.startswith("bytes:\\x") or text.encode() == bytes(raw)
        data += bytes(raw)
    assert data.decode() == "a 🦊 日本"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_end_the_answer_before_them(
    client: openai.OpenAI, seeing_engine: Engine, stream: bool
) -> None:
    options = GenerationOptions(max_tokens=16)
    whole = seeing_engine.generate(FRANCE, options=options).result().answer
    stop = whole[8:11]
    reply = client.chat.completions.create(
        model="demo", messages=FRANCE, max_tokens=16, stop=[stop, "nowhere"], stream=stream
    )
    if stream:
        chunks = list(reply)  # type: ignore[call-overload]
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason  # type: ignore[union-attr]
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"


def test_sampling_draws_by_its_seed(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        reply = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Tell a story."}],
            max_completion_tokens=5,
            temperature=1.5,
            top_p=0.95,
            seed=seed,
            extra_body={"top_k": 20, "min_p": 0.001, "repetition_penalty": 1.1},
        )
        return reply.choices[0].message.content

    first = ask(1)
    assert ask(1) == first
    assert ask(-3) != first or ask(2) != first


def test_a_bias_rules_a_token_out(client: openai.OpenAI, seeing_engine: Engine) -> None:
    reply = client.chat.completions.create(model="demo", messages=FRANCE, max_tokens=1)
    first = reply.choices[0].message.content or ""
    (token,) = seeing_engine.tokenize(first)
    other = client.chat.completions.create(
        model="demo", messages=FRANCE, max_tokens=1, logit_bias={str(token): -100}
    )
    assert other.choices[0].message.content != first


def test_a_developer_is_a_system(client: openai.OpenAI) -> None:
    def ask(role: str) -> Any:
        messages: Any = [{"role": role, "content": "Answer in French."}, *FRANCE]
        reply = client.chat.completions.create(model="demo", messages=messages, max_tokens=4)
        return reply.choices[0].message.content, reply.usage and reply.usage.prompt_tokens

    assert ask("developer") == ask("system")


def test_errors_have_the_types_that_the_client_knows(client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-4o")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="'n'") as several:
        client.chat.completions.create(model="demo", messages=FRANCE, n=9)
    assert several.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="context ends at") as long:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "word " * 9000}], stream=True
        )
    assert long.value.code == "context_length_exceeded"


def test_models(client: openai.OpenAI) -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_closing_the_stream_cancels_the_answer(page_server: Running, flow: Flow) -> None:
    flow.hold(3)
    import openai

    with openai.OpenAI(base_url=f"{page_server.url}/v1", api_key="none", max_retries=0) as client:
        before = page_server.figures()
        stream = client.chat.completions.create(
            model="demo", messages=FRANCE, max_tokens=2000, stream=True
        )
        seen = 0
        for chunk in stream:
            seen += bool(chunk.choices[0].delta.content)
            if seen == 2:
                break
        stream.close()
    name = 'sightline_answers_total{reason="cancelled"}'
    wait_for(lambda: page_server.figures().get(name, 0) > before.get(name, 0))
    after = page_server.figures()
    made = after["sightline_generated_tokens_total"] - before["sightline_generated_tokens_total"]
    assert made == 3


@pytest.mark.parametrize(
    ("prompt", "word"),
    [("The capital of France is", " Paris"), ("The capital of France is ", "Paris")],
)
def test_a_continuation_goes_on_as_its_tokens_do(
    tiny_server: Running, tiny_engine: Engine, prompt: str, word: str
) -> None:
    """Also where it begins with a space, of which mlx-lm's detokenizer drops one."""
    token = tiny_engine.tokenize(f"x{word}" if word[0] == " " else word)[-1]
    options = GenerationOptions(max_tokens=3, logit_bias={token: 100.0})
    tokens = tiny_engine.generate(prompt, options=options).result().tokens
    before = tiny_engine.tokenize(prompt)
    whole = tiny_engine.detokenize([*before, *tokens])
    import openai

    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none") as client:
        reply = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=3, logit_bias={str(token): 100}
        )
    assert prompt + reply.choices[0].text == whole
    assert reply.choices[0].text.startswith(word)


def test_completions(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    reply = client.completions.create(model="demo", prompt=prompt, max_tokens=3, logprobs=2)
    choice = reply.choices[0]
    assert choice.text
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
    assert "".join(tokens) == choice.text
    assert offsets[0] == 0
    for token, offset in zip(tokens, offsets, strict=True):
        assert choice.text[offset:].startswith(token)
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs or [])
    stream = client.completions.create(
        model="demo", prompt=[prompt], max_tokens=3, stream=True, logprobs=0
    )
    told = [chunk.choices[0] for chunk in stream]
    assert "".join(one.text for one in told) == choice.text
    assert [t for one in told if one.logprobs for t in one.logprobs.tokens or []] == tokens
    assert [t for one in told if one.logprobs for t in one.logprobs.text_offset or []] == offsets
    # The token that was drawn is told too, however unlikely it was.
    drawn = client.completions.create(
        model="demo", prompt=prompt, max_tokens=3, logprobs=1, temperature=2, seed=4
    )
    told_of = drawn.choices[0].logprobs
    assert told_of is not None
    tops = told_of.top_logprobs or []
    assert all(token in top for token, top in zip(told_of.tokens or [], tops, strict=True))
    assert any(len(top) == 2 for top in tops)
    default = client.completions.create(model="demo", prompt="One two three four")
    assert default.usage is not None
    assert default.usage.completion_tokens <= 16
