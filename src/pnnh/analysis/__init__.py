"""Diagnose dissipating inputs in any model: `diagnose(model, images) -> Dissipation`."""

from pnnh.analysis.decoder import Decoder
from pnnh.analysis.dissipation import Dissipation, Layer, diagnose
from pnnh.analysis.dists import Dists, load_dists
from pnnh.analysis.probe import Call, probe
from pnnh.analysis.watch import Watch, Watched, watch

__all__ = [
    "Call",
    "Decoder",
    "Dissipation",
    "Dists",
    "Layer",
    "Watch",
    "Watched",
    "diagnose",
    "load_dists",
    "probe",
    "watch",
]
