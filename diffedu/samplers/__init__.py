"""Walks from noise to data, all of them down one list of times."""

from diffedu.samplers.churn import churn_growth, edm_stochastic
from diffedu.samplers.deterministic import (
    ddim,
    ddim_invert,
    ddim_step,
    dpm_solver_2,
    dpm_solver_pp_2m,
    euler,
    heun,
)
from diffedu.samplers.fewstep import consistency
from diffedu.samplers.grid import SPACINGS, time_grid
from diffedu.samplers.multistep import dpm_solver_pp_3m
from diffedu.samplers.stochastic import (
    ancestral,
    annealed_langevin,
    euler_maruyama,
    predictor_corrector,
)
from diffedu.samplers.walk import Step, walk

SAMPLERS = {
    function.__name__: function
    for function in (
        ancestral,
        ddim,
        euler,
        heun,
        dpm_solver_2,
        dpm_solver_pp_2m,
        dpm_solver_pp_3m,
        euler_maruyama,
        predictor_corrector,
        annealed_langevin,
        edm_stochastic,
    )
}

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "Step",
    "ancestral",
    "annealed_langevin",
    "churn_growth",
    "consistency",
    "ddim",
    "ddim_invert",
    "ddim_step",
    "dpm_solver_2",
    "dpm_solver_pp_2m",
    "edm_stochastic",
    "dpm_solver_pp_3m",
    "euler",
    "euler_maruyama",
    "heun",
    "predictor_corrector",
    "time_grid",
    "walk",
]
