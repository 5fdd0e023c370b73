"""The release gate passes a faithful merge, and names each way in which one is not."""

import json
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tuned_llama import PROMPTS, base_model, chat_tokenizer, trained_model

from course_utils.publishing import gate, merging
from course_utils.publishing.gate import behaviour, files, release


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def trained(tokenizer):
    return trained_model(tokenizer)


@pytest.fixture(scope="module")
def observation(trained, tokenizer):
    return gate.observe(trained, tokenizer, PROMPTS, max_new_tokens=24)


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained.save_pretrained(folder)
    return folder


def merged_model(tokenizer, adapter):
    return PeftModel.from_pretrained(base_model(tokenizer), adapter).merge_and_unload()


@pytest.fixture(scope="module")
def faithful(tokenizer, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faithful") / "model"
    merging.save(merged_model(tokenizer, adapter), tokenizer, folder)
    return folder


@pytest.fixture
def folder(faithful, tmp_path):
    """A copy of the faithful merge, to spoil."""
    return shutil.copytree(faithful, tmp_path / "model")


@pytest.fixture
def same_process(monkeypatch):
    """Run the folder here: a new process takes seconds, and one test is enough."""

    def run_here(folder, observation):
        out = folder.parent / "out"
        out.mkdir(exist_ok=True)
        o = observation
        release.behave_from_folder(
            folder, out, o.prompts, o.reference.answers, o.max_new_tokens
        )
        said = json.loads((out / release.ANSWERS).read_text(encoding="utf-8"))
        logits = load_file(out / release.BEHAVIOUR)
        rows = tuple(logits[str(i)] for i in range(len(o.prompts)))
        return behaviour.Behaviour(said["questions"], said["answers"], rows)

    monkeypatch.setattr(release, "run_folder", run_here)


def failed(found):
    return {check.name for check in found.checks if not check.passed}


# --- a faithful merge ---------------------------------------------------------------


def test_a_faithful_merge_passes_in_a_new_process(observation, folder, tokenizer):
    found = gate.release_gate(observation, folder, tokenizer, command="a test")
    assert found.passed and found.failures == () and str(found).endswith("PASSED")
    d = found.distance
    assert d.n == 3 and d.tokens > 8
    assert d.kl.value < 1e-9 and d.max_logit_difference < 1e-3
    assert d.same_answers.value == d.same_next_token == d.stop_is_argmax == d.ended == 1
    record = gate.require_passed(folder)
    names = [check["name"] for check in record["checks"]]
    assert names == [check.name for check in found.checks] and len(names) > 1
    assert record["run"]["command"] == "a test"
    assert record["measured"]["distance"]["kl"]["n"] == 3
    assert sorted(record["files"])[:2] == ["chat_template.jinja", "config.json"]


def test_the_record_lies_in_no_folder_that_could_not_be_run(
    observation, folder, tokenizer, monkeypatch
):
    (folder / gate.GATE_FILE).write_text('{"passed": true}', encoding="utf-8")

    def broken(command, **more):
        assert command[1:4] == ["-m", "course_utils.publishing.gate", str(folder)]
        return subprocess.CompletedProcess(command, 1, "", "Trace\nOSError: broken\n")

    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(RuntimeError, match="cannot run the folder .*: OSError: broken"):
        gate.release_gate(observation, folder, tokenizer)
    assert not (folder / gate.GATE_FILE).exists()


def test_the_noise_of_a_float32_model_is_rounding(observation):
    assert 0 <= observation.noise.kl.value < 1e-9
    assert observation.noise.same_answers.value == 1


def test_kl_and_logits_are_those_of_the_definition(observation, trained, tokenizer):
    other = base_model(tokenizer).eval()
    found = gate.compare(observation, other)
    kl, largest, tokens = 0, 0, 0
    reference = observation.reference
    for question, answer in zip(reference.questions, reference.answers, strict=True):
        ids = torch.tensor([question + answer])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(question) - 1 : -1] for m in (trained, other))
        kl += torch.nn.functional.kl_div(
            q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum"
        ).item()
        largest = max(largest, (p - q).abs().max().item())
        tokens += len(answer)
    assert found.tokens == tokens
    assert found.kl.value == pytest.approx(kl / tokens, rel=1e-4)
    assert found.kl.low < found.kl.value < found.kl.high
    assert found.max_logit_difference == pytest.approx(largest, rel=1e-4)


# --- faults of the files: each has its own check, and only that one fails ------------


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
        encoding="utf-8",
    )


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder):
    torch.save({}, folder / "training_args.bin")


def own_code(folder):
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text("print()", encoding="utf-8")


def own_classes(folder):
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.X", None]})


def pickled_tokenizer(folder):
    (folder / "tokenizer.pkl").write_bytes(b"")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def not_a_number(folder):
    # The row of a token that is in no prompt and no answer: no logit shows it.
    edit_weights(folder, lambda t: t["model.embed_tokens.weight"][3].fill_(torch.nan))


