"""Checkpoints: after save, load and resume every mode continues bit for bit."""

import copy
import io
import pickle

import pytest
import torch
from common import all_modes, assert_same, batches, net, snapshot, start, train, vector
from torch import nn

from acme import Acme


def saved(optimizer: Acme) -> dict:
    """The state dict, written to a file and read back the safe way."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@all_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
def test_resume_at_any_step(mode, dtype, groups) -> None:
    kept = dict(gain=2.0, adapt_steps=8, search_steps=3) if mode["acme"] else {}

    def make(model):
        named = list(model.named_parameters())
        if groups == 1:
            return Acme(model, start(mode), **mode, total_steps=15, bias_correction=mode["adam"])
        parts = [{"params": named[:2]}, {"params": named[2:], "lr": start(mode) / 3}]
        return Acme(parts, start(mode), **mode, total_steps=15, **kept)

    data = batches(dtype=dtype)
    for stop in (0, 1, 4, 7) if groups == 2 else (0, 1, 4):
        model = net(dtype, dropout=0.2)
        optimizer = make(model)
        train(model, optimizer, data, stop)
        weights, state, rng = copy.deepcopy(model.state_dict()), saved(optimizer), torch.get_rng_state()
        losses = train(model, optimizer, data, 6, first=stop)

        torch.manual_seed(99)
        again = net(dtype, dropout=0.2)
        resumed = make(again)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        torch.set_rng_state(rng)
        assert train(again, resumed, data, 6, first=stop) == losses
        assert_same(snapshot(model, optimizer), snapshot(again, resumed))


@all_modes
def test_loading_leaves_the_dict_alone(mode) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, data, 3)
    state = saved(optimizer)
    kept = copy.deepcopy(state)
    other = net()
    resumed = Acme(other, 123.0, **mode)
    resumed.load_state_dict(state)
    train(other, resumed, data, 3)  # nor does going on from it
    assert state["param_groups"] == kept["param_groups"]
    for index, entry in kept["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, state["state"][index][key])


@all_modes
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_on_by_themselves(mode, way) -> None:
    model, data = net(dropout=0.2), batches()
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, data, 3)
    pair = (model, optimizer)
    twin, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    torch.manual_seed(1)
    losses = train(model, optimizer, data, 3)
    torch.manual_seed(1)
    assert train(twin, other, data, 3) == losses
    assert torch.equal(vector(model.parameters()), vector(twin.parameters()))
    # The copy knows its own model: its buffers count one batch a step.
    assert twin[1].num_batches_tracked == 6 == model[1].num_batches_tracked
    assert other.param_groups[0]["params"][0] is next(twin.parameters())


def test_older_state_dicts_load() -> None:
    """What a group lacks is taken from the constructor, and the run's own entries from their start."""
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True)
    train(model, optimizer, data, 2)
    state = optimizer.state_dict()
    kept = {"lr", "betas", "weight_decay", "params", "initial_lr"}
    state["param_groups"] = [{k: v for k, v in g.items() if k in kept} for g in state["param_groups"]]
    other = net()
    resumed = Acme(other, 0.5, acme=True, total_steps=77)
    resumed.load_state_dict(state)
    group = resumed.param_groups[0]
    assert (group["lr"], group["step_size"], group["reference_lr"]) == (0.1, 0.1, 0.1)
    assert (group["acme"], group["total_steps"], group["t"], group["annealing_step"]) == (True, 77, 1, 0)
    train(other, resumed, data, 3)


def test_saved_options_win_and_are_checked() -> None:
    model = net()
    plain, other = Acme(model, 0.1), Acme(model, 0.2, acme=True, nesterov=True)
    plain.load_state_dict(other.state_dict())
    assert plain.param_groups[0]["acme"] and plain.param_groups[0]["lr"] == 0.2
    assert plain.defaults["nesterov"]
    state = other.state_dict()
    state["param_groups"][0]["epsilon"] = -1
    with pytest.raises(ValueError, match="epsilon"):
        plain.load_state_dict(state)


