"""Colours: the same thing has the same one in every chapter.

The palette is Okabe and Ito's, made for colour-blind readers, with a grey and a brown.
"""

from __future__ import annotations

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, BROWN = "#767676", "#6B4226"

# Names within one group stand in one figure together, so their colours differ.
GROUPS: dict[str, dict[str, str]] = {
    "samplers": {
        "ancestral": VERMILION,
        "ddim": BLUE,
        "euler": SKY,
        "heun": GREEN,
        "dpm_solver_2": PURPLE,
        "dpm_solver_pp_2m": ORANGE,
        "dpm_solver_pp_3m": BLACK,
        "euler_maruyama": GREY,
        "predictor_corrector": BROWN,
    },
    "churn": {
        "edm_stochastic": VERMILION,
        "heun": GREEN,
        "dpm_solver_2": PURPLE,
        "truth": BLACK,
    },
    "langevin": {
        "langevin": ORANGE,
        "annealed_langevin": PURPLE,
        "mala": GREEN,
        "truth": BLACK,
    },
    "few_steps": {
        "ddim": BLUE,
        "progressive": VERMILION,
        "consistency_training": GREEN,
        "consistency_distillation": PURPLE,
        "truth": BLACK,
    },
    "sources": {
        "data": GREY,
        "noise": SKY,
        "truth": BLACK,
        "learned": VERMILION,
        "untrained": ORANGE,
        "empirical": PURPLE,
    },
    "schedules": {
        "linear": BLUE,
        "cosine": VERMILION,
        "sigmoid": GREEN,
        "log_linear": ORANGE,
        "ve": PURPLE,
        "edm": SKY,
        "flow": BLACK,
        "sub_vp": BROWN,
    },
    "predictions": {
        "eps": BLUE,
        "x0": VERMILION,
        "v": GREEN,
        "score": PURPLE,
        "velocity": ORANGE,
        "edm": SKY,
    },
    "losses": {
        "simple": BLUE,
        "vlb": VERMILION,
        "hybrid": GREEN,
        "esm": BLACK,
        "ism": PURPLE,
        "dsm": SKY,
        "ssm": ORANGE,
    },
    "families": {
        "vae": ORANGE,
        "realnvp": BLUE,
        "gan": PURPLE,
        "energy": GREEN,
        "diffusion": VERMILION,
        "truth": BLACK,
    },
    "classes": {
        "0": BLUE,
        "1": VERMILION,
        "2": GREEN,
        "3": PURPLE,
        "4": ORANGE,
        "5": SKY,
        "6": BLACK,
        "7": GREY,
        "8": BROWN,
        "9": YELLOW,
    },
}
COLOURS: dict[str, str] = {k: c for group in GROUPS.values() for k, c in group.items()}
COLOURS["ddpm"] = COLOURS["ancestral"]
