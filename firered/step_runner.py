"""Runs one frame of a batch (language model, then codec) on the device and brings the result to the host.

On an NVIDIA card a frame is two CUDA graphs, captured once per bucket of batch size and cache length, and the results
come back by asynchronous copies into pinned memory, so that the next frame is launched before this one is read. Without
a card, or with graphs switched off, the same code runs as it stands: the eager path is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from firered.codec_decoder import CodecDecoder, DecoderState
    from firered.language_model import LanguageModel, SlotState

# Batch sizes that have a graph; between two of them the rest of the batch is computed and thrown away.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
# Cache lengths that have a graph: attention reads a whole bucket. Powers of two waste at most half of a read that is
# small beside the weights (28.7 kB a row against 8.4 GB a frame at full size).
ROW_BUCKETS = (128, 256, 512, 1024, 2048, 4096)
TOKEN_BUCKETS = (32, 64, 128, 256, 512)
# Without graphs a shape costs nothing, so the cache is read to the next multiple of this.
_EAGER_STEP = 64


class Frame(Protocol):
    """A frame that was launched."""

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Waits for it: codes (B, n_codebooks) and samples (B, 2280), see `CodecDecoder.step`.

        Samples that are not finite: the model or the codec has failed in that slot.
        """
        ...


class StepRunner:
    """Launches frames over the slots of a model and a decoder. For one thread."""

    def __init__(
        self,
        model: LanguageModel,
        decoder: CodecDecoder,
        state: SlotState,
        codec_state: DecoderState,
        *,
        max_tokens: int,
        graphs: bool,
    ) -> None:
        self._model, self._decoder, self._state, self._codec_state = model, decoder, state, codec_state
        self._n_slots, self._max_tokens = len(state.position), max_tokens
        self._device = model.device
        self._graphs = _Graphs() if graphs else None
        self._downloads = _PinnedDownloads() if self._device.type == "cuda" else None
        self._active = torch.zeros(self._n_slots, dtype=torch.bool, device=self._device)
        self._last_active: list[int] = []
        self._codes = torch.zeros(self._n_slots, model.config.n_codebooks, dtype=torch.int64, device=self._device)
        self._samples: dict[tuple[int, int], Tensor] = {}
        self._not_a_number = torch.zeros(self._n_slots, 1, device=self._device)  # NaN for such a slot, 0 for all others

    @property
    def asynchronous(self) -> bool:
        """Whether `launch` returns before the frame is computed, so that reading it one frame late gains time."""
        return self._downloads is not None

    def launch(self, active: Sequence[int], n_rows: int, n_tokens: int) -> Frame:
        """Computes a frame for the slots in `active`.

        Every active slot's cache holds fewer than `n_rows` rows, and its codec state fewer than `n_tokens` tokens.
        """
        n_batch = self._bucket(max(active) + 1, BATCH_BUCKETS, self._n_slots, 1)
        n_rows = self._bucket(n_rows, ROW_BUCKETS, self._state.capacity, _EAGER_STEP)
        n_tokens = self._bucket(n_tokens, TOKEN_BUCKETS, self._max_tokens, _EAGER_STEP)
        self._set_active(active)
        self._run(("frame", n_batch, n_rows), lambda: self._draw(n_batch, n_rows))
        self._run(("codec", n_batch, n_tokens), lambda: self._decode(n_batch, n_tokens))
        codes, samples = self._codes[:n_batch], self._samples[n_batch, n_tokens]
        if self._downloads is not None:
            return self._downloads.start(codes, samples)
        return _Finished(codes.numpy().copy(), samples.numpy())

    def capture_all(self) -> int:
        """Captures every graph that `launch` can need, so that no talk waits for one. Returns how many there are."""
        if self._graphs is None:
            return 0
        self._set_active([])
        for n_batch in _up_to(BATCH_BUCKETS, self._n_slots):
            for n_rows in _up_to(ROW_BUCKETS, self._state.capacity):
                self._run(("frame", n_batch, n_rows), lambda b=n_batch, n=n_rows: self._draw(b, n))  # type: ignore[misc]
            for n_tokens in _up_to(TOKEN_BUCKETS, self._max_tokens):
                self._run(("codec", n_batch, n_tokens), lambda b=n_batch, n=n_tokens: self._decode(b, n))  # type: ignore[misc]
        return len(self._graphs)

    def _draw(self, n_batch: int, n_rows: int) -> None:
        # The code drawn from logits that are NaN is 0 in every codebook: without this mark it were the end of speech.
        self._not_a_number[:n_batch] = self._state.hidden[:n_batch].sum(-1, keepdim=True, dtype=torch.float32) * 0.0
        self._codes[:n_batch] = self._model.frame(self._state, self._active[:n_batch], n_rows)

    def _decode(self, n_batch: int, n_tokens: int) -> None:
        active = self._active[:n_batch]
        samples = self._decoder.step(self._codes[:n_batch], self._codec_state, active, n_tokens)  # (B, 2280)
        samples = samples + self._not_a_number[:n_batch]
        self._samples[n_batch, n_tokens] = samples  # under a graph: the tensor that every replay writes

    def _run(self, key: tuple[str, int, int], work: Callable[[], None]) -> None:
        if self._graphs is None:
            work()
        else:
            self._graphs.run(key, work, self._active)

    def _bucket(self, n: int, buckets: Sequence[int], largest: int, eager_step: int) -> int:
        """The smallest bucket that holds n."""
        if self._graphs is None:
            return min(-(-n // eager_step) * eager_step, largest)
        return next(size for size in _up_to(buckets, largest) if size >= n)

    def _set_active(self, active: Sequence[int]) -> None:
        if active == self._last_active:
            return
        self._last_active = list(active)
        flags = torch.zeros(self._n_slots, dtype=torch.bool)
        flags[list(active)] = True
        if self._downloads is not None:
            flags = flags.pin_memory()
        self._active.copy_(flags, non_blocking=True)


def _up_to(buckets: Sequence[int], largest: int) -> list[int]:
    """The buckets below `largest`, and `largest` itself."""
    return [*(size for size in buckets if size < largest), largest]


class _Finished:
    """A frame whose result lies in host memory already."""

    def __init__(self, codes: NDArray[np.int64], samples: NDArray[np.float32]) -> None:
        self._result = codes, samples

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Codes and samples."""
        return self._result


class _PinnedDownloads:
    """Asynchronous copies to the host. Two buffers a shape: one is filled while the other is read."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        self._odd = False

    def start(self, codes: Tensor, samples: Tensor) -> _Download:
        """Copies codes (B, n_codebooks) and samples (B, 2280) once the work queued so far is done."""
        self._odd = not self._odd
        key = len(codes), self._odd
        if key not in self._buffers:
            self._buffers[key] = _pinned_like(codes), _pinned_like(samples)
        host_codes, host_samples = self._buffers[key]
        host_codes.copy_(codes, non_blocking=True)
        host_samples.copy_(samples, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        return _Download(done, host_codes, host_samples)


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


class _Download:
    """A copy under way."""

    def __init__(self, done: torch.cuda.Event, codes: Tensor, samples: Tensor) -> None:
        self._done, self._codes, self._samples = done, codes, samples

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Waits for this frame alone; frames launched later go on."""
        self._done.synchronize()
        return self._codes.numpy().copy(), self._samples.numpy().copy()


class _Graphs:
    """CUDA graphs by what they compute and for which shapes; they share one memory pool, as only one runs at a time."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[str, int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        # One stream of our own for all warm-ups and captures: the one that `torch.cuda.graph` takes by default is the
        # whole process's, on the card that was captured on first. cuBLAS keeps a workspace for each stream it has seen
        # (32 MB on an H100), and torch 2.13 drops a stream's when any graph captured on it dies (pytorch #193402).
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: tuple[str, int, int], work: Callable[[], None], active: Tensor) -> None:
        """Replays the graph of `work`, capturing it first where there is none."""
        if key not in self._graphs:
            self._graphs[key] = self._capture(work, active)
        self._graphs[key].replay()

    def _capture(self, work: Callable[[], None], active: Tensor) -> torch.cuda.CUDAGraph:
        """Runs `work` once with no slot active, which lets libraries set themselves up, then records it."""
        kept = active.clone()
        active.zero_()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other engines of the process may allocate while this thread records.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        active.copy_(kept)
        return graph