def quantization_config(folder):
    edit(folder, "config.json", quantization_config={"load_in_4bit": True})


def four_bit(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda t: t.update({name: t[name].to(torch.uint8)}))


def unmerged(folder):
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


def lora_tensor(folder):
    edit_weights(folder, lambda t: t.update({"model.lora_A.weight": torch.zeros(1)}))


def grown(folder):
    def grow(tensors):
        for name in files.TABLES:
            rows = tensors[name]
            tensors[name] = torch.cat([rows, rows[:8]])

    edit_weights(folder, grow)
    edit(folder, "config.json", vocab_size=len(chat_tokenizer()) + 8)


def added_token(folder):
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(folder)


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def change_template(folder, change):
    path = folder / "chat_template.jinja"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def other_template(folder):
    change_template(folder, lambda text: text.replace("\n\n", "\n"))


def twice_begun(folder):
    change_template(folder, lambda text: "{{ bos_token }}" + text)


def line_after_the_end(folder):
    # As ChatML has it: TRL would append a second end of turn.
    change_template(folder, lambda text: text.replace("<|eot_id|>'", "<|eot_id|>\n'"))


def tokenizer_ends_elsewhere(folder):
    edit(folder, "tokenizer_config.json", eos_token="<|end_of_text|>")


def padding_is_the_end(folder):
    edit(folder, "tokenizer_config.json", pad_token="<|eot_id|>")


def runs_on(folder):
    edit(folder, "generation_config.json", eos_token_id=1)


@pytest.mark.promise(
    "a merged folder whose files are not those of the trained model",
    "the release gate names the fault and refuses it",
)
@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (pickled, "no file that can run code", "training_args.bin can run code"),
        (own_code, "no file that can run code", "code/modeling.py can run code"),
        (own_classes, "no file that can run code", "asks to run Python of its own"),
        (pickled_tokenizer, "no file that can run code", "tokenizer.pkl can run code"),
        (no_tokenizer, "weights and settings complete", "tokenizer.json is missing"),
        (no_weights, "weights and settings complete", "holds neither model.safe"),
        (not_a_number, "weights finite", "embed_tokens.weight holds NaN"),
        (quantization_config, "nothing left of NF4 or adapter", "config.json still"),
        (four_bit, "nothing left of NF4 or adapter", "up_proj.weight is stored as U8"),
        (unmerged, "nothing left of NF4 or adapter", "was the adapter merged"),
        (lora_tensor, "nothing left of NF4 or adapter", "belongs to an adapter"),
        (grown, "same vocabulary", "rows and ids, the trained model's"),
        (added_token, "same vocabulary", "the tokenizer has id "),
        (no_template, "chat format", "no chat template was saved"),
        (other_template, "chat format", "other tokens for a prompt"),
        (twice_begun, "chat format", "exactly one BOS"),
        (line_after_the_end, "chat format", "exactly one end of turn"),
        (tokenizer_ends_elsewhere, "chat format", "ends at '<|end_of_text|>'"),
        (padding_is_the_end, "chat format", "the end of turn itself"),
        (runs_on, "end of turn in generation config", "ends at [1], and the turn"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_of_the_files_is_named(
    observation, folder, tokenizer, spoil, check, words
):
    assert not failed_files(folder, observation, tokenizer)
    spoil(folder)
    found = gate.release_gate(observation, folder, tokenizer)
    assert failed(found) == {check}
    assert words in found.failures[0]
    assert found.distance is None  # it was not run
    with pytest.raises(ValueError, match="The release gate refused"):
        gate.require_passed(folder)


def failed_files(folder, observation, tokenizer):
    checks = release.check_files(folder, observation, tokenizer)
    return {check.name for check in checks if not check.passed}


# --- faults of the weights ----------------------------------------------------------


def test_the_base_without_its_adapter(observation, tmp_path, tokenizer, same_process):
    merging.save(base_model(tokenizer), tokenizer, tmp_path / "model")
    found = gate.release_gate(observation, tmp_path / "model", tokenizer)
    assert failed(found) == {
        "KL of trained and published",
        "largest logit difference",
        "same next token",
        "same greedy answers",
        "end of turn is argmax after an answer",
        "answers end by themselves",
    }


def test_an_adapter_saved_without_its_token_rows(
    observation, adapter, tokenizer, tmp_path, same_process
):
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    file = broken / "adapter_model.safetensors"
    tensors = load_file(file)
    kept = {k: v for k, v in tensors.items() if "token_adapter" not in k}
    assert len(kept) == len(tensors) - 2
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(KeyError, match="trainable_tokens_delta"):  # PEFT itself sees it
        merged_model(tokenizer, broken)
    edit(broken, "adapter_config.json", trainable_token_indices=None)  # now it cannot
    merging.save(merged_model(tokenizer, broken), tokenizer, tmp_path / "model")
    found = gate.release_gate(observation, tmp_path / "model", tokenizer)
    assert {"KL of trained and published", "largest logit difference"} <= failed(found)


def test_one_logit_far_off_shows_where_the_kl_does_not(observation):
    reference = observation.reference
    logits = [rows.clone() for rows in reference.logits]
    logits[0][0, logits[0][0].argmin()] -= 1  # a token that nobody would draw
    other = replace(reference, logits=tuple(logits))
    found = gate.distance(reference, other, observation.end)
    assert 0 < found.kl.value < gate.MAX_KL
    checks = release.check_behaviour(found, observation, reference.questions)
    failing = {check.name for check in checks if not check.passed}
    assert failing == {"largest logit difference"}


def test_an_end_of_turn_that_is_only_second(
    observation, folder, tokenizer, same_process
):
    end = tokenizer.eos_token_id

    def quieter(tensors):
        tensors["lm_head.weight"][end] *= -1

    edit_weights(folder, quieter)
    found = gate.release_gate(observation, folder, tokenizer)
    assert "end of turn is argmax after an answer" in failed(found)
    assert "answers end by themselves" in failed(found)


def test_nan_logits_do_not_pass_as_small(observation):
    reference = observation.reference
    nan = tuple(rows * torch.nan for rows in reference.logits)
    broken = replace(reference, logits=nan)
    found = gate.distance(reference, broken, observation.end)
    names = {
        check.name
        for check in release.check_behaviour(found, observation, reference.questions)
        if not check.passed
    }
    assert {"KL of trained and published", "largest logit difference"} <= names


def test_other_prompts_in_the_new_process(observation):
    reference = observation.reference
    found = gate.distance(reference, reference, observation.end)
    others = [[0, *question] for question in reference.questions]
    (check,) = [
        check
        for check in release.check_behaviour(found, observation, others)
        if not check.passed
    ]
    assert check.failure == "other ids were read"


def test_a_trained_model_that_never_ends_is_not_published(tokenizer):
    endless = base_model(tokenizer)
    seen = gate.observe(endless, tokenizer, PROMPTS, max_new_tokens=8)
    found = gate.compare(seen, endless)
    names = [
        check.failure
        for check in release.check_behaviour(found, seen, seen.reference.questions)
        if not check.passed
    ]
    (words,) = names
    assert words.startswith("end of turn is argmax after an answer: none ended")


# --- the noise ----------------------------------------------------------------------


def with_noise(observation, kl, largest=0.0):
    estimate = replace(observation.noise.kl, value=kl)
    noise = replace(observation.noise, kl=estimate, max_logit_difference=largest)
    return replace(observation, noise=noise)


def checks_at(observation, kl, noise):
    reference = observation.reference
    found = gate.distance(reference, reference, observation.end)
    found = replace(found, kl=replace(found.kl, value=kl))
    seen = with_noise(observation, noise)
    checks = release.check_behaviour(found, seen, reference.questions)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    ("kl", "noise", "fails"),
    [
        (0.9e-4, 0, set()),
        (1.1e-4, 0, {"KL of trained and published"}),
        (1.1e-4, 0.4e-4, set()),  # within three times the noise
        (1.3e-4, 0.4e-4, {"KL of trained and published"}),
        (1e-3, 1e-2, {"trained model agrees with itself"}),
    ],
)
def test_the_limit_follows_the_noise_up_to_a_point(observation, kl, noise, fails):
    assert checks_at(observation, kl, noise) == fails


