"""Diagnose dissipating inputs in any model: `diagnose(model, images) -> Dissipation`."""

from pnnh.analysis.decoder import Decoder
from pnnh.analysis.dissipation import Dissipation, Layer, Measure, diagnose
from pnnh.analysis.probe import Call, probe
from pnnh.analysis.watch import Watch, Watched, watch

__all__ = [
    "Call",
    "Decoder",
    "Dissipation",
    "Layer",
    "Measure",
    "Watch",
    "Watched",
    "diagnose",
    "probe",
    "watch",
]
