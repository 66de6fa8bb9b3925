"""Files that hand an agent over, programs that act as it does, and refusals of anything else."""

import pickle
import time
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from perdqn import handover
from perdqn.acting.environment import MissingExtra
from perdqn.config import ClassSpec, LearnerConfig
from perdqn.handover import export, fill_optimizer, load_model, save_model
from perdqn.learning.networks import build_network
from perdqn.module import PERDQN
from perdqn.transition import OBS, Column, EnvSpec

SMALL = {"capacity": 200}


def agent(seed=0, env="CartPole-v1", hidden_sizes=(8,), dueling=True, **settings):
    network = {"class_path": "mlp", "init_args": {"hidden_sizes": list(hidden_sizes)}}
    learner = {"warmup_env_steps": 50, "batch_size": 8, "target_update_period": 100, "dueling": dueling}
    settings = {"replay": SMALL, "learner": learner, "total_env_steps": 1_000, **settings}
    return PERDQN(env=env, network=network, seed=seed, **settings)


def fill_memory(module, num_steps=120):
    rng = np.random.default_rng(1)
    for step in range(num_steps):
        obs = {OBS: rng.normal(size=(1, 4)).astype(np.float32)}
        ended = np.array([step % 10 == 9])
        module.memory.add(
            obs, rng.integers(2, size=1), rng.normal(size=1).astype(np.float32), ended, ~ended & ended, obs
        )


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# -- saving and loading --------------------------------------------------------------------------


def test_loaded_agent_acts_as_the_saved_one(tmp_path):
    saved, loaded = agent(seed=1), agent(seed=2)
    with torch.no_grad():
        saved.target.head.advantage.bias += 1.0  # online and target differ
    save_model(saved, tmp_path / "agent.pt")
    load_model(loaded, tmp_path / "agent.pt")
    assert_same(weights(loaded), weights(saved))
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert loaded.act(obs).tolist() == saved.act(obs).tolist()


def test_file_loads_with_weights_only_and_holds_plain_types(tmp_path):
    module = agent()
    fill_memory(module)
    save_model(
        module, tmp_path / "agent.pt", include_memory=True, metadata={"note": "first", "scores": [1, 2.5]}
    )
    content = torch.load(tmp_path / "agent.pt", weights_only=True)
    assert (content["format"], content["version"]) == ("perdqn-model", 1)
    assert content["config"]["env"]["id"] == "CartPole-v1"
    metadata = content["metadata"]
    assert metadata["training_state"] == {"env_steps": 0, "update_steps": 0, "episodes": 0}
    assert metadata["device"] == "cpu"
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0] or metadata["versions"]["torch"]
    assert metadata["user"] == {"note": "first", "scores": [1, 2.5]}


def test_load_returns_the_metadata_and_leaves_the_counters_alone(tmp_path):
    saved = agent()
    saved.update_steps = 77
    save_model(saved, tmp_path / "agent.pt", metadata={"note": "hello"})
    loaded = agent()
    metadata = load_model(loaded, tmp_path / "agent.pt")
    assert metadata["user"] == {"note": "hello"}
    assert metadata["training_state"]["update_steps"] == 77
    assert metadata["not_loaded"] == []
    assert loaded.update_steps == 0


def test_replay_travels_only_when_asked_for(tmp_path):
    saved = agent()
    fill_memory(saved)
    save_model(saved, tmp_path / "with.pt", include_memory=True)
    save_model(saved, tmp_path / "without.pt")
    assert torch.load(tmp_path / "without.pt", weights_only=True)["memory"] is None
    with_memory, without = agent(seed=5), agent(seed=5)
    load_model(with_memory, tmp_path / "with.pt")
    load_model(without, tmp_path / "without.pt")
    assert (len(with_memory.memory), len(without.memory)) == (len(saved.memory), 0)
    batch, expected = with_memory.memory.sample(16), saved.memory.sample(16)
    assert torch.equal(batch.id, expected.id)
    assert torch.equal(batch.obs[OBS], expected.obs[OBS])


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "agent.pt"
    for seed in (1, 2):
        save_model(agent(seed=seed), path)
    assert [file.name for file in path.parent.iterdir()] == ["agent.pt"]
    loaded = agent()
    load_model(loaded, path)
    assert_same(weights(loaded), weights(agent(seed=2)))


