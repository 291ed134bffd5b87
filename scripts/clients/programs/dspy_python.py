"""DSPy."""

from typing import Any, Literal

import dspy

from scripts.clients import program as p


def model(base: str = p.BASE, name: str = "taught", **more: Any) -> Any:
    return dspy.LM(
        f"openai/{name}", api_base=base, api_key=p.KEY, cache=False, num_retries=0, **more
    )


class Asks(dspy.Signature):
    """Name the capital."""

    question: str = dspy.InputField()
    city: Literal["Paris", "Rome", "Ulm"] = dspy.OutputField()
    large: bool = dspy.OutputField()


def chat() -> None:
    (told,) = model()(p.QUESTION)
    p.expect(told if isinstance(told, str) else told["text"], p.ANSWER)


def usage() -> None:
    lm = model()
    lm(p.QUESTION)
    told = dict(lm.history[-1]["usage"])
    p.expect_usage(told["prompt_tokens"], told["completion_tokens"])


def stop() -> None:
    (told,) = model(stop=["Paris"])(p.QUESTION)
    p.expect(told if isinstance(told, str) else told["text"], p.ANSWER.partition("Paris")[0])


def picture() -> None:
    parts = [
        {"type": "text", "text": p.LOOK},
        {"type": "image_url", "image_url": {"url": p.picture_uri()}},
    ]
    told = model(p.EYES, "demo", max_tokens=8)(messages=[{"role": "user", "content": parts}])
    p.expect_in(p.BADGER, told)


def structured() -> None:
    # It asks for a schema where it knows the model's name; the server takes any.
    with dspy.context(lm=model(name="gpt-4o-mini"), adapter=dspy.JSONAdapter()):
        told = dspy.Predict(Asks)(question=p.QUESTION)
    p.expect(type(told.large), bool)
    assert told.city in p.CITIES


def errors() -> None:
    with p.refused(Exception):
        model()(p.TOO_LONG)


if __name__ == "__main__":
    p.report(
        "dspy",
        chat=chat,
        usage=usage,
        stop=stop,
        picture=picture,
        structured=structured,
        errors=errors,
    )
