"""How replicas add their gradients up: in room that was taken beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainer.core import exchange
from trainer.core.exchange import Replicas
from trainer.core.parallel import Team


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is exchanged, with another process that has the very same gradients."""
    sent: list[Tensor] = []

    def double(message: Tensor) -> None:
        sent.append(message)
        message.mul_(2)

    monkeypatch.setattr(exchange.dist, "all_reduce", double)
    monkeypatch.setattr(exchange, "BUCKET_VALUES", 20)
    return sent


def model() -> nn.Module:
    """Gradients of 30, 5, 10 and 2 numbers; nobody asked for that of the last 2."""
    torch.manual_seed(1)
    made = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 2)])
    made[1](made[0](torch.ones(1, 6))).sum().backward()
    made[1].bias.grad = None
    return made


def test_every_gradient_becomes_the_sum_of_all(messages: list[Tensor]) -> None:
    whole = model()
    before = [torch.zeros(2) if one.grad is None else one.grad.clone() for one in whole.parameters()]
    Replicas(whole, team=Team(size=2)).add_up()
    for parameter, gradient in zip(whole.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, 2 * gradient)
    assert [message.numel() for message in messages] == [30, 17]


def test_a_message_takes_no_memory_that_was_not_taken_before_the_first_step(messages: list[Tensor]) -> None:
    whole = model()
    replicas = Replicas(whole, team=Team(size=2))
    replicas.add_up()
    replicas.add_up()
    large, small, *again = messages
    first, *_ = whole.parameters()
    assert first.grad is not None
    assert large.data_ptr() == first.grad.data_ptr()
    assert small.data_ptr() == replicas._room.data_ptr()
    assert [message.data_ptr() for message in again] == [large.data_ptr(), small.data_ptr()]


def test_one_process_takes_no_room_and_exchanges_nothing(messages: list[Tensor]) -> None:
    replicas = Replicas(model(), team=Team())
    replicas.add_up()
    assert messages == []
    assert replicas._room.numel() == 0