def test_a_save_that_fails_keeps_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "agent.pt"
    save_model(agent(), path)
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(agent(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Level(IntEnum):
    HIGH = 1


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"score": np.float64(1.0)}, r"metadata\.score .* got numpy\.float64"),
        ({"level": Level.HIGH}, r"metadata\.level .* got .*Level"),
        ({"nested": {"list": [1, {2}]}}, r"metadata\.nested\.list\[1\] .* got builtins\.set"),
        ({"when": time.gmtime()}, r"metadata\.when .* got time\.struct_time"),
        ({"by_number": {3: 1}}, r"metadata\.by_number must have str keys, got 3"),
    ],
)
def test_metadata_of_other_types_is_refused_by_its_key(tmp_path, metadata, key):
    with pytest.raises(ValueError, match=key):
        save_model(agent(), tmp_path / "agent.pt", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


# -- the optimiser -------------------------------------------------------------------------------


def adam(module, learning_rate):
    return torch.optim.Adam(module.online.parameters(), lr=learning_rate)


def take_steps(module, optimizer, num_steps):
    for step in range(num_steps):
        optimizer.zero_grad()
        module.online.q_values({OBS: torch.full((3, 4), 0.1 * step)}).square().sum().backward()
        optimizer.step()


def attach(module, optimizer):
    module._trainer = SimpleNamespace(optimizers=[optimizer])


def test_training_goes_on_with_the_saved_moments(tmp_path):
    saved, loaded = agent(seed=1), agent(seed=2)
    attach(saved, adam(saved, 0.01))
    attach(loaded, adam(loaded, 0.01))
    take_steps(saved, saved._trainer.optimizers[0], 5)
    save_model(saved, tmp_path / "agent.pt")
    load_model(loaded, tmp_path / "agent.pt")
    for module in (saved, loaded):
        take_steps(module, module._trainer.optimizers[0], 3)
    assert_same(dict(loaded.online.state_dict()), dict(saved.online.state_dict()))


def test_moments_wait_for_the_fit_to_come(tmp_path):
    saved, loaded = agent(seed=1), agent(seed=2)
    attach(saved, adam(saved, 0.01))
    take_steps(saved, saved._trainer.optimizers[0], 5)
    save_model(saved, tmp_path / "agent.pt")
    load_model(loaded, tmp_path / "agent.pt")
    save_model(loaded, tmp_path / "again.pt")  # and are not lost if no fit comes
    again = agent(seed=3)
    load_model(again, tmp_path / "again.pt")
    optimizer = again.configure_optimizers()
    expected = saved._trainer.optimizers[0].state_dict()["state"]
    found = optimizer.state_dict()["state"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[i]["exp_avg_sq"], expected[i]["exp_avg_sq"]) for i in expected)


def test_learning_rate_stays_as_configured():
    module = agent()
    old, new = adam(module, 0.01), adam(module, 0.5)
    take_steps(module, old, 2)
    state = old.state_dict()
    fill_optimizer(new, state)
    assert new.param_groups[0]["lr"] == 0.5
    assert new.state_dict()["state"][0]["step"] == 2
    take_steps(module, new, 1)
    assert state["state"][0]["step"] == 2  # the saved state is not shared


def test_optimizer_is_left_out_when_not_asked_for(tmp_path):
    module = agent()
    attach(module, adam(module, 0.01))
    take_steps(module, module._trainer.optimizers[0], 1)
    save_model(module, tmp_path / "agent.pt", save_optimizer=False)
    assert torch.load(tmp_path / "agent.pt", weights_only=True)["optimizer"] is None


# -- devices -------------------------------------------------------------------------------------


def test_file_holds_cpu_tensors_whatever_the_device(tmp_path):
    module = agent()
    save_model(module, tmp_path / "agent.pt")
    tensors = torch.load(tmp_path / "agent.pt", weights_only=True, map_location=None)["online"].values()
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_device_override_moves_the_module(tmp_path):
    save_model(agent(), tmp_path / "agent.pt")
    module = agent()
    load_model(module, tmp_path / "agent.pt", device_override="meta")
    assert module.device.type == "meta"
    assert next(module.online.parameters()).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_agent_travels_between_cuda_and_cpu(tmp_path):
    saved = agent(seed=1).cuda()
    save_model(saved, tmp_path / "agent.pt")
    assert torch.load(tmp_path / "agent.pt", weights_only=True)["metadata"]["device"] == "cuda:0"
    on_cpu, on_cuda = agent(seed=2), agent(seed=3)
    load_model(on_cpu, tmp_path / "agent.pt")
    load_model(on_cuda, tmp_path / "agent.pt", device_override="cuda")
    assert on_cpu.device.type == "cpu"
    assert on_cuda.device.type == "cuda"
    assert_same(weights(on_cpu), weights(on_cuda.cpu()))


