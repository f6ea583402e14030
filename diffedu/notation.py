"""The notation of the whole course, as one table: prose, code and figures use it.

docs/notation.md is made from here, so that the page and `diffedu.notation()` agree.
"""

from __future__ import annotations

from typing import NamedTuple


class Symbol(NamedTuple):
    """One row: how it is written, its name in code, and what it means."""

    maths: str
    plain: str
    code: str
    meaning: str


TABLE: dict[str, list[Symbol]] = {
    "Time and the path": [
        Symbol("t", "t", "t", "in [0, 1]; 0 is data, 1 is noise; shape (B,) or ()"),
        Symbol("s", "s", "s", "the time a step goes to, s < t"),
        Symbol("x_0", "x_0", "x0", "data; images are (B, C, H, W) in [-1, 1]"),
        Symbol(r"\varepsilon", "eps", "eps", "standard Gaussian noise, shaped like x0"),
        Symbol("x_t", "x_t", "x", "data with noise: alpha x0 + sigma eps"),
        Symbol(r"\alpha_t", "alpha", "alpha", "what is left of the data at time t"),
        Symbol(r"\sigma_t", "sigma", "sigma", "standard deviation of the noise"),
        Symbol(
            r"\dot\alpha_t, \dot\sigma_t",
            "alpha', sigma'",
            "rates",
            "their derivatives in t",
        ),
        Symbol(
            r"\mathrm{snr}_t",
            "snr",
            "snr",
            "signal-to-noise ratio alpha^2 / sigma^2, a ratio of powers",
        ),
        Symbol(r"\log\mathrm{snr}_t", "log snr", "log_snr", "its natural logarithm"),
        Symbol(r"\lambda_t", "lambda", "lambda_", "log_snr / 2, DPM-Solver's variable"),
    ],
    "The discrete chain": [
        Symbol("T", "T", "steps", "number of steps of the chain"),
        Symbol("k", "k", "k", "index 0 to T - 1; the papers' t is k + 1"),
        Symbol(r"\beta_k", "beta", "betas", "variance of the noise added by step k"),
        Symbol(
            r"\bar\alpha_k",
            "alpha_bar",
            "alpha_bar",
            "alpha^2 after step k, the product of all 1 - beta up to and with k",
        ),
        Symbol(
            r"\tilde\beta_k",
            "beta~",
            "posterior_variance",
            "variance of q(x_{k-1} | x_k, x_0)",
        ),
        Symbol("q", "q", "", "distributions of the noising process"),
        Symbol(r"p_\theta", "p", "", "distributions of the learned, reversed process"),
    ],
    "What a denoiser says": [
        Symbol(r"\hat x_0", "x0^", "out.x0", "estimate of x0, at best E[x0 | x_t]"),
        Symbol(r"\hat\varepsilon", "eps^", "out.eps", "estimate of the noise"),
        Symbol("v", "v", "out.v", "alpha eps - sigma x0 and nothing else"),
        Symbol(r"F_\theta", "F", "out.value", "raw answer of EDM's scaled network"),
        Symbol(
            r"s_\theta(x, t)",
            "score",
            "out.score",
            "gradient of log q(x_t) in x, -eps / sigma",
        ),
        Symbol(
            r"u_\theta(x, t)",
            "velocity",
            "out.velocity",
            "dx/dt = alpha' x0 + sigma' eps along the path",
        ),
        Symbol(r"E_\theta(x)", "E", "energy", "energy: the score is -grad E"),
    ],
    "Losses": [
        Symbol(
            r"L_\mathrm{simple}", "L_simple", '"simple"', "squared error, unweighted"
        ),
        Symbol(
            r"L_\mathrm{vlb}",
            "L_vlb",
            "bound",
            "variational bound, in bits per dimension unless nats are named",
        ),
        Symbol(r"w(t)", "w", "weighting", "weight of the squared error of x0"),
        Symbol(r"\mathrm{KL}", "KL", "kl", "Kullback-Leibler divergence, in nats"),
    ],
    "Flows": [
        Symbol("x_1", "x_1", "x1", "what stands at t = 1: noise, or a second data set"),
        Symbol("u_t(x)", "u", "velocity", "mean velocity of all pairs that pass x"),
        Symbol("S", "S", "straightness", "variance over time of a path's velocity"),
        Symbol(
            r"\gamma_t", "gamma", "gamma", "noise that an interpolant adds on the way"
        ),
    ],
    "Sampling": [
        Symbol(r"\eta", "eta", "eta", "0 is deterministic DDIM, 1 is ancestral"),
        Symbol("N", "N", "steps", "number of steps of a sampler"),
        Symbol(
            r"\mathrm{NFE}",
            "NFE",
            "nfe",
            "calls of the network for one sample",
        ),
        Symbol(r"\rho", "rho", "rho", "exponent of Karras spacing, 7 by default"),
        Symbol(
            r"\gamma",
            "gamma",
            "churn_growth",
            "share by which churn raises the noise level before a step",
        ),
        Symbol("z", "z", "noise", "fresh standard Gaussian noise of a step"),
        Symbol(r"\delta", "delta", "step", "size of a Langevin step"),
        Symbol(
            r"1 + w",
            "scale",
            "scale",
            "guidance: 0 unconditional, 1 conditional; papers' w is scale - 1",
        ),
    ],
    "SDE and ODE": [
        Symbol(
            "f, g",
            "f, g",
            "schedule.sde(t)",
            "drift and size of noise: dx = f x dt + g dw",
        ),
        Symbol("dw", "dw", "", "increment of Brownian motion, sqrt(dt) z"),
        Symbol(
            r"\kappa",
            "kappa",
            "kappa",
            "share of the noise on the way back: 1 SDE, 0 ODE",
        ),
        Symbol(r"\xi", "xi", "probes", "random probe of a trace, E[xi xi^T] = I"),
    ],
    "EDM's scalings, training levels and churn": [
        Symbol(
            r"c_\mathrm{skip}",
            "c_skip",
            "c_skip",
            "share of the noisy input that goes around the network",
        ),
        Symbol(
            r"c_\mathrm{out}",
            "c_out",
            "c_out",
            "factor of the network's answer F in x0^ = c_skip x + c_out F",
        ),
        Symbol(
            r"c_\mathrm{in}", "c_in", "c_in", "factor of the input: unit mean square"
        ),
        Symbol(
            r"c_\mathrm{noise}",
            "c_noise",
            "c_noise",
            "what the network is told of the level, ln(sigma) / 4",
        ),
        Symbol(
            r"\sigma_\mathrm{data}",
            "sigma_data",
            "sigma_data",
            "root mean square of the data, their mean not removed",
        ),
        Symbol(
            r"P_\mathrm{mean}, P_\mathrm{std}",
            "P_mean, P_std",
            "mean, std",
            "mean and deviation of ln(sigma) over the training levels",
        ),
        Symbol(
            r"S_\mathrm{churn}",
            "S_churn",
            "s_churn",
            "churn of a whole walk: gamma = min(S_churn / N, sqrt(2) - 1)",
        ),
        Symbol(
            r"S_\mathrm{tmin}, S_\mathrm{tmax}",
            "S_tmin, S_tmax",
            "s_tmin, s_tmax",
            "the levels sigma between which there is churn",
        ),
        Symbol(
            r"S_\mathrm{noise}",
            "S_noise",
            "s_noise",
            "factor of the noise that churn adds; 1 is exact",
        ),
    ],
    "Shapes": [
        Symbol("B", "B", "B", "samples in a batch"),
        Symbol("D", "D", "D", "dimensions of a vector"),
        Symbol("C, H, W", "C, H, W", "C, H, W", "channels, height, width of an image"),
        Symbol("K", "K", "K", "components of a mixture, or classes"),
    ],
}


def notation() -> None:
    """Print the notation table."""
    for title, rows in TABLE.items():
        print(title)
        for row in rows:
            print(f"  {row.plain:15s} {row.code:19s} {row.meaning}")
        print()


def markdown() -> str:
    """The notation table as the page docs/notation.md."""
    lines = [
        "# Notation",
        "",
        "One letter means one thing, in prose, code and figures. "
        "`diffedu.notation()` prints this table.",
        "Time runs from 0 (data) to 1 (noise); sampling walks from 1 to 0.",
        "",
        "<!-- made by `diffedu notation --markdown`; edit diffedu/notation.py -->",
    ]
    for title, rows in TABLE.items():
        lines += ["", f"## {title}", "", "| maths | code | meaning |", "|---|---|---|"]
        lines += [_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _row(row: Symbol) -> str:
    """One row of the page; a bar inside a cell is written so that it stays there."""
    code = f"`{row.code}`" if row.code else ""
    meaning = row.meaning.replace("|", r"\|")
    return f"| ${row.maths}$ | {code} | {meaning} |"
