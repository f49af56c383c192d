"""Tensors of a GPU that wait on the host until a backward pass wants them, in the reverse order."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class Host:
    """Pinned buffers for one device, kept from pass to pass, and the stream of the copies.

    Page-locking takes longer than the copies do: about a second for 2 GB. All copies to and from
    the buffers are on one stream, so a buffer may be given to the next tensor while the last copy
    from it is still under way.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._idle: dict[int, list[Tensor]] = defaultdict(list)

    def take(self, size: int) -> Tensor:
        """A buffer of so many bytes."""
        idle = self._idle[size]
        return idle.pop() if idle else allocate(size, pinned=self.stream is not None)

    def give(self, buffer: Tensor) -> None:
        self._idle[buffer.nbytes].append(buffer)


def allocate(size: int, *, pinned: bool) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


_hosts: dict[torch.device, Host] = {}


def wait_on_host(x: Tensor, before: Waiting | None) -> Waiting:
    """`x`, copied to the host beside the device's work.

    Args:
        before: what waits longer: it will be wanted after `x`.
    """
    if x.device not in _hosts:
        _hosts[x.device] = Host(x.device)
    return Waiting(x.detach(), _hosts[x.device], before)


class Waiting:
    """One tensor on the host. Its buffer serves again when the graph lets go of it.

    Memory of the device is taken and left in the order of its own stream, which waits for the
    copies; were the allocator told of the second stream instead, nothing would be free before the
    copies are done, and a host that runs ahead would fill the device.
    """

    def __init__(self, x: Tensor, host: Host, before: Waiting | None) -> None:
        self._host, self._before = host, before
        if before is not None:
            before._leave()
        self._buffer = host.take(x.nbytes)
        self._there = self._buffer.view(x.dtype).view(x.shape)
        # Until the next one comes: then it is on the host.
        self._here: Tensor | None = x
        self._done = self._copy(self._there, x)

    def back(self) -> Tensor:
        """On the device again; what is wanted next is fetched meanwhile."""
        self._fetch()
        x, self._here = self._here, None
        assert x is not None
        self._wait()
        if self._before is not None:
            self._before._fetch()
        return x

    def _leave(self) -> None:
        self._wait()
        self._here = None

    def _fetch(self) -> None:
        if self._here is None:
            self._here = torch.empty_like(self._there, device=self._host.device)
            self._done = self._copy(self._here, self._there)

    def _copy(self, to: Tensor, source: Tensor) -> Any:
        """After what the device has been told so far; the event says that it is done."""
        stream = self._host.stream
        if stream is None:
            to.copy_(source)
            return None
        stream.wait_stream(torch.cuda.current_stream(self._host.device))
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
        return stream.record_event()

    def _wait(self) -> None:
        """The device's own stream goes on when the last copy is done."""
        if self._done is not None:
            torch.cuda.current_stream(self._host.device).wait_event(self._done)
            self._done = None

    def __del__(self) -> None:
        # A graph that was dropped before its backward pass: nobody may have this memory yet.
        if getattr(self, "_done", None) is not None:
            self._done.synchronize()
        if hasattr(self, "_buffer"):  # None was to be had
            self._host.give(self._buffer)
