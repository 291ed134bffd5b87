"""Mistral's calls with ids: what of them mlx-lm's parser would not read."""

import importlib

import pytest
from support.call_forms import CALLS, HEADED, NUMBERED, ONE

from engine.tools.mistral import with_ids

OWN = importlib.import_module("mlx_lm.tool_parsers.mistral").parse_tool_call


def test_names_and_ids() -> None:
    made = with_ids(OWN)(NUMBERED, None)
    assert [(call["name"], call["arguments"]) for call in made] == list(CALLS)
    assert [call["id"] for call in made] == ["a1b2c3d4e", "f5g6h7i8j"]
    # Why it is read here.
    assert [call["name"] for call in OWN(NUMBERED)] == ["a1b2c3d4e", "f5g6h7i8j"]


@pytest.mark.parametrize("text", [HEADED, ONE["mistral"], 'clock[ARGS]{"zone": "[CALL_ID]"}'])
def test_all_else_is_as_it_was(text: str) -> None:
    def plain(made: object) -> list[tuple[str, object]]:
        listed = made if isinstance(made, list) else [made]
        return [(call["name"], call["arguments"]) for call in listed]

    assert plain(with_ids(OWN)(text, None)) == plain(OWN(text))


@pytest.mark.parametrize(
    "text",
    [
        "clock[CALL_ID]a1b2c3d4e",
        'clock[CALL_ID]a1b2c3d4e[ARGS]{"zone": ',
        "clock[CALL_ID]a1b2c3d4e[ARGS]{} and more",
        "clock[CALL_ID][ARGS]{}",
    ],
)
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        with_ids(OWN)(text, None)
