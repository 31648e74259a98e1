"""What a chat model needs of transformers, imported without scipy, which only its losses for pictures use.

A stand-in takes scipy's name meanwhile and is gone afterwards. Importing this module imports none of them.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

from pipeline.engines.long_import import long_import
from pipeline.engines.stand_in import StandIn, in_place_of

_MODELLING: Final = "transformers.modeling_utils"  # every model imports it, and it all the rest


def import_modelling() -> None:
    """Import the part that takes the longest, once.

    No other thread may import scipy meanwhile: models are loaded one after the other.
    """
    if _MODELLING not in sys.modules:
        with long_import(), in_place_of(StandIn("scipy.optimize")):
            importlib.import_module(_MODELLING)
