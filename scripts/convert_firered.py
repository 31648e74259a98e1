"""Convert a downloaded FireRedTTS-2 directory to safetensors, once, or make one of random weights.

    python -m scripts.convert_firered SOURCE TARGET             what the engine needs: LLM as bf16, codec as fp32
    python -m scripts.convert_firered SOURCE SOURCE             the same, beside the originals
    python -m scripts.convert_firered SOURCE TARGET --variant both --dtype fp32
    python -m scripts.convert_firered SOURCE TARGET --verify    compare every tensor with the original as well
    python -m scripts.convert_firered --random tiny TARGET      a model of noise in upstream's format (7 MB), for tests
    python -m scripts.convert_firered --random full TARGET      full size, as converted safetensors, for timing

SOURCE holds config_llm.json, config_codec.json, llm_posttrain.pt (dialogue) or llm_pretrain.pt (monologue), codec.pt
and the tokenizer folder Qwen2.5-1.5B. The .pt files are pickles: they are opened so that no code in them can run. Each
file appears in TARGET only when it is whole; running the command again goes on with what is missing.
Exit status: 0 all there, 1 something could not be used or written, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from firered.checkpoint import LLM_STEMS, Variant
from firered.conversion import convert, parts_of
from firered.errors import CheckpointError
from firered.random_checkpoint import write_random_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    options = _parse(arguments)
    try:
        if options.random:
            _write_random(options)
        else:
            _convert(options)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        sys.stderr.write(f"{error.filename or options.target}: {reason}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Files that were whole stay; run the same command again for the rest.\n")
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.convert_firered",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="SOURCE TARGET", help="with --random only TARGET")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help="of the language model (bf16)")
    parser.add_argument("--codec-dtype", choices=["fp32", "fp16"], default="fp32", help="of the codec (fp32)")
    parser.add_argument("--variant", choices=[*LLM_STEMS, "both"], default="dialogue", help="which language model")
    parser.add_argument("--random", choices=["tiny", "full"], help="write random weights into TARGET")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--verify", action="store_true", help="compare every converted tensor with the original")
    options = parser.parse_args(arguments)
    if len(options.paths) != (1 if options.random else 2):
        parser.error("--random takes one path, TARGET" if options.random else "two paths are needed: SOURCE TARGET")
    options.target = options.paths[-1].expanduser()
    return options


def _variants(options: argparse.Namespace) -> tuple[Variant, ...]:
    return tuple(LLM_STEMS) if options.variant == "both" else (options.variant,)


def _convert(options: argparse.Namespace) -> None:
    source = options.paths[0].expanduser()
    parts = parts_of(source, _variants(options), options.dtype, options.codec_dtype)
    convert(source, options.target, parts, _say, verify=options.verify)
    _say(f"{options.target} is ready.")


def _write_random(options: argparse.Namespace) -> None:
    write_random_checkpoint(
        options.target,
        options.random,
        seed=options.seed,
        variants=_variants(options),
        llm_dtype_name=options.dtype,
        codec_dtype_name=options.codec_dtype,
        say=_say,
    )
    kind = "upstream's format" if options.random == "tiny" else "converted safetensors"
    _say(f"{options.target} is ready: {options.random} random weights (seed {options.seed}) in {kind}.")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
