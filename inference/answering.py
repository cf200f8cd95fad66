"""One pass for all that is asked: how likely each expected answer is, and what the model itself answers.

A prompt is read once, its expected answer behind it. Where the model is greedy that reading settles its own
reply as far as the two agree, as speculative decoding does with a draft (Leviathan et al. 2023, algorithm 1):
a right answer needs no step of its own. What is left goes on token by token beside others; as rows end, more
are read (Orca's iteration-level scheduling, Yu et al. 2022, section 3.1).
"""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from inference.batches import DEFAULT_LIMITS, BatchLimits
from inference.errors import OutOfMemory
from inference.generation import Generated, Reply, Step, room_for_reply
from inference.model import LoadedModel
from inference.penalties import ProfilePenalties, penalised, penalties_for, told
from inference.prompts import EncodedRow
from inference.reading import Reader, common_prefix
from inference.running_rows import ROOM_COLUMNS, Newcomers, RunningRows
from inference.sampling import choose_tokens, is_drawn, row_generator, tempered_logprobs
from inference.scoring import Score, score_of, token_losses, too_long
from registry.records import GenerationSettings

Prompt = Sequence[int]
# A pass over a few new rows costs more than a step: they wait until they are half as many as those under way.
FEWEST_NEWCOMERS = 0.5
NOTHING_EXPECTED = Score(loss=None, num_tokens=0, problem="no answer was expected")


@dataclass(frozen=True)
class Answered:
    """What the model said to the row at `place`; where nothing was expected its score says so."""

    place: int
    score: Score
    reply: Generated


def answers(
    loaded: LoadedModel,
    rows: Sequence[EncodedRow],
    *,
    settings: GenerationSettings,
    limits: BatchLimits = DEFAULT_LIMITS,
) -> Iterator[Answered]:
    """Score each row's answer and generate a reply to its prompt, each told as soon as it is whole.

    A reply ends at an end-of-turn token, a stop string, `max_new_tokens` or the model's last position. What
    a row gets does not depend on the others. A row without an answer (`()`) is not scored; one too long to be
    scored is told so. Raises `PromptTooLong` before any is read, and `OutOfMemory`.
    """
    budgets = [room_for_reply(loaded, row.prompt, settings=settings) for row in rows]
    waiting = [
        _Row(
            place=place,
            score=(unknown := too_long(loaded, row)) or NOTHING_EXPECTED,
            asked=EncodedRow(row.prompt, answer=()) if unknown else row,
            num_prompt=len(row.prompt),
            reply=Reply(loaded, max_new_tokens=budget, settings=settings),
            generator=row_generator(settings.seed, prompt=row.prompt),
            penalties=penalties_for(loaded, row.prompt),
        )
        for place, (row, budget) in enumerate(zip(rows, budgets, strict=True))
    ]
    return _Pass(loaded, waiting, settings=settings, limits=limits).run()


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    settings: GenerationSettings,
    limits: BatchLimits = DEFAULT_LIMITS,
) -> list[Generated]:
    """Answer every prompt (token ids that end where the assistant begins), in their order; see `answers`."""
    rows = [EncodedRow(prompt=tuple(prompt), answer=()) for prompt in prompts]
    found = {one.place: one.reply for one in answers(loaded, rows, settings=settings, limits=limits)}
    return [found[place] for place in range(len(rows))]


@dataclass
class _Row:
    """A row on its way. `asked` is what is read of it: its expected answer the first time only."""

    place: int
    asked: EncodedRow
    num_prompt: int
    reply: Reply
    generator: torch.Generator
    penalties: ProfilePenalties | None
    score: Score = NOTHING_EXPECTED
    tokens: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        return len(self.asked.prompt) + max(0, len(self.asked.answer) - 1)

    @property
    def num_read(self) -> int:
        """Tokens that the model has read: all but the last one it said."""
        return self.num_prompt + len(self.tokens) - 1

    def add(self, token_id: int, *, numbers: Sequence[float]) -> None:
        if self.reply.finish_reason is None:
            self.tokens.append(token_id)
            self.reply.add(Step(self.place, token_id, numbers[0], tuple(numbers[1:])))

    def read_again(self) -> None:
        self.asked = EncodedRow((*self.asked.prompt[: self.num_prompt], *self.tokens), answer=())

    def answered(self) -> Answered:
        return Answered(place=self.place, score=self.score, reply=self.reply.result())


