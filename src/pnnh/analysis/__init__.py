"""Diagnose dissipating inputs in any model: `diagnose(model, images) -> Dissipation`."""

from pnnh.analysis.decoder import Decoder
from pnnh.analysis.dissipation import Dissipation, Layer, diagnose
from pnnh.analysis.dists import Dists, load_dists
from pnnh.analysis.probe import Call, probe

__all__ = ["Call", "Decoder", "Dissipation", "Dists", "Layer", "diagnose", "load_dists", "probe"]
