"""The program that speaks with Piper, run by the Python of Piper's own virtual environment; never imported.

Piper is GPL-3.0, so it lives in a process of its own and only text and audio cross the pipes. Arguments: model file,
threads. Then, for each JSON line on standard input `{"text": str, "length_scale": float}`, standard output gets one
JSON line and its PCM16 bytes per sentence, `{"n_bytes": int}`, and `{"n_bytes": 0}` at the end of the text. The first
line of all is `{"sample_rate": int}`, once the voice is loaded.
"""

import json
import sys

import onnxruntime
from piper import PiperVoice, SynthesisConfig  # type: ignore[import-not-found,unused-ignore]
from piper.config import PiperConfig  # type: ignore[import-not-found,unused-ignore]


def main(model: str, threads: str) -> None:
    """Serve standard input until it ends. A new process draws the same breaths and stresses again."""
    onnxruntime.set_seed(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other engines need the cores
    # To plan which of the many small steps share a buffer takes 2 s at each start and saves nothing: the arena does.
    options.enable_mem_reuse = False
    with open(f"{model}.json", encoding="utf-8") as file:
        config = PiperConfig.from_dict(json.load(file))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    voice = PiperVoice(session=session, config=config)
    out = sys.stdout.buffer

    def say(header: dict[str, int], data: bytes = b"") -> None:
        out.write(json.dumps(header).encode() + b"\n" + data)
        out.flush()

    say({"sample_rate": config.sample_rate})
    for line in sys.stdin:
        request = json.loads(line)
        for sentence in voice.synthesize(request["text"], SynthesisConfig(length_scale=request["length_scale"])):
            data = sentence.audio_int16_bytes
            if data:
                say({"n_bytes": len(data)}, data)
        say({"n_bytes": 0})


if __name__ == "__main__":
    main(*sys.argv[1:])
