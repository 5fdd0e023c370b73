import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model, tiny_tokenizer
from trl_orpo import trl_orpo

from course_utils import orpo

# Mean log-probs of answers seen in practice lie between -10 and -1e-4; the properties
# hold further out.
logp = st.floats(min_value=-40.0, max_value=-1e-9)
pair_of_logps = st.lists(st.tuples(logp, logp), min_size=1, max_size=6)


def columns(pairs):
    chosen, rejected = zip(*pairs, strict=True)
    return torch.tensor(chosen, dtype=torch.float64), torch.tensor(
        rejected, dtype=torch.float64
    )


def naive_log1mexp(x):
    return torch.log(1 - torch.exp(x))


# ---- the formulas, in float64 ----


@given(st.floats(min_value=-30, max_value=-0.01))
def test_log_odds_is_log_p_minus_log_one_minus_p(value):
    direct = math.log(math.exp(value) / (1 - math.exp(value)))
    assert orpo.log_odds(
        torch.tensor([value], dtype=torch.float64)
    ).item() == pytest.approx(direct, rel=1e-9, abs=1e-9)


def test_log_odds_is_zero_at_one_half():
    assert orpo.log_odds(
        torch.tensor([math.log(0.5)], dtype=torch.float64)
    ).item() == pytest.approx(0, abs=1e-15)


@given(st.lists(logp, min_size=1, max_size=5))
def test_loss_is_log_two_when_both_are_equally_likely(values):
    logps = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(
        orpo.odds_ratio_loss(logps, logps), torch.full_like(logps, math.log(2))
    )


@given(pair_of_logps)
def test_log_odds_ratio_changes_sign_when_the_answers_are_swapped(pairs):
    chosen, rejected = columns(pairs)
    # -log sigmoid(x) + log sigmoid(-x) = -x, so the difference of the two losses is the
    # log odds ratio.
    ratio = orpo.odds_ratio_loss(rejected, chosen) - orpo.odds_ratio_loss(
        chosen, rejected
    )
    torch.testing.assert_close(
        ratio, orpo.log_odds(chosen) - orpo.log_odds(rejected), rtol=1e-9, atol=1e-9
    )
    swapped = orpo.odds_ratio_loss(chosen, rejected) - orpo.odds_ratio_loss(
        rejected, chosen
    )
    torch.testing.assert_close(ratio, -swapped)


@given(pair_of_logps)
def test_gradient_is_minus_delta_times_h(pairs):
    chosen, rejected = (column.requires_grad_() for column in columns(pairs))
    orpo.odds_ratio_loss(chosen, rejected).sum().backward()
    with torch.no_grad():
        delta = 1 / (
            1 + torch.exp(orpo.log_odds(chosen) - orpo.log_odds(rejected))
        )  # eq. 9
        h_chosen, h_rejected = (
            -1 / torch.expm1(chosen),
            1 / torch.expm1(rejected),
        )  # eq. 10, 1 / (1 - P)
        torch.testing.assert_close(
            orpo.gradient_delta(chosen, rejected), delta, rtol=1e-9, atol=0
        )
    torch.testing.assert_close(chosen.grad, -delta * h_chosen, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(
        rejected.grad, -delta * h_rejected, rtol=1e-6, atol=1e-12
    )


def test_descent_raises_the_chosen_and_lowers_the_rejected():
    chosen, rejected = (
        torch.tensor([-1.0], requires_grad=True),
        torch.tensor([-0.9], requires_grad=True),
    )
    orpo.odds_ratio_loss(chosen, rejected).sum().backward()
    assert chosen.grad < 0 < rejected.grad


# ---- numbers that break the naive formula ----


def assert_stable():
    """log(1 - exp(x)) in fp32 keeps its digits near 0 and its gradient everywhere."""
    for value in (-1e-9, -1e-7, -1e-3, -0.6931471, -0.69315, -20.0, -1e3):
        x = torch.tensor([value], dtype=torch.float32, requires_grad=True)
        exact = torch.tensor([value], dtype=torch.float32).double()
        y = orpo.log1mexp(x)
        y.sum().backward()
        near = torch.log(-torch.expm1(exact))
        torch.testing.assert_close(
            y.detach().double(),
            near if value > -1 else torch.log1p(-exact.exp()),
            rtol=1e-5,
            atol=0,
        )
        torch.testing.assert_close(
            x.grad.double(), -1 / torch.expm1(-exact), rtol=1e-5, atol=1e-30
        )


def test_log1mexp_is_stable():
    assert_stable()


def test_the_naive_formula_put_back_is_noticed(monkeypatch):
    monkeypatch.setattr(orpo, "log1mexp", naive_log1mexp)
    with pytest.raises(AssertionError):
        assert_stable()


@pytest.mark.parametrize("chosen", [-1e-9, -1e-7, -1e-3, -1e3])
@pytest.mark.parametrize("rejected", [-1e-9, -1e-7, -1e-3, -1e3])
def test_gradients_are_finite_at_the_extremes(chosen, rejected):
    logps = torch.tensor([[chosen], [rejected]], requires_grad=True)
    loss = orpo.orpo_loss(torch.tensor(1.0), logps[0], logps[1])
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logps.grad).all()


