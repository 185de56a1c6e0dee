"""What a process pays for before its first network is loaded."""

import subprocess
import sys

PROBE = """
import sys
from torch import nn
from safelight.checkpoint.build import on_meta

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer, self.filter = nn.Embedding(4, 8), nn.Linear(8, 8), nn.Conv2d(8, 8, 3)
        self.position = nn.Parameter(nn.init.normal_(nn.Linear(2, 2).weight))

net = on_meta(Net)
assert all(p.is_meta for p in net.parameters()) and net.table.weight.shape == (4, 8)
print(*sorted({name for name in sys.modules} & {"torch._dynamo", "sympy"}))
"""


def test_a_network_without_memory_is_not_filled_and_brings_no_compiler():
    told = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert told.stderr == "" and told.stdout.split() == [], told
