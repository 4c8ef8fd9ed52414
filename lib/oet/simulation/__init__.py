"""A real Tango control system of simulated devices: for tests, rehearsals and `make interactive`.

    with Simulation() as simulation:
        subprocess.run([...], env={**os.environ, **simulation.environment})

It needs the extra `ska-oso-oet[tango]`. The process that starts it imports no Tango itself.
"""

from __future__ import annotations

from oet.simulation.system import Simulation, SimulationError

__all__ = ["Simulation", "SimulationError"]