def test_half_precision_is_computed_in_fp32():
    chosen, rejected = (
        torch.tensor([-0.002], dtype=torch.bfloat16),
        torch.tensor([-0.004], dtype=torch.bfloat16),
    )
    loss = orpo.odds_ratio_loss(chosen, rejected)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, orpo.odds_ratio_loss(chosen.float(), rejected.float())
    )


# ---- errors ----


@pytest.mark.parametrize("bad", [0.0, 0.5, math.nan, math.inf, -math.inf])
def test_undefined_log_probs_name_the_column_and_the_row(bad):
    good = torch.tensor([-1.0, -1.0, -1.0])
    worse = torch.tensor([-1.0, -1.0, bad])
    with pytest.raises(ValueError, match="rejected_logps: row 2 has"):
        orpo.odds_ratio_loss(good, worse)
    with pytest.raises(ValueError, match="chosen_logps: row 2 has"):
        orpo.orpo_loss(torch.tensor(1.0), worse, good)
    with pytest.raises(ValueError, match="row 2 has"):
        orpo.log_odds(worse)


def test_several_bad_rows_are_all_named():
    with pytest.raises(ValueError, match=r"rows 0, 2 have 0\.1, 0\.3"):
        orpo.log_odds(torch.tensor([0.1, -1.0, 0.3]))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (torch.full((2,), -1.0), torch.full((3,), -1.0)),
        (torch.full((2, 3), -1.0), torch.full((2, 3), -1.0)),
        (torch.empty(0),) * 2,
    ],
)
def test_shapes_are_checked(chosen, rejected):
    with pytest.raises(ValueError, match="shape"):
        orpo.odds_ratio_loss(chosen, rejected)


def test_orpo_loss_refuses_a_row_of_nlls_and_a_negative_beta():
    logps = torch.tensor([-1.0, -2.0])
    with pytest.raises(ValueError, match="nll_loss must be one number"):
        orpo.orpo_loss(torch.tensor([1.0, 2.0]), logps, logps)
    with pytest.raises(ValueError, match="beta"):
        orpo.orpo_loss(torch.tensor(1.0), logps, logps, beta=-0.1)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        orpo.log_odds(torch.tensor([-1, -2]))


def test_a_row_without_labels_is_named():
    logits, labels = torch.zeros(2, 3, 5), torch.tensor([[1, 2, 3], [4, -100, -100]])
    with pytest.raises(ValueError, match="row 1 has no labelled token"):
        orpo.mean_logps(logits, labels)
    with pytest.raises(ValueError, match="whole batch"):
        orpo.nll(logits, torch.full((2, 3), -100))
    with pytest.raises(ValueError, match="labels"):
        orpo.mean_logps(logits, labels[:, :2])


def test_mean_logps_shifts_and_ignores():
    logits = torch.randn(1, 4, 7, dtype=torch.float64)
    labels = torch.tensor([[5, -100, 3, 6]])
    per_token = logits.log_softmax(-1)[0]
    expected = (
        per_token[1, 3] + per_token[2, 6]
    ) / 2  # the label 5 at position 0 has no position before it
    torch.testing.assert_close(orpo.mean_logps(logits, labels), expected[None])
    torch.testing.assert_close(orpo.nll(logits, labels), -expected)


