"""Bundled models and the problems they were trained on, so that everything in `tts` runs offline and within seconds."""

from pathlib import Path

HOME = Path(__file__).parent / "models"

MODELS = {name: HOME / name for name in ("arith-policy", "arith-prm", "arith-prm-response")}
"""Names and folders of the bundled models; a name is accepted wherever a folder or a hub id is."""

POLICY, PRM = "arith-policy", "arith-prm"
"""Names of the default policy and reward model."""
