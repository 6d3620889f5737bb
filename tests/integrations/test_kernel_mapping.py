"""Our layers through the mapping of the kernels package.

In a checkout `import kernels` finds the folder of that name, so what needs the package runs elsewhere.
"""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from fastspeech.integrations.kernel_mapping import register

ROOT = Path(__file__).parents[2]

PREPARED = """
import torch, transformers
import kernels
from kernels import Mode, kernelize
from torch import nn
from fastspeech.integrations import kernel_mapping

torch.cuda.get_device_capability = lambda device=None: CAPABILITY
torch.manual_seed(0)
kernel_mapping.register()
kernel_mapping.register()
sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
config = transformers.LlamaConfig(**sizes, intermediate_size=24, vocab_size=20)
model = transformers.LlamaModel(config).eval()
norm = type(model.norm)
if not hasattr(norm, "kernel_layer_name"):  # transformers wants a version of the package that is not there
    kernels.replace_kernel_forward_from_hub(norm, "RMSNorm")
for part in model.modules():
    if type(part) is norm:
        nn.init.normal_(part.weight)
tokens = torch.arange(14).view(2, 7)

def outcome(model):
    model.zero_grad()
    out = model(tokens).last_hidden_state
    out.square().mean().backward()
    return [out, *(p.grad for p in model.parameters())]

def ours(model):
    return sum(m.forward.__func__ is kernel_mapping.RMSNorm.forward for m in model.modules() if type(m) is norm)

expected = outcome(model)
"""

SERVED = """
for mode in (Mode.INFERENCE, Mode.TRAINING, Mode.TRAINING | Mode.TORCH_COMPILE):
    kernelize(model, mode=mode, device="cuda")
    assert ours(model) == 5, ours(model)
    found = outcome(torch.compile(model, backend="eager", fullgraph=True) if Mode.TORCH_COMPILE in mode else model)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())
layer = norm(16).bfloat16()
kernelize(layer, mode=Mode.INFERENCE, device="cuda")
x = torch.randn(3, 16)
assert torch.equal(layer(x), norm.forward(layer, x))
"""

OLDER = """
try:
    kernelize(model, mode=Mode.INFERENCE, device="cuda")
except Exception as error:  # another library's layer, from its hub
    print(error)
assert ours(model) == 0
"""

FAMILIES = """
import importlib
names = set()
for family in ("cohere_asr", "parakeet", "kyutai_speech_to_text", "mimi", "moonshine", "speech_to_text"):
    try:
        home = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ModuleNotFoundError:
        continue
    names |= {getattr(thing, "kernel_layer_name", None) for thing in vars(home).values()}
assert names <= {None, "rotary_pos_emb"}, names
"""


@pytest.mark.parametrize(
    "capability, checks",
    [
        pytest.param((9, 0), SERVED, id="served"),
        pytest.param((7, 5), OLDER, id="older device"),
        pytest.param((9, 0), FAMILIES, id="families"),
    ],
)
def test_mapping(capability: tuple[int, int], checks: str, tmp_path: Path) -> None:
    try:
        version("kernels")
    except PackageNotFoundError:
        pytest.skip("the kernels package is not installed")
    code = PREPARED.replace("CAPABILITY", str(capability)) + checks
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ImportError, match="pip install kernels"):
        register()
    monkeypatch.delitem(sys.modules, "kernels")
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(
        ImportError, match=f"finds {re.escape(str(ROOT / 'kernels'))}.*, which is not the kernels package"
    ):
        register()
    del sys.modules["kernels"]
