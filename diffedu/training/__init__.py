"""Training: one generator loop that averages, resumes, captures and shares.

`for state in training.fit(modules, loss_fn, batches): ...`
"""

from diffedu.training.data import Batches, batches
from diffedu.training.devices import best_device
from diffedu.training.files import load, save
from diffedu.training.loop import fit
from diffedu.training.optimise import EMA
from diffedu.training.options import State

__all__ = ["EMA", "Batches", "State", "batches", "best_device", "fit", "load", "save"]
