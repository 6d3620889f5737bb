"""Train the demo checkpoint: a small CohereAsr that writes down sequences of twenty spoken English words.

    python examples/train_voice_commands.py --data ../shared/data/voice_commands --out my_checkpoint --minutes 80

Words of many speakers are joined on the fly, disturbed, and turned into features by this library's extractor; its model
gives the loss. Whole speakers are kept out, and the word error rate on them is printed at the end. The folder then
serves `fastspeech transcribe --model my_checkpoint FILE`. espeak-ng (and flite), where installed, add synthetic voices.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from voice_commands import clips, measure, mixing, model, training, voices
from voice_commands.batches import Batches

from fastspeech import CohereAsrForConditionalGeneration


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the demo checkpoint.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--out", type=Path, default=Path("voice_commands_checkpoint"), help="folder to write")
    parser.add_argument("--steps", type=int, help="optimiser steps, in place of --minutes")
    parser.add_argument("--minutes", type=float, default=79.0, help="time to train")
    parser.add_argument("--seed", type=int, default=0, help="of weights, mixing and synthetic voices")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio a step, padding included")
    parser.add_argument("--ramp", type=int, default=100000, help="utterances over which they grow long and disturbed")
    parser.add_argument("--synthetic", type=int, default=2400, help="synthetic clips of one word, and as many phrases")
    parser.add_argument("--share", type=float, default=0.25, help="of synthetic voices among the words")
    parser.add_argument("--check-every", type=int, default=300, help="steps between looks at the kept-out speakers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches; 0: the training one")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    rows = clips.split_speakers(clips.read_manifest(options.data))
    to_train, kept_out = (clips.read_clips(options.data, some) for some in rows)
    noise_to_train, noise_kept_out = clips.read_noise(options.data)
    synthetic = voices.synthesise(options.synthetic, options.synthetic, options.seed)
    speakers = len({clip.speaker for clip in kept_out})
    print(f"{len(to_train)} clips to train on, {len(kept_out)} of {speakers} speakers kept out")

    mixer = mixing.Mixer(to_train, synthetic, noise_to_train, options.share)
    stream = Batches(mixer, options.seconds, options.ramp, options.seed)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=options.workers))
    processor = model.write_processor(options.out)
    tests = measure.sequences(kept_out, 210, (1, 5), seed=1)
    digits = measure.sequences([c for c in kept_out if c.words[0] in clips.DIGITS], 70, (1, 5), seed=1)

    def check(average: CohereAsrForConditionalGeneration, step: int) -> str:
        if step % (4 * options.check_every) == 0:
            model.save(average, options.out)
        rates = [measure.measure(average, processor, some)[0].rate for some in (tests, digits)]
        noisy = sum(text != "" for text in measure.transcribe(average, processor, noise_kept_out))
        return f"word error rate {rates[0]:.3f}, digits {rates[1]:.3f}, words in noise {noisy} of {len(noise_kept_out)}"

    trained = training.train(
        model.build_model(),
        batches,
        steps=options.steps,
        minutes=options.minutes,
        peak=options.rate,
        check_every=options.check_every,
        check=check,
    )
    model.save(trained, options.out)
    report = measure.report(options.out, kept_out, noise_kept_out)
    (options.out / "measured.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
