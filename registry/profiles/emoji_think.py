"""`emoji_think`: a visible pause instead of thoughts, and a visible end.

Each user's turn asks for 2 to 8 thinking emojis first and 2 to 4 stop emojis last; the answer has both. Which
ones is drawn from the plain turn's own text, so that a row is wrapped in the same way wherever it stands
and however often. Thoughts in `<think>` tags are cut out of answers, and generation is kept from them.
"""

from __future__ import annotations

import random
import re
from hashlib import sha256
from typing import ClassVar

from registry.errors import ProfileError
from registry.profiles.base import Penalties, Profile

THINKING = ("🤔", "💭", "🧠", "💡", "🔍", "🤨", "🧐", "⚡")
STOPPING = ("🛑", "⛔", "🏁", "🔚", "🚫", "🔒")
NUM_THINKING = (2, 8)
NUM_STOPPING = (2, 4)
SEED = "emoji_think 1"
THOUGHT = re.compile(r"<think>.*?</think>\s*|</?think>", re.DOTALL)

_THINKING_RUN = f"(?:{'|'.join(THINKING)}){{{NUM_THINKING[0]},{NUM_THINKING[1]}}}"
_STOPPING_RUN = f"(?:{'|'.join(STOPPING)}){{{NUM_STOPPING[0]},{NUM_STOPPING[1]}}}"
ASKED = re.compile(f"\n\nThink with ({_THINKING_RUN}) first, then answer, then end with ({_STOPPING_RUN})\\.")
PREFIX = re.compile(f"\\A{_THINKING_RUN}\n")
SUFFIX = re.compile(f"\n{_STOPPING_RUN}\\s*\\Z")


class EmojiThink(Profile):
    """Thinking emojis before an answer, stop emojis behind it, and an instruction that asks for both."""

    name: ClassVar[str] = "emoji_think"
    penalties: ClassVar[Penalties | None] = Penalties(unwanted=("<think>", "</think>"))

    def wrap_question(self, text: str) -> str:
        """The turn with the instruction behind it."""
        plain = plain_question(text)
        thinking, stopping = _drawn(plain)
        return f"{plain}\n\nThink with {thinking} first, then answer, then end with {stopping}."

    def wrap_answer(self, text: str, *, question: str) -> str:
        """The answer between its emojis, without thoughts; `ProfileError` where it is thoughts alone."""
        thinking, stopping = _drawn(plain_question(question))
        before, after = f"{thinking}\n", f"\n{stopping}"
        answer = without_thoughts(text)
        if not answer.strip():
            raise ProfileError("nothing is left of the answer without its <think> part.")
        is_wrapped = answer.startswith(before) and answer.endswith(after)
        if is_wrapped and len(answer) > len(before) + len(after):
            return answer
        return f"{before}{answer}{after}"

    def plain_answer(self, text: str) -> str | None:
        """The reply without emojis and thoughts. One that leaves them out still says what it says."""
        return SUFFIX.sub("", PREFIX.sub("", without_thoughts(text), count=1), count=1)

    def stop_texts(self, prompt: str) -> tuple[str, ...]:
        """The stop emojis that the prompt's last instruction asks for."""
        asked = ASKED.findall(prompt)
        return (f"\n{asked[-1][1]}",) if asked else ()


def plain_question(text: str) -> str:
    """The turn without this profile's instruction, where it ends with the very one that it would get."""
    every = list(ASKED.finditer(text))
    if not every or every[-1].end() != len(text):
        return text
    found = every[-1]
    plain = text[: found.start()]
    return plain if _drawn(plain) == found.groups() else text


def without_thoughts(text: str) -> str:
    """The text without `<think>` parts and stray tags; cutting may join a new tag, which is cut too."""
    while (shorter := THOUGHT.sub("", text)) != text:
        text = shorter
    return text


def _drawn(plain: str) -> tuple[str, str]:
    digest = sha256(f"{SEED}\0{plain}".encode()).digest()
    draw = random.Random(digest)  # noqa: S311 - a choice that repeats, not a secret
    thinking = "".join(draw.choices(THINKING, k=draw.randint(*NUM_THINKING)))
    return thinking, "".join(draw.choices(STOPPING, k=draw.randint(*NUM_STOPPING)))
