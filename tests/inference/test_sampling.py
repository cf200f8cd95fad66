from __future__ import annotations

import pytest
import torch

from inference.sampling import choose_tokens, row_generator, tempered_logprobs
from registry.records import GenerationSettings

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


def draws(settings: GenerationSettings, *, num_draws: int = 4000) -> torch.Tensor:
    logits = PROBABILITIES.log().expand(num_draws, -1)
    generators = [row_generator(seed, prompt=(1,)) for seed in range(num_draws)]
    tokens, _ = choose_tokens(logits, settings=settings, generators=generators)
    return torch.bincount(tokens, minlength=4) / num_draws


def test_at_temperature_one_tokens_come_as_often_as_the_model_says() -> None:
    assert draws(GenerationSettings(temperature=1.0)).tolist() == pytest.approx(
        PROBABILITIES.tolist(), abs=0.03
    )


def test_a_low_temperature_prefers_the_likeliest() -> None:
    sharpened = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert draws(GenerationSettings(temperature=0.5)).tolist() == pytest.approx(sharpened.tolist(), abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.9, 3), (0.99, 4)])
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p: float, kept: int) -> None:
    shares = draws(GenerationSettings(temperature=1.0, top_p=top_p))
    assert (shares > 0).tolist() == [place < kept for place in range(4)]


@pytest.mark.parametrize(
    "how", [{"temperature": 5e-324}, {"temperature": 1e-75}, {"temperature": 1.0, "top_p": 5e-324}]
)
def test_settings_next_to_nothing_give_the_likeliest(how: dict[str, float]) -> None:
    assert draws(GenerationSettings.model_validate(how), num_draws=50).tolist() == [1, 0, 0, 0]


def test_the_logprob_is_the_models_own_whatever_the_temperature() -> None:
    settings = GenerationSettings(temperature=2.0)
    tokens, logprobs = choose_tokens(
        PROBABILITIES.log()[None] + 7, settings=settings, generators=[row_generator(0, prompt=(1,))]
    )
    assert logprobs[0].exp().item() == pytest.approx(PROBABILITIES[tokens[0]].item())


def test_a_row_that_is_not_finite_gets_a_nan_logprob_and_its_neighbour_is_drawn() -> None:
    logits = torch.stack([torch.full((4,), float("nan")), PROBABILITIES.log()])
    generators = [row_generator(seed, prompt=(1,)) for seed in range(2)]
    _, logprobs = choose_tokens(logits, settings=GenerationSettings(temperature=1.0), generators=generators)
    assert logprobs.isnan().tolist() == [True, False]


def test_a_tempered_log_probability_is_that_of_logits_divided_by_the_temperature() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([0, 3, 6])
    found = tempered_logprobs(logits, tokens=tokens, temperatures=(0.5, 1.0, 4.0))
    for row, values in enumerate(found):
        expected = [float((logits[row] / one).log_softmax(dim=-1)[tokens[row]]) for one in (0.5, 1.0, 4.0)]
        assert values == pytest.approx(expected, abs=1e-6)


def test_no_temperatures_cost_nothing_and_say_nothing() -> None:
    found = tempered_logprobs(torch.zeros(2, 3), tokens=torch.zeros(2, dtype=torch.long), temperatures=())
    assert found.tolist() == [[], []]
