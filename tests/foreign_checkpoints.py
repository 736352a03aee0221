"""Checkpoints as others write them: by PyTorch itself, in its own environment, and by h5py in the two generations of Keras's names."""

from __future__ import annotations

import functools
import os
import pickle
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from impls.spec import ModelSpec, layers
from impls.weights.checkpoints import state_dict
from impls.weights.checkpoints.names import KERAS, KerasNames
from impls.weights.folding import followed
from tests.frameworks import interpreter

Array = npt.NDArray[Any]

FIRST, LATER, VGG = KERAS

BY_TORCH = """
import sys
from collections import OrderedDict
from pathlib import Path
import numpy as np
import torch

folder = Path(sys.argv[1])
given = {name: torch.from_numpy(array) for name, array in np.load(folder / "given.npz").items()}
state = OrderedDict(given)
state._metadata = OrderedDict({"": {"version": 1}})
old = {"_use_new_zipfile_serialization": False}

torch.save(state, folder / "zip.pth")
torch.save(state, folder / "row.pth", **old)
for protocol in (3, 4, 5):
    torch.save(state, folder / f"protocol{protocol}.pth", pickle_protocol=protocol)
scattered = {"module." + name: torch.nn.Parameter(tensor) for name, tensor in given.items()}
adam = {"state": {0: {"step": 7, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]}
training = {"state_dict": OrderedDict(scattered), "epoch": 90, "arch": "net", "best_acc1": torch.tensor(0.5), "optimizer": adam}
torch.save(training, folder / "training.pth")
torch.save(training, folder / "training_row.pth", **old)
torch.save({name: tensor.half() for name, tensor in given.items()}, folder / "half.pth")
torch.save({name: tensor.bfloat16() for name, tensor in given.items()}, folder / "bfloat16.pth")
torch.save({name: tensor.double() for name, tensor in given.items()}, folder / "double.pth", **old)
torch.save({"a": given["a"].to(memory_format=torch.channels_last), "b": given["b"]}, folder / "strided.pth")
whole = torch.arange(64.0)
torch.save({"a": whole[8:20].view(3, 4), "b": whole[::2]}, folder / "shared.pth")
torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
torch.save([given["a"]], folder / "list.pth")
torch.jit.script(torch.nn.ReLU()).save(str(folder / "program.pth"))
for exported in sys.argv[2:]:
    loaded = torch.load(exported, weights_only=True)
    np.savez(exported + ".npz", **{name: tensor.numpy() for name, tensor in loaded.items()})
"""

GIVEN = {
    "a": np.random.default_rng(0).integers(-127, 128, (2, 3, 4, 5)).astype(np.float32) / 64,
    "b": np.arange(7, dtype=np.float32),
    "scalar": np.float32(3).reshape(()),
    "empty": np.zeros((0, 2), np.float32),
}
"""All numbers are exact in half precision and in bfloat16."""


@functools.cache
def by_torch() -> Path:
    """A folder of what PyTorch saves of ``GIVEN``, and what it makes of a state dict of ours."""
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    np.savez(folder / "given.npz", **GIVEN)
    subprocess.run([interpreter("pytorch"), "-c", BY_TORCH, folder], check=True)
    return folder


def loaded_by_torch(path: Path) -> dict[str, Array]:
    """What ``torch.load`` makes of a file."""
    script = BY_TORCH.partition("for exported")
    subprocess.run([interpreter("pytorch"), "-c", f"import sys, numpy as np, torch\n{script[1]}{script[2]}", "", path], check=True)
    return dict(np.load(f"{path}.npz"))


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        """The attack of every tutorial."""
        return os.system, (f"touch {self.mark}",)


def archive(path: Path, program: bytes, members: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip archive as ``torch.save`` writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as written:
        written.writestr("archive/data.pkl", program)
        for name, data in (members or {}).items():
            written.writestr(f"archive/{name}", data)
    return path


def row(path: Path, program: bytes, storages: Mapping[str, Array] | None = None) -> Path:
    """The older serialisation around any pickle."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    given = storages or {}
    start = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine))
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in given.values())
    path.write_bytes(start + program + pickle.dumps(list(given), 2) + data)
    return path


def pickled(tensors: Mapping[str, Array]) -> bytes:
    """The pickle of a state dict whose tensors lie in the storages "0", "1", ..."""
    return state_dict._pickle(tensors)


def keras(path: Path, model: ModelSpec, weights: Mapping[str, Array], names: KerasNames, *, whole: bool = False) -> dict[str, Array]:
    """Write weights as Keras does, with biases before batch norm that add to the means; the biases by convolution come back."""
    generator = np.random.default_rng(7)
    biases = {conv: generator.standard_normal(weights[f"{conv}.weight"].shape[0]).astype(np.float32) for conv, _ in followed(model.body)}
    of = dict(followed(model.body))
    old = names is FIRST
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        if whole:
            file.create_dataset("optimizer_weights/iteration:0", data=np.int64(3))
        for layer in layers(model.body):
            arrays = {leaf: weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
            if not arrays:
                continue
            theirs = names.names(model)[layer.name]
            if layer.name in of:
                arrays = {"weight": arrays["weight"].transpose(2, 3, 1, 0), "bias": biases[layer.name]}
                leaves = {"weight": "W" if old else "kernel", "bias": "b" if old else "bias"}
            elif "running_mean" in arrays:
                conv = next(conv for conv, norm in of.items() if norm == layer.name)
                arrays["running_mean"] = arrays["running_mean"] + biases[conv]
                leaves = {"weight": "gamma", "bias": "beta"}
                leaves |= {
                    "running_mean": "running_mean" if old else "moving_mean",
                    "running_var": "running_std" if old else "moving_variance",
                }
            else:
                arrays["weight"] = arrays["weight"].T
                leaves = {"weight": "W" if old else "kernel", "bias": "b" if old else "bias"}
            for leaf, array in arrays.items():
                place = f"{theirs}/{theirs}_{leaves[leaf]}_1:0" if old else f"{theirs}/{theirs}/{leaves[leaf]}:0"
                root.create_dataset(place, data=array)
            root[theirs].attrs["weight_names"] = [b"kept by Keras, read by nobody here"]
        root.create_group("activation_1")  # layers without weights are empty groups
    return biases