# -- refusals ------------------------------------------------------------------------------------


def refused(path, reason, **options):
    module = agent(seed=9)
    before = weights(module)
    with pytest.raises(ValueError, match=reason) as caught:
        load_model(module, path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(weights(module), before)


def edited(path, **changes):
    save_model(agent(), path)
    content = torch.load(path, weights_only=True) | changes
    torch.save({key: value for key, value in content.items() if value != "absent"}, path)
    return path


def test_missing_file_is_refused(tmp_path):
    refused(tmp_path / "agent.pt", "is missing")


def test_folder_is_refused(tmp_path):
    refused(tmp_path, "is not a file")


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps({"format": "perdqn-model"}), b"PK\x03\x04" * 9]
)
def test_file_that_torch_did_not_write_is_refused(tmp_path, content):
    (tmp_path / "agent.pt").write_bytes(content)
    refused(tmp_path / "agent.pt", r"not a file written by torch\.save")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_half_a_file_is_refused(tmp_path, share):
    save_model(agent(), tmp_path / "agent.pt")
    content = (tmp_path / "agent.pt").read_bytes()
    (tmp_path / "agent.pt").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "agent.pt", "or not all of one")


def test_no_flipped_bit_is_loaded(tmp_path):
    path, saved = tmp_path / "agent.pt", agent(seed=1)
    save_model(saved, path)
    whole, rng, num_refused = path.read_bytes(), np.random.default_rng(0), 0
    for position in rng.integers(8 * len(whole), size=200).tolist():
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path.write_bytes(content)
        other = agent()
        before = weights(other)
        try:
            load_model(other, path)
        except ValueError:
            num_refused += 1
            assert_same(weights(other), before)
        else:  # in what pads the file
            assert_same(weights(other), weights(saved))
    assert num_refused > 50


def test_zip_archive_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "agent.npz", a=np.arange(3))
    refused(tmp_path / "agent.npz", r"not a file written by torch\.save, or damaged")


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("code of the file was run",))


def test_pickle_that_needs_code_is_refused_and_not_run(tmp_path):
    torch.save({"format": "perdqn-model", "version": 1, "x": Exploit()}, tmp_path / "agent.pt")
    refused(tmp_path / "agent.pt", "holds objects that need code")


