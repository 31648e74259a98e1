"""llama.cpp's own HTTP server with the CPU profile's model, as a process of its own on a loopback port."""

from __future__ import annotations

import atexit
import subprocess
import sys
from functools import cache
from pathlib import Path

from pipeline.engines.llm_llamacpp import MODEL_IDS, PROMPT_BATCH
from pipeline.models import locate

ROOT = Path(__file__).resolve().parents[2]
KEY = "key-of-the-contract"
PROGRAM = """
import sys
import xllamacpp

weights, model, key, n_slots, window, batch = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = weights
parameters.model_alias = {model}
parameters.hostnames, parameters.port, parameters.api_keys = ["127.0.0.1"], 0, [key]
parameters.ui, parameters.offline, parameters.fit_params, parameters.verbosity = False, True, False, -1
parameters.n_parallel, parameters.n_ctx = int(n_slots), int(window) * int(n_slots)
parameters.n_batch = parameters.n_ubatch = int(batch)
parameters.cache_ram_mib, parameters.n_gpu_layers = 256, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@cache
def llama_server(models_dir: Path, *, n_slots: int = 4, window: int = 4096) -> str:
    """Its base URL; it lives until the tests end. `ConfigError` where the model is missing."""
    model = MODEL_IDS["local"]
    weights = next(locate(models_dir, model).glob("*.gguf"))
    command = [sys.executable, "-c", PROGRAM, str(weights), model, KEY, str(n_slots), str(window), str(PROMPT_BATCH)]
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(server.kill)
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("http"):
            return f"{line.strip()}/v1"
    raise AssertionError("llama.cpp's server did not start")
