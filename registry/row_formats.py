"""The forms in which a row of data may come, recognised by its fields, and their one normal form.

| form | fields | also read |
|---|---|---|
| messages | `messages`: turns of `role`, `content` | |
| completion | `prompt`, `completion`: two texts, or two lists of messages | |
| alpaca | `instruction`, `output` | `input`, `system`, `history` (pairs of texts) |
| sharegpt | `conversations`: turns of `from`, `value` | `system` |

A row that is whole in two forms is refused: which of the two was meant cannot be known. So is one that uses
tools, or has a turn that it does not want learnt (`weight`): without these it would say something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from registry.errors import DatasetError

ACCEPTED = (
    "'messages'; 'prompt' and 'completion'; 'instruction' and 'output' (Alpaca, with 'input' where there is "
    "one); or 'conversations' with 'from' and 'value' (ShareGPT)"
)
SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
KEPT = ("id", "difficulty", "tags", "cluster", "scorer", "scoring")

TOOLS_OF_ROW = ("tools", "functions")
TOOLS_OF_TURN = ("tool_calls", "function_call")
EMPTY: tuple[Any, ...] = (None, "", "[]", [], {})

Turn = dict[str, Any]


class RowFormat(StrEnum):
    """How a row is laid out."""

    MESSAGES = "messages"
    """OpenAI's chat: a list of roles and contents."""
    COMPLETION = "completion"
    """A prompt and what should follow it."""
    ALPACA = "alpaca"
    """An instruction, perhaps with an input, and the output."""
    SHAREGPT = "sharegpt"
    """A list of speakers and what they said."""


REQUIRED: Mapping[RowFormat, tuple[str, ...]] = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.COMPLETION: ("prompt", "completion"),
    RowFormat.ALPACA: ("instruction", "output"),
    RowFormat.SHAREGPT: ("conversations",),
}


def recognise(value: Mapping[str, Any], *, source: str) -> RowFormat:
    """The one form that a row's fields make up; `DatasetError`, beginning with `source`, for none or two."""
    found = [form for form, fields in REQUIRED.items() if all(field in value for field in fields)]
    if len(found) == 1:
        return found[0]
    fields = ", ".join(sorted(map(str, value)))[:200] or "none"
    if found:
        raise DatasetError(
            f"{source}: is ambiguous: its fields ({fields}) make it a row of {' and of '.join(found)}.",
            remedy="Keep the fields of one of them; " + f"accepted are {ACCEPTED}.",
        )
    raise DatasetError(
        f"{source}: is in no known form; its fields are {fields}.", remedy=f"Accepted are {ACCEPTED}."
    )


def normalised(value: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The fields of a `ChatRow`, unchecked: what is of the wrong kind is left for its model to name."""
    form = recognise(value, source=source)
    extras = {key: value[key] for key in KEPT if key in value}
    return {"messages": READERS[form](value, source), **extras}


def _from_messages(value: Mapping[str, Any], source: str) -> Any:
    _refuse_tools(value, fields=TOOLS_OF_ROW, place=source)
    return _kept_fields(value["messages"], place=f"{source}: messages")


def _from_completion(value: Mapping[str, Any], source: str) -> Any:
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        _refuse_tools(value, fields=TOOLS_OF_ROW, place=source)
        asked = _kept_fields(prompt, place=f"{source}: prompt")
        return [*asked, *_kept_fields(completion, place=f"{source}: completion")]
    if isinstance(prompt, list) or isinstance(completion, list):
        raise DatasetError(
            f"{source}: of 'prompt' and 'completion' one is a list and the other is not.",
            remedy="Both are texts, or both are lists of messages.",
        )
    return [_turn("user", prompt), _turn("assistant", completion)]


def _from_alpaca(value: Mapping[str, Any], source: str) -> Any:
    instruction, extra = value["instruction"], value.get("input")
    if extra not in (None, "") and isinstance(instruction, str):
        if not isinstance(extra, str):
            raise DatasetError(f"{source}: input: it is a text (found {str(extra)[:60]!r}).")
        instruction = f"{instruction}\n{extra}"
    history = _history(value.get("history") or [], source)
    return [*_system(value), *history, _turn("user", instruction), _turn("assistant", value["output"])]


def _from_sharegpt(value: Mapping[str, Any], source: str) -> Any:
    turns = value["conversations"]
    if not isinstance(turns, list):
        raise DatasetError(f"{source}: conversations: it is a list of turns (found {str(turns)[:60]!r}).")
    _refuse_tools(value, fields=TOOLS_OF_ROW, place=source)
    said = [
        _sharegpt_turn(turn, place=f"{source}: conversations[{index}]") for index, turn in enumerate(turns)
    ]
    return [*_system(value), *said]


def _sharegpt_turn(turn: Any, *, place: str) -> Turn:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise DatasetError(f"{place}: a turn has 'from' and 'value' (found {str(turn)[:60]!r}).")
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DatasetError(
            f"{place}.from: {str(speaker)[:60]!r} is no known speaker.",
            remedy=f"Known are {', '.join(SPEAKERS)}.",
        )
    _refuse_weight(turn, role=SPEAKERS[speaker], place=place)
    return _turn(SPEAKERS[speaker], turn["value"])


def _history(pairs: Any, source: str) -> list[Turn]:
    is_pairs = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not is_pairs:
        raise DatasetError(f"{source}: history: it is a list of [instruction, output] pairs.")
    return [
        _turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _system(value: Mapping[str, Any]) -> list[Turn]:
    text = value.get("system")
    return [] if text in (None, "") else [_turn("system", text)]


def _turn(role: str, content: Any) -> Turn:
    return {"role": role, "content": content}


def _kept_fields(messages: Any, *, place: str) -> Any:
    """Keep role and content; anything else a chat log carries, such as a name, is not trained on."""
    if not isinstance(messages, list):
        return messages
    return [_kept_turn(turn, place=f"{place}[{index}]") for index, turn in enumerate(messages)]


def _kept_turn(turn: Any, *, place: str) -> Any:
    if not isinstance(turn, dict):
        return turn
    _refuse_tools(turn, fields=TOOLS_OF_TURN, place=place)
    _refuse_weight(turn, role=turn.get("role"), place=place)
    return {key: turn[key] for key in ("role", "content") if key in turn}


def _refuse_tools(value: Mapping[str, Any], *, fields: tuple[str, ...], place: str) -> None:
    for field in fields:
        if value.get(field) not in EMPTY:
            raise DatasetError(
                f"{place}: {field!r} are not trained on; without them the row would say something else.",
                remedy="Remove the rows that use tools.",
            )


def _refuse_weight(turn: Mapping[str, Any], *, role: Any, place: str) -> None:
    """Only of the assistant's turns: no other is learnt, whatever it weighs."""
    weight = turn.get("weight")
    if role == "assistant" and weight not in (None, 1):
        raise DatasetError(
            f"{place}: 'weight' is {str(weight)[:60]}, but every assistant's turn is learnt alike; without "
            "it the row would say something else.",
            remedy="Remove the rows with such turns, or 'weight' where these turns may be learnt.",
        )


READERS: Mapping[RowFormat, Callable[[Mapping[str, Any], str], Any]] = {
    RowFormat.MESSAGES: _from_messages,
    RowFormat.COMPLETION: _from_completion,
    RowFormat.ALPACA: _from_alpaca,
    RowFormat.SHAREGPT: _from_sharegpt,
}
