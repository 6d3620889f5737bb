"""Fine-tune a transformers Moonshine that `fastspeech.accelerate` serves, on recordings and what is said in them.

    python examples/fine_tune_moonshine.py --data recordings --model UsefulSensors/moonshine-tiny --out my_moonshine

The folder of recordings has a manifest.csv with the columns path, relative to it, and text (or word). The loss on up to
64 of the recordings is printed before and after. What is written is a transformers checkpoint: `transformers` loads it,
and `fastspeech transcribe --model my_moonshine FILE`.
"""

import argparse
import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange
from transformers import MoonshineForConditionalGeneration

import fastspeech

RATE = 16000


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Fine-tune an accelerated Moonshine.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--model", default="UsefulSensors/moonshine-tiny", help="folder or hub id to begin with")
    parser.add_argument("--out", type=Path, default=Path("fine_tuned_moonshine"), help="folder to write")
    parser.add_argument("--clips", type=int, help="take so many of the recordings, drawn; all where not given")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=8, help="recordings a step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of recordings and their order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(given)


def recordings(folder: Path, count: int | None) -> list[tuple[np.ndarray, str]]:
    """(samples, text) of the recordings, `count` of them at most."""
    with open(folder / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    random.shuffle(rows)
    return [
        (fastspeech.load_audio(folder / row["path"], sampling_rate=RATE), row.get("text") or row["word"])
        for row in rows[:count]
    ]


def batch_of(clips: Sequence[tuple[np.ndarray, str]], processor: Any, eos: int, device: str) -> dict[str, Tensor]:
    """The model's inputs, and as labels the tokens of each text and its end, -100 behind that."""
    samples, texts = zip(*clips, strict=True)
    inputs = processor(list(samples), sampling_rate=RATE, padding=True, return_attention_mask=True, return_tensors="pt")
    tokens = [[*processor.tokenizer(text, add_special_tokens=False)["input_ids"], eos] for text in texts]
    labels = torch.full((len(tokens), max(map(len, tokens))), -100)
    for row, ids in zip(labels, tokens, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return {name: tensor.to(device) for name, tensor in {**inputs, "labels": labels}.items()}


@torch.no_grad()
def loss_on(model: Any, batches: Sequence[dict[str, Tensor]]) -> float:
    """The mean loss of batches, without dropout."""
    model.eval()
    losses = [float(model(**batch).loss) for batch in batches]
    model.train()
    return sum(losses) / len(losses)


def main(given: Sequence[str] | None = None) -> tuple[float, float]:
    """Run the command; the loss before and after."""
    options = arguments(given)
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    processor = fastspeech.AutoProcessor.from_pretrained(options.model)
    model = MoonshineForConditionalGeneration.from_pretrained(options.model).to(options.device).train()
    eos = model.config.eos_token_id
    clips = recordings(options.data, options.clips)
    if not clips:
        raise SystemExit(f"{options.data / 'manifest.csv'} names no recordings")
    print(fastspeech.accelerate(model, mode="training"))

    held = [clips[at : at + options.batch] for at in range(0, min(len(clips), 64), options.batch)]
    looked_at = [batch_of(some, processor, eos, options.device) for some in held]
    before = loss_on(model, looked_at)
    optimiser = torch.optim.AdamW(model.parameters(), options.rate)
    bar = trange(options.steps, desc="steps")
    for _ in bar:
        some = random.sample(clips, min(options.batch, len(clips)))
        loss = model(**batch_of(some, processor, eos, options.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    after = loss_on(model, looked_at)
    print(f"loss before {before:.3f}, after {after:.3f}")

    model.eval().save_pretrained(options.out)
    processor.save_pretrained(options.out)
    fastspeech.restore(model)
    return before, after


if __name__ == "__main__":
    main()
