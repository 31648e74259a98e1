"""`python -m serverless.client COMMAND`: the client's methods as commands, and a demonstration of the whole way."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from serverless.client import Client, ClientError

KEY_VARIABLE = "RUNPOD_API_KEY"
START_S, LOOK_S = 30.0, 0.5
FORMATS = ("srt", "vtt", "csv", "json", "ass")
TEXT = """\
The lighthouse keeper climbed the stairs at dusk, as he had done every evening for thirty years. From the gallery he \
could see the whole bay, and the small boats hurrying home before the rain.

When the lamp was lit, he sat down and opened his book. Nobody knew how many stories he had read up there, or how \
often he had stopped to listen to the sea."""
# What F5-TTS's package brings as an example.
EXAMPLE_TEXT = "Some call me nature, others call me mother nature."


def main(argv: Sequence[str]) -> int:
    """0; 1 with the reason on stderr; 130 after Ctrl-C, which leaves the job as it is."""
    options = _parser().parse_args(argv)
    try:
        with Client(options.url, api_key=os.environ.get(KEY_VARIABLE) or None) as client:
            options.act(client, options)
    except (ClientError, OSError, ValueError) as error:
        _say(f"client: {error}", sys.stderr)
        for field in getattr(error, "errors", []):
            _say(f"  {field.get('field')}: {field.get('message')}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("client: stopped; a job that was sent goes on", sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serverless.client", description=f"Calls the worker. The API key comes from {KEY_VARIABLE}."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Any, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument(
            "--url", required=True, help="of the endpoint: https://api.runpod.ai/v2/ENDPOINT, or the local one"
        )
        one.set_defaults(act=act)
        return one

    demo = command("demo", _demo, "Upload a voice, synthesize with word times in all formats, download everything.")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="directory for the files")
    demo.add_argument("--voice", type=Path, help="reference voice; else the example of the package f5-tts")
    demo.add_argument("--ref-text", help="what is said in it")
    demo.add_argument("--text", default=TEXT)
    demo.add_argument("--timing-method", default="auto")
    demo.add_argument("--nfe-step", type=int)
    demo.add_argument("--timeout", type=float, default=600.0, help="seconds for each job")
    run = command("run", _run, "Run one job and print its output.")
    run.add_argument("input", help="""JSON, such as '{"text": "Hello."}'""")
    run.add_argument("--timeout", type=float, default=600.0)
    upload = command("upload", _upload, "Store a reference voice.")
    upload.add_argument("name")
    upload.add_argument("file", type=Path)
    upload.add_argument("--ref-text")
    upload.add_argument("--consent", action="store_true", help="the speaker agreed to be cloned")
    upload.add_argument("--overwrite", action="store_true")
    for name, text in (("status", "Print what RunPod knows of a job."), ("cancel", "Stop a job.")):
        command(name, _status if name == "status" else _cancel, text).add_argument("job")
    command("health", _health, "Print the numbers of jobs and workers.")
    return parser


def _say(text: str, stream: TextIO | None = None) -> None:
    """What a server said is no command to the terminal."""
    safe = (letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)
    print("".join(safe), file=stream)


def _show(value: object) -> None:
    _say(json.dumps(value, indent=2, ensure_ascii=False))


def _run(client: Client, options: argparse.Namespace) -> None:
    job_input = json.loads(options.input)
    if not isinstance(job_input, dict):
        raise ClientError("the input is no JSON object")
    _show(client.wait(client.run(job_input), timeout_s=options.timeout))


def _upload(client: Client, options: argparse.Namespace) -> None:
    text = {"ref_text": options.ref_text} if options.ref_text else {}
    audio = options.file.read_bytes()
    _show(client.upload_voice(options.name, audio, consent=options.consent, overwrite=options.overwrite, **text))


def _status(client: Client, options: argparse.Namespace) -> None:
    _show(client.status(options.job))


def _cancel(client: Client, options: argparse.Namespace) -> None:
    _say(client.cancel(options.job))


def _health(client: Client, options: argparse.Namespace) -> None:
    _show(client.health())


def _example_voice() -> Path:
    spec = importlib.util.find_spec("f5_tts")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "infer" / "examples" / "basic" / "basic_ref_en.wav"
        if path.is_file():
            return path
    raise ClientError("the package f5-tts is not here; name a voice with --voice and --ref-text")


def _until_it_answers(client: Client) -> None:
    """Both commands may be started at once: the server needs some seconds."""
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            client.health()
            return
        except ClientError as error:
            if error.status is not None or time.monotonic() > deadline_s:
                raise
        time.sleep(LOOK_S)


def _demo(client: Client, options: argparse.Namespace) -> None:
    if options.voice and not options.ref_text:
        raise ClientError("--voice needs --ref-text: what is said in it")
    voice, ref_text = (options.voice, options.ref_text) if options.voice else (_example_voice(), EXAMPLE_TEXT)
    options.out.mkdir(parents=True, exist_ok=True)
    _until_it_answers(client)
    print(f"uploading {voice.name} as demo ...")
    stored = client.upload_voice(
        "demo", voice.read_bytes(), consent=True, overwrite=True, ref_text=ref_text, timeout_s=options.timeout
    )
    _say(f"  {stored.get('status', 'stored')}")
    wish = {
        "text": options.text,
        "local_voice": "demo",
        "return_word_timings": True,
        "timing_method": options.timing_method,
        "timing_format": list(FORMATS),
        **({"nfe_step": options.nfe_step} if options.nfe_step else {}),
    }
    job_id = client.run(wish)
    _say(f"job {job_id}")
    output = client.wait(job_id, timeout_s=options.timeout, progress=_Progress())
    files = output.get("timing_files")
    of_words = files if isinstance(files, dict) else {}
    urls = {"speech.wav": output.get("audio_url")}
    urls |= {f"speech.words.{suffix}": of_words.get(suffix) for suffix in FORMATS}
    for name, url in urls.items():
        if not isinstance(url, str):
            raise ClientError(
                f"the answer has no URL for {name}: {output.get('timing_error') or 'it does not say why'}"
            )
        size = client.download(url, options.out / name)
        print(f"  {options.out / name}  {size:,} bytes")
    _say(
        f"{output.get('duration')} s of speech, {output.get('word_count')} words timed by "
        f"{output.get('timing_method_used')}, coverage {output.get('coverage')}"
    )


class _Progress:
    """A line whenever something is new."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, answer: dict[str, Any]) -> None:
        report = answer.get("output")
        told = " ".join(f"{name}={value}" for name, value in report.items()) if isinstance(report, dict) else ""
        line = f"  {answer['status']} {told}".rstrip()
        if line != self._last:
            _say(line)
            self._last = line
