"""The tokens and scores of generate are those of transformers, on one random model decoded by both."""

import random
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.generation.twin import EOS, VOCABULARY, Twin, audio, their_model

MANY_END = {"eos_token_id": [EOS, 5, 9, 12]}
RECORD = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def random_rules(choose: random.Random) -> dict[str, Any]:
    """A few rules of those both sides know."""
    rules: dict[str, Any] = {
        "repetition_penalty": choose.choice([0.7, 1.5]),
        "no_repeat_ngram_size": choose.choice([1, 2, 3]),
        "bad_words_ids": [[5], [7, 8], [9, 10, 11], [EOS]],
        "sequence_bias": {(6,): 2.0, (4, 6): -3.0, (6, 4): 1.5, (4, 5, 6): 9.0},
        "min_length": choose.choice([3, 6]),
        "min_new_tokens": choose.choice([2, 5]),
        "forced_bos_token_id": 5,
        "forced_eos_token_id": choose.choice([EOS, 4]),
        "suppress_tokens": [6, 12],
        "begin_suppress_tokens": [EOS, 13],
        "exponential_decay_length_penalty": (2, 1.3),
        "remove_invalid_values": True,
        "renormalize_logits": True,
    }
    # With more tokens that end, more sequences do, and at different times.
    ends = choose.choice([[EOS], [EOS, 4], [EOS, 5, 9, 12], [4, 8, 9, 12, 14, 20]])
    chosen = choose.sample(sorted(rules), choose.choice([0, 0, 1, 2, 3]))
    return {"eos_token_id": ends} | {name: rules[name] for name in chosen}


def both(seed: int, batch: int, **parameters: Any) -> tuple[Any, Any, Twin]:
    """What transformers and we make of the same audio and parameters, from the same random state."""
    theirs = their_model(seed)
    ours = Twin(theirs)
    torch.manual_seed(seed)
    expected = theirs.generate(audio(batch, seed), **parameters)
    torch.manual_seed(seed)
    return expected, ours.generate(audio(batch, seed), **parameters), ours


