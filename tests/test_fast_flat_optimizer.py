"""One kernel per optimizer step does what one per tensor does, bit for bit."""

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file

from course_utils.training.fast import flat_optimizer

# Sizes: multiples of 256 and not, below and above min_8bit_size, one dimension and two.
SHAPES = [
    (16, 512),
    (512, 16),
    (20, 256),
    (4096,),
    (7, 300),
    (64, 128),
    (64, 64),
    (10,),
]
KINDS = {
    "8 bit": bitsandbytes.optim.AdamW8bit,
    "paged 8 bit": bitsandbytes.optim.PagedAdamW8bit,
    "32 bit": bitsandbytes.optim.AdamW32bit,
}


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def groups(ours):
    """Two groups with weight decay of their own, each several tensors wide."""
    return [
        {"params": ours[:5], "weight_decay": 0.1},
        {"params": ours[5:], "weight_decay": 0.0, "lr": 1e-3},
    ]


class Twins:
    """The same training twice: tensor by tensor, and laid flat."""

    def __init__(self, kind):
        self.plain, self.flat = parameters(), parameters()
        self.gradients = flat_optimizer.lay_flat(self.flat)
        for parameter, gradient in zip(self.flat, self.gradients, strict=True):
            parameter.grad = gradient
        self.make = KINDS[kind]
        self.of_plain = self.make(groups(self.plain), lr=1e-2)
        self.of_flat = self.make(groups(self.flat), lr=1e-2)

    def step(self, seed, without=()):
        generator = torch.Generator().manual_seed(seed)
        for number, shape in enumerate(SHAPES):
            drawn = torch.randn(shape, generator=generator)
            self.plain[number].grad = None if number in without else drawn
            self.gradients[number].copy_(drawn)
            self.flat[number].grad = (
                None if number in without else self.gradients[number]
            )
        norms = [
            torch.nn.utils.clip_grad_norm_(p, 1.0) for p in (self.plain, self.flat)
        ]
        assert torch.equal(*norms)
        self.of_plain.step()
        with flat_optimizer.steps_at_once():
            self.of_flat.step()

    def assert_equal(self):
        for mine, theirs in zip(self.flat, self.plain, strict=True):
            assert torch.equal(mine, theirs)
            mine, theirs = self.of_flat.state[mine], self.of_plain.state[theirs]
            assert list(mine) == list(theirs)
            for name in theirs:
                assert torch.equal(*map(torch.as_tensor, (mine[name], theirs[name])))


@pytest.fixture
def calls(monkeypatch):
    """Names of the updates that bitsandbytes makes, one per call."""
    made = []
    for name in ("optimizer_update_8bit_blockwise", "optimizer_update_32bit"):
        function = getattr(bitsandbytes.functional, name)

        def counted(*args, _name=name, _function=function, **kwargs):
            made.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(bitsandbytes.functional, name, counted)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_equal_bit_for_bit_and_fewer(kind, calls):
    twins = Twins(kind)
    for seed in range(6):
        calls.clear()
        twins.step(seed)
        twins.assert_equal()
        assert len(calls) < 2 * len(SHAPES) - 3, "nothing was updated together"


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_without_gradient_is_left_alone(kind):
    twins = Twins(kind)
    for seed, without in enumerate([(), (1,), (), (0, 5), (2,), ()]):
        twins.step(seed, without)
        twins.assert_equal()


@pytest.mark.parametrize("of", ["plain", "flat"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_checkpoint_of_either(kind, of, tmp_path, calls):
    twins, sizes = Twins(kind), {}
    twins.step(0)
    for name in ("plain", "flat"):
        optimizer = twins.of_flat if name == "flat" else twins.of_plain
        torch.save(optimizer.state_dict(), tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["flat"] < 1.1 * sizes["plain"] + 4096
    saved = torch.load(tmp_path / of, weights_only=False)
    twins.of_flat = twins.make(groups(twins.flat), lr=1e-2)
    twins.of_flat.load_state_dict(saved)
    calls.clear()
    twins.step(1)
    twins.assert_equal()
    assert len(calls) < 2 * len(SHAPES) - 3, "nothing was updated together"


def test_laid_flat_parameters_keep_values_and_are_saved_as_before(tmp_path):
    flat, plain = parameters(), parameters()
    gradients = flat_optimizer.lay_flat(flat)
    assert [g.shape for g in gradients] == [p.shape for p in plain]
    assert not any(g.any() for g in gradients)
    save_file({str(n): p.data for n, p in enumerate(flat)}, tmp_path / "a.safetensors")
    for number, tensor in load_file(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, plain[int(number)])


@pytest.mark.parametrize("change", ["override", "max_unorm", "moved"])
def test_what_must_not_be_joined_is_not(change, calls):
    twins = Twins("8 bit")
    if change == "override":
        manager = twins.of_flat.mng
        manager.pid2config[id(twins.flat[0])] = {"lr": 1e-3}
        manager.pid2config[id(twins.plain[0])] = {"lr": 1e-3}
    elif change == "max_unorm":
        twins.of_flat.args.max_unorm = twins.of_plain.args.max_unorm = 1.0
    else:
        for parameter in twins.flat:
            parameter.data = parameter.data.clone()
    try:
        twins.step(0)
        twins.assert_equal()
        assert len(calls) == 2 * len(SHAPES)
    finally:
        twins.of_flat.mng.pid2config.clear()
