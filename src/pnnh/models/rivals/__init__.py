"""Other people's deep nets without shortcuts on the CIFAR skeleton, each as its paper says; one idea per file.

DiracNet   every kernel is a Dirac plus a normalised kernel                  Zagoruyko & Komodakis 2017
RepVgg     three branches per layer while training, one convolution after    Ding et al. 2021
IsoNet     Dirac start, shifted ReLU, orthogonality penalty, no norm         Qi et al. 2020
TatNet     leaky ReLU with the slope that fits the depth, no norm            Zhang, Botev, Martens 2022
"""

from pnnh.models.rivals.diracnet import DiracNet
from pnnh.models.rivals.isonet import IsoNet
from pnnh.models.rivals.repvgg import RepVgg
from pnnh.models.rivals.tat import TatNet

__all__ = ["DiracNet", "IsoNet", "RepVgg", "TatNet"]