def assert_same(ours: Any, expected: Any) -> None:
    assert ours.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        ours_each, expected_each = getattr(ours, name), getattr(expected, name)
        assert len(ours_each) == len(expected_each)
        for step, expected_step in zip(ours_each, expected_each, strict=True):
            torch.testing.assert_close(step, expected_step, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [2, 3, 4, 5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_beam_search(beams: int, early_stopping: bool | str, length_penalty: float) -> None:
    for case in range(4):
        seed = case + 10 * beams
        choose = random.Random(f"{seed} {early_stopping} {length_penalty}")
        parameters = {
            "num_beams": beams,
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
            "num_return_sequences": choose.randint(1, beams),
            "max_new_tokens": choose.choice([1, 8, 12]),
            **random_rules(choose),
        }
        batch = choose.choice([1, 2, 3, 4])
        expected, ours, _ = both(seed, batch, **parameters, **RECORD)
        assert_same(ours, expected)
        torch.testing.assert_close(ours.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)
        assert ours.beam_indices.tolist() == expected.beam_indices.tolist()

        plain, ours_plain, _ = both(seed, batch, **parameters)
        assert ours_plain.tolist() == plain.tolist() == expected.sequences.tolist()


def test_greedy_search() -> None:
    for seed in range(40):
        choose = random.Random(seed)
        parameters = {"max_new_tokens": choose.choice([1, 6, 14]), **random_rules(choose)}
        batch = choose.choice([1, 2, 5])
        expected, ours, _ = both(seed, batch, **parameters, **RECORD)
        assert_same(ours, expected)
        plain, ours_plain, _ = both(seed, batch, **parameters)
        assert ours_plain.tolist() == plain.tolist()


WARPERS = [
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 0},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_h": 0.7},
    {"top_h": 0.05},
    {"typical_p": 0.6},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.2},
    {"top_k": 8, "top_p": 0.8, "temperature": 1.3, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("warper", WARPERS, ids=str)
@pytest.mark.parametrize("returned", [1, 3])
def test_sampling_draws_the_same_tokens(warper: dict[str, Any], returned: int) -> None:
    """From the same seed, and whether or not ended rows leave the batch."""
    for seed in range(3):
        parameters = {"do_sample": True, "num_return_sequences": returned, "max_new_tokens": 14, **MANY_END, **warper}
        expected, ours, _ = both(seed, 4, **parameters, **RECORD)
        assert_same(ours, expected)
        plain, ours_plain, _ = both(seed, 4, **parameters)
        assert ours_plain.tolist() == plain.tolist() == expected.sequences.tolist()


@pytest.mark.parametrize("warper", WARPERS, ids=str)
def test_beam_search_that_draws(warper: dict[str, Any]) -> None:
    for seed in range(3):
        parameters = {"do_sample": True, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 14}
        parameters |= MANY_END | warper | {"early_stopping": bool(seed)}
        expected, ours, _ = both(seed, 3, **parameters, **RECORD)
        assert_same(ours, expected)
        torch.testing.assert_close(ours.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)
        plain, ours_plain, _ = both(seed, 3, **parameters)
        assert ours_plain.tolist() == plain.tolist() == expected.sequences.tolist()


def test_what_leaves_the_batch_changes_nothing() -> None:
    """The cases above are worth something only if sequences end at different times and do leave."""
    shrunk = dict.fromkeys(("greedy", "sampling", "beams"), 0)
    kinds: dict[str, dict[str, Any]] = {"greedy": {}, "sampling": {"do_sample": True}, "beams": {"num_beams": 3}}
    for seed in range(10):
        for kind, parameters in kinds.items():
            expected, sequences, ours = both(seed, 9, max_new_tokens=16, **MANY_END, **parameters)
            assert sequences.tolist() == expected.tolist()
            assert ours.read == sorted(ours.read, reverse=True)
            shrunk[kind] += ours.read[-1] < ours.read[0]
    assert min(shrunk.values()) >= 5, shrunk


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "prompt", [[[1, 4, 5], [1, 6, 7]], [[4, 5], [6, 7]], [[1, 5], [6, 7]]], ids=["started", "not started", "mixed"]
)
def test_prompt(prompt: list[list[int]], beams: int) -> None:
    """The start token is put first only where no row begins with it."""
    parameters = {"decoder_input_ids": torch.tensor(prompt), "num_beams": beams, "begin_suppress_tokens": [8, 9]}
    for seed in range(3):
        expected, ours, _ = both(seed, 2, max_new_tokens=6, no_repeat_ngram_size=2, **parameters)
        assert ours.tolist() == expected.tolist()
        expected, ours, _ = both(seed, 2, max_length=7, min_length=6, exponential_decay_length_penalty=(1, 2.0))
        assert ours.tolist() == expected.tolist()


def test_start_token_of_each_row() -> None:
    expected, ours, _ = both(0, 2, decoder_start_token_id=[4, 5], max_new_tokens=4)
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_functions_of_the_caller(beams: int) -> None:
    """They are called with the same arguments, at the same times, and to the same effect."""
    calls: list[list[Any]] = []

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls[-1].append(("rule", ids.tolist()))
        return scores + (torch.arange(VOCABULARY) % (ids.shape[1] + 2) == 0)

    def ends(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        calls[-1].append(("ends", ids.tolist(), None if scores is None else len(scores)))
        return (ids[:, -1] % 7 == 0) & (ids.shape[1] > 2)

    def allowed(utterance: int, ids: torch.Tensor) -> list[int]:
        calls[-1].append(("allowed", utterance, ids.tolist()))
        return [token for token in range(VOCABULARY) if token != EOS and (token + utterance + len(ids)) % 3]

    for record in ({}, RECORD):
        for seed in range(4):
            parameters = {"logits_processor": [rule], "stopping_criteria": [ends], "max_new_tokens": 8, **record}
            results = []
            for model in (their_model(seed), Twin(their_model(seed))):
                calls.append([])
                result = model.generate(audio(3, seed), num_beams=beams, prefix_allowed_tokens_fn=allowed, **parameters)
                results.append(result.sequences if record else result)
            assert results[0].tolist() == results[1].tolist()
            assert calls[-2] == calls[-1]


def test_a_beam_search_stops_where_every_candidate_ends() -> None:
    """Though by "never" and this length penalty, what lies a billion below could still win."""
    for seed in range(3):
        parameters = {"num_beams": 3, "early_stopping": "never", "length_penalty": 12.0, "max_new_tokens": 40}
        ends = [lambda ids, scores, **kwargs: torch.full((len(ids),), ids.shape[1] > 2)]
        expected, ours, _ = both(seed, 2, stopping_criteria=ends, **parameters)
        assert ours.tolist() == expected.tolist()


def test_a_forced_first_token_does_not_count_as_the_beginning() -> None:
    for beams in (1, 3):
        parameters = {"forced_bos_token_id": 5, "num_beams": beams, "max_new_tokens": 4}
        expected, ours, _ = both(0, 2, **parameters)
        suppressed = expected[:, 2].tolist()
        expected, ours, _ = both(0, 2, begin_suppress_tokens=suppressed, **parameters)
        assert ours.tolist() == expected.tolist()
        assert not set(ours[:, 2].tolist()) & set(suppressed)


def test_allowed_tokens_win_over_other_rules() -> None:
    parameters = {"prefix_allowed_tokens_fn": lambda utterance, ids: [4, 5], "suppress_tokens": [6]}
    for beams in (1, 3):
        expected, ours, _ = both(0, 2, bad_words_ids=[[4], [5]], num_beams=beams, max_new_tokens=3, **parameters)
        assert ours.tolist() == expected.tolist()


def test_streamer_gets_the_prompt_and_every_step() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.got: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.got.append(value.tolist())

        def end(self) -> None:
            self.got.append("end")

    recorders = []
    for model in (their_model(3), Twin(their_model(3))):
        recorders.append(Recorder())
        model.generate(audio(3, 3), max_new_tokens=12, streamer=recorders[-1])
    assert recorders[1].got == recorders[0].got
    assert recorders[1].got[-1] == "end"


def test_without_an_end_token_only_the_length_ends() -> None:
    for beams in (1, 3):
        expected, ours, _ = both(0, 2, eos_token_id=None, num_beams=beams, max_new_tokens=5)
        assert ours.tolist() == expected.tolist()


def test_padding_with_token_0() -> None:
    """transformers pads ended beams with the end token there, for it takes 0 as no token; we pad with 0."""
    cases = 0
    for seed in range(6):
        expected, ours, _ = both(seed, 4, pad_token_id=0, num_beams=2, max_new_tokens=12, suppress_tokens=[0])
        assert torch.where(ours == 0, EOS, ours).tolist() == expected.tolist()
        cases += bool((ours == 0).any())
    assert cases