def test_other_kernels_of_nf4_are_part_of_the_noise(tokenizer, adapter, tmp_path):
    from transformers import AutoModelForCausalLM

    from course_utils.models import nf4_config

    base_model(tokenizer).save_pretrained(tmp_path)

    def nf4():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=nf4_config(torch.float32)
        )

    evaluated = PeftModel.from_pretrained(nf4(), adapter)
    seen = gate.observe(evaluated, tokenizer, PROMPTS, max_new_tokens=24)
    kl = {
        name: gate.compare(
            seen, PeftModel.from_pretrained(start, adapter).merge_and_unload()
        ).kl.value
        for name, start in {
            "dequantised": nf4().dequantize(),
            "full precision": base_model(tokenizer),
            "nf4": nf4(),
        }.items()
    }
    assert kl["dequantised"] < 1e-9
    assert 10 * max(seen.noise.kl.value, 1e-9) < kl["full precision"] < kl["nf4"]


# --- bad input ----------------------------------------------------------------------


def test_one_prompt_proves_nothing(trained, tokenizer):
    with pytest.raises(ValueError, match="at least two prompts, and got 1"):
        gate.observe(trained, tokenizer, PROMPTS[:1])


def test_a_folder_that_is_not_there(observation, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to check"):
        gate.release_gate(observation, tmp_path / "nowhere", tokenizer)


def test_a_grown_vocabulary_has_no_logits_to_compare(observation, tokenizer):
    other = base_model(tokenizer)
    other.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    with pytest.raises(ValueError, match="Was it resized?"):
        gate.compare(observation, other)
