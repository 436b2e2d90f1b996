"""Bundled models and the tiny world they reason about: everything `tts` does, offline and within seconds."""

from pathlib import Path

HOME = Path(__file__).parent / "models"

MODELS = {name: HOME / name for name in ("arith-policy", "arith-prm", "arith-prm-response")}
"""Bundled model names, usable wherever a folder or a hub id is."""

POLICY, PRM = "arith-policy", "arith-prm"
"""The policy and the reward model that are used where no other is named."""