# ---- TRL 1.16 computes the same ----


@settings(deadline=None)
@given(pair_of_logps)
def test_equals_trl_on_log_probs(pairs):
    chosen, rejected = (column.float() for column in columns(pairs))
    stub = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    weighted = trl_orpo().ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)[
        0
    ]  # beta * log sigmoid, no minus
    torch.testing.assert_close(
        0.1 * orpo.odds_ratio_loss(chosen, rejected), -weighted, rtol=1e-5, atol=1e-6
    )


ROWS = [
    (
        "What is 47 + 38?",
        "It is 85.",
        "It is 75, I think, or 85, or something like that.",
    ),
    (
        "Name three rivers. Please name rivers, and nothing else.",
        "The Rhine, the Danube and the Elbe.",
        "No.",
    ),
    ("What is the capital of France?", "Paris.", "The capital of France is Rome."),
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    model = tiny_model(len(tokenizer))
    assert model.num_parameters() < 20_000
    args = trl_orpo().ORPOConfig(
        output_dir=str(tmp_path_factory.mktemp("orpo")),
        beta=0.3,
        max_length=48,  # cuts the longest answer
        per_device_train_batch_size=len(ROWS),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    rows = Dataset.from_list(
        [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS]
    )
    return trl_orpo().ORPOTrainer(
        model=model, args=args, train_dataset=rows, processing_class=tokenizer
    )


def test_equals_trl_on_a_real_batch(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)

    logits = {}
    for side in ("chosen", "rejected"):
        logits[side] = trainer.model(
            batch[f"{side}_input_ids"], attention_mask=batch[f"{side}_attention_mask"]
        ).logits
    # NLL over prompt and response, padding excepted; the odds term over the response
    # only.
    nll_labels = torch.where(
        batch["chosen_attention_mask"] == 1,
        batch["chosen_input_ids"],
        orpo.IGNORE_INDEX,
    )
    nll_loss = orpo.nll(logits["chosen"], nll_labels)
    chosen = orpo.mean_logps(logits["chosen"], batch["chosen_labels"])
    rejected = orpo.mean_logps(logits["rejected"], batch["rejected_labels"])

    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(
        orpo.orpo_loss(nll_loss, chosen, rejected, beta=0.3), loss, **close
    )
    assert metrics["nll_loss"] == pytest.approx(nll_loss.item(), abs=1e-5)
    assert metrics["logps/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-5)
    assert metrics["logps/rejected"] == pytest.approx(rejected.mean().item(), abs=1e-5)
    # TRL's names: "log_odds_ratio" is log sigmoid of it, "log_odds_chosen" is the log
    # odds ratio.
    assert metrics["log_odds_ratio"] == pytest.approx(
        -orpo.odds_ratio_loss(chosen, rejected).mean().item(), abs=1e-5
    )
    difference = (orpo.log_odds(chosen) - orpo.log_odds(rejected)).mean().item()
    assert metrics["log_odds_chosen"] == pytest.approx(difference, abs=1e-5)
    # The prompt is in the NLL: leaving it out gives another number.
    assert abs(orpo.nll(logits["chosen"], batch["chosen_labels"]) - nll_loss) > 1e-3


def test_gradients_equal_trl_s(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    weight = trainer.model.model.layers[0].self_attn.q_proj.weight
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    (expected,) = torch.autograd.grad(loss, weight)

    logits = trainer.model(
        batch["chosen_input_ids"], attention_mask=batch["chosen_attention_mask"]
    ).logits
    other = trainer.model(
        batch["rejected_input_ids"], attention_mask=batch["rejected_attention_mask"]
    ).logits
    labels = torch.where(
        batch["chosen_attention_mask"] == 1,
        batch["chosen_input_ids"],
        orpo.IGNORE_INDEX,
    )
    ours = orpo.orpo_loss(
        orpo.nll(logits, labels),
        orpo.mean_logps(logits, batch["chosen_labels"]),
        orpo.mean_logps(other, batch["rejected_labels"]),
        beta=0.3,
    )
    torch.testing.assert_close(
        torch.autograd.grad(ours, weight)[0], expected, rtol=1e-4, atol=1e-7
    )
