"""Every evaluation of a step sees the same network: dropout masks, generators, BatchNorm, buffers."""

import pytest
import torch
from common import all_modes, batches, evaluations, make_closure, net, start
from torch import nn

from acme import Acme


class Recorder(nn.Module):
    """Dropout that keeps the masks it drew, and a buffer that counts forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = []
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, x):
        self.masks.append(self.dropout(torch.ones_like(x)))
        self.calls += 1
        self.replaced = self.replaced + 1  # another tensor under the same name
        return x * self.masks[-1]


def recorded_net():
    model = net()
    recorder = Recorder()
    model.insert(3, recorder)
    return model, recorder


@all_modes
def test_same_masks_and_one_count(mode) -> None:
    model, recorder = recorded_net()
    (batch,) = batches(1)
    optimizer = Acme(model, start(mode), **mode)
    torch.manual_seed(7)
    for step in range(1, 4):
        recorder.masks.clear()
        optimizer.step(make_closure(model, optimizer, batch))
        assert len(recorder.masks) == evaluations(mode)
        assert all(torch.equal(mask, recorder.masks[0]) for mask in recorder.masks)
        assert recorder.calls == step and (recorder.replaced == step).all()
        assert model[1].num_batches_tracked == step


@all_modes
def test_surroundings_are_those_of_one_evaluation(mode) -> None:
    """Generator and BatchNorm statistics afterwards, against a model that was evaluated once."""
    (batch,) = batches(1)
    once, _ = recorded_net()
    torch.manual_seed(7)
    make_closure(once, torch.optim.SGD(once.parameters()), batch)()
    expected = torch.rand(3)

    model, _ = recorded_net()
    optimizer = Acme(model, start(mode), **mode)
    torch.manual_seed(7)
    optimizer.step(make_closure(model, optimizer, batch))
    assert torch.equal(torch.rand(3), expected)
    for (name, buffer), other in zip(model.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_masks_differ_between_steps() -> None:
    model, recorder = recorded_net()
    (batch,) = batches(1)
    optimizer = Acme(model, 0.1, acme=True)
    for _ in range(2):
        optimizer.step(make_closure(model, optimizer, batch))
    assert not torch.equal(recorder.masks[0], recorder.masks[2])


def test_parameters_alone_leave_buffers_to_the_user() -> None:
    """Documented: without the module, `Acme` cannot know the buffers, and each evaluation counts."""
    model = net()
    (batch,) = batches(1)
    optimizer = Acme(model.parameters(), 0.1, acme=True)
    optimizer.step(make_closure(model, optimizer, batch))
    assert model[1].num_batches_tracked == 2


@all_modes
def test_returned_loss_is_the_first(mode) -> None:
    """Also where the closure returns the same memory at every evaluation, as a CUDA graph does."""
    model = net()
    (batch,) = batches(1)
    optimizer = Acme(model, start(mode), **mode)
    memory = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.train()(batch[0]), batch[1]).item()

    def spoil(call, loss):
        memory.copy_(loss.detach())
        return memory

    loss = optimizer.step(make_closure(model, optimizer, batch, spoil))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert not loss.requires_grad


def test_closure_may_return_a_number() -> None:
    model = net()
    (batch,) = batches(1)
    optimizer = Acme(model, 0.1, acme=True)
    loss = optimizer.step(make_closure(model, optimizer, batch, lambda call, loss: loss.item()))
    assert isinstance(loss, float) and loss == optimizer.report.loss


def test_gradients_are_enabled_for_the_closure_only() -> None:
    model = net()
    (batch,) = batches(1)
    optimizer = Acme(model, 0.1, acme=True)
    with torch.no_grad():
        optimizer.step(make_closure(model, optimizer, batch))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("set_to_none", [False, True])
@all_modes
def test_zero_grad_in_place_is_the_same(mode, set_to_none) -> None:
    results = []
    for in_place in (True, set_to_none):
        model = net()
        optimizer = Acme(model, start(mode), **mode)
        for batch in batches(3):

            def closure(model=model, optimizer=optimizer, batch=batch, in_place=in_place):
                optimizer.zero_grad(set_to_none=not in_place)
                loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
                loss.backward()
                return loss

            optimizer.step(closure)
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *results))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: its generator cannot be checked")
def test_cuda_generator() -> None:
    model, recorder = recorded_net()
    model.cuda()
    x, y = batches(1)[0]
    optimizer = Acme(model, 0.1, acme=True, asam=True)
    torch.cuda.manual_seed(7)
    optimizer.step(make_closure(model, optimizer, (x.cuda(), y.cuda())))
    assert all(torch.equal(mask, recorder.masks[0]) for mask in recorder.masks)
    after = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(7)
    torch.nn.functional.dropout(torch.ones_like(recorder.masks[0]), 0.5)
    assert torch.equal(torch.rand(3, device="cuda"), after)
