import os
import sys
from pathlib import Path

import torch

# The miniature, and what else the tests on trainers have in common.
sys.path.insert(0, str(Path(__file__).parent / "adapters"))

# The tensors here are small. On a machine that is busy, or shared, every operation of several
# threads waits for its last one, and the suite takes many times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
