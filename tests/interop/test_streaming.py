"""Memory while weights stream: at most twice the largest shard above where it was after the imports."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from interop_models import FAMILIES

from isoflop.interop.formats import derived_format
from isoflop.interop.layout import INDEX, layout
from isoflop.interop.tensors import TensorWriter
from isoflop.model.config import ExpertConfig, LatentConfig
from isoflop.recipe import write_recipe
from isoflop.training import checkpoint

SHARD_MIB = 16
BIG = replace(
    FAMILIES["v3"],
    d_model=512,
    n_heads=8,
    n_kv_heads=8,
    d_head=64,
    d_ff=2048,
    vocab_size=4096,
    latent=LatentConfig(128, 48, 16, 48, 192),
    experts=ExpertConfig(32, 4, 256, n_groups=4, n_groups_kept=2, routed_scale=2.5),
)

WORK = """
import sys
from pathlib import Path
from isoflop.interop.export_hf import export_run
from isoflop.interop.import_hf import import_folder

def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024

source, out = Path(sys.argv[2]), Path(sys.argv[3])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
if sys.argv[1] == "import":
    import_folder(source, out)
else:
    export_run(source, out, shard_mib=int(sys.argv[4]), fp8=sys.argv[1] == "fp8", parity=False)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def big_run(tmp_path_factory):
    """About 200 MiB of weights, in matrices up to the size of all experts of a layer: 32 MiB."""
    run = tmp_path_factory.mktemp("big") / "run"

    def write(path):
        targets = [target for target in layout(BIG, derived_format(BIG)) if target.name]
        generator = torch.Generator().manual_seed(0)
        with TensorWriter(path, {t.name: (torch.float32, t.shape) for t in targets}, {}) as writer:
            for target in targets:
                for piece in target.pieces:
                    writer.write(torch.randn(piece.shape, generator=generator).mul_(0.02), target.name)
        return writer.sha256

    checkpoint.adopt(run / "checkpoints", write, state={})
    write_recipe(run / "recipe.toml", {"model": BIG})
    return run


def growth(kind, source, out):
    done = subprocess.run(
        [sys.executable, "-c", WORK, kind, str(source), str(out), str(SHARD_MIB)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["export", "fp8"])
def test_memory_grows_by_at_most_twice_the_largest_shard(big_run, tmp_path, kind):
    out_growth = growth(kind, big_run, tmp_path / "out")
    shards = sorted(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    total = json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]["total_size"]
    assert len(shards) >= 5 and total > 4 * shards[-1] and shards[-1] <= (SHARD_MIB << 20) + 200_000
    assert out_growth <= 2 * shards[-1], f"{out_growth >> 20} MiB for shards of {shards[-1] >> 20} MiB"
    in_growth = growth("import", tmp_path / "out", tmp_path / "back")
    assert in_growth <= 2 * shards[-1], f"{in_growth >> 20} MiB for shards of {shards[-1] >> 20} MiB"