def test_asam_state_needs_names() -> None:
    model = net()
    state = Acme(model, 0.1, asam=True).state_dict()
    for group in state["param_groups"]:
        del group["param_names"]
    with pytest.raises(ValueError, match="names"):
        Acme(model.parameters(), 0.1).load_state_dict(state)
    named = Acme(model, 0.1)
    named.load_state_dict(state)  # it has names of its own
    assert named.param_groups[0]["asam"]


def test_switching_adam_on_by_loading_starts_its_average() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1)
    train(model, optimizer, data, 2)
    state = optimizer.state_dict()
    state["param_groups"][0]["adam"] = True
    optimizer.load_state_dict(state)
    train(model, optimizer, data, 2)
    assert all((optimizer.state[p]["exp_avg_sq"] > 0).all() for p in model.parameters())


def test_wrong_state_dict_is_refused() -> None:
    model = net()
    state = Acme(model, 0.1).state_dict()
    with pytest.raises(ValueError, match="group"):
        Acme(nn.Linear(2, 2), 0.1).load_state_dict(state)


def test_users_load_hooks_still_count() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1)
    train(model, optimizer, data, 1)
    state = optimizer.state_dict()

    def double(_, loaded):
        new = copy.deepcopy(loaded)
        for entry in new["state"].values():
            entry["exp_avg"] *= 2
        return new

    other = Acme(net(), 0.1)
    handle = other.register_load_state_dict_pre_hook(double)
    other.load_state_dict(state)
    handle.remove()
    loaded = [entry["exp_avg"] for entry in other.state_dict()["state"].values()]
    assert all(torch.equal(a, 2 * b["exp_avg"]) for a, b in zip(loaded, state["state"].values(), strict=True))
    other.load_state_dict(state)  # no hook of ours is left behind
    assert not other._optimizer_load_state_dict_pre_hooks


def test_repr() -> None:
    model = net()
    named = list(model.named_parameters())
    optimizer = Acme([{"params": named[:2]}, {"params": named[2:], "lr": 0.5}], 0.1, acme=True)
    text = repr(optimizer)
    assert text.startswith("Acme(acme=True, adam=False, asam=False, nesterov=False")
    assert "group 0: 2 tensors, lr=0.1" in text and "group 1: 4 tensors, lr=0.5" in text
    assert "tensor(" not in text and len(text.splitlines()) == 4


def test_step_hooks_run_once_a_step() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.01, acme=True, asam=True)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(model, optimizer, data, 2)
    assert calls == ["pre", "post"] * 2


@pytest.mark.parametrize("adam", [False, True])
def test_averages_that_have_become_zero_are_loaded_as_they_are(adam: bool) -> None:
    """With β1 = 0 a gradient of zero at the look-ahead leaves an average of zeros, which is not one without a gradient."""

    def evaluate(param: torch.Tensor) -> torch.Tensor:
        loss = param.detach().clamp(min=0).square().sum() / 2 + 1
        param.grad = param.detach().clamp(min=0)
        return loss

    param = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = Acme([param], lr=50.0, betas=(0.0, 0.9), acme=True, adam=adam, bias_correction=adam)
    optimizer.step(lambda: evaluate(param))
    before = {key: value.clone() for key, value in optimizer.state[param].items()}
    assert not before["exp_avg"].any() and all(
        value.any() for key, value in before.items() if key != "exp_avg"
    )

    twin = torch.nn.Parameter(param.detach().clone())
    loaded = Acme([twin], lr=1.0, acme=True, adam=adam, bias_correction=adam)
    loaded.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        param += 2000
        twin += 2000

    def fails() -> torch.Tensor:
        if twin.grad is not None:
            raise RuntimeError("out of memory")
        return evaluate(twin)

    with pytest.raises(RuntimeError, match="out of memory"):
        loaded.step(fails)
    assert loaded.state[twin].keys() == before.keys()
    assert all(torch.equal(loaded.state[twin][key], value) for key, value in before.items())

    for each, of in ((param, optimizer), (twin, loaded)):
        of.step(lambda each=each: evaluate(each))
    assert torch.equal(param, twin)
    for key, value in optimizer.state[param].items():
        assert torch.equal(loaded.state[twin][key], value)