@pytest.mark.parametrize("content", [{"format": "other"}, {"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_another_format_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "agent.pt")
    refused(tmp_path / "agent.pt", r"not a model written by PERDQN\.save_model")


def test_lightning_checkpoint_is_refused_with_the_remedy(tmp_path):
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {}}, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", r"Lightning checkpoint: use PERDQN\.load_from_checkpoint")


def test_newer_version_is_refused_with_the_remedy(tmp_path):
    refused(edited(tmp_path / "agent.pt", version=2), "format version 2, newer than 1: upgrade perdqn")


@pytest.mark.parametrize("version", ["1", None, 0, 1.0])
def test_version_that_is_none_is_refused(tmp_path, version):
    refused(edited(tmp_path / "agent.pt", version=version), f"its format version is {version!r}")


@pytest.mark.parametrize("part", ["online", "target", "metadata", "num_actions", "optimizer", "memory"])
def test_file_without_a_part_is_refused(tmp_path, part):
    refused(edited(tmp_path / "agent.pt", **{part: "absent"}), f"it lacks {part}")


def test_another_number_of_actions_is_refused(tmp_path):
    save_model(agent(env="Acrobot-v1"), tmp_path / "agent.pt")
    refused(tmp_path / "agent.pt", "an agent of 3 actions, but CartPole-v1 has 2")


def test_another_architecture_is_refused_by_parameter(tmp_path):
    save_model(agent(hidden_sizes=(16,)), tmp_path / "agent.pt")
    refused(tmp_path / "agent.pt", r"torso\.layers\.0\.weight has shape \[16, 4\], not \[8, 4\]")
    save_model(agent(hidden_sizes=(8, 8)), tmp_path / "agent.pt")
    refused(tmp_path / "agent.pt", r"another architecture: torso\.layers\.2\.weight is unexpected")
    save_model(agent(dueling=False), tmp_path / "agent.pt")
    refused(tmp_path / "agent.pt", r"head\.value\.weight is missing")


def test_replay_of_another_shape_is_refused(tmp_path):
    saved = agent(replay={"capacity": 300})
    fill_memory(saved)
    save_model(saved, tmp_path / "agent.pt", include_memory=True)
    refused(tmp_path / "agent.pt", r"a replay that does not fit model\.replay")


def test_unstrict_load_takes_what_fits_and_names_the_rest(tmp_path):
    saved, loaded = agent(seed=1, dueling=False), agent(seed=2)
    attach(saved, adam(saved, 0.01))
    take_steps(saved, saved._trainer.optimizers[0], 1)
    save_model(saved, tmp_path / "agent.pt")
    before = weights(loaded)
    metadata = load_model(loaded, tmp_path / "agent.pt", strict=False)
    after, given = weights(loaded), weights(saved)
    assert metadata["not_loaded"] == [
        f"{network}.head.value.{name} is missing"
        for network in ("online", "target")
        for name in ("weight", "bias")
    ]
    for name, value in after.items():
        assert torch.equal(value, given[name] if name in given else before[name])
    assert getattr(loaded, "initial_optimizer_state", None) is None  # its moments are of other parameters


# -- programs ------------------------------------------------------------------------------------


class Owner:
    """As much of a module as an export reads."""

    def __init__(self, spec, network="auto"):
        self.spec = spec
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.online = build_network(spec, ClassSpec(network), ClassSpec("expected"), LearnerConfig())


def columns(*parts, **settings):
    return EnvSpec(tuple(Column(*part) for part in parts), len(parts) > 1, 3, **settings)


SPECS = {
    "vector": columns(("obs", (4,), np.dtype(np.float32))),
    "float64 vector": columns(("obs", (2,), np.dtype(np.float64))),
    "discrete": columns(("obs", (), np.dtype(np.int64), 5, 2)),
    "bool image": columns(("obs", (10, 10, 4), np.dtype(np.bool_))),
    "stacked frames": columns(("obs", (84, 84), np.dtype(np.uint8)), frame_stack=4),
    "dict": columns(("where", (2,), np.dtype(np.float32)), ("the goal", (), np.dtype(np.int64), 3, 0)),
}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", SPECS)
def test_exported_program_computes_the_q_values_of_any_batch(tmp_path, name, suffix):
    owner = Owner(SPECS[name])
    path = tmp_path / f"policy{suffix}"
    difference = export(owner, path)
    assert 0.0 <= difference <= 1e-4
    obs = handover._draw_obs(owner.spec, 7, np.random.default_rng(5))
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (q_values,) = session.run(None, {key: value.numpy() for key, value in obs.items()})
    else:
        q_values = torch.export.load(path).module()(**obs).detach().numpy()
    by_column = dict(zip((c.name for c in owner.spec.columns), obs.values(), strict=True))
    expected = owner.online.q_values(by_column).detach().numpy()
    np.testing.assert_allclose(q_values, expected, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_inputs_are_named_as_the_columns(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export(Owner(SPECS["dict"]), tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["where", "the_goal"]
    assert [o.name for o in session.get_outputs()] == ["q_values"]


def test_export_leaves_the_network_and_the_generators_alone(tmp_path):
    module = agent()
    module.online.train()
    before, state = weights(module), torch.get_rng_state()
    numpy_state = str(np.random.get_state())
    export(module, tmp_path / "policy.pt2")
    assert module.online.training
    assert_same(weights(module), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state


def test_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "_open_pt2", lambda content: lambda **obs: torch.zeros(len(obs["obs"]), 2))
    with pytest.raises(
        ValueError, match=r"policy\.pt2 would differ from the network by .*; nothing is written"
    ):
        export(agent(), tmp_path / "policy.pt2")
    assert list(tmp_path.iterdir()) == []


def test_program_that_computes_nan_is_not_written(tmp_path):
    module = agent()
    nn.init.constant_(module.online.head.advantage.bias, float("nan"))
    with pytest.raises(ValueError, match="differ from the network by nan"):
        export(module, tmp_path / "policy.pt2")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"policy\.pt must end in \.onnx or \.pt2"):
        export(agent(), tmp_path / "policy.pt")


def test_missing_export_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "find_spec", lambda name: None)
    message = r"onnx and onnxscript and onnxruntime: pip install 'perdqn\[export\]'"
    with pytest.raises(MissingExtra, match=message):
        export(agent(), tmp_path / "policy.onnx")
