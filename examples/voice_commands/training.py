"""The loop: the library's loss plus CTC, AdamW with a one-cycle rate, averaged weights, and a log of the error."""

import copy
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastspeech import CohereAsrForConditionalGeneration

from .model import CtcHead

CTC_WEIGHT = 0.3
AVERAGE = 0.999


def rate_at(progress: float, peak: float, warm_up: float = 0.01) -> float:
    """Linear warm-up to `peak`, then a half cosine to zero at `progress` 1."""
    if progress < warm_up:
        return peak * max(progress, 1e-3) / warm_up
    return peak * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min((progress - warm_up) / (1 - warm_up), 1.0)))))


def encoder_frames(mask: Tensor, factor: int) -> Tensor:
    """Valid encoder frames a row: halved, rounding up, at each strided convolution."""
    frames = mask.sum(1)
    while factor > 1:
        frames, factor = (frames + 1) // 2, factor // 2
    return frames


def joint_loss(model: CohereAsrForConditionalGeneration, head: CtcHead, batch: dict) -> tuple[Tensor, Tensor]:
    """(the model's own loss, CTC)."""
    words = batch.pop("words")
    output = model(**batch)
    frames = encoder_frames(batch["attention_mask"], model.config.encoder_config.subsampling_factor)
    return output.loss, head(output.encoder_last_hidden_state, frames, words)


def train(
    model: CohereAsrForConditionalGeneration,
    batches: Iterator[dict],
    *,
    steps: int | None,
    minutes: float,
    peak: float,
    check_every: int,
    check: Callable[[CohereAsrForConditionalGeneration, int], str],
) -> CohereAsrForConditionalGeneration:
    """Train for `steps`, or for `minutes` where that is None.

    Every `check_every` steps, what `check` says about the averaged model goes to the log. Returns the averaged model,
    its BatchNorm statistics taken anew over 100 batches.
    """
    head = CtcHead(model.config.encoder_config.hidden_size)
    average = copy.deepcopy(model).eval()
    learned = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    decayed = [p for p in learned if p.ndim > 1]
    others = [p for p in learned if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    started, step, running = time.monotonic(), 0, torch.zeros(2)
    bar = tqdm(total=steps, desc="training", mininterval=5)
    model.train()
    while True:
        elapsed = (time.monotonic() - started) / 60
        progress = step / steps if steps else elapsed / minutes
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate_at(progress, peak)
        loss, ctc = joint_loss(model, head, next(batches))
        (loss + CTC_WEIGHT * ctc).backward()
        nn.utils.clip_grad_norm_(learned, 2.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        update_average(average, model, min(AVERAGE, (1 + step) / (10 + step)))
        running = 0.98 * running + 0.02 * torch.stack((loss.detach(), ctc.detach()))
        bar.update()
        if step % check_every == 0:
            mean, mean_ctc = (running / (1 - 0.98**step)).tolist()
            checked = check(average, step)
            tqdm.write(f"step {step} minute {elapsed:.1f} loss {mean:.3f} ctc {mean_ctc:.3f} {checked}")
    bar.close()
    renew_statistics(average, batches, 100)
    return average


def update_average(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Exponential average of the weights; buffers (BatchNorm's statistics, themselves averages) are copied."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        for mean, new in zip(average.buffers(), model.buffers(), strict=True):
            mean.copy_(new)


def renew_statistics(model: nn.Module, batches: Iterator[dict], count: int) -> None:
    """Set BatchNorm's means and variances to plain averages over `count` batches; leaves `model` in eval mode.

    What holds a BatchNorm is put into training mode with it: outside of it the convolution module folds the statistics
    into its filter, and the BatchNorm itself never runs.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    for holder in model.modules():
        if any(isinstance(child, nn.BatchNorm1d) for child in holder.children()):
            holder.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for _ in range(count):
            batch = next(batches)
            batch.pop("words")
            model(**batch)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
