"""The solutions of exercises, as a learner would write them, one function each.

A solution has the name and the arguments of the notebook's stub; `checks.solution`
shows it. The hunts' are in `hunts.repairs`.
"""

import math
from dataclasses import replace
from statistics import NormalDist

import torch
from scipy import stats


def seen():
    return {
        "prompt of the chosen row": "NLL",  # TRL's choice; the paper's NLL skips it
        "chosen answer": "NLL + odds",
        "prompt of the rejected row": "none",
        "rejected answer": "odds",
    }


def profile_of():
    return {
        "laptop, no GPU": "cpu",
        "RTX 2080 Ti, 11 GB, compute capability 7.5": "cpu",  # less than a T4 has
        "V100, 32 GB, compute capability 7.0": "t4",  # room for 8B, but no bf16
        "RTX 4090, 24 GB, compute capability 8.9": "l4",
        "H100, 80 GB, compute capability 9.0": "a100",
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


def bits_per_weight(block, second):
    scales = 8 / block  # one 8-bit scale for each block
    constants = 32 / (block * second)  # one float32 for each block of scales
    return 4 + scales + constants


def lora_parameters(config, rank):
    hidden, inner = config.hidden_size, config.intermediate_size
    head = hidden // config.num_attention_heads
    key = head * config.num_key_value_heads  # fewer heads than the queries have
    sizes = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden)]
    sizes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    # A is rank x inputs, B is outputs x rank.
    return config.num_hidden_layers * sum(rank * (a + b) for a, b in sizes)


def for_a_t4(settings):
    # One pair at a time halves logits and activations; eight of them make the same
    # step. A T4 has no bf16.
    return replace(settings, compute="float16", batch=1, accumulation=8)


def better_code(weights, nf4):
    # Lloyd's method: give each weight its nearest value, then move each value to the
    # mean of its weights. A weight counts by its block's scale squared, as its error
    # does.
    blocks = weights.view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    scaled, importance = (blocks / scale).flatten(), (scale**2).expand_as(blocks)
    code = nf4
    for _ in range(20):
        nearest = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2)
        total = torch.zeros(16).index_add(0, nearest, importance.flatten())
        sums = torch.zeros(16).index_add(0, nearest, scaled * importance.flatten())
        code = sums / total
    return code


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


def seed_interval(scores):
    # So few scores also tell little of their spread: Student's t instead of 1.96.
    half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores)
    mean = sum(scores) / len(scores)
    return mean - half, mean + half


def paired_pairs_needed(changed, difference, power=0.8, alpha=0.05):
    # A pair changes by +1, -1 or 0. The variance of that is `changed` if neither model
    # is better, and less by the square of the mean change if one is.
    z_alpha = NormalDist().inv_cdf(1 - alpha / 2)  # two-sided
    z_power = NormalDist().inv_cdf(power)
    spread = z_alpha * math.sqrt(changed)
    spread += z_power * math.sqrt(changed - difference**2)
    return math.ceil((spread / difference) ** 2)


def acc_norm(loglikelihoods, choices, gold):
    # A log-likelihood falls with every token, so the sum alone favours short choices.
    scores = [ll / len(text) for ll, text in zip(loglikelihoods, choices, strict=True)]
    return int(scores.index(max(scores)) == gold)


def suite_average(groups):
    # Three means, one inside the other: a group of one row weighs as much as one of 18.
    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    return mean(mean(map(mean, rows.values())) for rows in groups.values())


def merged_weight(weight, lora_a, lora_b, alpha):
    rank = lora_a.shape[0]
    return weight + alpha / rank * lora_b @ lora_a


def mean_kl(trained_logits, merged_logits):
    log_p = trained_logits.log_softmax(-1)
    log_q = merged_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()  # sum over words, mean rest


def hidden_share(n):
    return 1 - 0.05 ** (1 / n)  # (1 - share)^n = 0.05; about 3 / n


def rotation_order(weight, heads):
    halves = weight.reshape(heads, 2, -1, weight.shape[1])  # heads, half, d/2, in
    return halves.transpose(1, 2).reshape(weight.shape)


def padding_share(lengths, batch_size):
    held = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        held += len(batch) * max(batch)
    return 1 - sum(lengths) / held


def branch_mask(prefix, branches):
    length = prefix + sum(branches)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    start = prefix
    for branch in branches:
        # Tokens behind this branch belong to its siblings: they must not see it.
        mask[start + branch :, start : start + branch] = False
        start += branch
    return mask


def my_rule():
    return 'status != "tie" and chosen_score >= 8 and not in_gsm8k_train'


def prompt_of(row):
    return row["chosen"][:-1]  # chosen and rejected share everything before the answer


def swapped_digits(listed, found):
    a, b = str(listed), str(found)
    differ = [i for i in range(min(len(a), len(b))) if a[i] != b[i]]
    if len(a) != len(b) or len(differ) != 2:
        return False
    first, second = differ
    return a[first] == b[second] and a[second] == b[first]


def similarity(one, two, run):
    def runs(text):
        said = text.split()
        return {tuple(said[i : i + run]) for i in range(len(said) - run + 1)}

    shared, either = runs(one) & runs(two), runs(one) | runs(two)
    return len(shared) / len(either) if either else 0.0
