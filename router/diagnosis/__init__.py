"""Why a prompt's beginning was not found in a cache: where it parts from the prompt before it, and
what else kept its tokens from being reused.

`Diagnoser` is the room's face. It keeps fingerprints of prompts, never their text.
"""

from router.diagnosis.diagnoser import Diagnoser
from router.diagnosis.verdict import REASONS, Diagnosis

__all__ = ["REASONS", "Diagnoser", "Diagnosis"]
