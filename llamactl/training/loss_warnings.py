"""Warnings at the end of a run, from its losses: against a uniform guess and against the run's own best."""

import math
import statistics
from collections.abc import Mapping

# Steps in a window whose median is compared: single losses are too noisy.
MAX_WINDOW = 16
# A run that stays within this fraction of the uniform guess learned nothing.
MIN_GAIN = 0.02
# A loss is well above the best by more than so many nats per token and more than so large a fraction of the best.
RISE, RISE_FRACTION = 0.25, 0.05


def judge_losses(losses: Mapping[int, float], validation: Mapping[int, float], vocab_size: int) -> str:
    """Return a warning about how a run ended, or an empty string.

    `losses` and `validation` map steps to nats per token. A uniform guess over the vocabulary has ln(vocab_size).
    """
    uniform = math.log(vocab_size)
    guess = f"ln({vocab_size:,}) = {uniform:.2f}, that of a uniform guess"
    smooth = _medians(losses)
    if not smooth:
        return ""
    last = smooth[max(smooth)]
    best = min(smooth, key=lambda step: smooth[step])
    if last == 0:
        return "The loss is exactly 0, which no text gives: look at the data with llamactl verify."
    if last >= (1 - MIN_GAIN) * uniform:
        if smooth[best] >= (1 - MIN_GAIN) * uniform:
            return f"The loss never fell below {guess}: nothing was learned. Try a smaller optim.lr, or more steps."
        return f"The loss rose back to {last:.2f} from {smooth[best]:.2f} at step {best:,}; {guess}. Try a smaller optim.lr."
    if _well_above(last, smooth[best]) and last - smooth[best] > _spread(losses):
        text = f"The loss ended at {last:.2f}, well above its best, {smooth[best]:.2f} at step {best:,}"
        return f"{text}. Try a smaller optim.lr."
    if validation:
        lowest = min(validation, key=lambda step: validation[step])
        final = validation[max(validation)]
        if _well_above(final, validation[lowest]):
            text = f"Validation ended at {final:.2f}, well above its best, {validation[lowest]:.2f} at step {lowest:,}"
            advice = "RUN@best is that checkpoint, if it was saved; --set train.dropout=0.2 or more text would help"
            return f"{text}: it overfits. {advice}."
    return ""


def _well_above(loss: float, best: float) -> bool:
    return loss - best > max(RISE, RISE_FRACTION * best)


def _spread(losses: Mapping[int, float]) -> float:
    """Return how far the middle half of the last losses reaches: far where some steps have another kind of text than others."""
    last = [losses[step] for step in sorted(losses) if math.isfinite(losses[step])][-MAX_WINDOW:]
    low, _, high = statistics.quantiles(last, n=4) if len(last) > 1 else (0.0, 0.0, 0.0)
    return high - low


def _medians(losses: Mapping[int, float]) -> dict[int, float]:
    """Return the median loss of each window of consecutive steps, by the window's last step."""
    steps = sorted(step for step, loss in losses.items() if math.isfinite(loss))
    # At least eight windows where there are as many steps, so that a short run has a course too.
    length = max(1, min(MAX_WINDOW, len(steps) // 8))
    # Counted from the end, so that the last window is a full one.
    ends = range(len(steps), 0, -length)
    return {steps[end - 1]: statistics.median(losses[step] for step in steps[max(0, end - length) : end]) for end in ends}