class _Pass:
    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[_Row],
        *,
        settings: GenerationSettings,
        limits: BatchLimits,
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._limits = limits
        # Longest first, so that lack of memory shows at once.
        self._waiting = deque(sorted(rows, key=lambda row: (-row.width, row.place)))
        self._rows = {row.place: row for row in rows}
        self._running = RunningRows(loaded)
        self._head = loaded.model.get_output_embeddings()
        self._num_vocabulary = loaded.model.get_input_embeddings().num_embeddings

    def run(self) -> Iterator[Answered]:
        if not self._waiting:
            return
        try:
            with torch.inference_mode():
                prefix = common_prefix([row.asked.prompt for row in self._waiting])
                self._reader = Reader(self._loaded, prefix=prefix)
            while self._waiting or self._running.keys:
                # Not left open while the caller has the turn: the mode is the thread's.
                with torch.inference_mode():
                    ended = self._read(batch) if (batch := self._newcomers()) else self._step()
                yield from (row.answered() for row in ended)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{len(self._running.keys)} rows under way and what joins them exceed the memory of "
                f"{self._loaded.device}.",
                remedy="Lower the batch limits or max_new_tokens, or free the device.",
            ) from error

    def _newcomers(self) -> list[_Row]:
        """Rows to read now: as many as fit beside those under way, or none if they are too few."""
        num_running = len(self._running.keys)
        found: list[_Row] = []
        for row in self._waiting:
            if (found or num_running) and not self._has_room([*found, row]):
                break
            found.append(row)
        if len(found) < len(self._waiting) and len(found) < FEWEST_NEWCOMERS * num_running:
            return []
        for _ in found:
            self._waiting.popleft()
        return found

    def _has_room(self, newcomers: Sequence[_Row]) -> bool:
        """While they are read, and once they have joined: columns that no row needs go then."""
        running = [self._rows[key] for key in self._running.keys]
        num_rows = len(running) + len(newcomers)
        width = max(row.width for row in newcomers)
        room = min(ROOM_COLUMNS, self._settings.max_new_tokens)
        joined = max(width, *(row.num_read for row in running), 0) + room
        most_states = max(1, *(len(row.asked.answer) for row in newcomers))
        return (
            num_rows <= self._limits.max_rows
            and num_rows * joined <= self._limits.max_tokens
            and len(running) * self._running.num_columns + len(newcomers) * width <= self._limits.max_tokens
            and len(newcomers) * most_states * self._num_vocabulary <= self._limits.max_logits
        )

    def _read(self, batch: Sequence[_Row]) -> list[_Row]:
        reading = self._reader.read([row.asked for row in batch])
        sizes = [len(states) for states in reading.states]
        logits = self._head(torch.cat(reading.states)).float()
        likeliest = logits.argmax(dim=-1)
        self._score(batch, logits=logits, likeliest=likeliest, sizes=sizes)
        self._settle(batch, logits=logits, likeliest=likeliest, sizes=sizes)
        places = [place for place, row in enumerate(batch) if row.reply.finish_reason is None]
        newcomers = Newcomers(
            keys=[batch[place].place for place in places],
            rows=places,
            lengths=[batch[place].num_read for place in places],
            tokens=[batch[place].tokens[-1] for place in places],
        )
        self._running.join(newcomers, cache=reading.cache)
        return [row for row in batch if row.reply.finish_reason is not None]

    def _score(
        self, batch: Sequence[_Row], *, logits: torch.Tensor, likeliest: torch.Tensor, sizes: Sequence[int]
    ) -> None:
        expected = self._expected(batch)
        losses = token_losses(logits, expected=expected)
        found = zip(
            batch,
            torch.stack([part.mean() for part in losses.split(list(sizes))]).tolist(),
            torch.stack([part.all() for part in (likeliest == expected).split(list(sizes))]).tolist(),
            strict=True,
        )
        for row, loss, is_greedy in found:
            if row.asked.answer:
                row.score = score_of(loss, num_tokens=len(row.asked.answer), is_greedy=is_greedy)

    def _settle(
        self, batch: Sequence[_Row], *, logits: torch.Tensor, likeliest: torch.Tensor, sizes: Sequence[int]
    ) -> None:
        """The replies' tokens as far as the expected ones were right, and the one that differs."""
        counts = self._num_settled(batch, likeliest=likeliest, sizes=sizes)
        begins = [sum(sizes[:place]) for place in range(len(sizes))]
        index = [begin + step for begin, count in zip(begins, counts, strict=True) for step in range(count)]
        chosen = torch.tensor(index, device=logits.device)
        is_plain = self._is_plain(batch)
        tokens = likeliest[chosen] if is_plain else self._choose(batch, logits=logits[chosen])
        found = iter(self._numbers(logits[chosen], tokens=tokens))
        for row, count in zip(batch, counts, strict=True):
            for token_id, *numbers in itertools.islice(found, count):
                row.add(int(token_id), numbers=numbers)

    def _num_settled(
        self, batch: Sequence[_Row], *, likeliest: torch.Tensor, sizes: Sequence[int]
    ) -> list[int]:
        if not self._is_plain(batch):
            return [1] * len(batch)
        is_same = (likeliest == self._expected(batch)).split(list(sizes))
        agreed = torch.stack([part.long().cumprod(dim=0).sum() for part in is_same]).tolist()
        return [min(size, count + 1) for size, count in zip(sizes, agreed, strict=True)]

    def _expected(self, batch: Sequence[_Row]) -> torch.Tensor:
        """Of a row without an answer nothing is expected; what stands there is not looked at."""
        ids = [token for row in batch for token in row.asked.answer or (self._loaded.pad_token_id,)]
        return torch.tensor(ids, device=self._loaded.device)

    def _step(self) -> list[_Row]:
        self._put_back()
        rows = [self._rows[key] for key in self._running.keys]
        logits = self._running.step()
        tokens = self._choose(rows, logits=logits)
        self._running.go_on(tokens)
        for row, (token_id, *numbers) in zip(rows, self._numbers(logits, tokens=tokens), strict=True):
            row.add(int(token_id), numbers=numbers)
        ended = [row for row in rows if row.reply.finish_reason is not None]
        self._running.drop({row.place for row in ended})
        return ended

    def _put_back(self) -> None:
        """Rows leave and are read again later where replies grew longer than there is memory for."""
        rows = sorted((self._rows[key] for key in self._running.keys), key=lambda row: len(row.tokens))
        num_most = max(1, self._limits.max_tokens // self._running.num_columns_at_step)
        leaving = rows[: max(0, len(rows) - num_most)]
        for row in leaving:
            row.read_again()
        self._waiting.extendleft(leaving)
        self._running.drop({row.place for row in leaving})

    def _is_plain(self, rows: Sequence[_Row]) -> bool:
        """True where the likeliest token is the one chosen."""
        return not is_drawn(self._settings) and all(row.penalties is None for row in rows)

    def _choose(self, rows: Sequence[_Row], *, logits: torch.Tensor) -> torch.Tensor:
        penalties = [row.penalties for row in rows]
        pulled = penalised(logits, penalties=penalties)
        if is_drawn(self._settings):
            generators = [row.generator for row in rows]
            tokens, _ = choose_tokens(pulled, settings=self._settings, generators=generators)
        else:
            tokens = pulled.argmax(dim=-1)
        told(tokens, penalties=penalties)
        return tokens

    def _numbers(self, logits: torch.Tensor, *, tokens: torch.Tensor) -> list[list[float]]:
        """For each row its token, its log-probability and the tempered ones; the only wait for the device."""
        logprobs = tempered_logprobs(
            logits, tokens=tokens, temperatures=(1.0, *self._loaded.confidence_temperatures)
        )
        found: list[list[float]] = torch.cat([tokens[:, None].double(), logprobs.double()], dim=1).tolist()
        return found
