"""RunPod's SDK, imported when it is needed.

While it is imported it asks for the name of the processor, which only its debugger shows: 1.3 of its 1.9 s. A stand-in
answers at once. Another one takes the place of paramiko, by which its command line reaches pods: a quarter of the rest.
"""

from __future__ import annotations

import platform
import threading
from types import ModuleType

from pipeline.engines.stand_in import in_place_of

_importing = threading.Lock()


def import_runpod() -> ModuleType:
    """The package `runpod`; at the first call it takes half a second."""
    processor = ModuleType("cpuinfo", "Stands in for py-cpuinfo.")
    processor.__dict__["get_cpu_info"] = lambda: {"brand_raw": platform.processor() or "unknown"}
    ssh = ModuleType("paramiko", "Stands in for paramiko.")
    with _importing, in_place_of(processor), in_place_of(ssh):
        import runpod
    module: ModuleType = runpod
    return module
