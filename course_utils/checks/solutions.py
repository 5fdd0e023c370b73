"""The solutions, as a learner would write them. `checks.solution("1.2")` shows them.

Knows: one function for each exercise, under the name of the notebook's stub.
Does not know: how an attempt is checked.
"""

import math
from statistics import NormalDist

import torch


def seen():
    return {
        "prompt of the chosen row": "NLL",  # TRL's choice; the paper's NLL skips it
        "chosen answer": "NLL + odds",
        "prompt of the rejected row": "none",
        "rejected answer": "odds",
    }


def log_odds(logps):
    # log(P / (1 - P)) = log P - log(1 - P), and -expm1(log P) is 1 - P to the last
    # digit.
    return logps - torch.log(-torch.expm1(logps))


def mask_prompt(input_ids, prompt_length):
    labels = input_ids.clone()
    labels[:prompt_length] = -100  # the loss shifts, so the labels must not
    return labels


def delta(chosen_logps, rejected_logps):
    log_odds_ratio = log_odds(chosen_logps) - log_odds(rejected_logps)
    return 1 / (1 + torch.exp(log_odds_ratio))


def pairs_needed(base, better, power=0.8, alpha=0.05):
    # Under `base`, accuracies beyond z_alpha standard errors are significant. Under
    # `better`, a share of `power` must lie beyond that. Both hold when the two
    # distances fit between.
    z_alpha = NormalDist().inv_cdf(1 - alpha / 2)  # two-sided
    z_power = NormalDist().inv_cdf(power)
    spread = z_alpha * math.sqrt(base * (1 - base))
    spread += z_power * math.sqrt(better * (1 - better))
    return math.ceil((spread / (better - base)) ** 2)


def furthest_move(pairs, batch, accumulation, learning_rate):
    steps = math.ceil(pairs / (batch * accumulation))
    # Adam moves a weight by about the learning rate a step, which falls linearly to 0.
    return steps, learning_rate * (steps + 1) / 2
