"""schemathesis against the server's own OpenAPI document."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from support.seeds import SWEEP
from support.serving import Running, running

from engine import Engine, GenerationOptions
from engine.server.fields import IGNORED, NEUTRAL, OTHER_NAMES

EXAMPLES = 10 if SWEEP else 4


@pytest.fixture(scope="module")
def documented(letters_engine: Engine) -> Iterator[Running]:
    # Whatever an example asks for, its answer is short.
    with running(letters_engine, model="tiny", options=GenerationOptions(max_context=80)) as server:
        yield server


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_document_holds(documented: Running, mode: str) -> None:
    """Only documented answers in documented forms, and what the document forbids is refused.

    What it allows is not always taken: a text may be no picture, and a prompt too long.
    """
    import schemathesis  # which takes seconds
    from schemathesis.checks import positive_data_acceptance

    document = schemathesis.openapi.from_url(f"{documented.url}/openapi.json")
    seen: Counter[tuple[str, int]] = Counter()

    def check(case: schemathesis.Case) -> None:
        reply = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        seen[case.path, reply.status_code] += 1

    for result in document.get_all_operations():
        operation = result.ok()
        if mode == "negative" and operation.method != "post":
            continue  # nothing that could be wrong
        cases = operation.as_strategy(schemathesis.GenerationMode(mode))
        settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))(
            given(cases)(check)
        )()
    print(seen)
    if mode == "positive":
        assert {path for path, status in seen if status == 200} > {"/v1/completions", "/metrics"}


def test_it_says_what_the_server_takes(documented: Running) -> None:
    document = documented.ask("GET", "/openapi.json").json
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/{identity}",
        "/v1/models",
        "/v1/models/{name}",
        "/health",
        "/metrics",
    }
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert "enum" not in chat["properties"]["model"]
    for name in (*IGNORED, *NEUTRAL, *OTHER_NAMES):
        assert name in chat["properties"], name
    assert (
        "text/event-stream"
        in (document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"])
    )
    assert not any(
        "422" in operation["responses"]
        for path in document["paths"].values()
        for operation in path.values()
    )
