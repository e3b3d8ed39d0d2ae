"""One thread: these networks are too small to share among several."""

import torch

torch.set_num_threads(1)
