"""Shim: The published torchvision wheel is linked to CUDA and will not load beside a
CPU torch; sglang only touches it for image models."""

__version__ = "0.28.0"
