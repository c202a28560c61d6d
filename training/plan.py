"""For how many epochs a fit is planned."""

import math

from training.show import in_words
from worker.core.errors import ConfigurationError

ENOUGH_STEPS = 1000
PATIENT = 4
"""A fit may go a part in so many of its epochs without a better one."""
MARGIN = 0.9
"""Of the time budget, what is planned for: machines have other things to do."""


def enough_epochs(epochs: int, steps: int) -> int:
    """A preset's epochs of so many steps, more where they would be few steps in all.

    The tutorial's 20 are 1,060 steps; 20 epochs of 200 images would be 40, and the model would know nothing.
    """
    return max(epochs, math.ceil(ENOUGH_STEPS / steps))


def affordable_epochs(wanted: int, each_s: float, budget_min: float) -> int:
    """At most the wanted epochs, of so many seconds each, and no more than fit into so many minutes.

    Raises:
        ConfigurationError: there is no time for one.
    """
    affordable = int(MARGIN * 60 * budget_min / each_s)
    if affordable < 1:
        raise ConfigurationError(
            f"time_budget (--time-budget): {budget_min:g} minutes were given; one epoch takes about "
            f"{in_words(each_s)} on this machine; expected at least {math.ceil(each_s / MARGIN / 60)} minutes. Fewer "
            "or smaller images take less."
        )
    return min(wanted, affordable)


def patience_for(epochs: int) -> int:
    """Epochs without a lower validation loss after which a fit of so many ends.

    While the learning rate is high the loss wavers, and falls again as the rate does; what stays above its lowest for
    a quarter of the fit has begun to learn the images by heart (Prechelt, "Early Stopping - But When?", 1998).
    """
    return math.ceil(epochs / PATIENT)
