"""The parity suite: ops and models of this installation, held to oracles on the machine it runs on.

    fastspeech parity [--device cuda] [--op NAME] [--model NAME] [--junit FILE]
    pytest --pyargs fastspeech.parity

Every op is checked in every dtype it claims, by every implementation the device can run, against the float64
reference; random models against their float64 results on the CPU and against transformers, where it is installed.
"""

from fastspeech.parity.result import Fault, Result
from fastspeech.parity.run import Unit, run, units

__all__ = ["Fault", "Result", "Unit", "run", "units"]
