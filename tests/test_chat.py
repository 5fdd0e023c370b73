import random

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny_llama import tiny_model, tiny_tokenizer
from trl_orpo import trl_orpo

from course_utils import chat
from course_utils.chat.tokens import IGNORE_INDEX

COLUMNS = (
    "chosen_input_ids",
    "chosen_labels",
    "rejected_input_ids",
    "rejected_labels",
)
MAX_LENGTH = 128


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def make_pair(
    question="What is 47 + 38?", chosen="It is 85.", rejected="It is 75.", before=()
):
    return {
        "prompt": [*before, user(question)],
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
    }


@pytest.fixture
def tokenizer():
    tokenizer = tiny_tokenizer()
    chat.use_llama3_chat(tokenizer)
    return tokenizer


# ---- template ----


def test_template_writes_the_llama3_format(tokenizer):
    messages = [
        {"role": "system", "content": " Be brief. "},
        user("Hello\n"),
        assistant(" Hi\nthere "),
        user("Bye"),
    ]
    turns = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe "
        "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi\nthere<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == turns
    answer_next = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert answer_next == turns + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_assistant_mask_covers_the_answers_and_their_end_tokens(tokenizer):
    messages = [
        user("Hello"),
        assistant("Hi there"),
        user("Bye"),
        assistant("Good bye."),
    ]
    out = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    written = [
        i
        for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True)
        if mask
    ]
    assert tokenizer.decode(written) == "Hi there<|eot_id|>Good bye.<|eot_id|>"


def test_use_llama3_chat_sets_tokens_and_resizes_nothing():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    ids = chat.use_llama3_chat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    assert len(tokenizer) == size
    assert (tokenizer.eos_token, tokenizer.pad_token) == (
        "<|eot_id|>",
        "<|reserved_special_token_0|>",
    )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_settings_survive_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert chat.tokenize_pair(loaded, make_pair(), 99) == chat.tokenize_pair(
        tokenizer, make_pair(), 99
    )
    assert (loaded.eos_token, loaded.pad_token) == (
        tokenizer.eos_token,
        tokenizer.pad_token,
    )


def test_a_tokenizer_without_the_tokens_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel()
    other = PreTrainedTokenizerFast(tokenizer_object=plain)
    with pytest.raises(
        ValueError,
        match=r"<\|start_header_id\|>.*<\|eot_id\|>.*reserved.*Llama 3 tokenizer",
    ):
        chat.use_llama3_chat(other)
    assert other.chat_template is None


def test_a_tokenizer_that_joins_the_header_with_the_answer_is_refused():
    with pytest.raises(ValueError, match="line breaks"):
        chat.use_llama3_chat(tiny_tokenizer(gpt2_split=True))


# ---- untrained rows ----


def planted_model(**config):
    """Trained-looking rows everywhere but at ids 4 to 7."""
    model = tiny_model(400, hidden_size=32, **config)
    with torch.no_grad():
        for table in (
            model.get_input_embeddings().weight,
            model.get_output_embeddings().weight,
        ):
            table.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_trained_rows_pass():
    untrained, rows = chat.untrained_token_ids(planted_model(), [4, 5, 7])
    assert untrained == []
    assert [(row["id"], row["matrix"]) for row in rows] == [
        (i, m) for m in ("embed_tokens", "lm_head") for i in (4, 5, 7)
    ]


def test_small_rows_are_found_as_in_llama_3_base():
    model = planted_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[4] = 1e-8
        model.get_input_embeddings().weight[7] = 0.0
    untrained, rows = chat.untrained_token_ids(model, [4, 5, 7])
    assert untrained == [4, 7]
    assert rows[2]["norm"] == 0 and rows[2]["median_norm"] > 1


def test_long_but_identical_rows_are_found_as_in_a_tied_head():
    model = planted_model(tie_word_embeddings=True)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[4:8] = 3 * table[9] + 0.01 * table[4:8]
        table[9] = table[10].flip(0)
    untrained, rows = chat.untrained_token_ids(model, [4, 12])
    assert untrained == [4]
    assert {row["matrix"] for row in rows} == {"embed_tokens"}
    assert rows[0]["nearest_id"] in (5, 6, 7) and rows[0]["nearest_cosine"] > 0.99


def test_an_untrained_head_alone_is_found():
    model = planted_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = 0
    untrained, rows = chat.untrained_token_ids(model, [5])
    assert untrained == [5]
    assert [row["untrained"] for row in rows] == [False, True]


def test_rows_that_training_never_met_are_found_in_a_really_trained_model():
    torch.manual_seed(0)
    model = tiny_model(64, hidden_size=32, tie_word_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        start = torch.randint(8, 64, (16, 1))
        tokens = (
            8 + (start - 8 + torch.arange(12)) % 56
        )  # counting, with ids 0 to 7 never shown
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    untrained, _ = chat.untrained_token_ids(model, [4, 5, 20, 40])
    assert untrained == [4, 5]


def test_ids_outside_the_vocabulary_are_named():
    with pytest.raises(ValueError, match=r"\[400\].*400 rows"):
        chat.untrained_token_ids(planted_model(), [4, 400])


# ---- tokens: the same as TRL's ----


def many_pairs():
    rng = random.Random(0)
    words = ["What", "is", "the", "capital", "?", "Paris", "47", "+", "\n\n", "river"]
    words += ["é", "日本", "…", ".", "!", "-", "'tis\t"]

    def text(low, high):
        return " ".join(rng.choices(words, k=rng.randint(low, high))).strip() or "x"

    pairs = [
        make_pair(),
        make_pair(chosen="  It is 85.  ", rejected="\n\nIt is 75.\n"),
        make_pair(
            before=[{"role": "system", "content": "You are a helpful assistant."}]
        ),
        make_pair(
            before=[user("Hi"), assistant("Hello."), user("Who?"), assistant("Me.")]
        ),
        make_pair(chosen="a" * 300),  # both over max_length and under it in one pair
        make_pair(question="long " * 20, chosen="yes " * 60, rejected="no " * 70),
        make_pair(question="fills it " * 200),
        make_pair(chosen="It ends with its own token<|eot_id|>"),
    ]
    for _ in range(60):
        before = (
            [{"role": "system", "content": text(1, 6)}] if rng.random() < 0.3 else []
        )
        for _ in range(rng.choice([0, 0, 1, 2])):
            before += [user(text(1, 8)), assistant(text(1, 8))]
        pairs.append(make_pair(text(1, 15), text(1, 40), text(1, 40), before))
    return pairs


def trl_rows(tokenizer, pairs, folder, **settings):
    args = trl_orpo().ORPOConfig(
        output_dir=str(folder),
        max_length=MAX_LENGTH,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        **settings,
    )
    model = tiny_model(len(tokenizer))
    rows = Dataset.from_list(pairs)
    return trl_orpo().ORPOTrainer(
        model=model, args=args, train_dataset=rows, processing_class=tokenizer
    )


@pytest.mark.parametrize("gpt2_split", [False, True])
def test_tokens_and_labels_equal_trl_s(gpt2_split, tmp_path):
    tokenizer = tiny_tokenizer(gpt2_split)
    if gpt2_split:  # use_llama3_chat refuses it, but TRL would not
        tokenizer.chat_template = chat.LLAMA3_TEMPLATE
        tokenizer.eos_token, tokenizer.pad_token = "<|eot_id|>", "<|end_of_text|>"
    else:
        chat.use_llama3_chat(tokenizer)
    pairs = many_pairs()
    cut = 0
    for pair, theirs in zip(
        pairs, trl_rows(tokenizer, pairs, tmp_path).train_dataset, strict=True
    ):
        ours = chat.tokenize_pair(tokenizer, pair, MAX_LENGTH)
        for column in COLUMNS:
            assert getattr(ours, column) == theirs[column], (column, pair)
        assert ours.prompt_ids == theirs["prompt_input_ids"]
        if not gpt2_split:
            assert ours.prompt_ids + ours.chosen_ids == theirs["chosen_input_ids"]
            assert ours.prompt_ids + ours.rejected_ids == theirs["rejected_input_ids"]
        cut += ours.chosen_lost_end
    assert 5 < cut < len(pairs) - 5


def test_one_bos_and_one_end_token_per_answer(tokenizer):
    tokens = chat.tokenize_pair(
        tokenizer, make_pair(before=[user("Hi"), assistant("Hello.")]), MAX_LENGTH
    )
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for side in ("chosen", "rejected"):
        ids = getattr(tokens, f"{side}_input_ids")
        labels = getattr(tokens, f"{side}_labels")
        assert ids.count(bos) == 1 and ids[0] == bos
        assert [i for i in labels if i != IGNORE_INDEX].count(end) == 1 and labels[
            -1
        ] == end
    assert not tokens.chosen_lost_end and not tokens.rejected_lost_end


def test_the_base_model_s_end_token_would_be_a_second_one():
    tokenizer = tiny_tokenizer()
    chat.use_llama3_chat(tokenizer)
    tokenizer.eos_token = "<|end_of_text|>"
    labels = chat.tokenize_pair(tokenizer, make_pair(), MAX_LENGTH).chosen_labels
    assert tokenizer.decode(labels[-2:]) == "<|eot_id|><|end_of_text|>"


def test_cut_answers_say_that_they_lost_their_end(tokenizer):
    whole = chat.tokenize_pair(tokenizer, make_pair(rejected="no " * 50), 500)
    length = len(whole.chosen_input_ids)
    tokens = chat.tokenize_pair(tokenizer, make_pair(rejected="no " * 50), length)
    assert (tokens.chosen_lost_end, tokens.rejected_lost_end) == (False, True)
    assert len(tokens.rejected_input_ids) == length


# ---- what each loss term sees ----


def test_loss_view_names_the_term_of_every_token(tokenizer):
    view = chat.loss_view(tokenizer, make_pair(), MAX_LENGTH)
    tokens = chat.tokenize_pair(tokenizer, make_pair(), MAX_LENGTH)

    def text(side, region):
        return "".join(t for t, r in view[side] if r == region)

    assert text("chosen", "none") == "<|begin_of_text|>"
    assert "What is 47 + 38?<|eot_id|>" in text("chosen", "NLL")
    assert text("chosen", "NLL + odds") == "It is 85.<|eot_id|>"
    assert text("rejected", "odds") == "It is 75.<|eot_id|>"
    assert text("rejected", "none").endswith("assistant<|end_header_id|>\n\n")
    assert len(view["chosen"]) == len(tokens.chosen_input_ids)


def test_loss_view_agrees_with_the_gradient_of_the_loss(tokenizer):
    """A term sees a token exactly if the logits that predict the token move it."""
    from course_utils import orpo

    tokens = chat.tokenize_pair(tokenizer, make_pair(), MAX_LENGTH)
    view = chat.loss_view(tokenizer, make_pair(), MAX_LENGTH)
    for side in ("chosen", "rejected"):
        ids = torch.tensor([getattr(tokens, f"{side}_input_ids")])
        labels = torch.tensor([getattr(tokens, f"{side}_labels")])
        logits = torch.zeros(1, ids.shape[1], len(tokenizer), requires_grad=True)
        in_odds = (
            torch.autograd.grad(orpo.mean_logps(logits, labels).sum(), logits)[0]
            .abs()
            .sum(-1)[0]
            > 0
        )
        in_nll = torch.zeros_like(in_odds)
        if side == "chosen":
            in_nll = (
                torch.autograd.grad(orpo.nll(logits, ids), logits)[0].abs().sum(-1)[0]
                > 0
            )
        for position, (_, region) in enumerate(view[side]):
            if position == 0:
                assert region == "none"
                continue
            assert in_nll[position - 1] == ("NLL" in region)
            assert in_odds[position - 1] == ("odds" in region)


def test_show_loss_view_reads_as_text_and_as_html(tokenizer):
    view = chat.show_loss_view(tokenizer, make_pair("Is 3 < 4 & 5 > 4?"), MAX_LENGTH)
    for text in (str(view), view._repr_html_()):
        for word in ("NLL + odds", "rejected row", "learned by", "⏎⏎"):
            assert word in text
    assert (
        "<|eot_id|>" not in view._repr_html_()
        and "&lt;|eot_id|&gt;" in view._repr_html_()
    )
    assert sum(view.counts().values()) == sum(len(row) for row in view.rows.values())


# ---- pairs that must not reach the trainer ----

GOOD = make_pair()
BAD = {
    "prompt: is missing or empty": {**GOOD, "prompt": []},
    "chosen: is missing or empty": {key: GOOD[key] for key in ("prompt", "rejected")},
    "rejected: is missing or empty": {**GOOD, "rejected": None},
    "chosen: is a string": {**GOOD, "chosen": "It is 85."},
    "chosen: has an empty assistant message": make_pair(chosen=" \n"),
    "prompt: has an empty user message": make_pair(question=""),
    "rejected: has content of type NoneType": {**GOOD, "rejected": [assistant(None)]},
    "prompt: has content of type int": make_pair(question=47),
    "row: is NoneType instead of a dict": None,
    "row: is list instead of a dict": [GOOD],
    "row: is str instead of a dict": "prompt",
    "row: is float instead of a dict": float("nan"),
    "chosen: is int instead of a list of messages": {**GOOD, "chosen": 5},
    "chosen: is dict instead of a list of messages": {**GOOD, "chosen": user("Hi")},
    "prompt: is NAType instead of a list of messages": {**GOOD, "prompt": pd.NA},
    "rejected: is bytes instead of a list of messages": {**GOOD, "rejected": b"No."},
    "prompt: holds NoneType instead of messages": {**GOOD, "prompt": [None]},
    "chosen: holds str instead of messages": {**GOOD, "chosen": np.array(["Hi"])},
    "prompt: has unknown role None": {**GOOD, "prompt": [{"content": "Hi"}]},
    "prompt: has unknown role ['user']": {
        **GOOD,
        "prompt": [{"role": ["user"], "content": "Hi"}],
    },
    "rejected: has content of type float": make_pair(rejected=float("nan")),
    "rejected: has content of type list": make_pair(
        rejected=[{"type": "text", "text": "Hi"}]
    ),
    "prompt: has half of a surrogate pair in its user text": make_pair("\ud83d Hi"),
    "chosen: has half of a surrogate pair in its assistant text": make_pair(
        chosen="Hi \udc00"
    ),
    "prompt: has unknown role 'human'": {
        **GOOD,
        "prompt": [{"role": "human", "content": "Hi"}],
    },
    "prompt: ends with role 'assistant'": {
        **GOOD,
        "prompt": [user("Hi"), assistant("Hello")],
    },
    "chosen: is not one assistant message but 2 (user, assistant)": {
        **GOOD,
        "chosen": [user("Hi"), assistant("Hello")],
    },
    "rejected: equals chosen": make_pair(chosen="It is 85.", rejected=" It is 85.\n"),
    "rejected: equals chosen within max_length": make_pair(
        chosen="ü" * 300 + "a", rejected="ü" * 300 + "b"
    ),
    "prompt: fills max_length": make_pair(question="word " * 200),
    "prompt: holds the control token <|eot_id|> in its user text": make_pair(
        question="Hi<|eot_id|>"
    ),
    "chosen: holds the control token <|end_of_text|> in its assistant text": make_pair(
        chosen="x<|end_of_text|>"
    ),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_pair_is_named_by_row_and_field(tokenizer, reason):
    with pytest.raises(ValueError) as error:
        chat.check_pairs([GOOD, BAD[reason], GOOD], tokenizer, MAX_LENGTH)
    assert f"row 1, {reason}" in str(error.value)
    assert "row 0" not in str(error.value) and "row 2" not in str(error.value)


def test_dropping_counts_the_reasons(tokenizer):
    cut = make_pair(chosen="yes " * 200)
    kept, counts = chat.check_pairs(
        [GOOD, *BAD.values(), cut, *BAD.values()],
        tokenizer,
        MAX_LENGTH,
        on_problem="drop",
    )
    assert kept == [GOOD, cut]
    assert counts == dict.fromkeys(BAD, 2) | {"chosen: loses its end token (kept)": 1}


@pytest.mark.promise(
    "a pair that is a number, a null, half a character or no dict at all",
    "dropped by reason with the row's number, or an error that names the row",
)
def test_dropping_remembers_the_rows(tokenizer):
    rows = [GOOD, None, {**GOOD, "chosen": 5}, GOOD, None]
    kept, counts = chat.check_pairs(rows, tokenizer, MAX_LENGTH, on_problem="drop")
    assert kept == [GOOD, GOOD]
    assert counts.rows == {
        "row: is NoneType instead of a dict": [1, 4],
        "chosen: is int instead of a list of messages": [2],
    }


@pytest.mark.parametrize(
    "field", [None, float("nan"), [], (), np.array([]), np.array([], dtype=object)]
)
def test_nothing_in_a_field_is_missing(tokenizer, field):
    rows = [GOOD, {**GOOD, "rejected": field}]
    _, counts = chat.check_pairs(rows, tokenizer, MAX_LENGTH, on_problem="drop")
    assert counts == {"rejected: is missing or empty": 1}


@pytest.mark.parametrize("make", [np.array, tuple, list])
def test_messages_in_arrays_are_handed_on_in_lists(tokenizer, make, tmp_path):
    """As pandas reads them from Parquet."""
    pd.DataFrame([GOOD, GOOD]).to_parquet(tmp_path / "pairs.parquet")
    rows = pd.read_parquet(tmp_path / "pairs.parquet").to_dict("records")
    rows += [{name: make(messages) for name, messages in GOOD.items()}]
    kept, counts = chat.check_pairs(rows, tokenizer, MAX_LENGTH)
    assert kept == [GOOD] * 3 and not counts
    assert Dataset.from_list(kept)[2] == GOOD


@pytest.mark.parametrize(
    "twin", ["it is 85.", " It  is\n85.", "It is 85.\u200b", "It is ８５."]
)
def test_answers_that_read_the_same_are_no_preference(tokenizer, twin):
    rows = [make_pair(rejected=twin)]
    _, counts = chat.check_pairs(rows, tokenizer, MAX_LENGTH, on_problem="drop")
    assert counts == {"rejected: equals chosen": 1}


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u2060", "\u00a0\u3000"])
def test_an_answer_that_cannot_be_seen_is_empty(tokenizer, text):
    rows = [make_pair(chosen=text)]
    _, counts = chat.check_pairs(rows, tokenizer, MAX_LENGTH, on_problem="drop")
    assert counts == {"chosen: has an empty assistant message": 1}


def test_a_row_that_the_tokenizer_joins_is_named():
    tokenizer = tiny_tokenizer(gpt2_split=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="row 0, row: cannot be tokenised.*alternate"):
        chat.check_pairs([GOOD], tokenizer, MAX_LENGTH)


def test_many_bad_pairs_give_a_short_error(tokenizer):
    with pytest.raises(ValueError, match="and 15 more rows"):
        chat.check_pairs([BAD["chosen: is a string"]] * 20, tokenizer, MAX_LENGTH)


def test_unknown_on_problem_is_refused(tokenizer):
    with pytest.raises(ValueError, match="on_problem"):
        chat.check_pairs([GOOD], tokenizer, MAX_LENGTH, on_problem="ignore")


def test_a_prompt_one_token_short_of_max_length_is_kept(tokenizer):
    length = len(chat.tokenize_pair(tokenizer, GOOD, 500).prompt_ids)
    with pytest.raises(ValueError, match="fills max_length"):
        chat.check_pairs([GOOD], tokenizer, length)
    kept, _ = chat.check_pairs(
        [make_pair(chosen="Yes", rejected="No")], tokenizer, length + 1
    )
    assert len(kept) == 1


def test_trl_computes_nan_from_a_prompt_that_fills_max_length(tokenizer, tmp_path):
    trainer = trl_rows(tokenizer, [BAD["prompt: fills max_length"]], tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    assert torch.isnan(loss)


# ---- the prompt counted twice ----


def test_labels_of_raw_messages_hold_answers_only(tokenizer, tmp_path):
    pairs = [
        pair
        for pair in many_pairs()
        if "<|eot_id|>" not in pair["chosen"][0]["content"]
    ]
    pairs, _ = chat.check_pairs(pairs, tokenizer, MAX_LENGTH, on_problem="drop")
    trainer = trl_rows(tokenizer, pairs, tmp_path)
    assert chat.assert_labels_hold_no_user_text(trainer, tokenizer, pairs) == len(pairs)
    rows = [chat.tokenize_pair(tokenizer, pair, MAX_LENGTH) for pair in pairs]
    assert chat.assert_labels_hold_no_user_text(rows, tokenizer, pairs) == len(pairs)


def test_prompt_counted_twice_is_found(tokenizer, tmp_path):
    pairs = [make_pair(), make_pair("Name three rivers.", "Rhine.", "No.")]
    template = tokenizer.apply_chat_template
    rows = [
        {
            "prompt": pair["prompt"][-1]["content"],
            "chosen": template(pair["prompt"] + pair["chosen"], tokenize=False),
            "rejected": template(pair["prompt"] + pair["rejected"], tokenize=False),
        }
        for pair in pairs
    ]
    trainer = trl_rows(tokenizer, rows, tmp_path)
    with pytest.raises(
        AssertionError, match="row 0, chosen: the user's text is scored as response"
    ):
        chat.assert_labels_hold_no_user_text(trainer, tokenizer, pairs)


def test_an_answer_that_repeats_the_question_is_no_fault(tokenizer):
    pair = make_pair("Hi", "Hi", "Hi, you.")
    rows = [chat.tokenize_pair(tokenizer, pair, MAX_LENGTH)]
    assert chat.assert_labels_hold_no_user_text(rows, tokenizer, [pair]) == 1


def test_a_second_end_token_is_found(tokenizer):
    tokenizer.eos_token = "<|end_of_text|>"
    rows = [chat.tokenize_pair(tokenizer, GOOD, MAX_LENGTH)]
    with pytest.raises(AssertionError, match="labels are not the answer"):
        chat.assert_labels_hold_no_user_text(rows, tokenizer, [GOOD])


def test_rows_and_pairs_must_match_in_number(tokenizer):
    with pytest.raises(ValueError, match="0 rows but 1 pairs"):
        chat.assert_labels_hold_no_user_text([], tokenizer, [GOOD])
